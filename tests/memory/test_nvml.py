"""The monitors: NVML through a module that stands in for pynvml, and a CPU card's own."""

import logging
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from onecard.engines.api import CardHealth, CardProcess
from onecard.engines.memory.monitor import VISIBLE, BlindMonitor, HostMonitor, NvmlMonitor, open_monitor

GIB = 1 << 30
CUDA = torch.device("cuda", 0)
OTHER = 4_100_000
log = logging.getLogger("test")


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class FakeCard:
    """What NVML says of a card; an exception in place of an answer is raised."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.memory: Any = SimpleNamespace(used=30 * GIB, free=50 * GIB, total=80 * GIB)
        self.utilization: Any = SimpleNamespace(gpu=87, memory=42)
        self.temperature: Any = 61
        self.power: Any = 402_500
        self.limit: Any = 700_000
        self.clocks: dict[int, Any] = {1: 1_755, 2: 2_619}
        self.reasons: Any = 0x1 | 0x4 | 0x40
        self.ecc: Any = 3
        self.compute: Any = [process(os.getpid(), 20 * GIB), process(OTHER, 9 * GIB)]
        self.graphics: Any = []


class FakePynvml:
    """The part of pynvml that is asked, over fake cards, which are their own handles."""

    NVML_TEMPERATURE_GPU = 0
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_MEMORY_ERROR_TYPE_UNCORRECTED = 1
    NVML_VOLATILE_ECC = 0

    def __init__(self, *cards: FakeCard, start: Exception | None = None) -> None:
        self.cards = cards
        self.names: dict[int, Any] = {OTHER: "/opt/env/bin/python3 -m vllm --api-key sesame"}
        self.start = start
        self.nvmlInit = lambda: answer(self.start)
        self.nvmlDeviceGetCount = lambda: len(cards)
        self.nvmlDeviceGetHandleByIndex = lambda index: cards[index]
        self.nvmlDeviceGetUUID = lambda card: card.uuid
        self.nvmlDeviceGetMemoryInfo = lambda card: answer(card.memory)
        self.nvmlDeviceGetUtilizationRates = lambda card: answer(card.utilization)
        self.nvmlDeviceGetTemperature = lambda card, sensor: answer(card.temperature)
        self.nvmlDeviceGetPowerUsage = lambda card: answer(card.power)
        self.nvmlDeviceGetEnforcedPowerLimit = lambda card: answer(card.limit)
        self.nvmlDeviceGetClockInfo = lambda card, clock: answer(card.clocks[clock])
        self.nvmlDeviceGetCurrentClocksEventReasons = lambda card: answer(card.reasons)
        self.nvmlDeviceGetComputeRunningProcesses = lambda card: answer(card.compute)
        self.nvmlDeviceGetGraphicsRunningProcesses = lambda card: answer(card.graphics)
        self.nvmlSystemGetProcessName = lambda pid: answer(self.names.get(pid, NVMLError(6)))
        self.nvmlDeviceGetTotalEccErrors = lambda card, kind, since: answer(card.ecc)
        self.nvmlDeviceGetHandleByUUID = self._by_uuid

    def _by_uuid(self, uuid: str) -> FakeCard:
        return next((card for card in self.cards if card.uuid == uuid), None) or answer(NVMLError(6))


def process(pid: int, used: int | None) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=used)


def answer(value: Any) -> Any:
    if isinstance(value, Exception):
        raise value
    return value


def raising(error: Exception) -> Callable[[], Any]:
    return lambda: answer(error)


@pytest.fixture
def card() -> FakeCard:
    return FakeCard("GPU-aaaa-1111")


@pytest.fixture(autouse=True)
def _all_cards_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIBLE, raising=False)


def test_everything_a_card_tells(card: FakeCard) -> None:
    pynvml = FakePynvml(card)
    pynvml.names[os.getpid()] = "/usr/bin/onecard"
    own = CardProcess(os.getpid(), "onecard", 20 * GIB)
    other = CardProcess(OTHER, "python3", 9 * GIB)
    assert NvmlMonitor(0, pynvml).sample() == CardHealth(
        source="nvml",
        used_bytes=30 * GIB,
        free_bytes=50 * GIB,
        total_bytes=80 * GIB,
        utilization=0.87,
        memory_utilization=0.42,
        temperature_c=61,
        power_w=402.5,
        power_limit_w=700.0,
        sm_clock_mhz=1_755,
        memory_clock_mhz=2_619,
        throttle_reasons=("sw_power_cap", "hw_thermal_slowdown"),
        ecc_uncorrected=3,
        processes=tuple(sorted((own, other), key=lambda p: p.pid)),
        own_bytes=20 * GIB,
        foreign_processes=(other,),
    )


def test_a_card_that_tells_nothing(card: FakeCard) -> None:
    for question in vars(card).keys() - {"uuid", "clocks"}:
        setattr(card, question, NVMLError(3))
    card.clocks = dict.fromkeys(card.clocks, NVMLError(15))
    assert NvmlMonitor(0, FakePynvml(card)).sample() == CardHealth(source="nvml")


@pytest.mark.parametrize(
    ("question", "reading"),
    [
        ("utilization", "utilization"),
        ("temperature", "temperature_c"),
        ("power", "power_w"),
        ("reasons", "throttle_reasons"),
        ("ecc", "ecc_uncorrected"),
        ("memory", "used_bytes"),
    ],
)
def test_one_refusal_costs_one_reading(card: FakeCard, question: str, reading: str) -> None:
    setattr(card, question, NVMLError(3))
    seen = NvmlMonitor(0, FakePynvml(card)).sample()
    assert getattr(seen, reading) is None
    assert (seen.power_limit_w, seen.own_bytes) == (700.0, 20 * GIB)


def test_a_library_older_than_the_question_is_asked_by_the_old_name(
    card: FakeCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    pynvml = FakePynvml(card)
    del pynvml.nvmlDeviceGetCurrentClocksEventReasons
    assert NvmlMonitor(0, pynvml).sample().throttle_reasons is None
    old_name = "nvmlDeviceGetCurrentClocksThrottleReasons"
    monkeypatch.setattr(pynvml, old_name, lambda card: 0x8, raising=False)
    assert NvmlMonitor(0, pynvml).sample().throttle_reasons == ("hw_slowdown",)


def test_an_idle_card_is_not_throttled(card: FakeCard) -> None:
    card.reasons = 0x1
    assert NvmlMonitor(0, FakePynvml(card)).sample().throttle_reasons == ()


def test_where_process_ids_are_another_namespaces_nobody_is_called_foreign(card: FakeCard) -> None:
    card.compute = [process(OTHER, 9 * GIB)]
    seen = NvmlMonitor(0, FakePynvml(card)).sample()
    assert seen.processes == (CardProcess(OTHER, "python3", 9 * GIB),)
    assert (seen.own_bytes, seen.foreign_processes) == (None, None)


def test_a_process_in_both_lists_counts_once(card: FakeCard) -> None:
    card.compute = [process(os.getpid(), None), process(OTHER, 9 * GIB)]
    card.graphics = [process(os.getpid(), GIB), process(OTHER, None)]
    seen = NvmlMonitor(0, FakePynvml(card)).sample()
    assert (seen.own_bytes, seen.foreign_processes) == (GIB, (CardProcess(OTHER, "python3", 9 * GIB),))


def test_a_process_nvml_has_no_name_for(card: FakeCard) -> None:
    """The operating system knows ours; nobody knows one that isn't there."""
    pynvml = FakePynvml(card)
    pynvml.names[OTHER] = ""
    card.compute = [process(os.getpid(), GIB), process(2**31 - 1, None)]
    seen = NvmlMonitor(0, pynvml).sample()
    assert seen.processes is not None
    assert seen.processes[0].name
    assert seen.foreign_processes == (CardProcess(2**31 - 1, None, None),)


