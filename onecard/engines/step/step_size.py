"""How much one step of a model may compute at most, where the registry leaves it open."""

from dataclasses import dataclass

from onecard.registry.spec import ModelSpec

# (tokens, sequences) of a step. A GPU wants thousands of rows before arithmetic is what bounds its matrix
# products; a CPU is there with hundreds, and 2048 keep it busy long enough.
_ON_CPU = (2048, 64)
_ON_GPU = {"embedding": (16384, 512)}
_ON_GPU_ELSE = (8192, 256)


@dataclass(frozen=True)
class StepSize:
    """The registry's `max_num_batched_tokens` and `max_num_seqs`, decided."""

    max_num_batched_tokens: int
    max_num_seqs: int


def step_size(spec: ModelSpec, device_type: str, max_model_len: int) -> StepSize:
    """What the registry says of `spec`, and for what it leaves open a size for its kind on a `device_type`.

    A size that is left open always fits the other one, and an encoder's longest text: `max_model_len` tokens.
    """
    auto_tokens, auto_seqs = _ON_CPU if device_type == "cpu" else _ON_GPU.get(spec.kind, _ON_GPU_ELSE)
    tokens, seqs = spec.engine.max_num_batched_tokens, spec.engine.max_num_seqs
    if seqs is None:
        seqs = auto_seqs if tokens is None else min(auto_seqs, tokens)
    if tokens is None:
        whole_text = 0 if spec.kind == "llm" else max_model_len
        tokens = max(auto_tokens, seqs, whole_text)
    return StepSize(tokens, seqs)
