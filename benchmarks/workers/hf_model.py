"""A transformers model: a GGUF file, dequantised to float32 as it loads, or a folder as it is."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

T = TypeVar("T")


def load(path: Path, attention: str) -> PreTrainedModel:
    if path.is_dir():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        folder = AutoModelForCausalLM.from_pretrained(str(path), dtype="auto", attn_implementation=attention)
        return folder.eval().to(device)
    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation=attention
    )
    return model.eval()


def in_passing_thread(call: Callable[[], T]) -> T:
    """`call()` in a thread that ends with it, and its OpenMP team too.

    While more than one thread of a process has a team, GNU's OpenMP hardly spins at its barriers, and small
    parallel regions gain nothing from a second core. So what loads must not be what stays.
    """
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()
    thread.join()
    return results[0]
