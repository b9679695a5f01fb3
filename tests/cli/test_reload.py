"""Reloading: what reaches the node, what a bad file changes (nothing), and what sets a reload off."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from onecard.engines.api import CardLedger, InvalidRegistryError, ReloadReport, ShuttingDownError
from onecard.gateway.cli.reload import LogProgress, Reloader, server_control
from onecard.gateway.cli.triggers import RegistryFile, ReloadTriggers
from onecard.registry.loader import load_registry
from onecard.registry.spec import ModelSpec, Registry, ServerSpec, SourceError

A = "{name: a, source: hf:o/a}"
B = "{name: b, source: hf:o/b}"
SOON = 10.0


class FakeNode:
    """Remembers what it was told to serve; waits at `gate` first, refuses with `refuses`. Models are where
    they belong once `settled` is set."""

    def __init__(self) -> None:
        self.served: list[tuple[Registry, dict[str, Path]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.settled = asyncio.Event()
        self.settled.set()
        self.entered = asyncio.Event()
        self.refuses: Exception | None = None
        self.busy = 0

    async def apply(
        self, registry: Registry, paths: dict[str, Path], on_taken: Callable[[], None] = lambda: None
    ) -> ReloadReport:
        self.busy += 1
        assert self.busy == 1, "one reload at a time"
        self.entered.set()
        try:
            await self.gate.wait()
            if self.refuses is not None:
                raise self.refuses
            self.served.append((registry, paths))
            on_taken()
            await self.settled.wait()
            return ReloadReport(added=tuple(paths))
        finally:
            self.busy -= 1

    async def sleep(self, name: str, level: int = 1) -> int:
        self.entered.set()
        await self.gate.wait()
        self.served.append((Registry(), {name: Path(str(level))}))
        return level

    async def wake(self, name: str) -> None: ...

    def is_sleeping(self, name: str) -> bool:
        return name == "a"

    def ledger(self) -> list[CardLedger]:
        return []


class Files:
    """Fetches by name; `lacks` is what can't be had."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.lacks: set[str] = set()

    def fetch(self, model: ModelSpec, progress: object) -> Path:
        if model.name in self.lacks:
            raise SourceError(f"{model.source} can't be had")
        self.fetched.append(model.name)
        return Path(f"/weights/{model.name}")