# --- which card --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("visible", "device", "found"),
    [
        (None, 1, "GPU-bbbb-2222"),
        ("1,0", 0, "GPU-bbbb-2222"),
        ("1,0", 1, "GPU-aaaa-1111"),
        (" 1 , 0 ", 0, "GPU-bbbb-2222"),
        ("GPU-bb", 0, "GPU-bbbb-2222"),
        ("GPU-cccc-3333,GPU-aaaa-1111", 1, "GPU-aaaa-1111"),
        ("MIG-dddd-4444", 0, "MIG-dddd-4444"),
        ("0", "bbbb-2222", "GPU-bbbb-2222"),
        ("0", "GPU-bbbb-2222", "GPU-bbbb-2222"),
        (None, "dddd-4444", "MIG-dddd-4444"),
    ],
)
def test_the_card_that_cuda_means(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, device: int | str, found: str
) -> None:
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    cards = [FakeCard(uuid) for uuid in ("GPU-aaaa-1111", "GPU-bbbb-2222", "GPU-cccc-3333", "MIG-dddd-4444")]
    for number, card in enumerate(cards):
        card.temperature = number
    told = NvmlMonitor(device, FakePynvml(*cards)).sample().temperature_c
    assert told is not None
    assert cards[told].uuid == found


@pytest.mark.parametrize(("visible", "device"), [("0", 1), (None, "eeee-5555")])
def test_a_card_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, card: FakeCard, visible: str | None, device: int | str
) -> None:
    if visible is not None:
        monkeypatch.setenv(VISIBLE, visible)
    with pytest.raises(LookupError, match=VISIBLE if visible else "eeee-5555"):
        NvmlMonitor(device, FakePynvml(card))


