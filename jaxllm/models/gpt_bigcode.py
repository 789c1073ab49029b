"""GPTBigCode: SantaCoder and StarCoder (Li et al. 2023). GPT-2 whose heads share one key and one value, as a rule, and
whose weights are stored as torch.nn.Linear stores them."""

from dataclasses import replace
from typing import ClassVar

from jaxllm.layers.parameter import Source
from jaxllm.models.config import ModelConfig
from jaxllm.models.fields import Fields
from jaxllm.models.gpt2 import GPT2LMHeadModel, gpt2_config
from jaxllm.models.gpt_neox import HeadwiseAttention


class GPTBigCodeForCausalLM(GPT2LMHeadModel):
    attention_class = HeadwiseAttention
    checkpoint_names: ClassVar[dict[str, Source]] = {
        name: Source.linear(*source.names) if name.endswith("kernel") else source
        for name, source in GPT2LMHeadModel.checkpoint_names.items()
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(activation_function="gelu_pytorch_tanh")
        for name in ("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"):  # it always is
            fields.raw(name)
        for name in (  # of other programs' caches
            "inference_runner", "pre_allocate_kv_cache", "runner_max_sequence_length", "validate_runner_input",
            "max_batch_size", "max_sequence_length", "pad_key_length",
        ):  # fmt: skip
            fields.raw(name)
        config = gpt2_config(fields, architecture)
        config = replace(config, num_kv_heads=1 if fields.take("multi_query", bool, True) else config.num_heads)
        fields.expect("num_key_value_heads", config.num_kv_heads, None)
        return config