Write = Callable[..., None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.yaml"


@pytest.fixture
def write(path: Path) -> Write:
    """Puts a registry in the file's place: `write(A, B, "server: {port: 9}")`."""

    def put(*models: str, more: str = "") -> None:
        new = path.with_suffix(".new")
        new.write_text("".join(["models:\n", *(f"  - {model}\n" for model in models), more]))
        new.replace(path)

    return put


@pytest.fixture
async def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.fixture
def reloader(path: Path, write: Write, node: FakeNode, files: Files) -> Reloader:
    """Of a server that serves `a`."""
    write(A)
    running = load_registry(path)
    return Reloader(
        lambda: load_registry(path), node.apply, running, {"a": Path("/weights/a")}, fetch=files.fetch
    )


# --- the reloader ----------------------------------------------------------------------------------------


async def test_a_good_file_reaches_the_node(
    reloader: Reloader, write: Write, node: FakeNode, files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write(A.replace("}", ", aliases: [x]}"), B)
    report = await reloader.reload()
    ((registry, paths),) = node.served
    assert [model.name for model in registry.models] == ["a", "b"]
    assert registry.models[0].aliases == ("x",)
    assert paths == {"a": Path("/weights/a"), "b": Path("/weights/b")}
    assert files.fetched == ["b"], "what is being served is not fetched again"
    assert report == ReloadReport(added=("a", "b"))
    assert "the registry is reloaded: model b: added; model a: aliases" in caplog.messages


async def test_an_unchanged_file_changes_nothing(reloader: Reloader, node: FakeNode, files: Files) -> None:
    assert await reloader.reload() == ReloadReport()
    assert (node.served, files.fetched) == ([], [])


@pytest.fixture
def stuck() -> Iterator[threading.Event]:
    """Waits until the test is over, as reading from a pipe does that nobody writes to."""
    event = threading.Event()
    yield event
    event.set()


HASTY = "server: {reload_timeout: 0.2}\n"


async def test_a_reload_whose_source_gets_stuck_is_given_up_and_the_next_one_is_served(
    path: Path, write: Write, node: FakeNode, stuck: threading.Event
) -> None:
    def fetch(model: ModelSpec, progress: object) -> Path:
        if model.name == "b":
            stuck.wait()
        return Path(f"/weights/{model.name}")

    write(A, more=HASTY)
    load = partial(load_registry, path)
    reloader = Reloader(load, node.apply, load(), {"a": Path("/weights/a")}, fetch)
    write(A, B, more=HASTY)
    with pytest.raises(InvalidRegistryError, match=r"fetching b \(hf:o/b\) took more than 0.2 s"):
        await asyncio.wait_for(reloader.reload(), SOON)
    assert node.served == []
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "reload")
    assert thread.daemon, "it would hold up the end of the process"
    write(A, B.replace("name: b", "name: c"), more=HASTY)
    assert (await reloader.reload()).added == ("a", "c")


async def test_a_registry_that_cannot_be_read_in_time_is_given_up(
    path: Path, write: Write, node: FakeNode, stuck: threading.Event
) -> None:
    write(A, more=HASTY)
    reloader = Reloader(stuck.wait, node.apply, load_registry(path), {"a": Path("/weights/a")})
    with pytest.raises(InvalidRegistryError, match=r"reading the registry took .*`server.reload_timeout`"):
        await asyncio.wait_for(reloader.reload(), SOON)


async def test_a_download_may_take_as_long_as_its_bytes_arrive(
    path: Path, write: Write, node: FakeNode
) -> None:
    def fetch(model: ModelSpec, progress: LogProgress) -> Path:
        for _ in range(20):
            time.sleep(0.03)
            progress.advance(1)
        return Path(f"/weights/{model.name}")

    write(A, more=HASTY)
    load = partial(load_registry, path)
    reloader = Reloader(load, node.apply, load(), {"a": Path("/weights/a")}, fetch)
    write(A, B, more=HASTY)
    assert (await reloader.reload()).added == ("a", "b")


async def test_a_second_reload_starts_from_the_first(reloader: Reloader, write: Write, files: Files) -> None:
    for models in ((A, B), (A, B), (B.replace("o/b", "o/c"),)):
        write(*models)
        await reloader.reload()
    assert files.fetched == ["b", "b"], "another source is fetched, one that is there is not"


async def test_a_bad_file_changes_nothing_and_says_why(
    reloader: Reloader, path: Path, write: Write, node: FakeNode, caplog: pytest.LogCaptureFixture
) -> None:
    write(A, "{name: b}")
    with pytest.raises(
        InvalidRegistryError, match=r"registry.yaml:3:5: models\[1\].source: is missing"
    ) as bad:
        await reloader.reload()
    assert bad.value.status == 400
    assert node.served == []
    assert any("nothing has changed" in text and "models[1].source" in text for text in caplog.messages)
    path.unlink()
    with pytest.raises(InvalidRegistryError, match="there is no such file"):
        await reloader.reload()
    write(A, B)
    await reloader.reload()
    assert len(node.served) == 1, "a file put right is applied"


async def test_weights_that_cannot_be_had(
    reloader: Reloader, write: Write, node: FakeNode, files: Files
) -> None:
    files.lacks = {"b"}
    write(A, B)
    with pytest.raises(InvalidRegistryError, match="hf:o/b can't be had"):
        await reloader.reload()
    assert node.served == []


async def test_what_the_node_refuses_is_not_taken_for_served(
    reloader: Reloader, write: Write, node: FakeNode
) -> None:
    write(A, B)
    node.refuses = InvalidRegistryError("b doesn't fit")
    with pytest.raises(InvalidRegistryError, match="b doesn't fit"):
        await reloader.reload()
    node.refuses = None
    await reloader.reload()
    assert len(node.served) == 1, "the same file again is still a change"


async def test_what_needs_a_restart_is_a_note(reloader: Reloader, write: Write, node: FakeNode) -> None:
    write(A, more="server: {port: 9, admin_key: k}\ncards: [{memory: 1GiB, quantum: 0.5}]\n")
    report = await reloader.reload()
    assert [note.split(" changed")[0] for note in report.notes] == ["server.port", "card card0.memory"]
    ((registry, _),) = node.served
    assert (registry.server.port, registry.server.admin_key) == (ServerSpec().port, "k")
    assert (registry.cards[0].memory, registry.cards[0].quantum) == (None, 0.5)
    assert (await reloader.reload()).notes == report.notes, "it is so until the restart"
    assert len(node.served) == 1


async def test_two_reloads_at_once_take_turns(reloader: Reloader, write: Write, node: FakeNode) -> None:
    node.gate.clear()
    write(A, B)
    first = asyncio.create_task(reloader.reload())
    await asyncio.wait_for(node.entered.wait(), SOON)
    write(B)
    second = asyncio.create_task(reloader.reload())
    await asyncio.sleep(0)
    node.gate.set()
    await asyncio.wait_for(asyncio.gather(first, second), SOON)
    assert [[model.name for model in registry.models] for registry, _ in node.served] == [["a", "b"], ["b"]]


# --- orders ----------------------------------------------------------------------------------------------


async def test_an_order_outlives_whoever_gave_it(path: Path, write: Write, node: FakeNode) -> None:
    write(A)
    running, configured = load_registry(path), list[ServerSpec]()
    control = server_control(node, lambda: load_registry(path), running, {"a": Path("a")}, configured.append)
    assert control is not None
    assert (control.is_sleeping("a"), control.ledger()) == (True, [])
    for order in (control.sleep("a", 2), control.reload()):
        write(A, more="server: {admin_key: k}\n")
        node.gate.clear()
        node.entered.clear()
        asked = asyncio.create_task(order)  # type: ignore[arg-type]  # orders answer different things
        await asyncio.wait_for(node.entered.wait(), SOON)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        node.gate.set()
        await control.settled(SOON)
    slept, reloaded = node.served
    assert slept[1] == {"a": Path("2")}
    assert configured == [reloaded[0].server] == [replace(ServerSpec(), admin_key="k")]
    control.begin_drain()
    with pytest.raises(ShuttingDownError):
        await control.reload()


async def test_keys_change_when_the_registry_is_taken_not_when_its_models_have_moved(
    path: Path, write: Write, node: FakeNode
) -> None:
    write(A)
    running, configured = load_registry(path), list[ServerSpec]()
    control = server_control(node, lambda: load_registry(path), running, {"a": Path("a")}, configured.append)
    assert control is not None
    write(A, more="server: {admin_key: new}\n")
    node.refuses = InvalidRegistryError("doesn't fit")
    with pytest.raises(InvalidRegistryError):
        await control.reload()
    assert configured == [], "a refused registry leaves the old keys"
    node.refuses = None
    node.settled.clear()
    reloading = asyncio.create_task(control.reload())
    async with asyncio.timeout(SOON):
        while not configured:
            await asyncio.sleep(0.001)
    assert not reloading.done()
    assert configured[0].admin_key == "new"
    node.settled.set()
    await asyncio.wait_for(reloading, SOON)


def test_a_node_that_takes_no_orders_has_no_control() -> None:
    assert server_control(object(), Registry, Registry(), {}, lambda server: None) is None


# --- what sets a reload off ------------------------------------------------------------------------------


class Reloads:
    """Counts reloads; `raises` stands in for their outcome."""

    def __init__(self) -> None:
        self.count = 0
        self.raises: Exception | None = None
        self._done = asyncio.Condition()

    async def __call__(self) -> None:
        async with self._done:
            self.count += 1
            self._done.notify_all()
        if self.raises is not None:
            raise self.raises

    async def reach(self, count: int) -> None:
        async with asyncio.timeout(SOON), self._done:
            await self._done.wait_for(lambda: self.count >= count)
        assert self.count == count


@contextlib.asynccontextmanager
async def running(triggers: ReloadTriggers, reload: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    task = asyncio.create_task(triggers.run(reload))
    try:
        yield
    finally:
        assert not task.done()
        task.cancel()
        await asyncio.wait([task], timeout=SOON)
        asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)


async def test_sighup_reloads_also_after_a_failure(caplog: pytest.LogCaptureFixture) -> None:
    triggers, reloads = ReloadTriggers(None), Reloads()
    os.kill(os.getpid(), signal.SIGHUP)  # while models still load: it waits
    async with running(triggers, reloads):
        await reloads.reach(1)
        for n, error in ((2, InvalidRegistryError("bad")), (3, OSError("odd")), (4, None)):
            reloads.raises = error
            os.kill(os.getpid(), signal.SIGHUP)
            await reloads.reach(n)
    said = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.exc_info is not None for record in said] == [True], "only what nobody else reports"


