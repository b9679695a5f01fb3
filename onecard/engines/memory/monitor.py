"""Looking at a card: a CPU card through psutil; an NVIDIA card through NVML, the library that nvidia-smi asks
too (package nvidia-ml-py).

Meanings are those of NVIDIA's NVML API reference. Not every card, driver, container or MIG slice answers
every question, so each is asked on its own. The module `pynvml` is handed in: nothing here imports it before
somebody opens a monitor.
"""

import logging
import os
from collections.abc import Callable
from importlib import import_module
from pathlib import PurePosixPath
from typing import Any, Protocol, TypeVar

import psutil
import torch

from onecard.engines.api import CardHealth, CardProcess, ThrottleReason
from onecard.engines.memory.card import host_memory

T = TypeVar("T")


class CardMonitor(Protocol):
    def sample(self) -> CardHealth:
        """Looks now, which may take milliseconds: not for a thread that somebody waits for. Never raises."""
        ...


class BlindMonitor:
    """Stands for a card that nobody can ask."""

    def sample(self) -> CardHealth:
        return CardHealth()


class HostMonitor:
    """The machine's memory within its control group, and its processors. Used by one thread."""

    def __init__(self) -> None:
        self._busy_before, self._all_before = reading(_processor_seconds) or (0.0, 0.0)

    def sample(self) -> CardHealth:
        available, total = reading(host_memory) or (None, None)
        return CardHealth(
            source="psutil",
            used_bytes=None if total is None or available is None else total - available,
            free_bytes=available,
            total_bytes=total,
            utilization=self._utilization(),
            own_bytes=reading(lambda: psutil.Process().memory_info().rss),
        )

    def _utilization(self) -> float | None:
        """Share of all cores that was busy since the last look."""
        seconds = reading(_processor_seconds)
        if seconds is None or seconds[1] <= self._all_before:
            return None
        share = (seconds[0] - self._busy_before) / (seconds[1] - self._all_before)
        self._busy_before, self._all_before = seconds
        return min(1.0, max(0.0, share))


def reading(ask: Callable[..., T], *args: Any) -> T | None:
    """What `ask` answers, None where it can't.

    Every exception counts as "can't": a driver has many ways to refuse, and no figure is worth a server.
    """
    try:
        return ask(*args)
    except Exception:
        return None


def _processor_seconds() -> tuple[float, float]:
    """Seconds (busy, all) of all cores since the machine started; a guest's are within its host's."""
    times = psutil.cpu_times()._asdict()
    everything = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
    return everything - times["idle"] - times.get("iowait", 0.0), everything


VISIBLE = "CUDA_VISIBLE_DEVICES"

THROTTLE_BITS: dict[ThrottleReason, int] = {
    "applications_clocks": 0x2,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "display_clocks": 0x100,
}
"""NVML's nvmlClocksEventReasons (once nvmlClocksThrottleReasons), but for the one that says idle."""

ADVICE = {
    4: "this user may not ask; run as one who may, or give the container its devices",
    9: "the NVIDIA driver isn't loaded; `nvidia-smi` on the host says why",
    12: "libnvidia-ml.so.1 is missing; give the container the `utility` capability "
    "(NVIDIA_DRIVER_CAPABILITIES=compute,utility), or install the driver's libraries",
    18: "the driver's library and kernel module differ in version, as after an update; restart the machine, "
    "or the container if only that is old",
}
"""What to do about NVML's return codes, by number: nvmlReturn_t never renumbers."""


def open_monitor(
    device: torch.device, log: logging.Logger, load: Callable[[], Any] | None = None
) -> CardMonitor:
    """The monitor of a card. Without NVML that is said in `log`, and the monitor knows nothing.

    `load` returns the module pynvml or raises ImportError.
    """
    if device.type != "cuda":
        return HostMonitor()
    try:
        return NvmlMonitor(_identity(device), import_module("pynvml") if load is None else load())
    except Exception as error:  # a driver has many ways to be unwell; serving needs none of these figures
        log.warning("%s: no utilisation, temperature or use by others will be known: %s", device, _why(error))
        return BlindMonitor()


