"""What is wrong with the files beside a model's weights."""


class ModelFileError(ValueError):
    """A tokenizer, template or JSON file that can't be used; the message names the file and says why."""
