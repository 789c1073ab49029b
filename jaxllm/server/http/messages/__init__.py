"""Anthropic's Messages: turns made of typed blocks.

A request: reading.py (JSON to the chat that it means) -> events.py (chunks to content blocks and their events) ->
routes.py. Errors below this path have Anthropic's form (http/errors.py).
"""
