"""`/metrics`: what the engines, the gateway and the node report."""

from onecard.gateway.metrics.server import Metrics

__all__ = ["Metrics"]
