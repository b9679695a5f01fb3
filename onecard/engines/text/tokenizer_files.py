"""What can be told of a tokenizer from its files, without building it: `check` and `plan` ask before a server
starts."""

from pathlib import Path

from onecard.engines.text import gguf_tokenizer, hf_tokenizer
from onecard.engines.text.chat_template import ChatTemplates
from onecard.engines.text.generation_config import readable
from onecard.engines.weights.gguf_file import GgufFile


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
