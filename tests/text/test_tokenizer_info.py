"""`tokenizer_info` says what the tokenizer is that answers, not what a file claims."""

import json

import pytest
from tokenizers import AddedToken

from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.token_text import SpecialTokens
from onecard.engines.text.tokenizer import Tokenizer
from onecard.engines.text.tokenizer_info import tokenizer_info


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ({}, None),
        ({"default": "{{ 1 }}"}, "{{ 1 }}"),
        (
            {"default": "{{ 1 }}", "tool_use": "{{ tools }}"},
            [{"name": "default", "template": "{{ 1 }}"}, {"name": "tool_use", "template": "{{ tools }}"}],
        ),
    ],
)
def test_it_has_the_fields_of_a_tokenizer_config(byte_level, sources, told):
    backend = type(byte_level.backend).from_str(byte_level.backend.to_str())
    backend.add_special_tokens([AddedToken("<end>", special=True)])
    special = SpecialTokens(names={"eos_token": "<end>"})
    info = tokenizer_info(Tokenizer(backend, special, ChatTemplates(sources)), 77)
    assert (info["model_max_length"], info["eos_token"], info["chat_template"]) == (77, "<end>", told)
    assert info["vocab_size"] == backend.get_vocab_size()
    assert info["added_tokens_decoder"][str(backend.token_to_id("<end>"))]["special"] is True
    assert json.loads(json.dumps(info)) == info
