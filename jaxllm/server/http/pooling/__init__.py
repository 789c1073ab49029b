"""Models that generate nothing: embeddings, classes, scores, rankings, plain numbers.

A request: reading.py (JSON to the inputs and parameters that it means) -> routes.py, which puts them to the engine side
by side -> answers.py (vectors and numbers to JSON).
"""