class NvmlMonitor:
    """Asks NVML about one device: a CUDA index of this process, or the UUID of a card or MIG slice.

    Raises what NVML raises at its start, and LookupError where it doesn't have the device.
    """

    def __init__(self, device: int | str, nvml: Any) -> None:
        nvml.nvmlInit()
        self._nvml = nvml
        self._handle = _handle(nvml, device, os.environ.get(VISIBLE))

    def sample(self) -> CardHealth:
        nvml = self._nvml
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        processes = self._processes()
        own = next((p for p in processes or () if p.pid == os.getpid()), None)
        return CardHealth(
            source="nvml",
            used_bytes=reading(lambda: int(memory.used)),
            free_bytes=reading(lambda: int(memory.free)),
            total_bytes=reading(lambda: int(memory.total)),
            utilization=reading(lambda: rates.gpu / 100),
            memory_utilization=reading(lambda: rates.memory / 100),
            temperature_c=self._ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU),
            power_w=_watts(self._ask("nvmlDeviceGetPowerUsage")),
            power_limit_w=_watts(self._ask("nvmlDeviceGetEnforcedPowerLimit")),
            sm_clock_mhz=self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM),
            memory_clock_mhz=self._ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM),
            throttle_reasons=self._throttle_reasons(),
            ecc_uncorrected=self._ask(
                "nvmlDeviceGetTotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            ),
            processes=processes,
            own_bytes=own.used_bytes if own else None,
            foreign_processes=tuple(p for p in processes or () if p is not own) if own else None,
        )

    def _ask(self, question: str, *args: Any) -> Any:
        """None without an answer. By name, since an older nvidia-ml-py lacks newer questions."""
        return reading(lambda: getattr(self._nvml, question)(self._handle, *args))

    def _throttle_reasons(self) -> tuple[ThrottleReason, ...] | None:
        bits = self._ask("nvmlDeviceGetCurrentClocksEventReasons")
        if bits is None:
            bits = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return None if bits is None else tuple(reason for reason, bit in THROTTLE_BITS.items() if bits & bit)

    def _processes(self) -> tuple[CardProcess, ...] | None:
        """One that computes and draws is in both of NVML's lists, each time with all that it holds."""
        kinds = ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses")
        lists = [found for kind in kinds if (found := self._ask(kind)) is not None]
        if not lists:
            return None
        used: dict[int, int | None] = {}
        for process in (p for found in lists for p in found):
            known = (used.get(process.pid), process.usedGpuMemory)
            used[process.pid] = max((nbytes for nbytes in known if nbytes is not None), default=None)
        return tuple(CardProcess(pid, self._name(pid), nbytes) for pid, nbytes in sorted(used.items()))

    def _name(self, pid: int) -> str | None:
        """NVML may tell the whole command line, where secrets can be: the program's name must do."""
        told = reading(self._nvml.nvmlSystemGetProcessName, pid)
        words = told.split() if isinstance(told, str) else []
        return PurePosixPath(words[0]).name if words else reading(lambda: psutil.Process(pid).name())


def _identity(device: torch.device) -> int | str:
    """The UUID, which CUDA and NVML agree on; the index where torch can't tell it.

    Indices may differ: CUDA can count the fastest card first, NVML counts by place on the bus.
    """
    uuid = reading(lambda: str(torch.cuda.get_device_properties(device).uuid))
    return uuid or device.index or 0


def _handle(nvml: Any, device: int | str, visible: str | None) -> Any:
    if isinstance(device, str):
        return _by_uuid(nvml, device)
    if not visible:
        return nvml.nvmlDeviceGetHandleByIndex(device)
    entries = [entry.strip() for entry in visible.split(",")]
    if device >= len(entries):
        raise LookupError(f"cuda:{device} isn't among {VISIBLE}={visible}")
    entry = entries[device]
    return nvml.nvmlDeviceGetHandleByIndex(int(entry)) if entry.isdigit() else _by_uuid(nvml, entry)


def _by_uuid(nvml: Any, uuid: str) -> Any:
    """Takes UUIDs as torch writes them (without `GPU-` or `MIG-`) and as CUDA does: the beginning may do."""
    for full in (uuid, f"GPU-{uuid}", f"MIG-{uuid}"):
        if handle := reading(nvml.nvmlDeviceGetHandleByUUID, full):
            return handle
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if nvml.nvmlDeviceGetUUID(handle).startswith(uuid):
            return handle
    raise LookupError(f"NVML has no card {uuid}")


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1000


def _why(error: Exception) -> str:
    if isinstance(error, ImportError):
        return "nvidia-ml-py is missing; pip install 'onecard[cuda]'"
    advice = ADVICE.get(getattr(error, "value", -1))
    return f"NVML: {error}" + (f": {advice}" if advice else "")
