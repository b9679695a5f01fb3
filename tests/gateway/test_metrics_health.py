"""Gauges of the cards' health on the metrics page."""

from prometheus_client.parser import text_string_to_metric_families

from onecard.engines.api import CardHealth, CardProcess, CardStatus, NodeStatus
from onecard.gateway.metrics import Metrics

GPU = CardHealth(
    source="nvml",
    used_bytes=30,
    free_bytes=50,
    total_bytes=80,
    utilization=0.87,
    memory_utilization=0.42,
    temperature_c=61,
    power_w=402.5,
    power_limit_w=700.0,
    sm_clock_mhz=1755,
    memory_clock_mhz=2619,
    throttle_reasons=("sw_power_cap",),
    ecc_uncorrected=3,
    processes=(CardProcess(7, 'a "name"', 9), CardProcess(8, None, 20), CardProcess(9, "untold", None)),
    own_bytes=20,
    foreign_processes=(CardProcess(7, 'a "name"', 9),),
)
CPU = CardHealth(source="psutil", used_bytes=3, free_bytes=5, total_bytes=8, utilization=0.0, own_bytes=1)

Page = dict[tuple[str, frozenset[tuple[str, str]]], float]


def page(*looks: CardHealth | None) -> Page:
    """Sample name and labels -> value, of cards card0, card1, ... with these looks."""
    cards = tuple(
        CardStatus(f"card{i}", "cpu", 1000, 900, 640, 64, 4, 10, health=look) for i, look in enumerate(looks)
    )
    metrics = Metrics([])
    metrics.bind(lambda: NodeStatus("ready", cards, ()))
    metrics.look()
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in families
        for s in family.samples
        if s.name.startswith("onecard_gpu_")
    }


def of(metric: str, /, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"onecard_gpu_{metric}", frozenset({"card": "card0", **labels}.items())


def test_all_that_a_gpu_tells() -> None:
    idle = {
        of("throttled", reason=reason): 0
        for reason in (
            "applications_clocks",
            "hw_slowdown",
            "sync_boost",
            "sw_thermal_slowdown",
            "hw_thermal_slowdown",
            "hw_power_brake_slowdown",
            "display_clocks",
        )
    }
    assert page(GPU) == {
        of("memory_used_bytes"): 30,
        of("memory_total_bytes"): 80,
        of("utilization"): 0.87,
        of("temperature_celsius"): 61,
        of("power_watts"): 402.5,
        of("clock_mhz", clock="sm"): 1755,
        of("clock_mhz", clock="memory"): 2619,
        of("throttled", reason="sw_power_cap"): 1,
        **idle,
        of("ecc_errors_total"): 3,
        of("process_bytes", pid="7", name='a "name"'): 9,
        of("process_bytes", pid="8", name=""): 20,
    }


def test_a_cpu_card_has_memory_and_utilization_under_the_same_names() -> None:
    assert page(CPU) == {of("memory_used_bytes"): 3, of("memory_total_bytes"): 8, of("utilization"): 0}


def test_cards_keep_apart() -> None:
    both = page(GPU, CPU)
    assert both[of("memory_used_bytes")] == 30
    assert both[of("memory_used_bytes", card="card1")] == 3


def test_nothing_is_made_up_for_a_card_that_was_not_seen_or_does_not_tell() -> None:
    assert page(None, CardHealth()) == {}
