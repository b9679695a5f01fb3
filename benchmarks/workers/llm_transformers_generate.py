"""transformers' `generate`: one static batch of prompts of equal length, dynamic cache, SDPA."""

import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from hf_model import in_passing_thread, load
from protocol import Answer, Channel, serve
from transformers.generation.streamers import BaseStreamer

channel = Channel()
threads = int(sys.argv[2])
torch.set_num_threads(threads)
model = in_passing_thread(lambda: load(Path(sys.argv[1]), "sdpa"))


class TokenTimes(BaseStreamer):
    """Notes when each step's tokens are there. The first call brings the prompt."""

    def __init__(self, started: float) -> None:
        self._started = started
        self.times: list[float] = []
        self._calls = 0

    def put(self, value: torch.Tensor) -> None:
        self._calls += 1
        if self._calls > 1:
            self.times.append(time.perf_counter() - self._started)

    def end(self) -> None: ...


@torch.inference_mode()
def handle(command: Answer) -> Answer:
    prompts = torch.tensor(command["prompts"])
    streamer = TokenTimes(time.perf_counter())
    output = model.generate(
        prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=command["new_tokens"],
        eos_token_id=None,
        pad_token_id=0,
        streamer=streamer,
    )
    tokens = output[:, prompts.shape[1] :].tolist()
    return {"times": [streamer.times] * len(tokens), "tokens": tokens}


serve(channel, {"version": version("transformers"), "attention": "sdpa", "dtype": "float32"}, handle)
