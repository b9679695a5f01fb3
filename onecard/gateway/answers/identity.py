"""What tells one answer from another: id, time and model."""

import secrets
import time
from dataclasses import dataclass
from typing import Any

from onecard.gateway import SYSTEM_FINGERPRINT


@dataclass(frozen=True)
class Identity:
    """`id` is also the engine's request id, so it is never taken from the client. `created`: Unix seconds."""

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, prefix: str, model: str) -> "Identity":
        return cls(f"{prefix}-{secrets.token_hex(16)}", int(time.time()), model)

    def fields(self, object_name: str) -> dict[str, Any]:
        """The head of an answer."""
        return {
            "id": self.id,
            "object": object_name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": SYSTEM_FINGERPRINT,
        }
