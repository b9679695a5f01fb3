"""llama.cpp through llama-cpp-python's low-level functions: all sequences in one batch, greedy.

It multiplies the file's own 4-bit weights, so it reads about a sixth of float32's bytes: not like for like.
Needs nothing of this project: it runs under whatever interpreter has llama-cpp-python.
"""

import sys
import time

import llama_cpp
import numpy as np
from protocol import Answer, Channel, serve

MAX_SEQUENCES = 16
MAX_BATCH = 2048
CONTEXT = MAX_SEQUENCES * 512

channel = Channel()
path, threads = sys.argv[1], int(sys.argv[2])
llama_cpp.llama_backend_init()
model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
params = llama_cpp.llama_context_default_params()
params.n_ctx = CONTEXT
params.n_batch = MAX_BATCH
params.n_seq_max = MAX_SEQUENCES
params.n_threads = params.n_threads_batch = threads
context = llama_cpp.llama_init_from_model(model, params)
vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
batch = llama_cpp.llama_batch_init(MAX_BATCH, 0, 1)


def decode(rows: list[tuple[int, int, int, bool]]) -> None:
    """Run rows of (token, position, sequence, wants logits)."""
    for i, (token, position, sequence, wants_logits) in enumerate(rows):
        batch.token[i] = token
        batch.pos[i] = position
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = sequence
        batch.logits[i] = wants_logits
    batch.n_tokens = len(rows)
    status = llama_cpp.llama_decode(context, batch)
    if status != 0:
        raise RuntimeError(f"llama_decode returned {status}")


def argmax(row: int) -> int:
    logits = llama_cpp.llama_get_logits_ith(context, row)
    return int(np.argmax(np.ctypeslib.as_array(logits, shape=(vocab_size,))))


def handle(command: Answer) -> Answer:
    prompts, new_tokens = command["prompts"], command["new_tokens"]
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    started = time.perf_counter()
    times: list[list[float]] = [[] for _ in prompts]
    tokens: list[list[int]] = [[] for _ in prompts]

    def note(sequence: int, token: int) -> None:
        tokens[sequence].append(token)
        times[sequence].append(time.perf_counter() - started)

    for first in range(0, len(prompts), per_batch := MAX_BATCH // len(prompts[0])):
        rows, last = [], {}
        for sequence in range(first, min(first + per_batch, len(prompts))):
            prompt = prompts[sequence]
            rows += [(t, p, sequence, p == len(prompt) - 1) for p, t in enumerate(prompt)]
            last[sequence] = len(rows) - 1
        decode(rows)
        for sequence, row in last.items():
            note(sequence, argmax(row))
    for step in range(new_tokens - 1):
        decode([(out[-1], len(prompts[s]) + step, s, True) for s, out in enumerate(tokens)])
        for sequence in range(len(prompts)):
            note(sequence, argmax(sequence))
    return {"times": times, "tokens": tokens}


serve(channel, {"version": llama_cpp.__version__, "dtype": "the file's own (Q4_1)"}, handle)
