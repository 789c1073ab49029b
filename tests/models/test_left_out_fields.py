"""What a config.json leaves out means what it means to transformers, whose configuration classes fill it in."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING

from jaxllm.errors import ConfigError
from jaxllm.models import registry

RECORDED = sorted(Path(__file__).with_name("reference").glob("*/config.json"))
OF_NO_INFLUENCE = {
    "architectures": "says which class reads the file",
    "model_type": "says which class reads the file",
    "bos_token_id": "is the tokenizer's matter",
    "initializer_range": "is of random weights",
    "num_key_value_heads": "cannot be guessed wrong, as the weights' shapes differ",
    "n_shared_experts": "cannot be guessed wrong, as the weights' shapes differ",
    "q_lora_rank": "is left out by files of models that have none, as their weights show",
}

OURS = {("dbrx", "rope_parameters"): "the makers' own files say it in attn_config, which transformers 5 passes over"}


def known(path: Path) -> bool:
    return json.loads(path.read_text()).get("model_type") in CONFIG_MAPPING


def meaning(values: dict[str, Any]) -> dict[str, Any]:
    """What is read, with what None stands for in full."""
    config = vars(registry.resolve(copy.deepcopy(values), None, "auto").config).copy()
    if config["layer_ropes"] is None:
        config["layer_ropes"] = (config["rope"],) * config["num_layers"]
    if config["attention_scale"] is None:
        config["attention_scale"] = config["head_dim"] ** -0.5
    return config


@pytest.mark.parametrize("path", [path for path in RECORDED if known(path)], ids=lambda path: path.parent.name)
def test_left_out_fields_read_as_in_transformers(path: Path) -> None:
    recorded = json.loads(path.read_text())
    compared, different = 0, {}
    for name in recorded.keys() - OF_NO_INFLUENCE.keys():
        if (recorded["model_type"], name) in OURS:
            continue
        rest = {field: value for field, value in recorded.items() if field != name}
        try:
            filled = CONFIG_MAPPING[recorded["model_type"]].from_dict(copy.deepcopy(rest)).to_dict()
        except (StrictDataclassError, TypeError, ValueError, ZeroDivisionError):
            continue  # their default is of a model of another size, which the rest does not go with
        try:
            theirs = meaning(rest | ({name: filled[name]} if name in filled else {}))
            ours = meaning(rest)
        except ConfigError:
            continue  # the same, or a size that ours does not guess
        compared += 1
        if ours != theirs:
            different[name] = {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}
    assert different == {}
    assert compared > 0
