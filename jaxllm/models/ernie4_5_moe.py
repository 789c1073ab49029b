"""ERNIE 4.5's mixtures (Baidu 2025): experts chosen by softmax plus a learned correction, in some of the layers."""

from typing import ClassVar

from jaxllm.layers.moe import Mixture, SoftmaxTopK
from jaxllm.layers.parameter import Layout, Source
from jaxllm.models.config import ModelConfig, decoder_config
from jaxllm.models.deepseek import EXPERT_NAMES
from jaxllm.models.fields import Fields
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.mixtral import MoEBlock

_ONE_ROW = Layout(lambda shape: (1, *shape), lambda tensor, shape: tensor.reshape(shape))
"""A vector that is stored as a matrix of one row."""


class Ernie45MoeForCausalLM(LlamaForCausalLM):
    block_class = MoEBlock
    checkpoint_ignored = (*LlamaForCausalLM.checkpoint_ignored, r"^model\.mtp_")
    checkpoint_names: ClassVar[dict[str, Source]] = (
        LlamaForCausalLM.checkpoint_names
        | EXPERT_NAMES
        | {
            "layers.*.mlp.correction": Source(("model.layers.*.mlp.moe_statics.e_score_correction_bias",), _ONE_ROW),
            "head.bias": Source.of("lm_head.bias"),
        }
    )

    @classmethod
    def configure(cls, fields: Fields, architecture: str) -> ModelConfig:
        fields.default(rms_norm_eps=1e-5)
        fields.expect("use_bias", False, None)  # the reference implementation leaves some of the biases out
        fields.expect("moe_use_aux_free", True, None)
        fields.expect("moe_gate", "topk", None)
        fields.raw("num_nextn_predict_layers")
        fields.raw("moe_capacity")  # of training
        layers = range(fields.size("num_hidden_layers"))
        first, last = fields.take("moe_layer_start_index", int, 1), fields.take("moe_layer_end_index", int, -1)
        every = fields.size("moe_layer_interval", 1)
        inner_size = fields.size("moe_intermediate_size", 1536)
        mixture = Mixture(
            sparse=tuple(
                first <= layer <= (last if last >= 0 else len(layers)) and (layer + 1) % every == 0 for layer in layers
            ),
            num_experts=fields.size("moe_num_experts", 64),
            inner_size=inner_size,
            routing=SoftmaxTopK(fields.size("moe_k", 6), least=fields.take("moe_norm_min", float, 1e-12)),
            shared_size=inner_size * fields.take("moe_num_shared_experts", int, 2),
            correction=True,
        )
        return decoder_config(
            fields, architecture, eos_token_id=2, tied=True, rope_theta=500000.0, interleaved=True, mixture=mixture
        )
