"""`onecard serve` as its own process, as a supervisor starts and stops it."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


class Server:
    """Serves the demo registry, or another, on a free port; made when it answers. The last call is `stop`."""

    def __init__(self, repository: Path, registry: Path = Path("configs/demo.yaml")):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "onecard", "serve", str(registry), "--port", str(self.port)]
        self.process = subprocess.Popen(
            command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        deadline = time.monotonic() + 120
        while not self.answers("/health/ready"):
            assert self.process.poll() is None, self.process.stdout.read()
            assert time.monotonic() < deadline, "the server was not ready in two minutes"
            time.sleep(0.1)

    def answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as response:
                return response.status == 200
        except OSError:
            return False

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return response.read().decode()

    def post(self, path: str, body: Any = None) -> tuple[int, Any]:
        """The status and JSON of the answer, also where it is an error."""
        data = b"" if body is None else json.dumps(body).encode()
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            with urllib.request.urlopen(
                urllib.request.Request(self.url + path, data, headers), timeout=60
            ) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def running(self) -> int:
        models = json.loads(self.get("/admin/status"))["models"]
        return sum(model["running"] + model["waiting"] for model in models)

    def stop(self) -> str:
        """Ends the server as a supervisor does; returns what it printed."""
        self.process.send_signal(signal.SIGTERM)
        printed, _ = self.process.communicate(timeout=60)
        return printed
