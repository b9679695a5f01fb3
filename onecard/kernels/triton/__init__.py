"""Triton kernels, one operation a file. Imported only by the operations themselves, when they run on a
GPU."""
