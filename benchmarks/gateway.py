"""The gateway alone: onecard's before engines that answer at once, beside an aiohttp echo and a small proxy.

Three servers and one client, each a process of its own, on the loopback: 1 connection and 16 that ask again
as soon as they are answered (for requests a second; at 16 the server is saturated and requests queue), and 16
that ask 500 times a second together (for the time of one). Servers take turns in every round; a figure is the
median of its rounds.

`inside` is the time from a handler's first line to its last, less the engine's, measured in the server;
`latency` is what the client sees; `cpu` is the server's processor time a request, parsing and writing
included.
"""

import argparse
import json
from typing import Any

from harness.report import Report, add_common_arguments
from harness.statistics import Metrics, medians, percentile, rounded
from harness.workers import Worker

MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Write a short letter to a friend about the weather. " * 8},
]
CHAT = {"model": "chat", "messages": MESSAGES, "max_tokens": 16, "temperature": 0.7}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "chat, stream of 16 tokens": ("/v1/chat/completions", {**CHAT, "stream": True}),
    "embedding": ("/v1/embeddings", {"model": "embedding", "input": "The weather is fine today. " * 4}),
    "embedding, base64": (
        "/v1/embeddings",
        {"model": "embedding", "input": "The weather is fine today. " * 4, "encoding_format": "base64"},
    ),
}
LOADS = ((1, 0), (16, 0), (16, 500))
"""Connections, and requests a second over all of them (0: each as soon as the last is answered)."""


def main() -> None:
    args = parse_arguments()
    count, repeats = (64, 1) if args.quick else (args.requests, args.repeats)
    report = Report("gateway", {"requests": count, "repeats": repeats})
    with (
        Worker("onecard", "gateway_onecard.py", [], 1) as onecard,
        Worker("aiohttp echo", "gateway_echo.py", [], 1) as echo,
        Worker("aiohttp proxy", "gateway_proxy.py", [str(echo.hello["port"])], 1) as proxy,
        Worker("client", "http_client.py", [], 1) as client,
    ):
        servers = [onecard, echo, proxy]
        for name, (path, body) in REQUESTS.items():
            for concurrency, rate in LOADS:
                command = {
                    "path": path,
                    "body": json.dumps(body, separators=(",", ":")),
                    "concurrency": concurrency,
                    "rate": rate,
                    "requests": count,
                }
                load = {"concurrency": concurrency, "rate": rate or "closed loop"}
                results = measure(client, servers, command, repeats)
                for server in servers:
                    row = {"server": server.name, "request": name, **load}
                    figures = rounded(medians(results[server.name]))
                    report.add({**row, **figures}, raw=results[server.name])
                report.add({"summary": name, **load, **compare(results)})
    report.write(args.json_out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser, repeats=5)
    parser.add_argument("--requests", type=int, default=1600, help="requests a round (default: 1600)")
    return parser.parse_args()


def measure(
    client: Worker, servers: list[Worker], command: dict[str, Any], repeats: int
) -> dict[str, list[Metrics]]:
    results: dict[str, list[Metrics]] = {server.name: [] for server in servers}
    for round_number in range(-1, repeats):
        for server in servers:
            server.ask({"read": True})
            seen = client.ask({**command, "port": server.hello["port"]})
            inside = server.ask({"read": True})
            if round_number >= 0:
                results[server.name].append(figures_of(seen, inside))
    return results


def figures_of(seen: dict[str, Any], inside: dict[str, Any]) -> Metrics:
    count = len(seen["latencies"])
    return {
        "requests_per_s": count / seen["seconds"],
        "inside_p50_ms": percentile(inside["seconds"], 50) * 1e3,
        "inside_p99_ms": percentile(inside["seconds"], 99) * 1e3,
        "latency_p50_ms": percentile(seen["latencies"], 50) * 1e3,
        "latency_p99_ms": percentile(seen["latencies"], 99) * 1e3,
        "cpu_ms": inside["cpu_seconds"] / count * 1e3,
    }


def compare(results: dict[str, list[Metrics]]) -> Metrics:
    onecard, echo, proxy = (medians(results[name]) for name in ("onecard", "aiohttp echo", "aiohttp proxy"))
    return rounded(
        {
            "latency_p50_over_echo_ms": onecard["latency_p50_ms"] - echo["latency_p50_ms"],
            "latency_p50_proxy_over_echo_ms": proxy["latency_p50_ms"] - echo["latency_p50_ms"],
            "throughput_to_echo": onecard["requests_per_s"] / echo["requests_per_s"],
            "throughput_to_proxy": onecard["requests_per_s"] / proxy["requests_per_s"],
        }
    )


if __name__ == "__main__":
    main()
