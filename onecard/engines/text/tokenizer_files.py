"""What can be told of a tokenizer from its files, without building it: `check` and `plan` ask before a server
starts."""

from pathlib import Path

from onecard.engines.text import gguf_tokenizer, hf_tokenizer
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.generation_config import ModelFileError, readable
from onecard.engines.weights.gguf_file import GgufFile
from onecard.registry.plain_files import is_there

HUB_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "config.json"),
    *("vocab*", "merges.txt", "*.model", "*.tiktoken", "tekken.json"),
)
"""Of a repository whose tokenizer alone is wanted."""


def tokenizer_folder(named: str) -> Path:
    """What `engine.tokenizer` names: a folder or GGUF file that is there, else a repository of the Hub, whose
    tokenizer's files are fetched (`HF_ENDPOINT`, `HF_TOKEN` and `HF_HUB_OFFLINE` hold).

    Raises `ModelFileError` where it is neither.
    """
    if is_there(Path(named)):
        return Path(named)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(named, allow_patterns=list(HUB_FILES)))
    except Exception as error:  # the network's, the Hub's, the file system's
        raise ModelFileError(
            f"`engine.tokenizer`: there is no folder {named}, and as a repository of the Hub it can't be "
            f"had: {error}"
        ) from error


def check_tokenizer(path: Path, chat_templates: bool = True) -> None:
    """Whether a model folder or a GGUF file has a tokenizer, and whether its `chat_templates` parse. Raises
    `ValueError` (`ModelFileError`, `GgufError`)."""
    with readable(path):
        if path.is_file():
            metadata = GgufFile(path).metadata
            gguf_tokenizer.check_vocabulary(path, metadata)
            templates = gguf_tokenizer.chat_templates(metadata)
        else:
            hf_tokenizer.check_vocabulary(path)
            templates = hf_tokenizer.chat_templates(path, hf_tokenizer.load_tokenizer_config(path))
        if chat_templates:
            ChatTemplates(templates, origin=str(path))
