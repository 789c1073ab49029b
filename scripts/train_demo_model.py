"""Train the demo model that ships in jaxllm/demo_model: tokenizer, weights, model card.

    python scripts/train_demo_model.py --books FOLDER [--output jaxllm/demo_model] [--steps 600]

FOLDER holds public-domain books as .txt files. The model is the project's own Llama definition, trained with optax on
one device (under three minutes on an H200; hours on a CPU). The weights kept are those of the lowest held-out
loss, stored in bfloat16 under the checkpoint names of Hugging Face's Llama, so that the engine loads the demo model
as it loads any other.
"""

import argparse
import datetime
import json
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from demo_corpus import END, END_OF_TEXT, SPECIAL_TOKENS, build
from flax import nnx
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxllm import weights
from jaxllm.layers.parameter import TRANSPOSED, parameters
from jaxllm.layers.step import DenseStep
from jaxllm.models import registry
from jaxllm.weights.load import source_of

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "attention_bias": False,
    "mlp_bias": False,
    "torch_dtype": "bfloat16",
}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def train_tokenizer(documents: list[str], folder: Path) -> Tokenizer:
    """A byte-level BPE over the documents, written as a Hugging Face tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=True,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "additional_special_tokens": SPECIAL_TOKENS[1:],
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    return tokenizer


def encode(tokenizer: Tokenizer, documents: list[str]) -> np.ndarray:
    """[N] int32: the documents' tokens one after another, each ended by the end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    return np.concatenate([np.array([*e.ids, end], np.int32) for e in tokenizer.encode_batch_fast(documents)])


def windows(stream: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """[B, length + 1] int32 stretches of the stream."""
    return stream[starts[:, None] + np.arange(length + 1)]


def train(train_stream: np.ndarray, held_stream: np.ndarray, config: dict, args: argparse.Namespace) -> dict:
    """Writes the weights each time the held-out loss is the lowest so far; returns the record of the run."""
    model = registry.resolve(config).build(jnp.float32)
    weights.load(model, args.output, load_format="dummy", seed=args.seed)
    graphdef, params = nnx.split(model)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, args.learning_rate, args.steps // 10, args.steps, args.learning_rate / 20
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule,
            b1=0.9,
            b2=0.95,
            weight_decay=args.weight_decay,
            mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p),
        ),
    )

    def loss(params: nnx.State, batch: jax.Array) -> jax.Array:
        model = nnx.merge(graphdef, params)
        hidden, _ = model(DenseStep.of(batch[:, :-1]), None)
        return optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden), batch[:, 1:].reshape(-1)).mean()

    @jax.jit
    def update(params: nnx.State, state: optax.OptState, batch: jax.Array) -> tuple:
        value, gradients = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    evaluate = jax.jit(loss)
    held = windows(held_stream, np.arange(0, len(held_stream) - args.length - 1, args.length), args.length)
    held = held[: len(held) // 8 * 8].reshape(8, -1, args.length + 1)
    rng = np.random.default_rng(args.seed)
    state = optimizer.init(params)
    best, best_step, started = math.inf, 0, time.perf_counter()
    for step in range(1, args.steps + 1):
        starts = rng.integers(0, len(train_stream) - args.length - 1, args.batch)
        params, state, value = update(params, state, windows(train_stream, starts, args.length))
        if step % args.evaluate_every == 0 or step == args.steps:
            held_loss = float(np.mean([float(evaluate(params, batch)) for batch in held]))
            seconds = time.perf_counter() - started
            print(f"step {step} train {float(value):.4f} held-out {held_loss:.4f} ({seconds:.0f} s)", flush=True)
            if held_loss < best:
                best, best_step = held_loss, step
                tensors = checkpoint_tensors(nnx.merge(graphdef, params))
                save_file(tensors, args.output / "model.safetensors", metadata={"format": "pt"})
    return {
        "steps": best_step,
        "held_out_loss": round(best, 4),
        "train_tokens": len(train_stream),
        "held_out_tokens": len(held_stream),
        "batch": args.batch,
        "length": args.length,
        "device": jax.devices()[0].device_kind,
        "date": datetime.date.today().isoformat(),
    }


def checkpoint_tensors(model: nnx.Module) -> dict[str, np.ndarray]:
    """The model's parameters in bfloat16 under their checkpoint names: the loader's table, read backwards."""
    tensors = {}
    for name, parameter in parameters(model).items():
        source = source_of(model, name)
        value = np.asarray(parameter.get_value().astype(jnp.bfloat16))
        for part, tensor in zip(source.names, np.split(value, np.cumsum(parameter.parts)[:-1], axis=-1), strict=True):
            tensors[part] = np.ascontiguousarray(tensor.T if source.layout is TRANSPOSED else tensor)
    return tensors


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


def write_card(folder: Path, record: dict, characters_per_token: float) -> None:
    bits = record["held_out_loss"] / math.log(2) / characters_per_token
    (folder / "README.md").write_text(f"""# The jaxllm demo model

A Llama of 3.8 million parameters (4 layers, width 256, 4 heads over 2 KV heads, 4,096 tokens of byte-level BPE,
context {record["length"]:,}) that exists so that the engine has something real to serve out of the box. It writes
English in the manner of old novels; it knows nothing, and nothing it says should be relied on.

- **Data**: public-domain books (War and Peace, Moby Dick, Jack Sheppard, American Adventures, News from Nowhere,
  Katrine, The Little Colonel's Hero, The Log School-House on the Columbia) and the docstrings of the Python standard
  library (PSF licence), part of it as question and answer; {record["train_tokens"]:,} tokens. The last 2% of every book
  and every 50th docstring were held out.
- **Result**: loss {record["held_out_loss"]:.3f} nats per token ({bits:.2f} bits per character) on the
  {record["held_out_tokens"]:,} held-out tokens, at step {record["steps"]} of batches of {record["batch"]} x
  {record["length"]:,} tokens ({record["device"]}, {record["date"]}).
- **Chat**: `<|user|>`, `<|assistant|>` and `<|system|>` turns, each ended by `<|end|>`; see chat_template.jinja.
- **Again**: `python scripts/train_demo_model.py --books FOLDER`, FOLDER holding the books as .txt files.
- **Licence**: Apache-2.0, as the project.
""")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--books", type=Path, required=True, help="folder of public-domain .txt files")
    parser.add_argument("--output", type=Path, default=Path(__file__).parents[1] / "jaxllm" / "demo_model")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=64, help="sequences per step")
    parser.add_argument("--length", type=int, default=1024, help="tokens per sequence, and the model's context")
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--weight-decay", type=float, default=1.0, help="strong, as the books are read many times")
    parser.add_argument("--evaluate-every", type=int, default=50, help="steps between held-out losses")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    train_documents, held_documents = build(args.books, args.seed)
    tokenizer = train_tokenizer(train_documents, args.output)
    train_stream, held_stream = encode(tokenizer, train_documents), encode(tokenizer, held_documents)
    characters_per_token = sum(map(len, held_documents)) / len(held_stream)
    print(f"{len(train_stream):,} training tokens, {characters_per_token:.2f} characters per token")

    config = {**CONFIG, "max_position_embeddings": args.length}
    record = train(train_stream, held_stream, config, args)
    ends = [tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(END)]
    write_json(args.output / "config.json", {**config, "eos_token_id": ends[0], "bos_token_id": None})
    write_json(args.output / "generation_config.json", {"eos_token_id": ends, "temperature": 0.7, "top_p": 0.9})
    write_card(args.output, record, characters_per_token)
    print(json.dumps(record))


if __name__ == "__main__":
    main()
