"""Offsets of tokens in the text, also where a character is split between them."""

from hypothesis import given
from hypothesis import strategies as st

from onecard.engines.api import TokenLogprob
from onecard.engines.paged.stream import TokenStream
from onecard.gateway.answers.logprobs import CompletionLogprobs, prompt_logprobs


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


def token(token_id, token_bytes, logprob, *top, rank=None):
    text = token_bytes.decode(errors="replace")
    return TokenLogprob(token_id, text, logprob, token_bytes, top, rank)


def test_pieces_of_characters_have_names_of_their_own_and_the_chosen_one_keeps_its_value():
    top = [token(10 + i, piece, -0.5 - i) for i, piece in enumerate((b"\xf0\x9f", b" \xf0\x9f", b"\xf0"))]
    logprobs = CompletionLogprobs()
    logprobs.add([token(20, b"\xa4\\", -7.0, *top)])
    taken = logprobs.take()
    assert taken["tokens"] == [r"bytes:\xa4\x5c"]
    assert taken["top_logprobs"] == [
        {r"bytes:\xf0\x9f": -0.5, r"bytes: \xf0\x9f": -1.5, r"bytes:\xf0": -2.5, r"bytes:\xa4\x5c": -7.0}
    ]


def test_two_tokens_of_one_spelling_both_stay_and_the_chosen_one_has_the_name():
    likelier, chosen = token(1, b"<s>", -0.1), token(2, b"<s>", -3.0)
    logprobs = CompletionLogprobs()
    logprobs.add([token(2, b"<s>", -3.0, likelier, chosen)])
    assert logprobs.take()["top_logprobs"] == [{"token_id:1": -0.1, "<s>": -3.0}]


@given(st.lists(st.binary(max_size=3), min_size=1, max_size=6))
def test_no_alternative_is_lost(pieces):
    top = [token(i, piece, -float(i)) for i, piece in enumerate(pieces)]
    logprobs = CompletionLogprobs()
    logprobs.add([token(99, pieces[0], -50.0, *top)])
    taken = logprobs.take()
    [shown] = taken["top_logprobs"]
    assert len(shown) == len(pieces) + 1
    assert shown[taken["tokens"][0]] == taken["token_logprobs"][0] == -50.0


def test_a_prompts_tokens_have_their_rank_outside_the_top_too():
    stream = TokenStream([1, 2], None, 1)
    stream.prompt_logprobs = [None, token(2, b"b", -9.0, token(5, b"c", -0.1, rank=1), rank=812)]
    _, shown = prompt_logprobs(stream, 1)
    assert {key: entry["rank"] for key, entry in shown.items()} == {"2": 812, "5": 1}


@given(st.text(min_size=1, max_size=8), st.text(min_size=1, max_size=8), st.data())
def test_offsets_count_the_whole_characters_before_each_token(prompt, answer, data):
    asked, said = cut(data, prompt), cut(data, answer)
    logprobs = CompletionLogprobs()
    logprobs.add_prompt([None, *map(entry, asked[1:])], "?", prompt)
    logprobs.add([entry(piece) for piece in said])
    before = [b"".join([*asked, *said][:i]) for i in range(len(asked) + len(said))]
    assert offsets(logprobs) == [len(piece.decode(errors="ignore")) for piece in before]
