"""XLM-RoBERTa (Conneau et al. 2020) as a text encoder: bge-m3, multilingual E5; RoBERTa and CamemBERT too.

BERT's blocks with one token type, and positions that start behind the padding token's: `padding_idx + 1`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from onecard.engines.models.bert import BertForSequenceClassification, BertModel, encoder_config
from onecard.engines.models.config import EncoderConfig, labels
from onecard.engines.models.config_values import whole


class XLMRobertaModel(BertModel):
    """Token ids to the last hidden states.

    Positions count every token of a text; transformers leaves out padding tokens, of which packed texts have
    none.
    """

    checkpoint_prefix = "roberta."
    ignored_weights = (r"embeddings\.position_ids", r"pooler\..*", r"lm_head\..*")


class XLMRobertaForSequenceClassification(BertForSequenceClassification):
    """The same under other names; the head reads the first tokens as they are, without a pooler."""

    checkpoint_prefix = "roberta."
    renamed_weights = (
        *BertModel.renamed_weights,
        ("classifier.dense.", "head.dense."),
        ("classifier.out_proj.", "head.out."),
    )
    ignored_weights = XLMRobertaModel.ignored_weights


def parse(raw: Mapping[str, Any]) -> EncoderConfig:
    return encoder_config("XLMRobertaModel", raw, _first_position(raw))


def parse_classifier(raw: Mapping[str, Any]) -> EncoderConfig:
    config = encoder_config("XLMRobertaForSequenceClassification", raw, _first_position(raw))
    return replace(config, id2label=labels(raw))


def _first_position(raw: Mapping[str, Any]) -> int:
    return whole(raw, "pad_token_id", 1, least=0) + 1
