"""What a download tells whoever watches it."""

from typing import Protocol


class Progress(Protocol):
    """Follows one download after another: `start`, any number of `advance`, `done`.

    `start` may come again without a `done` before it when a download begins anew. Called from the thread
    that fetches; for some sources from several threads at once.
    """

    def start(self, name: str, total_bytes: int | None) -> None:
        """A download called `name` begins; `total_bytes` is None where the server doesn't say."""

    def advance(self, n: int) -> None:
        """`n` more bytes have arrived."""

    def done(self) -> None:
        """The download is complete, or has failed."""


class NoProgress:
    """Watches nothing."""

    def start(self, name: str, total_bytes: int | None) -> None:
        pass

    def advance(self, n: int) -> None:
        pass

    def done(self) -> None:
        pass
