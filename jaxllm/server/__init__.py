"""The services: gRPC, the OpenAI HTTP front, text and metrics. Knows the engine's client; never imports JAX."""
