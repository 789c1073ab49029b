"""What CONTRIBUTING and README say of changing and adding models, followed literally."""

import ast
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jaxllm import LLM, RequestOutput, SamplingParams
from jaxllm.errors import ConfigError, UnknownModelError
from jaxllm.models import registry

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "tests" / "models" / "reference"
LIMITS = {"max_model_len": 64, "max_num_seqs": 4, "max_num_batched_tokens": 32, "block_size": 8, "decode_steps": (1,)}


def blocks(document: str, heading: str) -> list[str]:
    """The Python blocks of a section."""
    text = (ROOT / document).read_text("utf-8")
    _, found, section = text.partition(f"\n## {heading}\n")
    assert found, f"{document} has no section {heading!r}"
    return re.findall(r"```python\n(.*?)```", section.partition("\n## ")[0], re.S)


def imported(path: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pebble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Arcee's mathematics is Pebble's: its recorded checkpoint under Pebble's names."""
    source, folder = REFERENCE / "arcee-yarn", tmp_path_factory.mktemp("pebble")
    names = (("mlp.up_proj", "mlp.fc1"), ("mlp.down_proj", "mlp.fc2"))
    tensors = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        for theirs, ours in names:
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((source / "config.json").read_text())
    for field in ("attention_bias", "mlp_bias"):
        assert config.pop(field) is False
    config |= {"architectures": ["PebbleForCausalLM"], "model_type": "pebble"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def greedy(llm: LLM, prompts: list[list[int]], count: int) -> list[RequestOutput]:
    params = SamplingParams(temperature=0, max_tokens=count, ignore_eos=True, detokenize=False)
    return llm.generate(prompts, params, use_tqdm=False)


def test_a_family_is_added_in_one_file_and_a_row(pebble: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, row = blocks("CONTRIBUTING.md", "Add a model family")
    (tmp_path / "pebble.py").write_text(file)
    model_class = imported(tmp_path / "pebble.py").PebbleForCausalLM
    with np.load(REFERENCE / "arcee-yarn" / "reference.npz") as recorded:
        prompts = [ids.tolist() for ids in np.split(recorded["ids"], np.cumsum(recorded["lengths"])[:-1])]
        expected, logits = recorded["greedy"].tolist(), recorded["logits"]

    with pytest.raises(UnknownModelError, match="'PebbleForCausalLM' is not in the registry"):
        LLM(str(pebble), **LIMITS)
    with LLM(str(pebble), model_class=model_class, **LIMITS) as llm:
        answers = [output.outputs[0].token_ids for output in greedy(llm, prompts, len(expected[0]))]
        assert answers == expected
        got = np.concatenate([llm.encode_logits(prompt) for prompt in prompts])
        np.testing.assert_allclose(got, logits, rtol=1e-4, atol=1e-5 * np.abs(logits).max())

    ((name, (model_type, _)),) = ast.literal_eval("{" + row.replace("PebbleForCausalLM)", "None)") + "}").items()
    monkeypatch.setitem(registry.MODELS, name, (model_type, model_class))
    values = json.loads((pebble / "config.json").read_text())
    for config in (values, {field: value for field, value in values.items() if field != "architectures"}):
        architecture = registry.resolve(config)
        assert (architecture.name, architecture.model_class) == ("PebbleForCausalLM", model_class)
    with pytest.raises(ConfigError, match="unknown field pebbles=3"):
        registry.resolve(values | {"pebbles": 3})


def test_the_models_that_contributing_names_as_short_are() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Add a model family")[2]
    named = re.findall(r"`(\w+\.py)`", text.partition("## Add a kernel")[0])
    lengths = {name: len((ROOT / "jaxllm" / "models" / name).read_text().splitlines()) for name in named}
    assert lengths["qwen3.py"] < 60
    assert lengths["mistral.py"] < 60


def test_the_readmes_changed_model_runs() -> None:
    (snippet,) = blocks("README.md", "Change a model")
    path = str(REFERENCE / "llama-tied-3-heads")
    assert '"path/to/llama"' in snippet
    limits = ", ".join(f"{name}={value!r}" for name, value in LIMITS.items())
    scope: dict[str, object] = {}
    exec(snippet.replace('"path/to/llama"', f"{path!r}, {limits}"), scope)
    llm = scope["llm"]
    assert isinstance(llm, LLM)
    with np.load(REFERENCE / "llama-tied-3-heads" / "reference.npz") as recorded:
        length = int(recorded["lengths"][-1])
        prompt, plain = recorded["ids"][-length:].tolist(), recorded["logits"][-length:]
    with llm:
        (output,) = greedy(llm, [prompt], 6)
        tokens = output.outputs[0].token_ids
        sharper = llm.encode_logits(prompt + tokens)
    assert sharper[length - 1 : -1].argmax(-1).tolist() == tokens
    np.testing.assert_allclose(sharper[0], plain[0], rtol=1e-4, atol=1e-4)  # one token sees itself alone
    assert np.abs(sharper[:length] - plain).max() > 0.01


def test_the_research_script_compares_the_demo_with_its_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = imported(ROOT / "scripts" / "swap_attention.py")
    monkeypatch.setattr(
        sys, "argv", ["swap_attention.py", "--strength", "0.5", "--max-tokens", "6", "Once upon a time"]
    )
    script.main()
    first, second = capsys.readouterr().out.strip().split("\n\n")
    pattern = r"--- {}: mean log probability -\d+\.\d+\nOnce upon a time.+"
    assert re.fullmatch(pattern.format("as it is"), first, re.S)
    assert re.fullmatch(pattern.format(r"sharpened by 0\.5"), second, re.S)
    assert first.partition(":")[2] != second.partition(":")[2]
