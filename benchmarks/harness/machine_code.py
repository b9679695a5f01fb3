"""What a kernel's machine code says of it: registers, stack, spills, and what its loops consist of."""

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import triton

BIN = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*?);", re.MULTILINE)
MATRIX = ("HGMMA", "HMMA")


@dataclass(frozen=True)
class Loop:
    """A loop that has no other one in it: how many instructions, and of which kinds."""

    instructions: int
    kinds: Counter[str]

    @property
    def products(self) -> int:
        """Matrix products."""
        return sum(self.kinds[kind] for kind in MATRIX)


@dataclass(frozen=True)
class MachineCode:
    """`stack` bytes a thread, of which spilled registers are the usual reason; `loops`, the longest first."""

    registers: int
    stack: int
    spills: int
    """Instructions that store to the stack or load from it."""
    instructions: int
    kinds: Counter[str]
    loops: list[Loop]


def read_machine_code(cubin: bytes) -> MachineCode:
    """Disassemble one kernel with what Triton brings along."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        listing = _run("cuobjdump", "-sass", file.name)
    code = [(int(at, 16), name, rest) for at, name, rest in INSTRUCTION.findall(listing)]
    kinds = Counter(name.split(".")[0] for _, name, _ in code)
    return MachineCode(
        registers=int(_field(usage, "REG")),
        stack=int(_field(usage, "STACK")),
        spills=kinds["STL"] + kinds["LDL"],
        instructions=len(code),
        kinds=kinds,
        loops=_loops(code),
    )


def _loops(code: list[tuple[int, str, str]]) -> list[Loop]:
    spans = []
    for at, name, rest in code:
        target = re.search(r"0x([0-9a-f]+)", rest) if name.split(".")[0] == "BRA" else None
        if target and int(target[1], 16) < at:
            spans.append((int(target[1], 16), at))
    inner = [s for s in spans if not any(s != o and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    found = []
    for first, last in inner:
        names = [name.split(".")[0] for at, name, _ in code if first <= at <= last]
        found.append(Loop(len(names), Counter(names)))
    return sorted(found, key=lambda loop: -loop.instructions)


def _field(usage: str, name: str) -> str:
    found = re.search(rf"\b{name}:(\d+)", usage)
    if found is None:
        raise ValueError(f"cuobjdump says nothing of {name}: {usage}")
    return found[1]


def _run(tool: str, *arguments: str) -> str:
    command = [str(BIN / tool), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
