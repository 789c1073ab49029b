"""The OpenAI HTTP front: a process of its own that speaks HTTP to clients and one gRPC Session to the engine.

    python -m jaxllm.server.http --grpc 127.0.0.1:50051 --port 8000

A request: requests.py or chats.py (JSON to protocol buffers) -> link.py (the Session, shared by all) -> answers.py
(chunks to JSON or server-sent events) -> app.py's routes. JSON and sockets thus never hold the engine's interpreter
lock.
"""