# --- opening -----------------------------------------------------------------------------------------


def test_open_monitor_of_a_gpu(card: FakeCard, caplog: pytest.LogCaptureFixture) -> None:
    monitor = open_monitor(CUDA, log, lambda: FakePynvml(card))
    assert monitor.sample().temperature_c == 61
    assert not caplog.records


@pytest.mark.parametrize(
    ("load", "advice"),
    [
        (raising(ImportError("no pynvml")), "pip install 'onecard[cuda]'"),
        (lambda: FakePynvml(start=NVMLError(12)), "NVIDIA_DRIVER_CAPABILITIES=compute,utility"),
        (lambda: FakePynvml(start=NVMLError(18)), "restart the machine"),
        (lambda: FakePynvml(start=NVMLError(9)), "nvidia-smi"),
        (lambda: FakePynvml(start=NVMLError(999)), "code 999"),
        (lambda: FakePynvml(), "index"),
    ],
    ids=["no package", "no library", "versions differ", "no driver", "unknown", "no card"],
)
def test_without_nvml_one_line_says_what_to_do(
    load: Callable[[], Any], advice: str, caplog: pytest.LogCaptureFixture
) -> None:
    monitor = open_monitor(CUDA, log, load)
    assert [monitor.sample() for _ in range(3)] == [CardHealth()] * 3
    assert isinstance(monitor, BlindMonitor)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "cuda:0" in record.getMessage()
    assert advice in record.getMessage()


def test_the_real_package_says_no_where_there_is_no_driver(caplog: pytest.LogCaptureFixture) -> None:
    pynvml = pytest.importorskip("pynvml")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        assert open_monitor(CUDA, log).sample() == CardHealth()
        assert "NVML" in caplog.text
    else:
        pytest.skip("this machine has NVML")


def test_the_real_package_has_every_name_that_is_asked() -> None:
    pynvml = pytest.importorskip("pynvml")
    asked = {*vars(FakePynvml()), *vars(FakePynvml)} - {"cards", "names", "start"}
    assert not {name for name in asked if not name.startswith("_") and not hasattr(pynvml, name)}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA card")
def test_a_real_card() -> None:
    monitor = open_monitor(CUDA, log)
    if isinstance(monitor, BlindMonitor):
        pytest.skip("this container has no NVML")
    seen = monitor.sample()
    assert seen.used_bytes is not None
    assert seen.total_bytes is not None
    assert 0 < seen.used_bytes < seen.total_bytes
    assert abs(seen.total_bytes - torch.cuda.mem_get_info(CUDA)[1]) < 0.05 * seen.total_bytes


# --- a CPU card --------------------------------------------------------------------------------------


def test_a_cpu_card_tells_what_the_system_does() -> None:
    monitor = open_monitor(torch.device("cpu"), log)
    assert isinstance(monitor, HostMonitor)
    seen = monitor.sample()
    assert seen.source == "psutil"
    assert seen.used_bytes is not None
    assert seen.total_bytes == seen.used_bytes + (seen.free_bytes or 0)
    assert seen.own_bytes is not None
    assert 0 < seen.own_bytes < seen.total_bytes
    assert (seen.temperature_c, seen.processes) == (None, None)


def test_utilization_is_that_since_the_last_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([(10.0, 100.0), (13.0, 104.0), (13.0, 104.0), (13.0, 112.0)])
    monkeypatch.setattr("onecard.engines.memory.monitor._processor_seconds", lambda: next(looks))
    monitor = HostMonitor()
    assert [monitor.sample().utilization for _ in range(3)] == [0.75, None, 0.0]


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("host_memory", "_processor_seconds"):
        monkeypatch.setattr(f"onecard.engines.memory.monitor.{name}", raising(OSError("no /proc")))
    monkeypatch.setattr("psutil.Process", raising(OSError("no /proc")))
    assert HostMonitor().sample() == CardHealth(source="psutil")
