"""OpenAI's Responses: conversations as lists of typed items, which the server keeps, so that a turn can name the last.

A request: reading.py (JSON to the chat that it means) and items.py (items to messages) -> events.py (chunks to output
items and their events) -> routes.py, with background.py for those that no client waits for, and store.py, which
keeps them, in memory and within bounds.
"""
