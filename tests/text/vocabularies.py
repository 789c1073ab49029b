"""Names of the tokenizers that the tests of this folder try."""

VECTORS = {
    "gpt2": "gpt-2",
    "falcon": "falcon",
    "phi-3-mini": "phi-3",
    "qwen3-8b": "qwen2",
    "bert-base-uncased": "bert-bge",
}
"""Tokenizer and the vectors (text, expected ids) of its vocabulary."""

TOKENIZERS = (*VECTORS, "deepseek-r1", "t5-small", "whisper-tiny", "stories260K")
