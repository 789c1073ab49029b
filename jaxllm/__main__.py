"""`python -m jaxllm`."""

from jaxllm.cli import main

main()
