"""The strings that end an answer, found as its text comes."""

from collections import deque
from collections.abc import Iterable, Sequence


class StopStrings:
    """An automaton (Aho and Corasick, 1975): one look-up a character, however many strings there are.

    A state stands for the longest end of the text so far that begins one of them; 0: for none. Immutable, so
    all answers of a request share one.
    """

    def __init__(self, stops: Iterable[str]):
        self._next: list[dict[str, int]] = [{}]
        self._fallback = [0]
        self.depth = [0]
        """By state: how many characters of the text it stands for."""
        self.ends: list[str | None] = [None]
        """By state: the longest of the strings that ends with it."""
        for stop in stops:
            self._insert(stop)
        self._link()

    def _insert(self, stop: str) -> None:
        state = 0
        for character in stop:
            following = self._next[state].get(character)
            if following is None:
                following = self._next[state][character] = len(self._next)
                self._next.append({})
                self._fallback.append(0)
                self.depth.append(self.depth[state] + 1)
                self.ends.append(None)
            state = following
        self.ends[state] = stop or None

    def _link(self) -> None:
        waiting = deque(self._next[0].values())
        while waiting:
            state = waiting.popleft()
            for character, following in self._next[state].items():
                fallback = self._fallback[following] = self.step(self._fallback[state], character)
                self.ends[following] = self.ends[following] or self.ends[fallback]
                waiting.append(following)

    def step(self, state: int, character: str) -> int:
        """The state after one more character."""
        while (following := self._next[state].get(character)) is None:
            if not state:
                return 0
            state = self._fallback[state]
        return following


class StopChecker:
    """Feeds on pieces of text and lets through what can no longer become a stop string.

    The match that is complete first wins, the longest of those that end at the same place: what a reader
    of the whole text would see first, and the same however the text was cut.
    """

    def __init__(self, stops: StopStrings | Sequence[str], include_stop_str_in_output: bool = False):
        self._stops = stops if isinstance(stops, StopStrings) else StopStrings(stops)
        self._include = include_stop_str_in_output
        self._state = 0
        self._held = ""

    def append(self, piece: str) -> tuple[str, str | None]:
        """What may be sent now, and the stop string that ended the answer, if one did: then what follows it
        is dropped and nothing more should be appended."""
        stops, state, text = self._stops, self._state, self._held + piece
        for end, character in enumerate(piece, len(self._held) + 1):
            state = stops.step(state, character)
            if (stop := stops.ends[state]) is not None:
                self._state, self._held = 0, ""
                return text[: end if self._include else end - len(stop)], stop
        keep = len(text) - stops.depth[state]
        self._state, self._held = state, text[keep:]
        return text[:keep], None

    def finish(self) -> str:
        """The answer ended for another reason: what was held back is plain text."""
        held, self._state, self._held = self._held, 0, ""
        return held
