"""Batch files in OpenAI's form, run through the server's own HTTP application, which listens nowhere then."""
