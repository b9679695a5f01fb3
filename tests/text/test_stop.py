"""Stop strings end a text at the same place however it is cut into pieces."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onecard.engines.text.stop_strings import StopChecker, StopStrings


def run(stops: list[str], pieces: list[str], include: bool = False) -> tuple[str, str | None]:
    checker = StopChecker(stops, include)
    sent = ""
    for piece in pieces:
        text, matched = checker.append(piece)
        sent += text
        if matched is not None:
            return sent, matched
    return sent + checker.finish(), None


def test_across_pieces() -> None:
    assert run(["\n\nUser:"], ["Hi", "\n", "\nUs", "er", ": no"]) == ("Hi", "\n\nUser:")


def test_included_on_request() -> None:
    assert run(["END"], ["abE", "ND tail"], include=True) == ("abEND", "END")


def test_holds_back_no_more_than_a_possible_beginning() -> None:
    checker = StopChecker(["stop"])
    assert checker.append("go sto") == ("go ", None)
    assert checker.append("ne") == ("stone", None)
    assert checker.append("s") == ("", None)
    assert checker.finish() == "s"
    assert checker.finish() == ""


def test_without_stops_all_passes() -> None:
    assert run([], ["a", "b"]) == ("ab", None)
    assert run([""], ["a", "b"]) == ("ab", None)


@pytest.mark.parametrize(
    ("stops", "text", "expected"),
    [
        (["world", "lo"], "hello world", ("hel", "lo")),
        (["bc", "abcd"], "xabcdy", ("xa", "bc")),
        (["ab", "abc"], "xabcy", ("x", "ab")),
        (["aab"], "aaab", ("a", "aab")),
    ],
)
def test_what_a_reader_would_see_first_wins(stops: list[str], text: str, expected: tuple[str, str]) -> None:
    assert run(stops, list(text)) == expected
    assert run(stops, [text]) == expected


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    pieces=st.lists(st.text("abc", max_size=4), max_size=8),
    include=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_cutting_makes_no_difference(stops: list[str], pieces: list[str], include: bool) -> None:
    text = "".join(pieces)
    expected = run(stops, list(text), include)
    assert run(stops, pieces, include) == expected
    assert run(stops, [text], include) == expected
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not ends:
        assert expected == (text, None)
    else:
        sent, matched = expected
        assert matched is not None
        assert text.startswith(sent if include else sent + matched)
        assert len(sent) + (0 if include else len(matched)) == min(ends)


def test_long_stop_strings_that_nearly_match_cost_as_little_as_short_ones() -> None:
    """The device loop looks at each token of an answer: 256 strings of 8,192 characters are in bounds."""
    stops = StopStrings([*("a" * 30 + chr(0x4E00 + i) for i in range(255)), "a" * 200 + "b"])
    checkers = [StopChecker(stops) for _ in range(128)]
    began = time.perf_counter()
    for checker in checkers:
        assert checker.append("a" * 400) == ("a" * 200, None)
        assert checker.finish() == "a" * 200
    assert time.perf_counter() - began < 1
