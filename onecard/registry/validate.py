"""Checks that need more than one key of a registry, and sentences for what fails them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from onecard.registry.address import host_of
from onecard.registry.plain_files import FileRefusedError, is_there, regular_size
from onecard.registry.problems import Position, Problems, did_you_mean, listed, shown
from onecard.registry.sources import check_source
from onecard.registry.spec import SERVED_KINDS, CardSpec, MemoryAmount, ModelSpec, Registry, SourceError
from onecard.registry.units import counted, format_bytes

_OWN_PORTS = {"http": 80, "https": 443}


def validate(registry: Registry, positions: Mapping[str, Position], problems: Problems) -> None:
    """Adds to `problems` whatever keeps `registry` from being served.

    A key that already has a problem gets no second one: what is said of it may follow from the first.
    """
    checks = _Checks(registry, positions, problems)
    checks.server()
    checks.cards()
    checks.names()
    for i, model in enumerate(registry.models):
        checks.model(model, f"models[{i}]")
    for card in registry.cards:
        checks.floors(card)
    checks.origins()


@dataclass(frozen=True)
class _Checks:
    registry: Registry
    positions: Mapping[str, Position]
    problems: Problems

    def refuse(self, key: str, message: str, *depends: str) -> None:
        """Adds a problem of `key`, unless it or a key that the message depends on has one."""
        if not any(map(self.problems.has, (key, *depends))):
            self.problems.add(self.position(key), key, message)

    def position(self, key: str) -> Position:
        """Where `key` stands, or the nearest key around it where it was left out."""
        while key and key not in self.positions:
            key = key.rpartition(".")[0]
        return self.positions.get(key, Position(1, 1))

    def server(self) -> None:
        try:
            host_of(self.registry.server.host)
        except ValueError as error:
            self.refuse("server.host", str(error))

    def cards(self) -> None:
        if not self.registry.cards:
            self.refuse("cards", "names no card; add one, or remove the key for one card that takes 0.9")
        names: dict[str, int] = {}
        devices: dict[str, int] = {}
        for i, card in enumerate(self.registry.cards):
            self._once(card.name, names, i, f"cards[{i}].name", "cards", "name")
            device = "cuda:0" if card.device == "cuda" else card.device
            self._once(device, devices, i, f"cards[{i}].device", "cards", "device")

    def _once(self, value: str, seen: dict[str, int], i: int, key: str, where: str, what: str) -> None:
        if value in seen:
            self.refuse(key, f"{where}[{seen[value]}] already has the {what} `{value}`; write another")
        seen.setdefault(value, i)

    def names(self) -> None:
        """Every name and alias reaches one model."""
        if not self.registry.models:
            self.refuse("models", "names no model; add at least one, with `name`, `kind` and `source`")
        seen: dict[str, str] = {}
        for i, model in enumerate(self.registry.models):
            at = f"models[{i}]"
            own = [(model.name, f"{at}.name")]
            own += [(alias, f"{at}.aliases[{j}]") for j, alias in enumerate(model.aliases)]
            for name, key in own:
                if name and name in seen:
                    self.refuse(key, f"`{name}` already reaches {seen[name]}; write another name")
                seen.setdefault(name, f"models[{i}]")

    def model(self, model: ModelSpec, at: str) -> None:
        if model.kind not in SERVED_KINDS:
            self.refuse(
                f"{at}.kind",
                f"this version does not serve the kind `{model.kind}` yet; it serves {listed(SERVED_KINDS)}",
            )
        cards = [card.name for card in self.registry.cards]
        if model.card is not None and model.card not in cards:
            close = did_you_mean(model.card, cards)
            self.refuse(
                f"{at}.card", f"there is no card `{model.card}`; the cards are {listed(cards)}.{close}"
            )
        self._source(model, at)
        self._memory(model, at)
        self._sleep(model, at)
        self._sampling(model, at)
        self._engine(model, at)

    def _source(self, model: ModelSpec, at: str) -> None:
        try:
            check_source(model)
        except SourceError as error:
            self.refuse(f"{at}.source", str(error))

    def _memory(self, model: ModelSpec, at: str) -> None:
        if not self.registry.cards:
            return
        card = self.registry.card_of(model)
        floor, burst = comparable(card, model.memory), comparable(card, model.burst)
        if type(floor) is type(burst) and floor > burst:
            self.refuse(
                f"{at}.memory",
                f"the floor ({written(model.memory)}) is above the ceiling `burst` ({written(model.burst)}); "
                f"lower `memory` or raise `burst`",
                f"{at}.burst",
            )

    def _sleep(self, model: ModelSpec, at: str) -> None:
        if model.pinned and model.ttl is not None:
            self.refuse(
                f"{at}.ttl",
                f"a pinned model never sleeps, so `ttl: {model.ttl:g}` can't apply; remove `ttl` or `pinned`",
                f"{at}.pinned",
            )
        if model.pinned and not model.preload:
            self.refuse(
                f"{at}.preload",
                "a pinned model never sleeps, so it can't start asleep; remove `preload: false` or `pinned`",
                f"{at}.pinned",
            )

    def _sampling(self, model: ModelSpec, at: str) -> None:
        if model.kind != "llm" and model.sampling.given():
            self.refuse(
                f"{at}.sampling",
                f"no tokens are drawn by a model of kind `{model.kind}`; remove `sampling`",
                f"{at}.kind",
            )

    def _engine(self, model: ModelSpec, at: str) -> None:
        engine = model.engine
        if engine.block_size & (engine.block_size - 1):
            self.refuse(f"{at}.engine.block_size", f"{engine.block_size} is no power of two; write 16 or 32")
        tokens, seqs = engine.max_num_batched_tokens, engine.max_num_seqs
        if tokens is not None and seqs is not None and tokens < seqs:
            self.refuse(
                f"{at}.engine.max_num_batched_tokens",
                f"a step of {counted(tokens, 'token')} can't hold max_num_seqs ({seqs}) sequences; raise it "
                "or lower max_num_seqs",
                f"{at}.engine.max_num_seqs",
            )
        if engine.chat_template is not None:
            self._file(f"{at}.engine.chat_template", engine.chat_template)

    def _file(self, key: str, path: str) -> None:
        if not is_there(Path(path)):
            self.refuse(key, f"there is no file `{shown(path)}`")
            return
        try:
            regular_size(Path(path))
        except FileRefusedError as error:
            self.refuse(key, str(error))

    def origins(self) -> None:
        for i, origin in enumerate(self.registry.server.allowed_origins):
            sent = as_browsers_send(origin)
            if sent != origin:
                advice = (
                    f"write `{sent}`, which is what browsers send" if sent else "write it as browsers send it"
                )
                self.refuse(f"server.allowed_origins[{i}]", f"`{origin}` would match no page; {advice}")

    def floors(self, card: CardSpec) -> None:
        """The floors of a card's models fit into it, as far as that can be told without the card."""
        models = [
            (i, model) for i, model in enumerate(self.registry.models) if self.registry.card_of(model) is card
        ]
        amounts = [comparable(card, model.memory) for _, model in models]
        for n, (i, _) in enumerate(models, start=1):
            if _over(card, amounts[:n]):
                floors = " + ".join(f"{model.name} {written(model.memory)}" for _, model in models)
                self.refuse(
                    f"models[{i}].memory",
                    f"the floors of card `{card.name}` add up to more than its memory "
                    f"({floors} > {_whole(card)}); lower some of them",
                )
                return