async def test_a_changed_file_reloads(path: Path, write: Write) -> None:
    write(A)
    file = RegistryFile(path)
    write(B)  # before anybody watches
    reloads = Reloads()
    async with running(ReloadTriggers(file), reloads):
        await reloads.reach(1)
        await asyncio.sleep(0.2)  # let the watch begin
        path.with_name("other.log").write_text("not ours")
        write(A)
        await reloads.reach(2)
        with path.open("a") as opened:  # in place
            opened.write("# more\n")
        await reloads.reach(3)
        path.unlink()
        await asyncio.sleep(0.2)
        assert reloads.count == 3, "a file that is gone is waited for"
        write(B)
        await reloads.reach(4)


async def test_a_link_that_points_elsewhere_reloads(tmp_path: Path, path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    path.symlink_to("one")
    file, reloads = RegistryFile(path), Reloads()
    async with running(ReloadTriggers(file), reloads):
        await asyncio.sleep(0.2)
        other = path.with_suffix(".link")
        other.symlink_to("two")
        other.replace(path)
        await reloads.reach(1)


async def test_a_folder_that_cannot_be_watched_is_said(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reloads = Reloads()
    async with running(ReloadTriggers(RegistryFile(path.parent / "no" / "file.yaml")), reloads):
        async with asyncio.timeout(SOON):
            while not caplog.messages:
                await asyncio.sleep(0.01)
        os.kill(os.getpid(), signal.SIGHUP)
        await reloads.reach(1)
    assert "can't be watched" in caplog.messages[0]
