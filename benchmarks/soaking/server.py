"""The server of a soak: a process of its own, with a folder for its registry, log and failures."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

START_SECONDS = 240
STOP_SECONDS = 120
SCRIPT = Path(__file__).with_name("faulty_server.py")
ROOT = SCRIPT.parents[2]


class Server:
    """Started when made; `stop` it, in any case."""

    def __init__(
        self, folder: Path, registry: Mapping[str, Any], threads: int, faults: Mapping[str, object]
    ) -> None:
        self.folder = folder
        self.registry = folder / "registry.yaml"
        self.log = folder / "server.log"
        self.write(yaml.safe_dump(dict(registry)))
        self.url = f"http://127.0.0.1:{_free_port()}"
        environment = {
            **os.environ,
            "SOAK_FOLDER": str(folder),
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
            **{name: str(value) for name, value in faults.items()},
        }
        port = self.url.rpartition(":")[2]
        command = [sys.executable, str(SCRIPT), "serve", str(self.registry), "--port", port]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise

    def write(self, registry: str) -> None:
        """Put another registry file in the place of the one there is."""
        new = self.registry.with_suffix(".new")
        new.write_text(registry)
        new.replace(self.registry)

    def arm(self, armed: bool) -> None:
        """Steps fail from now on, or no more."""
        flag = self.folder / "armed"
        if armed:
            flag.touch()
        else:
            flag.unlink(missing_ok=True)

    def failures(self) -> list[dict[str, Any]]:
        """Every step that was made to fail so far."""
        file = self.folder / "failures.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def models(self) -> list[dict[str, Any]]:
        """The models' rows of `onecard ps`."""
        command = [sys.executable, "-m", "onecard", "ps", "--json", "--url", self.url]
        ps = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        return json.loads(ps.stdout)["models"]

    def stop(self) -> int:
        """As a supervisor does; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready():
            if self.process.poll() is not None:
                raise RuntimeError(f"the server has ended:\n{self.log.read_text()[-4000:]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server was not ready after {START_SECONDS} s")
            time.sleep(0.2)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health/ready", timeout=5) as response:
                return response.status == 200
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
