"""RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020): BERT whose positions begin behind the padding's."""

from typing import ClassVar

from jaxllm.layers.parameter import Dtype, Source, linear_rows, norm_rows
from jaxllm.models.bert import BertModel, bert_config
from jaxllm.models.config import ModelConfig
from jaxllm.models.encoder import ClassHead, Head, VocabularyHead
from jaxllm.models.fields import Fields


class RobertaModel(BertModel):
    checkpoint_prefix = "roberta."
    checkpoint_ignored = (r"embeddings\.position_ids$", r"pooler\.dense\.", r"^lm_head\.", r"^classifier\.")
    checkpoint_names: ClassVar[dict[str, Source]] = {
        row: Source(tuple(name.replace("bert.", "roberta.", 1) for name in source.names), source.layout)
        for row, source in BertModel.checkpoint_names.items()
    }

    @classmethod
    def configure_encoder(cls, fields: Fields, architecture: str) -> ModelConfig:
        return bert_config(fields, architecture, first_position=fields.take("pad_token_id", int, 1) + 1)


class RobertaForSequenceClassification(RobertaModel):
    made_for = "classify"
    checkpoint_names: ClassVar[dict[str, Source]] = {
        **RobertaModel.checkpoint_names,
        **linear_rows("head.transform.dense", "classifier.dense"),
        **linear_rows("head.out", "classifier.out_proj"),
    }

    def make_head(self, dtype: Dtype) -> Head:
        return ClassHead(self.config, self.transform("tanh", dtype, norm=False), dtype)


class RobertaForTokenClassification(RobertaModel):
    made_for = "token_classify"
    checkpoint_names: ClassVar[dict[str, Source]] = {
        **RobertaModel.checkpoint_names,
        **linear_rows("head.out", "classifier"),
    }

    def make_head(self, dtype: Dtype) -> Head:
        return ClassHead(self.config, None, dtype)


class RobertaForMaskedLM(RobertaModel):
    made_for = "masked_lm"
    checkpoint_names: ClassVar[dict[str, Source]] = {
        **RobertaModel.checkpoint_names,
        **linear_rows("head.transform.dense", "lm_head.dense"),
        **norm_rows("head.transform.norm", "lm_head.layer_norm"),
        "head.out.kernel": Source.linear("lm_head.decoder.weight"),
        "head.bias": Source.of("lm_head.decoder.bias"),
    }

    def make_head(self, dtype: Dtype) -> Head:
        return VocabularyHead(self.config, self.transform("gelu", dtype, norm=True), dtype)
