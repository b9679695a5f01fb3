"""Token ids and the rows of a model's embedding table: an id beyond them would be read from beyond them too,
which on a card ends every model's work."""

import logging
from collections.abc import Iterable, Sequence

from onecard.engines.api import InvalidRequestError
from onecard.engines.text.generation_config import ModelFileError
from onecard.engines.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)


class Vocabulary:
    """The ids that a model can read: those its tokenizer has and its table of `num_rows` rows, too.

    A table may have more rows than the tokenizer has tokens (most are padded). The other way round a model is
    served only where what lies beyond the table are tokens added to the vocabulary, never trained (a `[PAD]`
    behind 32,000 others): whatever comes to one of those is refused. Raises `ModelFileError` for a tokenizer
    that is another model's, or puts an id beyond the table around every text.
    """

    def __init__(self, tokenizer: Tokenizer, num_rows: int | None = None, model: str = "the model"):
        self._model = model
        self._known = tokenizer.max_token_id + 1
        self._rows = self._known if num_rows is None else num_rows
        self.size = min(self._known, self._rows)
        """Ids go from 0 to one less."""
        self._all_encoded_fit = self._known <= self._rows
        if not self._all_encoded_fit:
            self._check_tokenizer(tokenizer)

    def _check_tokenizer(self, tokenizer: Tokenizer) -> None:
        trained = tokenizer.max_trained_id + 1
        advice = "it is another model's tokenizer, or an incomplete checkpoint: set `engine.tokenizer`"
        if trained > self._rows:
            raise ModelFileError(
                f"{self._model}: the tokenizer has {trained} tokens, but the model's embedding table has "
                f"{self._rows} rows: {advice}"
            )
        added = max(tokenizer.encode("a"), default=0)
        if added >= self._rows:
            raise ModelFileError(
                f"{self._model}: the tokenizer puts token {added} ({tokenizer.token_piece(added)!r}) into "
                f"every text, but the model's embedding table has {self._rows} rows: {advice}"
            )
        log.warning(
            "%s: the tokenizer has %d added tokens beyond the %d rows of the model's embedding table; "
            "requests with one of them are refused.",
            self._model,
            self._known - self._rows,
            self._rows,
        )

    def check(self, token_ids: Sequence[int], param: str, advice: str = "") -> None:
        """Raises `InvalidRequestError` for an id that a client has sent and the model can't read."""
        if token_ids and not (min(token_ids) >= 0 and max(token_ids) < self.size):
            bad = next(i for i in token_ids if not 0 <= i < self.size)
            raise InvalidRequestError(
                f"Token id {bad} is not in the vocabulary (0 to {self.size - 1}).{advice}", param=param
            )

    def check_encoded(self, token_ids: Sequence[int], param: str) -> None:
        """The same for a text's: only a tokenizer with tokens beyond the table makes such."""
        if self._all_encoded_fit or max(token_ids, default=0) < self._rows:
            return
        raise InvalidRequestError(
            f"The text has a token, {max(token_ids)}, which this model has never learned (its embedding "
            f"table has {self._rows} rows): leave it out.",
            param=param,
        )

    def ends(self, token_ids: Iterable[int]) -> frozenset[int]:
        """Those of `token_ids`, which end an answer, that can come. `ModelFileError` where none can."""
        ids = tuple(token_ids)
        if wrong := [i for i in ids if type(i) is not int]:
            raise ModelFileError(f"{self._model}: `eos_token_id` must be whole numbers, not {wrong[0]!r}")
        named = frozenset(i for i in ids if i >= 0)  # -1: there is none
        possible = frozenset(i for i in named if i < self._rows)
        if named and not possible:
            raise ModelFileError(
                f"{self._model}: `eos_token_id` is {', '.join(map(str, sorted(named)))}, but the model's "
                f"embedding table has {self._rows} rows: no answer would ever end; correct its config files"
            )
        if named != possible:
            beyond = ", ".join(map(str, sorted(named - possible)))
            log.warning(
                "%s: no token %s to end with: the table has %d rows.", self._model, beyond, self._rows
            )
        return possible
