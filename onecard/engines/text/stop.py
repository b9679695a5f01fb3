"""Stop strings in streamed text: an answer ends before the first of them, wherever tokens were cut."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class StopResult:
    """`text` may be sent now; `matched` is the stop string that ended the answer, if one did."""

    text: str
    matched: str | None = None


class StopChecker:
    """Feeds on pieces of text and lets through what can no longer become a stop string.

    The match that is complete first wins, the longest of those that end at the same place: what a reader
    of the whole text would see first, and the same however the text was cut.
    """

    def __init__(self, stops: Sequence[str], include_stop_str_in_output: bool = False):
        self._stops = tuple(stop for stop in stops if stop)
        self._include = include_stop_str_in_output
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""

    def append(self, piece: str) -> StopResult:
        """After a match, what follows it is dropped and nothing more should be appended."""
        if not self._stops:
            return StopResult(piece)
        text = self._held + piece
        matches = ((at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0)
        first = min(matches, default=None)
        if first is not None:
            end, start, stop = first
            self._held = ""
            return StopResult(text[:end] if self._include else text[:start], stop)
        keep = self._possible_start(text)
        self._held = text[keep:]
        return StopResult(text[:keep])

    def finish(self) -> str:
        """The answer ended for another reason: what was held back is plain text."""
        held, self._held = self._held, ""
        return held

    def _possible_start(self, text: str) -> int:
        """The first place from which the rest of `text` is the beginning of a stop string; else its end."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            rest = text[start:]
            if any(stop.startswith(rest) for stop in self._stops):
                return start
        return len(text)
