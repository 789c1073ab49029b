"""The gRPC service: `Inference` and `Control` of protos/jaxllm/v1, health and reflection, in the engine's process."""
