"""Checkpoints: finding one, reading its config, filling a model from it, writing one that loads faster."""

from jaxllm.weights.directory import read_config, read_generation_config, resolve_model_path
from jaxllm.weights.load import load
from jaxllm.weights.orbax import save_orbax
from jaxllm.weights.sentence_transformers import SentenceTransformer, read_sentence_transformer

__all__ = [
    "SentenceTransformer",
    "load",
    "read_config",
    "read_generation_config",
    "read_sentence_transformer",
    "resolve_model_path",
    "save_orbax",
]
