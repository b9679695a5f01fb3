"""What people write for a host and a port, and numbers that YAML 1.1 reads as nobody means them."""

from pathlib import Path

import pytest

from onecard.registry.address import host_of
from onecard.registry.loader import load_registry
from onecard.registry.spec import Registry, RegistryError

MODEL = "models: [{name: a, source: hf:o/a}]\n"


def load(tmp_path: Path, text: str) -> Registry:
    path = tmp_path / "registry.yaml"
    path.write_text(text + MODEL)
    return load_registry(path)


@pytest.mark.parametrize(
    ("written", "host"),
    [
        ("0.0.0.0", "0.0.0.0"),
        ("'::'", "::"),
        ("::1", "::1"),
        ("'[::1]'", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("box.local", "box.local"),
    ],
)
def test_hosts_that_are_taken(tmp_path: Path, written: str, host: str) -> None:
    assert load(tmp_path, f"server:\n  host: {written}\n").server.host == host


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("http://localhost", "is a URL; write the address alone: `host: localhost`"),
        ("https://h:90/v1", "is a URL; write the address alone: `host: h` and `port: 90`"),
        ("'http://[x'", "is a URL; write the address alone: `host: 127.0.0.1`"),
        ("0.0.0.0:9000", "is an address with a port; write `host: 0.0.0.0` and `port: 9000`"),
        ("'[::1]:90'", 'is an address with a port; write `host: "::1"` and `port: 90`'),
        ("':90'", "is an address with a port; write `host: 0.0.0.0` and `port: 90`"),
        ("box/v1", "has a path; write the address alone: `host: box`"),
        ("::g", 'is no IPv6 address; write for example `host: "::1"`'),
        ("'*'", "is no address; for every network write `host: 0.0.0.0`"),
    ],
)
def test_what_is_more_than_a_host_is_refused_with_what_to_write(
    tmp_path: Path, written: str, said: str
) -> None:
    with pytest.raises(RegistryError) as error:
        load(tmp_path, f"server:\n  host: {written}\n")
    assert f"registry.yaml:2:3: server.host: `{written.strip(chr(39))}` {said}" in str(error.value)


def test_on_the_command_line_it_is_an_option_that_is_to_be_written() -> None:
    with pytest.raises(ValueError, match=r"write --host h and --port 90$"):
        host_of("h:90", "--host {}", "--port {}")


@pytest.mark.parametrize("value", ["::", "[::1]", "*", "2001:db8::"])
def test_what_is_no_yaml_without_quotes_is_told_to_take_some(tmp_path: Path, value: str) -> None:
    with pytest.raises(RegistryError) as error:
        load(tmp_path, f"server:\n  host: {value}  # all\n")
    assert str(error.value).endswith(f'if the value is text, put it in quotes: host: "{value}"')


def test_so_is_a_colon_within_braces(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="put text that has a colon in it in quotes"):
        load(tmp_path, "server: {host: ::1}\n")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("server: {port: 010}", "`010` is 8 to YAML, which takes it for octal; write 10 or 8"),
        ("server: {port: 22:22}", "`22:22` is 1342 to YAML, which counts in sixties here; write 1342"),
        ("server: {drain_timeout: 1:30.5}", "`1:30.5` is 90.5 to YAML, which counts in sixties here"),
        ("cards: [{memory: 010000}]", "`010000` is 4096 to YAML, which takes it for octal; write 10000 or"),
        ("cards: [{page_size: 1:0:0}]", "`1:0:0` is 3600 to YAML, which counts in sixties here; write 3600"),
    ],
)
def test_numbers_that_nobody_means_are_refused(tmp_path: Path, key: str, said: str) -> None:
    with pytest.raises(RegistryError) as error:
        load(tmp_path, key + "\n")
    assert said in str(error.value)


def test_a_variable_s_number_is_looked_at_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "0700")
    with pytest.raises(RegistryError, match="`0700` is 448 to YAML"):
        load(tmp_path, "server: {port: '${PORT}'}\n".replace("'", ""))
    assert load(tmp_path, "server: {port: 007, drain_timeout: 8_0, wake_timeout: 0x10}\n").server.port == 7


def test_a_card_s_memory_may_be_left_to_the_card(tmp_path: Path) -> None:
    assert load(tmp_path, "cards: [{memory: auto}]\n").cards[0].memory is None
    assert load(tmp_path, "").cards[0].memory is None
