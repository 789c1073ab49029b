"""A tokenizer that needs no training: word i is token i."""

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers


def text_of(token_ids: list[int]) -> str:
    return " ".join(f"w{token}" for token in token_ids)


def write_tokenizer(folder: Path, size: int) -> None:
    """Of the words w0 to w(size - 1), with blanks between."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(size)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
