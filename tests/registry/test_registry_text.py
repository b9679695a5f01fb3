"""Byte units and variables: properties over all of their inputs."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onecard.registry.problems import nearest
from onecard.registry.units import UNITS, format_bytes, parse_bytes
from onecard.registry.variables import expand, mask

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.integers(0, 10**6), st.sampled_from(sorted(UNITS)), st.sampled_from(["", " "]), st.booleans())
def test_a_number_and_a_unit(number: int, unit: str, gap: str, lower: bool) -> None:
    text = f"{number}{gap}{unit}"
    assert parse_bytes(text.lower() if lower else text) == number * UNITS[unit]


@given(st.integers(0, 1 << 45))
def test_formatted_bytes_read_back(nbytes: int) -> None:
    again = parse_bytes(format_bytes(nbytes))
    assert abs(again - nbytes) <= nbytes * 0.005 + (nbytes >= 1024)


@given(st.text(string.printable, max_size=12))
def test_any_text_is_bytes_or_a_sentence(text: str) -> None:
    try:
        nbytes = parse_bytes(text)
    except ValueError as error:
        nbytes = len(str(error))
    assert nbytes >= 0


@pytest.mark.parametrize(
    ("text", "nbytes"), [("1.5KiB", 1536), ("0.1GB", 10**8), ("7", 7), (" 2 mib ", 2 << 20)]
)
def test_fractions_and_blanks(text: str, nbytes: int) -> None:
    assert parse_bytes(text) == nbytes


@pytest.mark.parametrize("text", ["-1GiB", "1e3", "GiB", "", "1.5", "1.5B", "4G", "4Gi", "1 GiB 2"])
def test_refused_bytes(text: str) -> None:
    with pytest.raises(ValueError, match="`"):
        parse_bytes(text)


@given(
    st.lists(st.tuples(VALUES.filter(lambda t: "$" not in t), NAMES, VALUES.filter(bool)), max_size=4), VALUES
)
def test_references_are_replaced_and_nothing_else(parts: list[tuple[str, str, str]], tail: str) -> None:
    tail = tail.replace("$", "")
    env = {name: value for _, name, value in parts}
    text = "".join(f"{before}${{{name}}}" for before, name, _ in parts) + tail
    assert expand(text, env) == "".join(before + env[name] for before, name, _ in parts) + tail


@given(NAMES, VALUES.filter(lambda t: "}" not in t and "${" not in t))
def test_the_default_counts_where_unset_or_empty(name: str, default: str) -> None:
    text = f"${{{name}:-{default}}}"
    assert expand(text, {}) == expand(text, {name: ""}) == default
    assert expand(text, {name: "set"}) == "set"


@given(VALUES.filter(lambda t: "}" not in t and not t.endswith("$")), VALUES.filter(lambda t: "$" not in t))
def test_escaped_references_stay(inside: str, around: str) -> None:
    assert expand(f"{around}$${{{inside}}}", {}) == f"{around}${{{inside}}}"


@given(st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("${}:-\n'\""), max_size=60))
def test_masking_keeps_length_and_can_be_undone(text: str) -> None:
    masked = mask(text)
    assert len(masked.text) == len(text)
    assert masked.unmask(masked.text) == text
    assert "\n" not in text or masked.text.count("\n") == text.count("\n")


def test_an_unset_variable_says_what_to_do() -> None:
    with pytest.raises(
        ValueError, match=r"`NOPE` is not set; set it, or give a default: \$\{NOPE:-default\}"
    ):
        expand("a ${NOPE} b", {})


def test_nearest_ignores_case_and_gives_up_on_strangers() -> None:
    assert nearest("Max_Model_Length", ["max_model_len", "seed"]) == "max_model_len"
    assert nearest("xyz", ["max_model_len", "seed"]) is None
