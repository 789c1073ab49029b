"""`python -m jaxllm.cli`."""

from jaxllm.cli import main

main()
