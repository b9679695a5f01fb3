"""A prompt's log-probabilities cost the device loop next to nothing."""

import time

import tokenizers
import torch
from tokenizers import models

from onecard.engines.paged.logits import Logprobs, compute_logprobs
from onecard.engines.paged.output import PromptEntries, token_logprobs
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.token_text import SpecialTokens
from onecard.engines.text.tokenizer import Tokenizer

WORDS = Tokenizer(
    tokenizers.Tokenizer(models.WordLevel({f"w{i}": i for i in range(1000)}, unk_token="w0")),
    SpecialTokens(),
    ChatTemplates(),
)


def logprobs(count: int, num_top: int = 20) -> Logprobs:
    logits = torch.rand(count, 1000, generator=torch.Generator().manual_seed(count))
    return compute_logprobs(logits, torch.zeros(count, dtype=torch.int64), num_top)


def test_they_are_made_when_they_are_looked_at() -> None:
    entries, ids, given = PromptEntries(WORDS, 20), [7] * 8192, logprobs(8192)
    began = time.perf_counter()
    entries.add(1, ids, given)
    added = time.perf_counter() - began
    began = time.perf_counter()
    assert len(entries) == 8193
    assert added < (time.perf_counter() - began) / 10
    assert entries[0] is None
    assert entries[1:] == token_logprobs(WORDS, ids, given, 20)


def test_what_is_computed_again_counts_instead() -> None:
    entries = PromptEntries(WORDS, 2)
    entries.add(1, [1, 2, 3], logprobs(3))
    entries.add(4, [4, 5], logprobs(2))
    assert [entry and entry.token_id for entry in entries] == [None, 1, 2, 3, 4, 5]
    entries.add(1, [1, 2], logprobs(5, 20))
    entries.add(3, [3, 4, 5], logprobs(3))
    assert [entry and entry.token_id for entry in entries] == [None, 1, 2, 3, 4, 5]
    assert entries[1] == token_logprobs(WORDS, [1], logprobs(5, 20), 2)[0]
