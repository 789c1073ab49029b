"""Which class serves which architecture: one row each."""

import difflib
from dataclasses import dataclass, replace
from typing import Any

from jaxllm.config import Task
from jaxllm.errors import ConfigError, UnknownModelError
from jaxllm.layers.parameter import Dtype
from jaxllm.models.afmoe import AfmoeForCausalLM
from jaxllm.models.apertus import ApertusForCausalLM
from jaxllm.models.baichuan import BaichuanForCausalLM
from jaxllm.models.bailing_moe import BailingMoeForCausalLM, BailingMoeV2ForCausalLM
from jaxllm.models.bamba import BambaForCausalLM
from jaxllm.models.bart import (
    BartForConditionalGeneration,
    MarianMTModel,
    MBartForConditionalGeneration,
    PegasusForConditionalGeneration,
)
from jaxllm.models.bert import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from jaxllm.models.bloom import BloomForCausalLM
from jaxllm.models.causal_lm import CausalLM
from jaxllm.models.chatglm import ChatGLMModel
from jaxllm.models.codegen import CodeGenForCausalLM
from jaxllm.models.cohere import Cohere2ForCausalLM, CohereForCausalLM
from jaxllm.models.config import ModelConfig
from jaxllm.models.dbrx import DbrxForCausalLM
from jaxllm.models.decoder_pooling import (
    Gemma2ForSequenceClassification,
    Gemma2Model,
    GemmaForSequenceClassification,
    GPT2ForSequenceClassification,
    InternLM2ForRewardModel,
    JambaForSequenceClassification,
    LlamaForSequenceClassification,
    LlamaModel,
    MistralForSequenceClassification,
    MistralModel,
    Phi3ForSequenceClassification,
    Qwen2ForProcessRewardModel,
    Qwen2ForRewardModel,
    Qwen2ForSequenceClassification,
    Qwen2Model,
    Qwen3ForSequenceClassification,
    Qwen3Model,
)
from jaxllm.models.deepseek import DeepseekForCausalLM
from jaxllm.models.deepseek_v2 import DeepseekV2ForCausalLM
from jaxllm.models.deepseek_v3 import DeepseekV3ForCausalLM
from jaxllm.models.deepseek_v3_kin import Glm4MoeLiteForCausalLM, YoutuForCausalLM
from jaxllm.models.encoder import Encoder
from jaxllm.models.encoder_decoder import EncoderDecoder
from jaxllm.models.ernie4_5_moe import Ernie45MoeForCausalLM
from jaxllm.models.exaone import Exaone4ForCausalLM, ExaoneForCausalLM
from jaxllm.models.falcon import FalconForCausalLM
from jaxllm.models.falcon_h1 import FalconH1ForCausalLM
from jaxllm.models.fields import Fields
from jaxllm.models.gemma import Gemma2ForCausalLM, Gemma3ForCausalLM, GemmaForCausalLM, VaultGemmaForCausalLM
from jaxllm.models.glm import Glm4ForCausalLM, GlmForCausalLM
from jaxllm.models.glm4_moe import Glm4MoeForCausalLM
from jaxllm.models.glm4_moe_kin import Dots1ForCausalLM, ExaoneMoeForCausalLM, HYV3ForCausalLM, SolarOpenForCausalLM
from jaxllm.models.gpt2 import GPT2LMHeadModel
from jaxllm.models.gpt_bigcode import GPTBigCodeForCausalLM
from jaxllm.models.gpt_neo import GPTNeoForCausalLM
from jaxllm.models.gpt_neox import GPTNeoXForCausalLM, GPTNeoXJapaneseForCausalLM
from jaxllm.models.gpt_oss import GptOssForCausalLM
from jaxllm.models.gptj import GPTJForCausalLM
from jaxllm.models.granite import GraniteForCausalLM
from jaxllm.models.granite_swa import GraniteMoeSWAForCausalLM, GraniteSWAForCausalLM
from jaxllm.models.granitemoe import GraniteMoeForCausalLM
from jaxllm.models.granitemoehybrid import GraniteMoeHybridForCausalLM
from jaxllm.models.hunyuan import HunYuanDenseV1ForCausalLM, HunYuanMoEV1ForCausalLM
from jaxllm.models.hyperclovax import HyperCLOVAXForCausalLM
from jaxllm.models.internlm2 import InternLM2ForCausalLM
from jaxllm.models.jamba import JambaForCausalLM
from jaxllm.models.lfm2 import Lfm2ForCausalLM, Lfm2MoeForCausalLM
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.models.llama_kin import (
    ArceeForCausalLM,
    Ernie45ForCausalLM,
    HeliumForCausalLM,
    InternLM3ForCausalLM,
    InternLMForCausalLM,
    IQuestCoderForCausalLM,
    MiMoForCausalLM,
    MiniCPMForCausalLM,
    OrionForCausalLM,
    SeedOssForCausalLM,
)
from jaxllm.models.mamba import FalconMambaForCausalLM, MambaForCausalLM
from jaxllm.models.mamba2 import Mamba2ForCausalLM
from jaxllm.models.minicpm3 import MiniCPM3ForCausalLM
from jaxllm.models.minimax_m2 import MiniMaxM2ForCausalLM
from jaxllm.models.ministral3 import Ministral3ForCausalLM
from jaxllm.models.mistral import CwmForCausalLM, MinistralForCausalLM, MistralForCausalLM
from jaxllm.models.mixtral import MixtralForCausalLM
from jaxllm.models.modernbert import (
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    ModernBertForTokenClassification,
    ModernBertModel,
)
from jaxllm.models.mpt import MPTForCausalLM
from jaxllm.models.nanochat import NanoChatForCausalLM
from jaxllm.models.nemotron import Jais2ForCausalLM, NemotronForCausalLM
from jaxllm.models.nemotron_h import NemotronHForCausalLM
from jaxllm.models.olmo import Olmo2ForCausalLM, Olmo3ForCausalLM, OlmoForCausalLM
from jaxllm.models.olmoe import FlexOlmoForCausalLM, OlmoeForCausalLM
from jaxllm.models.opt import OPTForCausalLM
from jaxllm.models.persimmon import PersimmonForCausalLM
from jaxllm.models.phi import PhiForCausalLM
from jaxllm.models.phi3 import Phi3ForCausalLM
from jaxllm.models.phimoe import PhiMoEForCausalLM
from jaxllm.models.pooling import PoolingModel, as_embedding
from jaxllm.models.qwen import QWenLMHeadModel
from jaxllm.models.qwen2 import Qwen2ForCausalLM
from jaxllm.models.qwen3 import Qwen3ForCausalLM
from jaxllm.models.qwen_moe import MellumForCausalLM, Qwen2MoeForCausalLM, Qwen3MoeForCausalLM
from jaxllm.models.roberta import (
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
    RobertaModel,
)
from jaxllm.models.smollm3 import SmolLM3ForCausalLM
from jaxllm.models.solar import SolarForCausalLM
from jaxllm.models.stablelm import StableLmForCausalLM
from jaxllm.models.starcoder2 import Starcoder2ForCausalLM
from jaxllm.models.t5 import MT5ForConditionalGeneration, T5ForConditionalGeneration

