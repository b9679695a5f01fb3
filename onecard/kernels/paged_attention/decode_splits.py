"""How many programs a decode step's attention has, whatever the lengths: for the launch, and for the plan."""

MAX_SPLITS = 64
"""Into how many parts one sequence's keys are cut at most."""
PROGRAMS_WANTED = 1024
"""Beside one for each sequence and K/V head; some eight a streaming multiprocessor of a large card."""


def decode_programs(sequences: int, kv_heads: int) -> int:
    """Programs for each K/V head: one a sequence, and those that split sequences further."""
    return sequences + min(sequences * (MAX_SPLITS - 1), -(-PROGRAMS_WANTED // kv_heads))


def partial_bytes(sequences: int, heads: int, kv_heads: int, dim: int) -> int:
    """Of the partial sums, their log-sum-exps, and whose they are, float32 and int32."""
    return 4 * (decode_programs(sequences, kv_heads) * heads * (dim + 1) + 2 * sequences)
