"""Which part of an answer is reasoning. The names are those of vLLM's --reasoning-parser."""

from jaxllm.server.text.reasoning.granite import Granite
from jaxllm.server.text.reasoning.tags import DeepSeekR1, KimiK2, Mistral, ReasoningParser, SeedOss, ThinkTags

PARSERS: dict[str, type[ReasoningParser]] = {
    "deepseek_r1": DeepSeekR1,
    "deepseek_v3": ThinkTags,
    "glm45": ThinkTags,
    "granite": Granite,
    "kimi_k2": KimiK2,
    "mistral": Mistral,
    "qwen3": ThinkTags,
    "seed_oss": SeedOss,
    "think_tags": ThinkTags,
}


def detect(template: str) -> str | None:
    """The parser for models with this chat template, where the template tells of it."""
    if "[THINK]" in template:
        return "mistral"
    if "<seed:think>" in template:
        return "seed_oss"
    if "<|start_of_role|>" in template and "<response>" in template:
        return "granite"
    if "</think>" not in template:
        return None
    if "<|tool_calls_section_begin|>" in template:
        return "kimi_k2"
    # V3.1 writes one of the tags into each prompt; R1 and its distillations leave the first one to the model.
    if "<｜Assistant｜>" in template:
        return "deepseek_v3" if "thinking" in template else "deepseek_r1"
    return "think_tags"


__all__ = ["PARSERS", "ReasoningParser", "detect"]
