"""What a tokenizer is, in the words of a `tokenizer_config.json`."""

from typing import Any

from onecard.engines.text.tokenizer import Tokenizer

CLASS = "PreTrainedTokenizerFast"
"""The class in transformers that any `tokenizers` tokenizer loads into, whatever it was made with."""


def tokenizer_info(tokenizer: Tokenizer, max_model_len: int) -> dict[str, Any]:
    """Class, special and added tokens, and the chat templates (one as a text, several as a list)."""
    templates = tokenizer.chat_templates
    several = [{"name": name, "template": source} for name, source in templates.items()]
    return {
        "tokenizer_class": CLASS,
        "model_max_length": max_model_len,
        "vocab_size": tokenizer.vocab_size,
        **tokenizer.special.names,
        "added_tokens_decoder": {
            str(token_id): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for token_id, token in sorted(tokenizer.backend.get_added_tokens_decoder().items())
        },
        "chat_template": templates.get("default") if len(templates) < 2 else several,
    }
