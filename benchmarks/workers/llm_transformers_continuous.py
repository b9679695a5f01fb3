"""transformers' continuous batching: one manager for the whole run, warmed up before it is measured."""

import logging
import sys
import time
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path

import torch
from hf_model import in_passing_thread, load
from protocol import Answer, Channel, serve
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import ContinuousBatchingManager

channel = Channel()
logging.basicConfig(level=logging.ERROR)
path, threads, attention = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
max_batch_tokens = int(sys.argv[4])
torch.set_num_threads(threads)


def batching_config() -> ContinuousBatchingConfig:
    if torch.cuda.is_available():
        return ContinuousBatchingConfig()  # fits itself to the card's memory
    # Room for 64 sequences of one page; without a number it takes most of the machine's memory.
    settings = {"num_blocks": 64, "max_batch_tokens": max_batch_tokens, "auto_switch_to_flash": False}
    known = {field.name for field in fields(ContinuousBatchingConfig)}
    return ContinuousBatchingConfig(**{key: value for key, value in settings.items() if key in known})


def make_manager() -> ContinuousBatchingManager:
    manager = load(path, attention).init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        continuous_batching_config=batching_config(),
    )
    manager.warmup()
    return manager


manager = in_passing_thread(make_manager)
manager.start()


def handle(command: Answer) -> Answer:
    """What has not finished after `limit` seconds is left out of the answer, and cancelled."""
    prompts, lengths = command["prompts"], command["new_tokens"]
    lengths = lengths if isinstance(lengths, list) else [lengths] * len(prompts)
    started = time.perf_counter()
    deadline = started + command.get("limit", float("inf"))
    ids = [
        manager.add_request(prompt, max_new_tokens=length, record_timestamps=True)
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    done = {}
    while len(done) < len(ids) and time.perf_counter() < deadline:
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            done[result.request_id] = result
        elif result is None and not manager.is_running():
            raise RuntimeError("the manager's thread has ended")
    for request_id in ids:
        if request_id not in done:
            manager.cancel_request(request_id)
    results = [done[request_id] for request_id in ids if request_id in done]
    failed = [result.error for result in results if result.error]
    if failed:
        raise RuntimeError(failed[0])
    return {
        "times": [[stamp - started for stamp in result.timestamps] for result in results],
        "tokens": [result.generated_tokens for result in results],
    }


serve(channel, {"version": version("transformers"), "attention": attention, "dtype": "float32"}, handle)
manager.stop(block=True)
manager.destroy()