MODELS: dict[str, tuple[str, type[CausalLM]]] = {
    "LlamaForCausalLM": ("llama", LlamaForCausalLM),
    "MistralForCausalLM": ("mistral", MistralForCausalLM),
    "Qwen2ForCausalLM": ("qwen2", Qwen2ForCausalLM),
    "Qwen3ForCausalLM": ("qwen3", Qwen3ForCausalLM),
    "MixtralForCausalLM": ("mixtral", MixtralForCausalLM),
    "Qwen2MoeForCausalLM": ("qwen2_moe", Qwen2MoeForCausalLM),
    "Qwen3MoeForCausalLM": ("qwen3_moe", Qwen3MoeForCausalLM),
    "OlmoeForCausalLM": ("olmoe", OlmoeForCausalLM),
    "DeepseekForCausalLM": ("deepseek", DeepseekForCausalLM),
    "DeepseekV2ForCausalLM": ("deepseek_v2", DeepseekV2ForCausalLM),
    "DeepseekV3ForCausalLM": ("deepseek_v3", DeepseekV3ForCausalLM),
    "GraniteMoeForCausalLM": ("granitemoe", GraniteMoeForCausalLM),
    "GraniteMoeSharedForCausalLM": ("granitemoeshared", GraniteMoeForCausalLM),
    "PhimoeForCausalLM": ("phimoe", PhiMoEForCausalLM),
    "PhiMoEForCausalLM": ("phimoe", PhiMoEForCausalLM),
    "DbrxForCausalLM": ("dbrx", DbrxForCausalLM),
    "Glm4MoeForCausalLM": ("glm4_moe", Glm4MoeForCausalLM),
    "GptOssForCausalLM": ("gpt_oss", GptOssForCausalLM),
    "GPT2LMHeadModel": ("gpt2", GPT2LMHeadModel),
    "PhiForCausalLM": ("phi", PhiForCausalLM),
    "StableLmForCausalLM": ("stablelm", StableLmForCausalLM),
    "StableLMEpochForCausalLM": ("stablelm_epoch", StableLmForCausalLM),
    "GPTNeoXForCausalLM": ("gpt_neox", GPTNeoXForCausalLM),
    "GPTJForCausalLM": ("gptj", GPTJForCausalLM),
    "Starcoder2ForCausalLM": ("starcoder2", Starcoder2ForCausalLM),
    "NemotronForCausalLM": ("nemotron", NemotronForCausalLM),
    "PersimmonForCausalLM": ("persimmon", PersimmonForCausalLM),
    "CodeGenForCausalLM": ("codegen", CodeGenForCausalLM),
    "GPTBigCodeForCausalLM": ("gpt_bigcode", GPTBigCodeForCausalLM),
    "GPTNeoForCausalLM": ("gpt_neo", GPTNeoForCausalLM),
    "OPTForCausalLM": ("opt", OPTForCausalLM),
    "FalconForCausalLM": ("falcon", FalconForCausalLM),
    "RWForCausalLM": ("RefinedWebModel", FalconForCausalLM),
    "BloomForCausalLM": ("bloom", BloomForCausalLM),
    "MPTForCausalLM": ("mpt", MPTForCausalLM),
    "MptForCausalLM": ("mpt", MPTForCausalLM),
    "BaichuanForCausalLM": ("baichuan", BaichuanForCausalLM),
    "BaiChuanForCausalLM": ("baichuan", BaichuanForCausalLM),
    "GemmaForCausalLM": ("gemma", GemmaForCausalLM),
    "Gemma2ForCausalLM": ("gemma2", Gemma2ForCausalLM),
    "Gemma3ForCausalLM": ("gemma3_text", Gemma3ForCausalLM),
    "Phi3ForCausalLM": ("phi3", Phi3ForCausalLM),
    "GraniteForCausalLM": ("granite", GraniteForCausalLM),
    "OlmoForCausalLM": ("olmo", OlmoForCausalLM),
    "Olmo2ForCausalLM": ("olmo2", Olmo2ForCausalLM),
    "Olmo3ForCausalLM": ("olmo3", Olmo3ForCausalLM),
    "GlmForCausalLM": ("glm", GlmForCausalLM),
    "Glm4ForCausalLM": ("glm4", Glm4ForCausalLM),
    "CohereForCausalLM": ("cohere", CohereForCausalLM),
    "Cohere2ForCausalLM": ("cohere2", Cohere2ForCausalLM),
    "ExaoneForCausalLM": ("exaone", ExaoneForCausalLM),
    "Exaone4ForCausalLM": ("exaone4", Exaone4ForCausalLM),
    "SmolLM3ForCausalLM": ("smollm3", SmolLM3ForCausalLM),
    "InternLM2ForCausalLM": ("internlm2", InternLM2ForCausalLM),
    "Ministral3ForCausalLM": ("ministral3", Ministral3ForCausalLM),
    "SeedOssForCausalLM": ("seed_oss", SeedOssForCausalLM),
    "ArceeForCausalLM": ("arcee", ArceeForCausalLM),
    "HeliumForCausalLM": ("helium", HeliumForCausalLM),
    "MiniCPMForCausalLM": ("minicpm", MiniCPMForCausalLM),
    "InternLMForCausalLM": ("internlm", InternLMForCausalLM),
    "InternLM3ForCausalLM": ("internlm3", InternLM3ForCausalLM),
    "OrionForCausalLM": ("orion", OrionForCausalLM),
    "MiMoForCausalLM": ("mimo", MiMoForCausalLM),
    "YiForCausalLM": ("Yi", LlamaForCausalLM),
    "AquilaForCausalLM": ("aquila", LlamaForCausalLM),
    "AquilaModel": ("aquila", LlamaForCausalLM),
    "LLaMAForCausalLM": ("llama", LlamaForCausalLM),
    "HyperCLOVAXForCausalLM": ("hyperclovax", HyperCLOVAXForCausalLM),
    "VaultGemmaForCausalLM": ("vaultgemma", VaultGemmaForCausalLM),
    "Ernie4_5ForCausalLM": ("ernie4_5", Ernie45ForCausalLM),
    "MinistralForCausalLM": ("ministral", MinistralForCausalLM),
    "CwmForCausalLM": ("cwm", CwmForCausalLM),
    "XverseForCausalLM": ("xverse", LlamaForCausalLM),
    "Dots1ForCausalLM": ("dots1", Dots1ForCausalLM),
    "SolarOpenForCausalLM": ("solar_open", SolarOpenForCausalLM),
    "ExaoneMoeForCausalLM": ("exaone_moe", ExaoneMoeForCausalLM),
    "ExaoneMoEForCausalLM": ("exaone_moe", ExaoneMoeForCausalLM),
    "Ernie4_5_MoeForCausalLM": ("ernie4_5_moe", Ernie45MoeForCausalLM),
    "HunYuanDenseV1ForCausalLM": ("hunyuan_v1_dense", HunYuanDenseV1ForCausalLM),
    "HunYuanMoEV1ForCausalLM": ("hunyuan_v1_moe", HunYuanMoEV1ForCausalLM),
    "FlexOlmoForCausalLM": ("flex_olmo", FlexOlmoForCausalLM),
    "MiniMaxM2ForCausalLM": ("minimax_m2", MiniMaxM2ForCausalLM),
    "Jais2ForCausalLM": ("jais2", Jais2ForCausalLM),
    "GPTNeoXJapaneseForCausalLM": ("gpt_neox_japanese", GPTNeoXJapaneseForCausalLM),
    "MiniCPM3ForCausalLM": ("minicpm3", MiniCPM3ForCausalLM),
    "MambaForCausalLM": ("mamba", MambaForCausalLM),
    "FalconMambaForCausalLM": ("falcon_mamba", FalconMambaForCausalLM),
    "Mamba2ForCausalLM": ("mamba2", Mamba2ForCausalLM),
    "JambaForCausalLM": ("jamba", JambaForCausalLM),
    "BambaForCausalLM": ("bamba", BambaForCausalLM),
    "NemotronHForCausalLM": ("nemotron_h", NemotronHForCausalLM),
    "FalconH1ForCausalLM": ("falcon_h1", FalconH1ForCausalLM),
    "Lfm2ForCausalLM": ("lfm2", Lfm2ForCausalLM),
    "Lfm2MoeForCausalLM": ("lfm2_moe", Lfm2MoeForCausalLM),
    "GraniteMoeHybridForCausalLM": ("granitemoehybrid", GraniteMoeHybridForCausalLM),
    "Glm4MoeLiteForCausalLM": ("glm4_moe_lite", Glm4MoeLiteForCausalLM),
    "YoutuForCausalLM": ("youtu", YoutuForCausalLM),
    "HYV3ForCausalLM": ("hy_v3", HYV3ForCausalLM),
    "ApertusForCausalLM": ("apertus", ApertusForCausalLM),
    "ChatGLMModel": ("chatglm", ChatGLMModel),
    "ChatGLMForConditionalGeneration": ("chatglm", ChatGLMModel),
    "QWenLMHeadModel": ("qwen", QWenLMHeadModel),
    "BailingMoeForCausalLM": ("bailing_moe", BailingMoeForCausalLM),
    "BailingMoeV2ForCausalLM": ("bailing_moe_v2", BailingMoeV2ForCausalLM),
    "AfmoeForCausalLM": ("afmoe", AfmoeForCausalLM),
    "NanoChatForCausalLM": ("nanochat", NanoChatForCausalLM),
    "MellumForCausalLM": ("mellum", MellumForCausalLM),
    "GraniteSWAForCausalLM": ("granite_swa", GraniteSWAForCausalLM),
    "GraniteMoeSWAForCausalLM": ("granitemoe_swa", GraniteMoeSWAForCausalLM),
    "SolarForCausalLM": ("solar", SolarForCausalLM),
    "IQuestCoderForCausalLM": ("iquestcoder", IQuestCoderForCausalLM),
}
"""Architecture, as `architectures` in config.json names it -> its `model_type` and its class."""

