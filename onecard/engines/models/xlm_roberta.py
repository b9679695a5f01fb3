"""XLM-RoBERTa (Conneau et al. 2020) as a text encoder: bge-m3, multilingual E5; RoBERTa and CamemBERT too.

BERT's blocks with one token type, and positions that start behind the padding token's: `padding_idx + 1`.
"""

from collections.abc import Mapping
from typing import Any

from onecard.engines.models.bert import BertModel, encoder_config
from onecard.engines.models.config import EncoderConfig


class XLMRobertaModel(BertModel):
    """Token ids to the last hidden states.

    Positions count every token of a text; transformers leaves out padding tokens, of which packed texts have
    none.
    """

    checkpoint_prefix = "roberta."
    ignored_weights = (r"embeddings\.position_ids", r"pooler\..*", r"lm_head\..*", r"classifier\..*")


def parse(raw: Mapping[str, Any]) -> EncoderConfig:
    padding = raw.get("pad_token_id")
    return encoder_config("XLMRobertaModel", raw, first_position=(1 if padding is None else padding) + 1)
