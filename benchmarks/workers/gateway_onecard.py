"""onecard's gateway, whole, before engines that answer at once."""

import time

from fake_node import FakeNode
from http_server import run
from protocol import Channel

from onecard.gateway.app import create_app
from onecard.gateway.metrics import Metrics
from onecard.registry.spec import ModelSpec, Registry

channel = Channel()
registry = Registry(models=(ModelSpec(name="chat"), ModelSpec(name="embedding", kind="embedding")))
run(channel, create_app(FakeNode(time.perf_counter), registry, Metrics(["chat", "embedding"])), {})
