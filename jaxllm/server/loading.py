"""What a server holds of a checkpoint: the engine, its tokenizer, and how answers to chats are read."""

import logging
from pathlib import Path

from jaxllm.config import EngineConfig, ServerConfig
from jaxllm.engine import Engine
from jaxllm.errors import ConfigError, RequestError
from jaxllm.progress import Report
from jaxllm.server.grpc.session import ChatOptions
from jaxllm.server.text import AnswerFormat, Tokenizer

log = logging.getLogger(__name__)


def load(
    config: EngineConfig, server: ServerConfig, model_class: type | None, report: Report
) -> tuple[Engine, Tokenizer | None, ChatOptions]:
    """The engine and its tokenizer; that one first where it can be, for it fails in a second."""
    directory = config.tokenizer or config.model
    early = Path(directory).is_dir()
    tokenizer = _tokenizer(config, directory, server.chat_template) if early else None
    chats = _chat_options(server, tokenizer)
    engine = Engine.start(config, model_class=model_class, progress=report)
    if not early:
        tokenizer = _tokenizer(config, config.tokenizer or engine.info.path, server.chat_template)
        chats = _chat_options(server, tokenizer)
    form = chats.form
    log.info("chats: tool_call_parser=%s reasoning_parser=%s", form.tools or "none", form.reasoning or "none")
    if tokenizer is not None and engine.info.pooling is None:
        engine.use_vocabulary(lambda: tokenizer)
        try:
            engine.warm_grammars()
        except RequestError as error:  # everything else can be asked for
            log.warning("%s", error)
    return engine, tokenizer, chats


def _chat_options(config: ServerConfig, tokenizer: Tokenizer | None) -> ChatOptions:
    template = tokenizer.chat_template if tokenizer else ""
    form = AnswerFormat.choose(template, config.tool_call_parser, config.reasoning_parser)
    return ChatOptions(form, config.enable_auto_tool_choice)


def _tokenizer(config: EngineConfig, directory: str, chat_template: str | None) -> Tokenizer | None:
    """None where random weights are served without one: their text would say nothing anyway."""
    try:
        return Tokenizer.load(directory, chat_template)
    except ConfigError as error:
        if config.load_format != "dummy":
            raise
        log.warning("serving token ids alone: %s", error)
        return None