ENCODER_DECODERS: dict[str, tuple[str, type[EncoderDecoder]]] = {
    "T5ForConditionalGeneration": ("t5", T5ForConditionalGeneration),
    "T5WithLMHeadModel": ("t5", T5ForConditionalGeneration),
    "MT5ForConditionalGeneration": ("mt5", MT5ForConditionalGeneration),
    "BartForConditionalGeneration": ("bart", BartForConditionalGeneration),
    "MBartForConditionalGeneration": ("mbart", MBartForConditionalGeneration),
    "PegasusForConditionalGeneration": ("pegasus", PegasusForConditionalGeneration),
    "MarianMTModel": ("marian", MarianMTModel),
}
"""The same for models that go on from a source that an encoder reads."""


POOLING_MODELS: dict[str, tuple[str, type[PoolingModel]]] = {
    "BertModel": ("bert", BertModel),
    "BertForSequenceClassification": ("bert", BertForSequenceClassification),
    "BertForTokenClassification": ("bert", BertForTokenClassification),
    "BertForMaskedLM": ("bert", BertForMaskedLM),
    "RobertaModel": ("roberta", RobertaModel),
    "RobertaForSequenceClassification": ("roberta", RobertaForSequenceClassification),
    "RobertaForTokenClassification": ("roberta", RobertaForTokenClassification),
    "RobertaForMaskedLM": ("roberta", RobertaForMaskedLM),
    "XLMRobertaModel": ("xlm-roberta", RobertaModel),
    "XLMRobertaForSequenceClassification": ("xlm-roberta", RobertaForSequenceClassification),
    "XLMRobertaForTokenClassification": ("xlm-roberta", RobertaForTokenClassification),
    "XLMRobertaForMaskedLM": ("xlm-roberta", RobertaForMaskedLM),
    "CamembertModel": ("camembert", RobertaModel),
    "CamembertForSequenceClassification": ("camembert", RobertaForSequenceClassification),
    "CamembertForTokenClassification": ("camembert", RobertaForTokenClassification),
    "CamembertForMaskedLM": ("camembert", RobertaForMaskedLM),
    "ModernBertModel": ("modernbert", ModernBertModel),
    "ModernBertForSequenceClassification": ("modernbert", ModernBertForSequenceClassification),
    "ModernBertForTokenClassification": ("modernbert", ModernBertForTokenClassification),
    "ModernBertForMaskedLM": ("modernbert", ModernBertForMaskedLM),
    "LlamaModel": ("llama", LlamaModel),
    "MistralModel": ("mistral", MistralModel),
    "Qwen2Model": ("qwen2", Qwen2Model),
    "Qwen3Model": ("qwen3", Qwen3Model),
    "LlamaForSequenceClassification": ("llama", LlamaForSequenceClassification),
    "MistralForSequenceClassification": ("mistral", MistralForSequenceClassification),
    "Qwen2ForSequenceClassification": ("qwen2", Qwen2ForSequenceClassification),
    "Qwen3ForSequenceClassification": ("qwen3", Qwen3ForSequenceClassification),
    "JambaForSequenceClassification": ("jamba", JambaForSequenceClassification),
    "Qwen2ForRewardModel": ("qwen2", Qwen2ForRewardModel),
    "Qwen2ForProcessRewardModel": ("qwen2", Qwen2ForProcessRewardModel),
    "InternLM2ForRewardModel": ("internlm2", InternLM2ForRewardModel),
    "Gemma2Model": ("gemma2", Gemma2Model),
    "GemmaForSequenceClassification": ("gemma", GemmaForSequenceClassification),
    "Gemma2ForSequenceClassification": ("gemma2", Gemma2ForSequenceClassification),
    "Phi3ForSequenceClassification": ("phi3", Phi3ForSequenceClassification),
    "GPT2ForSequenceClassification": ("gpt2", GPT2ForSequenceClassification),
}
"""The same for models that generate nothing: embeddings, classes, rewards."""


