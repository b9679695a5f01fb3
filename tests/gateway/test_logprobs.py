"""Offsets of tokens in the text, also where a character is split between them."""

from hypothesis import given
from hypothesis import strategies as st

from onecard.engines.api import TokenLogprob
from onecard.gateway.answers.logprobs import CompletionLogprobs


def entry(token_bytes):
    return TokenLogprob(1, token_bytes.decode(errors="replace"), -1.0, token_bytes)


def offsets(logprobs):
    return logprobs.take()["text_offset"]


def test_tokens_that_share_a_character_share_its_offset():
    logprobs = CompletionLogprobs()
    robot = "🤖".encode()
    logprobs.add([entry(b"a"), entry(robot[:2])])
    assert offsets(logprobs) == [0, 1]
    logprobs.add([entry(robot[2:]), entry(b"b"), entry(b"c")])
    assert offsets(logprobs) == [1, 2, 3]


def test_a_prompt_may_begin_inside_a_character():
    logprobs = CompletionLogprobs()
    robot = "🤖".encode()
    logprobs.add_prompt([None, entry(robot[2:]), entry(b"b")], "\ufffd", "🤖b")
    logprobs.add([entry(b"c")])
    taken = logprobs.take()
    assert taken["text_offset"] == [0, 0, 1, 2]
    assert taken["tokens"][0] == "\ufffd"
    assert taken["token_logprobs"][0] is None


def test_a_first_token_that_the_text_does_not_show_takes_no_room():
    logprobs = CompletionLogprobs()
    logprobs.add_prompt([None, entry(b"Hi"), entry(b" you")], "<s>", "Hi you")
    assert offsets(logprobs) == [0, 0, 2]


def test_a_prompt_of_one_token_has_its_place_too():
    logprobs = CompletionLogprobs()
    logprobs.add_prompt([None], "Hello", "Hello")
    logprobs.add([entry(b"!")])
    assert offsets(logprobs) == [0, 5]


def cut(data, text):
    """The bytes of `text` in pieces that know no characters."""
    whole = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=6))) if len(whole) > 1 else []
    return [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@given(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8), st.data())
def test_offsets_count_the_whole_characters_before_each_token(prompt, answer, data):
    asked, said = cut(data, prompt), cut(data, answer)
    logprobs = CompletionLogprobs()
    logprobs.add_prompt([None, *map(entry, asked[1:])], "?", prompt)
    logprobs.add([entry(piece) for piece in said])
    before = [b"".join([*asked, *said][:i]) for i in range(len(asked) + len(said))]
    assert offsets(logprobs) == [len(piece.decode(errors="ignore")) for piece in before]
