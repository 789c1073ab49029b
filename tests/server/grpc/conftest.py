"""The service on a real socket over a scripted engine: each test says what the engine yields and when."""

from collections.abc import AsyncIterator

import grpc
import pytest
from scripted import ScriptedEngine, Served
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from jaxllm.server.grpc import service
from jaxllm.server.grpc.session import ChatOptions, Requests
from jaxllm.server.grpc.stubs import jaxllm_pb2_grpc as pb_grpc
from jaxllm.server.text import Tokenizer

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for document in documents or [] %}({{ document.text }}){% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for call in m.tool_calls or [] %}[{{ call.function.arguments.city }}]{% endfor %}{% endfor %}"
    "{% if shout %}!{% endif %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """One token per byte, 256 begins and 257 ends a text."""
    vocab = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    backend = Backend(BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevelDecoder()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    fast.chat_template = TEMPLATE
    return Tokenizer(fast)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def chats() -> ChatOptions | None:
    """How the service reads answers to chats; a module of tests may have its own."""
    return None


@pytest.fixture
async def served(engine: ScriptedEngine, tokenizer: Tokenizer, chats: ChatOptions | None) -> AsyncIterator[Served]:
    backend = service.Backend({"model": "scripted"})
    health = service.Health()
    server = service.make_server(backend, health)
    port = service.listen(server, "127.0.0.1", 0)
    await server.start()
    backend.engine = service.Engine(
        Requests(engine, tokenizer, chats), "cpu", metrics=lambda openmetrics: "jaxllm_up 1\n"
    )
    await health.set(True)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Served(
            engine,
            backend.engine.requests,
            backend,
            health,
            channel,
            f"127.0.0.1:{port}",
            pb_grpc.InferenceStub(channel),
            pb_grpc.ControlStub(channel),
        )
    await server.stop(None)
