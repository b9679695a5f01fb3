"""sentence-transformers' `encode` with its defaults: sorted by length, padded batches of 32."""

import sys
import time
from importlib.metadata import version

import torch
from protocol import Answer, Channel, serve
from sentence_transformers import SentenceTransformer

channel = Channel()
torch.set_num_threads(int(sys.argv[2]))
model = SentenceTransformer(sys.argv[1], device="cpu")


def handle(command: Answer) -> Answer:
    started = time.perf_counter()
    vectors = model.encode(command["texts"], batch_size=32, show_progress_bar=False)
    return {"seconds": time.perf_counter() - started, "vectors": vectors.tolist()}


serve(channel, {"version": version("sentence-transformers"), "dtype": str(model.dtype)}, handle)