def as_browsers_send(origin: str) -> str | None:
    """How a browser writes `origin`: in lower case, without its scheme's own port; None where it is none.
    What isn't http or https stays as it is."""
    scheme = origin.partition("://")[0]
    if scheme not in _OWN_PORTS:
        return origin
    try:
        parts = urlsplit(origin)
        host, port = (parts.hostname or "").encode("idna").decode(), parts.port
    except ValueError:
        return None
    if not host:
        return None
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}" if port in (None, _OWN_PORTS[scheme]) else f"{scheme}://{host}:{port}"


def _over(card: CardSpec, amounts: list[int | float]) -> bool:
    """Whether floors are more than the card; a card of unknown size is compared by its shares alone."""
    nbytes = sum(amount for amount in amounts if isinstance(amount, int))
    share = sum(amount for amount in amounts if isinstance(amount, float))
    if (size := _bytes_of(card)) is not None:
        return nbytes > size
    rounding = 1e-9
    return share > 1 + rounding or (share > 1 - rounding and nbytes > 0)


def comparable(card: CardSpec, amount: MemoryAmount) -> int | float:
    """`amount` in bytes where the file tells the card's size, else the fraction or bytes as written."""
    if (size := _bytes_of(card)) is not None:
        return amount.of(size)
    return amount.nbytes if amount.nbytes is not None else float(amount.fraction or 0.0)


def written(amount: MemoryAmount) -> str:
    return format_bytes(amount.nbytes) if amount.nbytes is not None else f"{amount.fraction:g}"


def _whole(card: CardSpec) -> str:
    size = _bytes_of(card)
    return format_bytes(size) if size is not None else "1"


def _bytes_of(card: CardSpec) -> int | None:
    """What the card may take, where the file tells it in bytes."""
    return card.memory.nbytes if card.memory is not None else None