@dataclass(frozen=True)
class Architecture:
    """A checkpoint's architecture, resolved: its name, its configuration and the class that builds it."""

    name: str
    config: ModelConfig
    model_class: type[CausalLM] | type[PoolingModel]

    def within(self, context: int) -> "Architecture":
        """The architecture as it is run for texts of `context` positions at most; LongRoPE depends on it."""
        return replace(self, config=self.config.within(context))

    def build(self, dtype: Dtype) -> Any:
        """The model with abstract parameters of `dtype`: nothing is allocated."""
        return self.model_class(self.config, dtype)


def resolve(
    hf_config: dict[str, Any], model_class: type[CausalLM] | type[PoolingModel] | None = None, task: Task = "auto"
) -> Architecture:
    """From the content of a config.json. `model_class` takes the place of the registry's class.

    task: what the model is to do; "embed" and "score" make an embedding model of a decoder, or of an encoder with
    another head.

    Raises UnknownModelError, naming the nearest, for an architecture that is not in the registry, and ConfigError for
    a field that cannot be honoured or a task that the model cannot do.
    """
    known: dict[str, tuple[str, type]] = {**MODELS, **ENCODER_DECODERS, **POOLING_MODELS}
    name = _architecture(hf_config, known)
    if model_class is None:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, cutoff=0.0)[0]
            raise UnknownModelError(
                f"architecture {name!r} is not in the registry; the nearest is {near!r}, known: {', '.join(known)}."
                " If it computes as one of these does, name that in config.json; otherwise pass model_class, or add a"
                " row to jaxllm/models/registry.py"
            )
        model_class = known[name][1]
    if task == "embed" and issubclass(model_class, Encoder):
        model_class = model_class.without_head()
    elif task in ("embed", "score") and not issubclass(model_class, PoolingModel):
        if issubclass(model_class, EncoderDecoder):
            raise _not_made_for(task, name, "generate")
        model_class = as_embedding(model_class)
    fields = Fields(hf_config)
    config = model_class.configure(fields, name)
    fields.finish()
    _check_task(task, name, config)
    return Architecture(name, config, model_class)


def _check_task(task: Task, name: str, config: ModelConfig) -> None:
    pooling = config.pooling
    made_for = "generate" if pooling is None else pooling.task
    able = {
        "auto": True,
        "generate": pooling is None,
        "embed": made_for == "embed",
        "classify": made_for in ("classify", "token_classify"),
        "score": pooling is not None and pooling.scores,
    }
    if not able[task]:
        raise _not_made_for(task, name, made_for)


def _not_made_for(task: Task, name: str, made_for: str) -> ConfigError:
    return ConfigError(f"task={task!r}: {name} is made to {made_for}; leave the task on auto, or take another model")


def _architecture(hf_config: dict[str, Any], known: dict[str, tuple[str, type]]) -> str:
    """The name in `architectures`, or the one that `model_type` stands for."""
    names = hf_config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError("config.json: neither architectures nor model_type says what the model is")
    return next((name for name, (kind, _) in known.items() if kind == model_type), model_type)
