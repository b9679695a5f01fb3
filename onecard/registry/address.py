"""Addresses to listen on, as people write them."""

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

_WITH_PORT = re.compile(r"(?:\[(?P<inside>[^]]*)\]|(?P<plain>[^:\[\]]*)):(?P<port>[0-9]+)")


def host_of(text: str, host: str = "`host: {}`", port: str = "`port: {}`") -> str:
    """The host name or IP address that `text` is; an IPv6 one may stand in brackets.

    Raises ValueError with a sentence for what is more than that; `host` and `port` say how to write them.
    """
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if _is_ip(bare):
        return bare
    found = _WITH_PORT.fullmatch(text)
    if "://" in text or text.startswith("//"):
        raise ValueError(f"`{text}` is a URL; write the address alone: {_parts_of_url(text, host, port)}")
    if found:
        address = found["inside"] if found["inside"] is not None else found["plain"]
        shown = _quoted(address) or "0.0.0.0"
        raise ValueError(
            f"`{text}` is an address with a port; write {host.format(shown)} and {port.format(found['port'])}"
        )
    if ":" in text or "[" in text:
        raise ValueError(f"`{text}` is no IPv6 address; write for example {host.format(_quoted('::1'))}")
    if "/" in text:
        raise ValueError(f"`{text}` has a path; write the address alone: {host.format(text.split('/')[0])}")
    if text == "*":
        raise ValueError(f"`*` is no address; for every network write {host.format('0.0.0.0')}")
    return text


def _parts_of_url(text: str, host: str, port: str) -> str:
    try:
        url = urlsplit(text)
        name, number = url.hostname, url.port
    except ValueError:
        name = number = None
    written = host.format(_quoted(name or "127.0.0.1"))
    return f"{written} and {port.format(number)}" if number is not None else written


def _is_ip(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _quoted(address: str) -> str:
    """As YAML and shells take it: some IPv6 addresses would be something else without quotes."""
    return f'"{address}"' if ":" in address else address
