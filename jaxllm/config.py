"""Frozen configurations, validated once. Flags and keywords bear vLLM's names where it has them.

`EngineConfig` is what `LLM(...)` takes as keywords and every `jaxllm` command as flags; `FLAGS` metadata on
each field is the single source of its help text. `resolve` (runner side) turns the Nones into numbers for
the model and the device at hand.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxllm.errors import ConfigError

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
LoadFormat = Literal["auto", "safetensors", "orbax", "dummy"]
Task = Literal["auto", "generate", "embed", "classify", "score"]
SchedulingPolicy = Literal["fcfs", "priority"]
LogprobsMode = Literal["raw_logprobs", "processed_logprobs", "raw_logits", "processed_logits"]

OFFLINE_INTERVAL_MS = 1000.0
"""EngineConfig.stream_interval_ms of offline runs where nobody says: hardly anyone waits for single tokens there."""


def flag(default: Any, help_text: str, *, secret: bool = False, also: str | None = None) -> Any:
    """A dataclass field with its help text: the one place a flag is described.

    secret: its value is never shown. also: another name that the command line takes.
    """
    if isinstance(default, (list, dict, set)):
        raise TypeError("a flag's default must be immutable")
    return field(default=default, repr=not secret, metadata={"help": help_text, "secret": secret, "also": also})


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Everything that shapes an engine. None means: decided from the model and the device."""

    model: str = flag(
        "demo", "A Hugging Face checkpoint directory, a directory written by `jaxllm convert`, or `demo`."
    )
    tokenizer: str | None = flag(None, "Directory of the tokenizer; the model's own by default.")
    served_model_name: tuple[str, ...] = flag(
        (), "Names that clients may ask for, answered under the first; the model's directory name by default."
    )
    task: Task = flag(
        "auto",
        "What the model is for: auto (what its checkpoint says), generate, embed (a decoder too: its hidden states are "
        "pooled), classify, or score (pairs, by a cross-encoder or by embeddings).",
    )
    load_format: LoadFormat = flag(
        "auto", "auto, safetensors, orbax, or dummy (random weights from a bare config.json, for benchmarks)."
    )
    dtype: Dtype = flag(
        "auto",
        "Weights and activations: auto (the checkpoint's on a GPU, float32 on a CPU), float32, bfloat16 or float16.",
    )
    seed: int = flag(0, "Seed of dummy weights and of the seeds drawn for requests that bring none.")
    max_model_len: int | None = flag(
        None, "Prompt and output tokens of one request at most; the model's own limit by default."
    )
    max_num_seqs: int | None = flag(None, "Requests computed at once; 256 on a GPU and 16 on a CPU by default.")
    max_num_batched_tokens: int | None = flag(
        None,
        "Tokens of one prefill or mixed step at most; by default 512 on a CPU, 8192 on a GPU, and 16384 offline where "
        "32 GiB are left beside the weights.",
    )
    gpu_memory_utilization: float = flag(
        0.92, "Share of the device's memory for weights, programs and the KV cache together."
    )
    kv_cache_memory_bytes: int | None = flag(
        None, "Bytes of KV cache; planned from the device's memory on a GPU, 256 MiB on a CPU by default."
    )
    num_gpu_blocks_override: int | None = flag(None, "Pages of KV cache, whatever the memory plan says.")
    block_size: int = flag(64, "Tokens per page of the KV cache: a power of two.")
    enable_prefix_caching: bool = flag(True, "Reuse the KV cache of shared prompt prefixes.")
    scheduling_policy: SchedulingPolicy = flag("fcfs", "fcfs, or priority: lower numbers first, displacing higher.")
    max_queued: int = flag(4096, "Requests that may wait; one more is refused (RESOURCE_EXHAUSTED, 429).")
    generation_config: str = flag(
        "auto",
        "What requests leave unset: auto (as the checkpoint's generation_config.json says), vllm (nothing is taken "
        "from there but the end-of-text ids), or the directory of another generation_config.json.",
    )
    override_generation_config: Mapping[str, Any] | None = flag(
        None, 'Sampling defaults that go before those of --generation-config, as JSON: {"temperature": 0.5}.'
    )
    max_logprobs: int = flag(20, "Most likely tokens a request may ask to see per position.")
    logprobs_mode: LogprobsMode = flag(
        "raw_logprobs",
        "What logprobs report: raw_logprobs (of the model), processed_logprobs (after logits processors, temperature "
        "and filters), raw_logits or processed_logits.",
    )
    logits_processors: tuple[str, ...] = flag(
        (), "Logits processors of your own: package.module:Class, or in Python the class itself; once for each."
    )
    decode_steps: tuple[int, ...] | None = flag(
        None,
        "Steps per decode program when nobody waits, e.g. 1,8; by default 1 on a CPU, and 1,4 on a GPU unless the "
        "weights are so large that four take longer than --stream-interval-ms.",
    )
    stream_interval_ms: float = flag(
        15.0, "A stream gets tokens about this often or more; bounds the steps above, and the prompt tokens of a step."
    )
    compilation_cache_dir: str | None = flag(
        None,
        "Where compiled programs are kept between starts: JAXLLM_COMPILATION_CACHE_DIR or ~/.cache/jaxllm by default; "
        "'' keeps none. It must be yours alone, as programs are read from it.",
    )
    compile_workers: int | None = flag(
        None,
        "Processes that help to compile what is not kept yet, each with up to 1 GiB of the device while it does; by "
        "default, on a GPU, one for every four cores and for every 2 GiB that gpu_memory_utilization leaves, four at "
        "most; none on a CPU.",
    )

    def __post_init__(self) -> None:
        def positive(name: str, optional: bool = False) -> None:
            value = getattr(self, name)
            if value is None and optional:
                return
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name}={value!r}: must be a positive integer")

        if not self.model:
            raise ConfigError("model is empty: name a checkpoint directory, or 'demo'")
        choice("task", self.task, Task.__args__)  # type: ignore[attr-defined]
        choice("load_format", self.load_format, LoadFormat.__args__)  # type: ignore[attr-defined]
        choice("dtype", self.dtype, Dtype.__args__)  # type: ignore[attr-defined]
        object.__setattr__(self, "logits_processors", tuple(self.logits_processors))
        names = self.served_model_name or ()
        object.__setattr__(self, "served_model_name", (names,) if isinstance(names, str) else tuple(names))
        if not all(self.served_model_name):
            raise ConfigError("served_model_name: a name is empty; leave it out for the model's directory name")
        choice("logprobs_mode", self.logprobs_mode, LogprobsMode.__args__)  # type: ignore[attr-defined]
        choice("scheduling_policy", self.scheduling_policy, SchedulingPolicy.__args__)  # type: ignore[attr-defined]
        for name in (
            "max_model_len", "max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes",
            "num_gpu_blocks_override",
        ):  # fmt: skip
            positive(name, optional=True)
        for name in ("block_size", "max_queued"):
            positive(name)
        if self.compile_workers is not None and self.compile_workers < 0:
            raise ConfigError(f"compile_workers={self.compile_workers}: must not be negative; 0 is none")
        if self.block_size & (self.block_size - 1):
            raise ConfigError(f"block_size={self.block_size}: the kernels need a power of two; try 64")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"gpu_memory_utilization={self.gpu_memory_utilization}: must be in (0, 1]; try 0.9")
        if not 0 <= self.max_logprobs <= 1024:
            raise ConfigError(f"max_logprobs={self.max_logprobs}: must be in [0, 1024]")
        if not self.stream_interval_ms > 0:
            raise ConfigError(f"stream_interval_ms={self.stream_interval_ms}: must be positive")
        if self.decode_steps is not None:
            steps = tuple(sorted(set(self.decode_steps)))
            if not steps or steps[0] != 1 or steps[-1] > self.block_size:
                raise ConfigError(
                    f"decode_steps={self.decode_steps}: must hold 1 and nothing above block_size={self.block_size}"
                )
            object.__setattr__(self, "decode_steps", steps)

    @classmethod
    def from_kwargs(cls, **kwargs: Any) -> "EngineConfig":
        """Build from keywords; an unknown name is an error that offers the nearest known one."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in kwargs:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"
                raise ConfigError(f"unknown argument {name!r}{hint}")
        return cls(**kwargs)

    def replace(self, **changes: Any) -> "EngineConfig":
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, slots=True)
class CacheGroup:
    """Layers that share one space of pages, and one block table per request.

    Attributes:
        kind: what a page is. "tokens": page_size tokens of a sequence. "source": the same, of what an encoder read.
            "state": an entry, all that recurrent layers carry of one sequence.
        num_pages: counts page 0, the sink of padding, which is never handed out.
        window: tokens that any token sees, itself included; pages wholly behind it return. None is all of them.
    """

    kind: Literal["tokens", "source", "state"]
    num_pages: int = 0
    window: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """The numbers the scheduler works with; the runner's memory plan supplies the groups of the cache.

    groups: the one without a window before those with one, sources behind them, states last; () for a model that
    caches nothing.
    """

    groups: tuple[CacheGroup, ...]
    page_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    decode_steps: tuple[int, ...] = (1,)
    stream_interval: float = 0.015  # seconds
    enable_prefix_caching: bool = True
    policy: SchedulingPolicy = "fcfs"
    max_queued: int = 4096


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Where and how the services listen."""

    host: str = flag("127.0.0.1", "Address both services listen on.")
    grpc_port: int = flag(50051, "Port of the gRPC service; 0 takes a free one.")
    http_port: int = flag(8000, "Port of the OpenAI HTTP front; 0 takes a free one, -1 starts none.", also="--port")
    drain_seconds: float = flag(30.0, "After SIGTERM, how long running requests may take to end.")
    chat_template: str | None = flag(None, "A Jinja file to use instead of the checkpoint's chat template.")
    tool_call_parser: str = flag(
        "auto", "How the model writes tool calls: a parser's name, auto (as its chat template tells) or none."
    )
    reasoning_parser: str = flag(
        "auto", "How the model writes its reasoning: a parser's name, auto (as its chat template tells) or none."
    )
    enable_auto_tool_choice: bool = flag(True, "Take tools with the choice left to the model (tool_choice auto).")

    api_key: tuple[str, ...] = flag(
        (), "A key that clients must send; once for each. Better from JAXLLM_API_KEY or a file: others see flags.",
        secret=True,
    )  # fmt: skip
    api_key_file: str | None = flag(None, "A file of further keys, one a line; # begins a comment.")
    ssl_certfile: str | None = flag(None, "The server's certificate chain (PEM): both services then speak TLS alone.")
    ssl_keyfile: str | None = flag(None, "Its private key (PEM), unless the certificate's file holds it.")
    ssl_ca_certs: str | None = flag(
        None, "Certificates (PEM) of those who sign clients' certificates: clients must then show one."
    )
    allowed_origins: tuple[str, ...] = flag(
        (), "Origins whose pages in a browser may call the HTTP front (CORS), * for all; none by default."
    )
    allowed_methods: tuple[str, ...] = flag(("*",), "Methods that such pages may use.")
    allowed_headers: tuple[str, ...] = flag(("*",), "Headers that such pages may send.")
    allow_credentials: bool = flag(False, "Let such pages send cookies and other credentials.")
    max_request_bytes: int = flag(32 << 20, "Bytes of one request's body or message at most (413).")
    max_prompts: int = flag(
        2048,
        "Prompts, inputs, queries or documents of one request at most (400): to /v1/completions, and all that pools.",
    )
    max_samples: int = flag(128, "Samples or beams of one prompt at most (400).")
    max_stop_strings: int = flag(64, "Stop strings of one request at most (400).")
    max_stored_responses: int = flag(
        10_000, "Responses (/v1/responses) kept in memory at most; the oldest are forgotten. 0 keeps none."
    )
    max_stored_response_bytes: int = flag(64 << 20, "Bytes of their JSON at most, input and output.")
    enable_log_requests: bool = flag(False, "Log a line for each request that ends: id, tokens, seconds; no text.")
    otlp_traces_endpoint: str | None = flag(
        None, "Where OpenTelemetry traces of requests go, such as http://localhost:4317 (needs the extra `otel`)."
    )

    def __post_init__(self) -> None:
        if not 0 <= self.grpc_port < 65536:
            raise ConfigError(f"grpc_port={self.grpc_port}: must be in [0, 65535]")
        if not -1 <= self.http_port < 65536:
            raise ConfigError(f"http_port={self.http_port}: must be in [-1, 65535]")
        if self.drain_seconds < 0:
            raise ConfigError(f"drain_seconds={self.drain_seconds}: must not be negative")
        for name in ("max_request_bytes", "max_prompts", "max_samples", "max_stop_strings"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: must be positive")
        for name in ("max_stored_responses", "max_stored_response_bytes"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)}: must not be negative")
        for name in ("ssl_keyfile", "ssl_ca_certs"):
            if getattr(self, name) and not self.ssl_certfile:
                raise ConfigError(f"{name}={getattr(self, name)!r}: TLS needs a certificate; name one in ssl_certfile")
        for name in ("api_key", "allowed_origins", "allowed_methods", "allowed_headers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.allow_credentials and "*" in self.allowed_origins:
            raise ConfigError("allow_credentials: not with allowed_origins='*', which trusts every page; name them")


def choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
