"""Which format a path holds, and its checkpoint. Never opens a pickle."""

from pathlib import Path

from onecard.engines.weights.checkpoint import Checkpoint, LoadError, SafetensorsCheckpoint, find_shards

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_checkpoint(path: Path) -> Checkpoint:
    """The safetensors of a Hugging Face folder, or a .gguf file. Raises `LoadError`; never opens a pickle."""
    if path.suffix == ".gguf":
        from onecard.engines.weights.gguf import GgufCheckpoint  # the gguf package is for such files only

        return GgufCheckpoint(path)
    if path.suffix in _PICKLES:
        raise _refused(path)
    if not path.is_dir():
        raise LoadError(f"{path} is neither a .gguf file nor a folder with safetensors")
    shards = find_shards(path)
    if shards:
        return SafetensorsCheckpoint(shards)
    pickles = sorted(file for file in path.iterdir() if file.suffix in _PICKLES)
    if pickles:
        raise _refused(pickles[0])
    raise LoadError(f"{path} holds no .safetensors file")


def _refused(path: Path) -> LoadError:
    return LoadError(
        f"{path} is a pickle, which can run code when it is read; convert the checkpoint to safetensors "
        "(transformers' save_pretrained writes it) or take one that is"
    )
