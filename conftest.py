"""Without a GPU the Triton kernels run in its interpreter, to be chosen before anyone imports Triton."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
