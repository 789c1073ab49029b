"""GPT-J (Wang and Komatsuzaki 2021): parallel blocks under one LayerNorm, neighbouring numbers of part of each head
turned, biases in the MLP and the head only."""

from typing import ClassVar

from jaxllm.errors import ConfigError
from jaxllm.layers.mlp import MLP
from jaxllm.layers.parameter import Source, linear_rows, norm_rows
from jaxllm.layers.rope import Rope
from jaxllm.models.config import ModelConfig
from jaxllm.models.fields import Fields
from jaxllm.models.gpt2 import gpt2_config
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.parallel import ParallelBlock


class GPTJForCausalLM(LlamaForCausalLM):
    block_class = ParallelBlock
    mlp_class = MLP
    checkpoint_prefix = "transformer."
    checkpoint_ignored = (r"attn\.(bias|masked_bias|embed_positions)$",)  # the causal mask and sines of old files
    checkpoint_names: ClassVar[dict[str, Source]] = {
        "embed.table": Source.of("transformer.wte.weight"),
        **norm_rows("layers.*.attention_norm", "transformer.h.*.ln_1"),
        **linear_rows(
            "layers.*.attention.qkv",
            "transformer.h.*.attn.q_proj",
            "transformer.h.*.attn.k_proj",
            "transformer.h.*.attn.v_proj",
        ),
        **linear_rows("layers.*.attention.out", "transformer.h.*.attn.out_proj"),
        **linear_rows("layers.*.mlp.up", "transformer.h.*.mlp.fc_in"),
        **linear_rows("layers.*.mlp.down", "transformer.h.*.mlp.fc_out"),
        **norm_rows("norm", "transformer.ln_f"),
        **linear_rows("head", "lm_head"),
    }

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.expect("rotary", True)
        fields.expect("rope_scaling", None, {"rope_type": "gptj"})
        fields.expect("tie_word_embeddings", False, None)
        rotary_dim = fields.size("rotary_dim", 64)
        head_dim = fields.size("n_embd") // fields.size("n_head")
        if rotary_dim > head_dim:
            raise ConfigError(f"{fields.where}rotary_dim={rotary_dim} must be at most n_embd / n_head = {head_dim}")
        return gpt2_config(
            fields,
            architecture,
            tied=False,
            rope=Rope(rotary_dim, interleaved=True),
            qkv_bias=False,
            out_bias=False,
            parallel_norms=1,
            head_bias=True,
        )
