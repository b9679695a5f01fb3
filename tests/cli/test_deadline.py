"""A process that must end, with threads in it that nobody can stop: each in a process of its own."""

import re
import signal
import subprocess
import sys
import time

import pytest

START = """
import asyncio, logging, re, threading, time
from onecard.gateway.cli.deadline import Deadline
from onecard.gateway.cli.triggers import StopSignals
logging.basicConfig(level="INFO")
deadline = Deadline()
"""
STUCK = {
    "the main thread runs for ever": "deadline.within(0.2, 'draining')\nwhile True: pass",
    "a thread never ends that an exit waits for": (
        "threading.Thread(target=time.sleep, args=(60,)).start()\ndeadline.within(0.2, 'draining')"
    ),
    "the time grew shorter": (
        "deadline.within(60, 'serving')\ntime.sleep(0.1)\ndeadline.within(0.2, 'draining')\ntime.sleep(60)"
    ),
}
SERVING = """
async def main():
    signals = StopSignals(lambda: None)
    waiting = asyncio.create_task(signals.wait(lambda: deadline.within(float({seconds}), "draining")))
    await asyncio.sleep(0)
    print("up", flush=True)
    while True: pass
asyncio.run(main())
"""


def run(script: str) -> tuple[int, str, float]:
    """The status, what it said, and seconds since it began."""
    began = time.monotonic()
    ran = subprocess.run([sys.executable, "-c", START + script], capture_output=True, text=True, timeout=60)
    return ran.returncode, ran.stderr, time.monotonic() - began


@pytest.mark.parametrize("script", STUCK.values(), ids=STUCK)
def test_it_ends_in_time_with_a_line_in_the_log(script: str) -> None:
    status, said, seconds = run(script)
    assert status == 124
    assert re.search(r"still draining \d+\.\d s after it was told to stop: .* with status 124", said)
    assert seconds < 20


def test_it_ends_where_native_code_lets_no_other_thread_in() -> None:
    status, _, seconds = run("deadline.within(0.2, 'draining')\nre.match('(a+)+$', 'a' * 60 + 'b')")
    assert status != 0
    assert seconds < 20


def test_it_ends_where_nobody_reads_its_log() -> None:
    script = START + "deadline.within(0.2, 'x' * 1_000_000)\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) as process:
        assert process.wait(20) != 0


def serving(seconds: float) -> "subprocess.Popen[str]":
    """A server whose event loop doesn't turn any more."""
    script = START + SERVING.format(seconds=seconds)
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_a_signal_ends_a_server_whose_event_loop_is_stuck() -> None:
    with serving(0.2) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 124


def test_a_second_signal_ends_it_at_once() -> None:
    with serving(60) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 128 + signal.SIGINT
