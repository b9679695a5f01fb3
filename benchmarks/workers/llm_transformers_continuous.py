"""transformers' continuous batching: one manager for the whole run, warmed up before it is measured."""

import logging
import sys
import time
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


def make_manager() -> ContinuousBatchingManager:
    manager = load(path, attention).init_continuous_batching(
        generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0),
        # Room for 64 sequences of one page; without a number it takes most of the machine's memory.
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=64, max_batch_tokens=max_batch_tokens, auto_switch_to_flash=False
        ),
    )
    manager.warmup()
    return manager


manager = in_passing_thread(make_manager)
manager.start()


def handle(command: Answer) -> Answer:
    started = time.perf_counter()
    ids = manager.add_requests(
        command["prompts"], max_new_tokens=command["new_tokens"], record_timestamps=True
    )
    done = {}
    while len(done) < len(ids):
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            done[result.request_id] = result
        elif result is None and not manager.is_running():
            raise RuntimeError("the manager's thread has ended")
    results = [done[request_id] for request_id in ids]
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
