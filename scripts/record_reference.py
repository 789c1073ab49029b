"""Records what Hugging Face transformers computes for tiny random models, for the parity tests.

    python scripts/record_reference.py [--out tests/models/reference] [CASE ...]

Runs where torch and transformers are installed (the project itself needs no torch). Each case becomes a folder that
is committed:
    config.json, model.safetensors   the checkpoint; every weight is a bfloat16 number, so that any type holds it
    reference.npz                    lengths [N] int32; ids [sum of lengths] int32, sequence after sequence;
                                     logits [sum of lengths, V] float32; greedy [N, G] int32, the continuation of each
                                     sequence; margins [N, G] float32, by how much each won
of an encoder-decoder, in a folder beside, the same of the decoder (ids begin with its start token), and source_lengths
[N] int32, source_ids [sum of source_lengths] int32, what the encoder read;
or, of a model that generates nothing, in a folder beside:
    reference.npz                    lengths, ids; types [sum of lengths] int32 segments; hidden [sum of lengths, E]
                                     float32; outputs [N, D] of sequences or [sum of lengths, D] of tokens, if any
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from reference_cases import Case, all_cases
from safetensors.torch import save_file
from transformers.core_model_loading import revert_weight_conversion

LENGTHS = (1, 6, 13, 21)
SOURCE_LENGTHS = (14, 1, 23, 5)
CONTINUATION = 8
MIN_MARGIN = 0.02  # of logits whose deviation is about 2: far above what rounding changes


def build(case: Case, seed: int) -> torch.nn.Module:
    """A model whose weights are large enough that its logits differ and positions matter."""
    config = transformers.AutoConfig.for_model(case.model_type, **case.config)
    model = getattr(transformers, case.auto_class).from_config(config, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2:
                value = 0.3 * noise
            elif name.endswith("bias"):
                value = 0.2 * noise
            else:  # a norm's weight
                value = 1 + 0.2 * noise
            parameter.copy_(value.bfloat16().float())
        for name, buffer in model.named_buffers():
            if name.endswith(("e_score_correction_bias", "final_logits_bias")):
                buffer.copy_((0.2 * torch.randn(buffer.shape, generator=generator)).bfloat16().float())
    case.adapt(model)
    return model


@torch.no_grad()
def record(model: torch.nn.Module, seed: int) -> dict[str, np.ndarray]:
    """What reference.npz holds. No cache: every token comes from a forward pass over the whole sequence."""
    generator = torch.Generator().manual_seed(seed)
    ids, logits, greedy, margins, sources = [], [], [], [], []
    for length, source_length in zip(LENGTHS, SOURCE_LENGTHS, strict=True):
        sequence = torch.randint(model.config.vocab_size, (1, length), generator=generator)
        forward = model
        if model.config.is_encoder_decoder:
            source = torch.randint(model.config.vocab_size, (1, source_length), generator=generator)
            sources.append(source[0])
            sequence[0, 0] = model.config.decoder_start_token_id
            forward = partial(_decode, model, source)
        ids.append(sequence[0].clone())
        logits.append(forward(sequence, use_cache=False).logits[0])
        chosen, won_by = [], []
        for _ in range(CONTINUATION):
            best = forward(sequence, use_cache=False).logits[0, -1].topk(2)
            chosen.append(best.indices[0].item())
            won_by.append((best.values[0] - best.values[1]).item())
            sequence = torch.cat([sequence, best.indices[None, :1]], dim=1)
        greedy.append(chosen)
        margins.append(won_by)
    return {
        "lengths": np.asarray(LENGTHS, np.int32),
        "ids": torch.cat(ids).numpy().astype(np.int32),
        "logits": torch.cat(logits).numpy().astype(np.float32),
        "greedy": np.asarray(greedy, np.int32),
        "margins": np.asarray(margins, np.float32),
    } | ({} if not sources else {
        "source_lengths": np.asarray(SOURCE_LENGTHS, np.int32),
        "source_ids": torch.cat(sources).numpy().astype(np.int32),
    })  # fmt: skip


def _decode(model: torch.nn.Module, source: torch.Tensor, sequence: torch.Tensor, **options: Any) -> Any:
    return model(input_ids=source, decoder_input_ids=sequence, **options)


@torch.no_grad()
def record_pooling(model: torch.nn.Module, seed: int) -> dict[str, np.ndarray]:
    """What reference.npz holds of a model that generates nothing. Every sequence alone."""
    generator = torch.Generator().manual_seed(seed)
    segments = getattr(model.config, "type_vocab_size", 0)
    ids, types, hidden, outputs = [], [], [], []
    for length in LENGTHS:
        # Neither the first few ids nor the last, one of which is the padding.
        sequence = torch.randint(4, model.config.vocab_size - 4, (1, length), generator=generator)
        border = torch.randint(length + 1, (1,), generator=generator)
        segment = (torch.arange(length)[None] >= border).long() if segments > 1 else torch.zeros_like(sequence)
        given = {"input_ids": sequence} | ({"token_type_ids": segment} if segments else {})
        ids.append(sequence[0])
        types.append(segment[0])
        hidden.append(model.base_model(**given).last_hidden_state[0])
        if model is not model.base_model:
            logits = model(**given).logits
            outputs.append(logits[0] if logits.ndim == 3 else logits)
    return {
        "lengths": np.asarray(LENGTHS, np.int32),
        "ids": torch.cat(ids).numpy().astype(np.int32),
        "types": torch.cat(types).numpy().astype(np.int32),
        "hidden": torch.cat(hidden).numpy().astype(np.float32),
    } | ({"outputs": torch.cat(outputs).numpy().astype(np.float32)} if outputs else {})


def save_checkpoint(case: Case, model: torch.nn.Module, folder: Path) -> None:
    left_out = {"lm_head.weight", *(model._tied_weights_keys or ())} if model.config.tie_word_embeddings else set()
    tensors = {
        name.removeprefix(case.drop_prefix): tensor.to(case.dtype).contiguous().clone()
        for name, tensor in revert_weight_conversion(model, model.state_dict()).items()  # names as published
        if name not in left_out
    }
    tensors = case.convert(tensors)
    tensors |= {name: torch.ones(shape) for name, shape in case.extra_tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(case.dtype).removeprefix("torch.")
    if case.old_names:
        config["torch_dtype"] = config.pop("dtype")
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        config["rope_scaling"] = rope if rope["rope_type"] != "default" else None
    left_out = {name for name, value in case.written.items() if value is None}
    config = {name: value for name, value in (config | case.written).items() if name not in left_out}
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n", "utf-8")


def save(case: Case, model: torch.nn.Module, reference: dict[str, np.ndarray], parent: Path) -> int:
    """Writes the case's folder; returns how many bytes it takes."""
    folder = parent / case.name
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(case, model, folder)
    np.savez_compressed(folder / "reference.npz", **reference)
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).parents[1]
    parser.add_argument("--out", type=Path, default=root / "tests" / "models" / "reference")
    parser.add_argument("cases", nargs="*", help="record these alone")
    arguments = parser.parse_args()
    for case in all_cases():
        if arguments.cases and case.name not in arguments.cases:
            continue
        if case.pools:
            model = build(case, seed=0)
            save(case, model, record_pooling(model, seed=0), arguments.out.with_name(f"{arguments.out.name}_pooling"))
            continue
        for seed in range(100):
            model = build(case, seed)
            reference = record(model, seed)
            if reference["margins"].min() >= MIN_MARGIN:
                break
        else:
            raise SystemExit(f"{case.name}: no seed gives margins of {MIN_MARGIN}")
        beside = f"{arguments.out.name}_encoder_decoder" if model.config.is_encoder_decoder else arguments.out.name
        size = save(case, model, reference, arguments.out.with_name(beside))
        deviation, margin = reference["logits"].std(), reference["margins"].min()
        print(f"{case.name}: seed {seed}, logits' deviation {deviation:.2f}, margin {margin:.3f}, {size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
