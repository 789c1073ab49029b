"""Measures the engine: throughput, latency, serving under load, start-up. Driven by `jaxllm bench`."""
