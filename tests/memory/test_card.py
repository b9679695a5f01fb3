"""What a card is said to have: devices, control groups, budgets."""

from collections import namedtuple

import psutil
import pytest
import torch

from onecard.engines.memory import card
from onecard.engines.memory.card import card_facts, host_memory, resolve_device
from onecard.engines.memory.card_plan import PlanError
from onecard.engines.memory.plan import plan_card
from onecard.registry.spec import CardSpec, MemoryAmount

GIB = 1 << 30
Memory = namedtuple("Memory", "total available")


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """16 GiB, 12 of them available; `files` of /sys/fs/cgroup, and `place`, which is /proc/self/cgroup."""

    def make(place: str = "0::/\n", files: dict[str, str] | None = None) -> tuple[int, int]:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(16 * GIB, 12 * GIB))
        membership = tmp_path / "membership"
        membership.write_text(place)
        for name, text in (files or {}).items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return host_memory(tmp_path / "cgroup", membership)

    return make


def test_without_a_limit_the_machine_counts(machine):
    assert machine() == (12 * GIB, 16 * GIB)
    assert machine("0::/app\n", {"app/memory.max": "max\n", "app/memory.current": "5"}) == (
        12 * GIB,
        16 * GIB,
    )


def test_a_v2_group_limits_and_its_page_cache_is_no_use(machine):
    files = {
        "app/memory.max": str(8 * GIB),
        "app/memory.current": str(3 * GIB),
        "app/memory.stat": f"anon 1\ninactive_file {GIB}\n",
    }
    assert machine("0::/app\n", files) == (6 * GIB, 8 * GIB)


def test_the_tightest_group_on_the_way_up_counts(machine):
    files = {
        "memory.max": str(15 * GIB),
        "pod/memory.max": str(4 * GIB),
        "pod/memory.current": str(GIB),
        "pod/app/memory.max": str(8 * GIB),
        "pod/app/memory.current": str(GIB),
    }
    assert machine("0::/pod/app\n", files) == (3 * GIB, 4 * GIB)


def test_a_v1_group(machine):
    files = {
        "memory/app/memory.limit_in_bytes": str(2 * GIB),
        "memory/app/memory.usage_in_bytes": str(GIB),
        "memory/app/memory.stat": f"total_inactive_file {GIB // 2}\n",
        "memory/memory.limit_in_bytes": "9223372036854771712",
    }
    assert machine("4:memory:/app\n3:cpu:/\n0::/\n", files) == (GIB + GIB // 2, 2 * GIB)


def test_an_exhausted_group_has_nothing_left(machine):
    assert machine("0::/a\n", {"a/memory.max": "100", "a/memory.current": "200"}) == (0, 100)


def test_a_machine_without_control_groups(tmp_path):
    available, total = host_memory(tmp_path / "none", tmp_path / "nothing")
    assert 0 < available <= total == psutil.virtual_memory().total


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setattr(card, "host_memory", lambda: (12 * GIB, 16 * GIB))


def test_the_budget_is_a_share_of_the_total(memory):
    facts = card_facts(CardSpec("c", "cpu", MemoryAmount(fraction=0.5)))
    assert (facts.name, facts.device, facts.budget_bytes) == ("c", "cpu", 8 * GIB)
    assert (facts.total_bytes, facts.available_bytes) == (16 * GIB, 12 * GIB)
    assert card_facts(CardSpec("c", "cpu", MemoryAmount(nbytes=GIB))).budget_bytes == GIB


def test_a_budget_beyond_what_is_available_is_refused_with_what_would_do(memory):
    with pytest.raises(PlanError) as error:
        card_facts(CardSpec("c", "cpu", MemoryAmount(fraction=0.9)))
    message = str(error.value)
    assert "asks for 14.4GiB of 16GiB, but only 12GiB are available: others use 4GiB" in message
    share = float(message.split("at most ")[1].split()[0])
    assert card_facts(CardSpec("c", "cpu", MemoryAmount(fraction=share))).budget_bytes <= 12 * GIB


def test_a_budget_that_nobody_named_is_nine_tenths_where_so_much_is_free(monkeypatch):
    monkeypatch.setattr(card, "host_memory", lambda: (15 * GIB, 16 * GIB))
    facts = card_facts(CardSpec("c", "cpu"))
    assert (facts.budget_bytes, facts.note) == (int(0.9 * 16 * GIB), "")


def test_a_budget_that_nobody_named_leaves_to_others_what_they_use_and_says_so(memory):
    facts = card_facts(CardSpec("c", "cpu"))
    assert facts.budget_bytes == 11.5 * GIB, "what is free, less a 32nd of the card"
    assert "others use 4GiB of 16GiB, so onecard takes 11.5GiB, what is free less 512MiB" in facts.note
    assert plan_card(facts, [], page_bytes=1 << 20).notes == (facts.note,)


def test_so_does_one_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GIB, 80 * GIB))
    facts = card_facts(CardSpec("c", "cuda"))
    assert (facts.device, facts.budget_bytes) == ("cuda:0", 57.5 * GIB)
    assert "others use 20GiB of 80GiB" in facts.note
    with pytest.raises(PlanError, match="asks for 72GiB of 80GiB, but only 60GiB are available"):
        card_facts(CardSpec("c", "cuda", MemoryAmount(fraction=0.9)))


def test_a_card_that_others_have_filled_leaves_nothing_to_take(monkeypatch):
    monkeypatch.setattr(card, "host_memory", lambda: (GIB // 4, 16 * GIB))
    assert card_facts(CardSpec("c", "cpu")).budget_bytes == 0


def test_devices(monkeypatch):
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(PlanError, match="no CUDA device is usable here: write auto or cpu"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(PlanError, match="has 2 CUDA devices: write a lower number"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:x", "meta"])
def test_devices_that_are_not_served(device):
    with pytest.raises(PlanError, match="write auto, cpu, cuda or cuda:N"):
        resolve_device(device)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA card")
def test_a_gpu_has_memory():
    facts = card_facts(CardSpec("c", "cuda", MemoryAmount(nbytes=GIB)))
    assert 0 < facts.available_bytes <= facts.total_bytes
