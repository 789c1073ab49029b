"""config.json files: real ones, both generations of names, and every way to be wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm import weights
from jaxllm.bench.shapes import model_directory
from jaxllm.core import PagedKV, RecurrentState, elements_per_token
from jaxllm.errors import ConfigError, UnknownModelError
from jaxllm.layers.mlp import activate
from jaxllm.layers.parameter import count_parameters, parameters
from jaxllm.layers.rope import Linear, Llama3, Rope, Yarn
from jaxllm.models import registry
from jaxllm.models.llama import LlamaAttention, LlamaForCausalLM

PUBLISHED = {
    "aiconfigurator/meta-llama--Meta-Llama-3.1-8B_config.json": 8_030_261_248,
    "aiconfigurator/meta-llama--Meta-Llama-3.1-405B_config.json": 405_853_388_800,
    "dotnet/meta-llama-3.2-1B-Instruct.json": 1_235_814_400,
    "dotnet/mistral-7B-instruct-v0.3.json": 7_248_023_552,
    "mlc-presets/tinyllama_1b_chat_v1.0.json": 1_100_048_384,
    "mlc-presets/smollm2_135m.json": 134_515_008,
    "mlc-presets/qwen2_0_5b.json": 494_032_768,
    "executorch/Qwen2-7B-Instruct/config.json": 7_615_616_512,
    "aiconfigurator/Qwen--Qwen3-0.6B_config.json": 596_049_920,
    "aiconfigurator/Qwen--Qwen3-8B_config.json": 8_190_735_360,
    "aiconfigurator/Qwen--Qwen3-30B-A3B_config.json": 30_532_122_624,
    "aiconfigurator/Qwen--Qwen3-235B-A22B_config.json": 235_093_634_560,
    "aiconfigurator/Qwen--Qwen3-Coder-480B-A35B-Instruct_config.json": 480_154_875_392,
    "aiconfigurator/mistralai--Mixtral-8x7B-v0.1_config.json": 46_702_792_704,
    "aiconfigurator/mistralai--Mixtral-8x22B-v0.1_config.json": 140_620_634_112,
    "mlc-presets/qwen2moe.json": 14_315_784_192,
    "mlc-presets/deepseek.json": 16_375_728_128,
    "mlc-presets/deepseek_v2_lite.json": 15_706_484_224,
    "mlc-presets/chatglm.json": 6_243_584_000,
    "mlc-presets/qwen.json": 1_836_828_672,
    "mlc-presets/gpt2.json": 124_439_808,
    "mlc-presets/gemma_2b.json": 2_506_172_416,
    "mlc-presets/gemma2_2b.json": 2_614_341_888,
    "mlc-presets/gemma3_1b_it.json": 999_885_952,
    "dotnet/phi-3-mini-128k-instruct-config.json": 3_821_079_552,
    "dotnet/phi-3-medium-4k-instruct-config.json": 13_960_238_080,
    "executorch/phi-4-mini-reasoning/config.json": 3_836_021_760,
    "mlc-presets/olmo2_7b.json": 7_298_617_344,
    "mlc-presets/olmo2_32b.json": 32_234_279_936,
    "dotnet/phi-2-config.json": 2_779_683_840,
    "mlc-presets/stablelm.json": 2_795_443_200,
    "mlc-presets/redpajama_3b_v1.json": 2_775_864_320,
    "mlc-presets/gpt_j.json": 6_050_882_784,
    "mlc-presets/starcoder2.json": 7_173_923_840,
    "mlc-presets/baichuan.json": 7_505_973_248,
    "aiconfigurator/Qwen--Qwen3-1.7B_config.json": 1_720_574_976,
    "aiconfigurator/Qwen--Qwen3-32B_config.json": 32_762_123_264,
    "aiconfigurator/meta-llama--Meta-Llama-3.1-70B_config.json": 70_553_706_496,
    "executorch/Qwen2.5-3B/config.json": 3_085_938_688,
    "executorch/Qwen3-4B/config.json": 4_022_468_096,
    "llmservingsim/microsoft/Phi-mini-MoE-instruct.json": 7_647_632_704,
    "mlc-presets/aya-23.json": 8_028_033_024,
    "mlc-presets/gpt2_medium.json": 354_823_168,
    "mlc-presets/gpt_bigcode.json": 1_124_886_528,
    "mlc-presets/internlm.json": 7_321_948_160,
    "mlc-presets/internlm2_5_7b.json": 7_737_708_544,
    "mlc-presets/llama3_2_3b.json": 3_212_749_824,
    "mlc-presets/minicpm-moe-8x2b.json": 13_873_291_776,
    "mlc-presets/minicpm_2b_sft_bf16.json": 2_724_880_896,
    "mlc-presets/olmo2_13b.json": 13_716_198_400,
    "mlc-presets/orion.json": 14_498_703_360,
    "mlc-presets/qwen2_1_5b.json": 1_543_714_304,
    "mlc-presets/smollm2_360m.json": 361_821_120,
    "mlc-presets/smollm_1_7b.json": 1_711_376_384,
    "mlc-presets/stablelm-2-zephyr-1_6b.json": 1_644_515_328,
    "xfastertransformer/qwen2-72b/config.json": 72_287_920_128,
    "xfastertransformer/qwen3-14b/config.json": 14_768_307_200,
    "aiconfigurator/nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16_config.json": 31_577_940_288,
    "../derived/configs-transformers-defaults/jamba.json": 51_570_323_328,
    "../derived/configs-transformers-defaults/mamba2.json": 7_285_403_648,
    "../derived/configs-transformers-defaults/gpt_neox.json": 20_554_567_680,
    "../derived/configs-transformers-defaults/falcon.json": 6_921_720_704,
    "../derived/configs-transformers-defaults/opt.json": 125_239_296,
}
FOREIGN = {  # fields that other programs added to these files
    "attention_sink_size", "context_window_size", "global_local_attention_pattern", "mask_value", "prefill_chunk_size",
    "sliding_window_attention_size", "sliding_window_size", "tokenizer", "type_vocab_size", "use_res_clamp",
}  # fmt: skip
SEGMENTED = ("bert", "roberta", "xlm-roberta")
UNSERVED = {  # kinds of an architecture that are refused, and the field that says so
    "deepseek_v2.json": "num_experts_per_tok",
    "phi-1_5.json": "model_type",
    "phi-2.json": "model_type",
}

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "hidden_size": 16,
    "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
GPT2 = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": 32, "n_embd": 16, "n_layer": 2,
    "n_head": 2, "n_positions": 64,
}  # fmt: skip


MAMBA = {
    "architectures": ["MambaForCausalLM"], "model_type": "mamba", "vocab_size": 32, "hidden_size": 16,
    "num_hidden_layers": 2,
}  # fmt: skip
BAMBA = LLAMA | {"architectures": ["BambaForCausalLM"], "model_type": "bamba", "mamba_n_heads": 4}
JAMBA = LLAMA | {"architectures": ["JambaForCausalLM"], "model_type": "jamba"}


def config_of(values: dict, **changes):
    return registry.resolve(values | changes).config


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts_are_the_published_ones(material, name):
    model = registry.resolve(json.loads((material / "configs" / name).read_text())).build("bfloat16")
    assert count_parameters(model) == PUBLISHED[name]
    assert all(type(leaf.get_value()).__name__ == "ShapeDtypeStruct" for leaf in parameters(model).values())


@pytest.mark.parametrize(("name", "count"), [("20b", 20_914_757_184), ("120b", 116_829_156_672)])
def test_gpt_oss_without_its_quantisation_has_the_published_count(material, name, count):
    values = json.loads((material / "configs" / "aiconfigurator" / f"openai--gpt-oss-{name}_config.json").read_text())
    del values["quantization_config"]
    assert count_parameters(registry.resolve(values).build("bfloat16")) == count


def test_deepseek_v3_without_its_quantisation_has_the_published_count(material):
    values = json.loads((material / "configs" / "aiconfigurator" / "deepseek-ai--DeepSeek-V3_config.json").read_text())
    del values["quantization_config"]
    architecture = registry.resolve(values)
    assert count_parameters(architecture.build("bfloat16")) == 671_026_419_200
    assert architecture.config.attention_scale == pytest.approx(192**-0.5 * (0.1 * np.log(40) + 1) ** 2)
    assert architecture.config.max_position_embeddings == 163_840
    specs = architecture.build("bfloat16").cache_specs()
    assert elements_per_token(specs) == 61 * 576


def test_mamba_130m_has_the_published_count_and_a_state_of_one_size(material):
    path = material / "derived" / "configs-transformers-defaults" / "mamba.json"
    model = registry.resolve(json.loads(path.read_text()) | {"num_hidden_layers": 24}).build("bfloat16")
    assert count_parameters(model) == 129_135_360
    assert model.cache_specs() == (RecurrentState((((1536, 3), None), ((1536, 16), "float32"))),) * 24
    assert elements_per_token(model.cache_specs()) == 0


def test_layers_of_one_thing_each(material):
    path = material / "configs" / "aiconfigurator" / "nvidia--NVIDIA-Nemotron-3-Nano-30B-A3B-BF16_config.json"
    values = json.loads(path.read_text())
    model = registry.resolve(values).build("bfloat16")
    state = RecurrentState((((6144, 3), None), ((64, 64, 128), "float32")))
    kinds = {"M": state, "*": PagedKV(2, 128), "E": ()}
    assert model.cache_specs() == tuple(kinds[letter] for letter in values["hybrid_override_pattern"])
    assert model.config.rope is None
    with pytest.raises(ConfigError, match="must name the layers"):
        registry.resolve(values | {"hybrid_override_pattern": "MX"})
    with pytest.raises(ConfigError, match="num_hidden_layers=52 is not supported, only 2"):
        registry.resolve(values | {"hybrid_override_pattern": "M*"})
    with pytest.raises(ConfigError, match="64 state-space heads do not share 7 groups"):
        registry.resolve(values | {"n_groups": 7})


def test_the_bundled_mixture_has_the_published_count():
    values = weights.read_config(model_directory("qwen3-30b-a3b"))
    assert count_parameters(registry.resolve(values).build("bfloat16")) == 30_532_122_624


def test_the_bundled_encoder_has_the_published_count():
    model = registry.resolve(weights.read_config(model_directory("bert-large"))).build("bfloat16")
    pooler = 1024 * 1024 + 1024  # published with the encoder, and of no use to an embedding
    assert count_parameters(model) == 335_141_888 - pooler


def test_the_bundled_encoder_decoder_has_the_published_count():
    values = weights.read_config(model_directory("t5-large"))
    assert count_parameters(registry.resolve(values).build("bfloat16")) == 737_668_096


def test_real_configs_are_read_or_refused_by_name(material):
    """Every config.json of an architecture in the registry: read, or refused for a field that is named."""
    read, refused = [], []
    models = registry.MODELS | registry.ENCODER_DECODERS | registry.POOLING_MODELS
    model_types = {model_type for model_type, _ in models.values()}
    folders = (material / "configs", material / "derived" / "configs-transformers-defaults")
    for path in sorted(path for folder in folders for path in folder.rglob("*.json")):
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            continue
        architecture = (values.get("architectures") or [None])[0]
        served = values.get("model_type") in model_types if architecture is None else architecture in models
        if not served:
            continue
        foreign = FOREIGN - {"type_vocab_size"} if values.get("model_type") in SEGMENTED else FOREIGN
        faults = sorted(foreign & values.keys())
        if not faults and "quantization_config" in values:
            faults = ["quantization_config"]
        faults = [UNSERVED[path.name]] if path.name in UNSERVED else faults
        if not faults:
            architecture = registry.resolve(values)
            assert architecture.config.vocab_size == values.get("vocab_size", values.get("padded_vocab_size"))
            assert count_parameters(architecture.build("bfloat16")) > 0
            read.append(path)
            continue
        with pytest.raises(ConfigError) as error:
            registry.resolve(values)
        assert all(name in str(error.value) for name in faults)
        refused.append(path)
    assert len(read) >= 70
    assert len(refused) >= 10


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parent / "reference").glob("*/config.json")), ids=lambda p: p.parent.name
)
def test_reference_configs_build(path):
    assert count_parameters(registry.resolve(json.loads(path.read_text())).build("float32")) > 0


def test_both_generations_of_names_mean_the_same():
    scaling = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
    old = config_of(LLAMA, rope_theta=5e5, rope_scaling=scaling | {"rope_type": "llama3"}, torch_dtype="bfloat16")
    new = config_of(LLAMA, rope_parameters=scaling | {"rope_type": "llama3", "rope_theta": 5e5}, dtype="bfloat16")
    assert old == new
    assert new.rope == Rope(8, 5e5, Llama3(8.0, 1.0, 4.0, 16))
    assert new.dtype == "bfloat16"


def test_rope_scaling():
    assert config_of(LLAMA).rope == Rope(8, 10000.0)
    assert config_of(LLAMA, rope_scaling={"type": "linear", "factor": 2}).rope == Rope(8, 10000.0, Linear(2.0))
    yarn = config_of(QWEN2, rope_scaling={"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64})
    assert yarn.rope is not None
    assert isinstance(yarn.rope.scaling, Yarn)
    assert yarn.rope.scaling.attention_factor == pytest.approx(1.138629436)
    assert yarn.max_position_embeddings == 256
    assert config_of(LLAMA, rope_scaling={"type": "dynamic", "factor": 2.0}) == config_of(LLAMA)
    with pytest.raises(ConfigError, match="rope type 'spiral' is not supported; known: default, dynamic, linear"):
        config_of(LLAMA, rope_scaling={"type": "spiral", "factor": 2.0})
    with pytest.raises(ConfigError, match="rope factor is missing"):
        config_of(LLAMA, rope_scaling={"type": "linear"})
    with pytest.raises(ConfigError, match="unknown field mrope_section"):
        config_of(LLAMA, rope_scaling={"type": "default", "mrope_section": [1, 2]})


def test_longrope_is_that_of_the_context_served(material):
    values = json.loads((material / "configs/dotnet/phi-3-mini-128k-instruct-config.json").read_text())
    whole = registry.resolve(values)
    scaling = values["rope_scaling"]
    plain = 10000.0 ** (-np.arange(48) / 48)
    cos, sin = whole.config.rope(jnp.zeros(1, jnp.int32))
    np.testing.assert_allclose(cos[0], 1.1902380714238083, rtol=1e-6)  # sqrt(1 + log(32) / log(4096))
    np.testing.assert_allclose(sin[0], 0.0)
    for context, factors in ((131072, "long_factor"), (4097, "long_factor"), (4096, "short_factor")):
        frequencies = whole.within(context).config.rope.frequencies()
        np.testing.assert_allclose(frequencies, plain / np.asarray(scaling[factors]), rtol=1e-6)
    size = r"rope short_factor=.* must hold 48 positive numbers"
    for wrong, said in (([1.0] * 47, size), ([0.0] * 48, size), (["1"] * 48, r"short_factor\[0\]='1' must be of type")):
        with pytest.raises(ConfigError, match=said):
            registry.resolve(values | {"rope_scaling": scaling | {"short_factor": wrong}})


def test_null_is_a_field_left_out_unless_it_says_that_there_is_none():
    path = Path(__file__).with_name("reference") / "exaone4-full-tied" / "config.json"
    values = json.loads(path.read_text())
    nulls = {"rms_norm_eps": None, "sliding_window": None}
    bare = {name: value for name, value in values.items() if name not in nulls}
    left_out, null = (registry.resolve(each).config for each in (bare, bare | nulls))
    assert left_out.norm_eps == null.norm_eps == 1e-5
    assert left_out.layer_ropes is not None  # with windows, layers that see all know no positions
    assert null.layer_ropes is None


def test_layers_that_turn_by_another_base_or_not_at_all(material):
    def of(name: str, **changes):
        return registry.resolve(json.loads((material / name).read_text()) | changes).config

    gemma = of("configs/mlc-presets/gemma3_1b_it.json")
    assert [rope.theta for rope in gemma.layer_ropes] == [1e6 if (i + 1) % 6 == 0 else 1e4 for i in range(26)]
    assert gemma.windows == tuple(None if (i + 1) % 6 == 0 else 512 for i in range(26))
    defaults = "derived/configs-transformers-defaults"
    cohere = of(f"{defaults}/cohere2.json")
    assert [rope is None for rope in cohere.layer_ropes] == [(i + 1) % 4 == 0 for i in range(40)]
    exaone = of(f"{defaults}/exaone4.json", layer_types=None, sliding_window_pattern="LLLG")
    assert exaone == of(f"{defaults}/exaone4.json")
    assert [rope is None for rope in exaone.layer_ropes] == [window is None for window in exaone.windows]
    assert of(f"{defaults}/exaone4.json", sliding_window=None).layer_ropes is None
    with pytest.raises(ConfigError, match="sliding_window_pattern='LGLG' must be a number of layers, or like LLLG"):
        of(f"{defaults}/exaone4.json", sliding_window_pattern="LGLG")
    smol = of(f"{defaults}/smollm3.json", no_rope_layers=None, no_rope_layer_interval=3)
    assert [rope is None for rope in smol.layer_ropes] == [(i + 1) % 3 == 0 for i in range(36)]
    with pytest.raises(ConfigError, match="no_rope_layers must hold 36 times 1, or 0"):
        of(f"{defaults}/smollm3.json", no_rope_layers=[1, 0])


def test_windows():
    assert config_of(MISTRAL).windows == (4096, 4096)  # transformers' default where the field is absent
    assert config_of(MISTRAL, sliding_window=None).windows == (None, None)
    assert config_of(MISTRAL, sliding_window=7).windows == (7, 7)
    assert config_of(QWEN2, sliding_window=7).windows == (None, None)
    sliding = {"use_sliding_window": True, "sliding_window": 7}
    assert config_of(QWEN2, **sliding, max_window_layers=1).windows == (None, 7)
    types = ["sliding_attention", "full_attention"]
    assert config_of(QWEN2, **sliding, layer_types=types).windows == (7, None)
    with pytest.raises(ConfigError, match="layer_types must hold 2 times"):
        config_of(QWEN2, **sliding, layer_types=["full_attention"])
    with pytest.raises(ConfigError, match="layer_types must hold 2 times"):
        config_of(QWEN2, **sliding, layer_types=["chunked_attention", "full_attention"])


def test_end_of_text_ids():
    assert config_of(LLAMA).eos_token_ids == (2,)
    assert config_of(LLAMA, eos_token_id=None).eos_token_ids == ()
    assert config_of(LLAMA, eos_token_id=[3, 4]).eos_token_ids == (3, 4)
    assert config_of(QWEN2).eos_token_ids == ()
    with pytest.raises(ConfigError, match="eos_token_id='</s>' must be a token id"):
        config_of(LLAMA, eos_token_id="</s>")


def test_an_unknown_architecture_names_the_nearest():
    with pytest.raises(UnknownModelError, match=r"'Qwen4ForCausalLM' is not in the registry; the nearest is 'Qwen3F"):
        registry.resolve(LLAMA | {"architectures": ["Qwen4ForCausalLM"]})
    with pytest.raises(UnknownModelError, match="'rwkv' is not in the registry"):
        registry.resolve({"model_type": "rwkv"})
    with pytest.raises(ConfigError, match="neither architectures nor model_type"):
        registry.resolve({"vocab_size": 3})


def test_model_type_alone_suffices():
    assert registry.resolve({k: v for k, v in LLAMA.items() if k != "architectures"}).name == "LlamaForCausalLM"


@pytest.mark.parametrize(
    ("values", "changes", "message"),
    [
        (LLAMA, {"clip_qkv": 8.0}, "unknown field clip_qkv=8.0: may change what the model computes"),
        (LLAMA, {"clip_qkv": 8.0, "logit_scale": 2}, "unknown fields clip_qkv=8.0, logit_scale=2"),
        (LLAMA, {"is_encoder_decoder": True}, "is_encoder_decoder=True is not supported"),
        (LLAMA, {"quantization_config": {"quant_method": "awq"}}, r"quantization_config \(awq\): quantised weights"),
        (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5 is not supported"),
        (LLAMA, {"hidden_size": None}, "hidden_size is missing"),
        (LLAMA, {"hidden_size": "16"}, "hidden_size='16' must be of type int"),
        (LLAMA, {"num_hidden_layers": 0}, "num_hidden_layers=0: must be positive"),
        (LLAMA, {"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 4}, "num_key_value_heads=2 must div"),
        (LLAMA, {"head_dim": 7}, "head_dim=7 must be even"),
        (LLAMA, {"hidden_act": "xielu"}, "activation 'xielu' is not supported; known: silu"),
        (LLAMA, {"torch_dtype": "float64"}, "dtype='float64': must be float32, bfloat16 or float16"),
        (LLAMA, {"use_sliding_window": False}, "unknown field use_sliding_window"),
        (GPT2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True is not supported"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention=True is not supported"),
        (GPT2, {"n_ctx": 32}, "n_ctx=32 is not supported, only 64"),
        (GPT2, {"rope_theta": 1e4}, "unknown field rope_theta"),
        (MAMBA, {"hidden_act": "gelu"}, "hidden_act='gelu' is not supported, only 'silu'"),
        (MAMBA, {"d_inner": 40}, "d_inner=40 is not supported, only 32"),
        (MAMBA, {"rms_norm": False}, "rms_norm=False is not supported"),
        (MAMBA, {"time_step_rank": "large"}, "time_step_rank='large' must be of type int"),
        (BAMBA, {"time_step_limit": [0.1]}, r"time_step_limit=\[0.1\] must be two numbers"),
        (BAMBA, {"mamba_d_head": 4}, "4 state-space heads of 4 are not the 32 channels"),
        (JAMBA, {"attn_layer_offset": 9}, "attn_layer_offset=9 must be within attn_layer_period=8"),
    ],
)
def test_a_field_that_cannot_be_honoured_is_named(values, changes, message):
    registry.resolve(values)
    with pytest.raises(ConfigError, match=message):
        registry.resolve(values | changes)


REFERENCE = Path(__file__).with_name("reference")


def recorded(case: str, **changes: Any) -> Any:
    return registry.resolve(weights.read_config(REFERENCE / case) | changes).config


@pytest.mark.parametrize(
    ("case", "fields"),
    [
        ("smollm3-windows-biases", {"max_window_layers": 1}),
        ("gpt-bigcode-one-key", {"max_batch_size": None, "max_sequence_length": 8192, "pad_key_length": True}),
        ("../reference_pooling/bert-token-classes", {"_num_labels": 9}),
        ("../reference_pooling/xlm-roberta-classes", {"_num_labels": 5}),
    ],
)
def test_fields_of_other_programs_say_nothing(case, fields):
    assert recorded(case, **fields) == recorded(case)


def test_what_cohere_files_are_made_for_is_their_model_max_length():
    for case in ("cohere-groups", "cohere2-windows"):
        config = recorded(case, model_max_length=131072)
        assert config == replace(recorded(case), max_position_embeddings=131072)


def test_bambas_turned_features_are_half_of_a_head():
    config = recorded("bamba-groups")
    assert recorded("bamba-groups", attn_rotary_emb=config.head_dim // 2) == config
    with pytest.raises(ConfigError, match=f"attn_rotary_emb={config.head_dim} is not supported, only "):
        recorded("bamba-groups", attn_rotary_emb=config.head_dim)


def test_minicpm3_values_are_as_wide_as_the_heads_of_its_width():
    values = weights.read_config(REFERENCE / "minicpm3-factors")
    wide = values["hidden_size"] // values["num_attention_heads"]
    del values["v_head_dim"]
    assert config_of(values).latent.value_dim == wide


def test_helium_says_where_it_has_biases():
    for changes, where in (({}, set()), ({"mlp_bias": True}, {"mlp.gate_up", "mlp.down"})):
        model = registry.resolve(weights.read_config(REFERENCE / "helium-groups") | changes).build("float32")
        biases = {name for name in parameters(model) if name.startswith("layers.0.") and name.endswith(".bias")}
        assert biases == {f"layers.0.{part}.bias" for part in where}


@pytest.mark.parametrize(
    ("case", "read", "unread"),
    [
        ("gemma-wide-heads", "hidden_act", "hidden_activation"),
        ("gemma2-without-caps", "hidden_activation", "hidden_act"),
    ],
)
def test_each_gemma_reads_the_activation_of_its_generation(case, read, unread):
    values = weights.read_config(REFERENCE / case)
    values = {name: value for name, value in values.items() if name not in (read, unread)}
    assert config_of(values).activation == config_of(values, **{unread: "silu"}).activation == "gelu_pytorch_tanh"
    assert config_of(values, **{read: "silu"}).activation == "silu"
    meant = "gelu_pytorch_tanh" if read == "hidden_act" else "gelu"
    assert config_of(values, **{read: "gelu"}).activation == meant


def test_every_tanh_gelu_is_one():
    x = jnp.linspace(-4, 4, 9)
    for name in ("gelu_fast", "gelu_new"):
        config_of(LLAMA, hidden_act=name)
        np.testing.assert_array_equal(activate(name, x), activate("gelu_pytorch_tanh", x))


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        (
            "mixtral-tied-wide-heads",
            {"num_experts_per_tok": 5},
            "5 experts for each token are more than the 4 there are",
        ),
        ("phimoe-longrope", {"num_local_experts": 1}, "2 experts for each token are more than the 1 there are"),
        (
            "mixtral-tied-wide-heads",
            {"hidden_act": "tanh"},
            "'tanh' of a mixture's experts is not supported, only silu",
        ),
        (
            "mixtral-tied-wide-heads",
            {"hidden_act": "relu2"},
            "'relu2' of a mixture's experts is not supported, only silu",
        ),
        (
            "nemotron-h-experts-biases",
            {"mlp_hidden_act": "silu"},
            "'silu' of a mixture's .* is not supported, only relu2;",
        ),
        (
            "deepseek-v3-groups-yarn",
            {"n_group": 3},
            "n_group=3 must part 8 experts evenly, into groups of 2 at least",
        ),
        (
            "deepseek-v3-groups-yarn",
            {"n_group": 8},
            "n_group=8 must part 8 experts evenly, into groups of 2 at least",
        ),
        ("deepseek-v3-groups-yarn", {"topk_group": 5}, "topk_group=5 must not exceed n_group=4"),
        ("deepseek-v2-groups", {"n_group": 5}, "n_group=5 must part 8 experts evenly, into groups of 1 at least"),
    ],
)
def test_a_mixture_that_cannot_be_computed_is_refused(case, changes, message):
    recorded(case)
    with pytest.raises(ConfigError, match=message):
        recorded(case, **changes)


class Unturned(LlamaAttention):
    def place(self, q, k, rotation):
        return q, k


class MyModel(LlamaForCausalLM):
    attention_class = Unturned


def test_a_models_own_class_takes_the_registrys_place():
    architecture = registry.resolve(LLAMA | {"architectures": ["MyOwnForCausalLM"]}, model_class=MyModel)
    assert architecture.name == "MyOwnForCausalLM"
    model = architecture.build("float32")
    assert isinstance(model, MyModel)
    assert all(isinstance(layer.attention, Unturned) for layer in model.layers)


def test_fields_that_published_files_have_and_that_say_nothing() -> None:
    """BLOOM's of transformers 4.26, DBRX's parts of 4.39, dots.llm1's and XVERSE's own."""
    reference = Path(__file__).parent / "reference"

    def resolved(case: str, **changes: Any) -> Any:
        return registry.resolve(weights.read_config(reference / case) | changes).config

    bloom = resolved("bloom-bare-names")
    assert resolved("bloom-bare-names", n_inner=None) == bloom
    assert resolved("bloom-bare-names", n_inner=4 * bloom.hidden_size) == bloom
    with pytest.raises(ConfigError, match="n_inner"):
        resolved("bloom-bare-names", n_inner=17)
    dots = resolved("dots1-groups-windows")
    assert resolved("dots1-groups-windows", scoring_func="sigmoid", topk_method="noaux_tc", moe_layer_freq=1) == dots
    with pytest.raises(ConfigError, match="scoring_func"):
        resolved("dots1-groups-windows", scoring_func="softmax")
    case = next(path.name for path in reference.iterdir() if path.name.startswith("dbrx"))
    values = weights.read_config(reference / case)
    along = {"tie_word_embeddings": True, "bos_token_id": None, "eos_token_id": None, "is_encoder_decoder": False}
    parts = {name: values[name] | along for name in ("attn_config", "ffn_config")}
    assert resolved(case, **parts) == resolved(case)
    for norm, expected in (({}, 1.0), ({"moe_normalize_expert_weights": None}, None)):
        experts = {name: value for name, value in values["ffn_config"].items() if "normalize" not in name} | norm
        assert resolved(case, ffn_config=experts).mixture.routing.norm == expected


def test_a_null_is_not_what_is_left_out() -> None:
    """Of ModernBERT's rotation of layers with a window, and of LFM2's rounding of its MLPs' size (transformers 4)."""

    def read(folder: str, name: str, *given: Any) -> Any:
        values = json.loads((Path(__file__).parent / folder / "config.json").read_text())
        values.pop("rope_parameters", None)
        values.pop(name, None)
        values |= {"intermediate_size": 50} | dict(zip((name,), given, strict=False))
        return registry.resolve(values, None, "auto").config

    field = "local_rope_theta"
    for given, local in (((), 1e4), ((None,), 16e4), ((5e3,), 5e3)):
        config = read("reference_pooling/modernbert-windows", field, *given)
        expected = {16e4 if window is None else local for window in config.windows}
        assert {rope.theta for rope in config.layer_ropes} == expected
    field = "block_ffn_dim_multiplier"
    sizes = [read("reference/lfm2-adjusted", field, *given).intermediate_size for given in ((), (1.0,), (None,))]
    assert sizes == [40, 40, 33]
