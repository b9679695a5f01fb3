"""The few HTTP calls that `ps` and `chat` make to a running server."""

import http.client
import ipaddress
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Generator
from typing import Any

from onecard.gateway.cli.command import CommandError


class Client:
    """A server at `url`; `http://` may be left out. Every method raises `CommandError` with a sentence."""

    def __init__(self, url: str, api_key: str, timeout: float = 600.0) -> None:
        whole = url if "://" in url else f"http://{url}"
        self.url = whole.rstrip("/").removesuffix("/v1")
        self._timeout = timeout
        # Through `$http_proxy` as usual, but not to this machine: to a proxy, localhost is the proxy.
        own = [urllib.request.ProxyHandler({})] if _is_loopback(self.url) else []
        self._opener = urllib.request.build_opener(*own)
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def get(self, path: str) -> Any:
        """The JSON at `path`."""
        with self._open(path, None) as response:
            return json.load(response)

    def stream(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any]]:
        """The server-sent events that answer a POST of `body`, up to `[DONE]`. Close it to hang up early."""
        with self._open(path, body) as response:
            for line in response:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise CommandError(f"the server gave up: {event['error'].get('message', event['error'])}")
                yield event

    def _open(self, path: str, body: dict[str, Any] | None) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(self.url + path, data, self._headers)
            return self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            raise CommandError(self._refusal(error)) from None
        except (urllib.error.URLError, OSError, http.client.HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            reason = getattr(cause, "strerror", None) or cause
            raise CommandError(
                f"nothing answers at {self.url} ({reason}). Is `onecard serve` running? "
                "If it listens elsewhere, say so with --url."
            ) from None

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        if error.code == 401:
            return (
                f"{self.url} wants a key: give it with --api-key, or in $ONECARD_API_KEY "
                "(what only operators may ask: $ONECARD_ADMIN_KEY)"
            )
        try:
            message = json.load(error)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = f"{self.url} doesn't look like a onecard server"
        return f"{message} (HTTP {error.code})"


def _is_loopback(url: str) -> bool:
    try:
        host = urllib.parse.urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, or no URL at all
        return False
