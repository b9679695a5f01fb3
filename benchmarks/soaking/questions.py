"""What the soak asks: prompts of all lengths, shared beginnings, several answers, stop strings, texts."""

from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import numpy as np

Kind = Literal["chat", "completion", "embedding"]

PATHS: dict[Kind, str] = {
    "chat": "/v1/chat/completions",
    "completion": "/v1/completions",
    "embedding": "/v1/embeddings",
}

KINDS: tuple[Kind, ...] = ("chat", "completion", "embedding", "chat", "completion", "chat", "embedding")
"""Which questions there are, in turn."""

NEAR_TIE = 0.02
"""Where two candidates' log-probabilities lie closer, a question has no one right answer: it isn't asked."""

MOST_DIFFERENCE = 1e-4
"""Of an embedding's numbers: of the order of one in full precision, summed in another order in a batch."""

_NOUNS = (
    "river mountain letter garden window science history music engine winter summer market bridge forest "
    "teacher doctor painter captain island village castle number colour answer question story"
)
WORDS = _NOUNS.split()
SUBJECTS = (
    "the sea",
    "the moon",
    "a good breakfast",
    "how bread is made",
    "the colour green",
    "old trains",
    "why it rains",
    "a friendly dragon",
    "the city of Paris",
    "counting to ten",
    "honey bees",
    "learning to swim",
)
SYSTEM = (
    "You are a patient assistant who answers every question in plain words, never in more than a few "
    "sentences, and who always says so when something is not known."
)


@dataclass(frozen=True)
class Question:
    """One request's body, without the model."""

    kind: Kind
    body: dict[str, Any]

    @property
    def path(self) -> str:
        return PATHS[self.kind]


@dataclass(frozen=True)
class Reply:
    """A whole answer: the choices' texts and reasons to end and the tokens of all, or vectors."""

    texts: tuple[str, ...] = ()
    reasons: tuple[str | None, ...] = ()
    tokens: int = 0
    vectors: np.ndarray | None = None

    def equals(self, other: "Reply") -> bool:
        if self.vectors is None or other.vectors is None:
            same = (self.texts, self.reasons, self.tokens) == (other.texts, other.reasons, other.tokens)
            return same and self.vectors is other.vectors
        return self.vectors.shape == other.vectors.shape and bool(
            np.abs(self.vectors - other.vectors).max() <= MOST_DIFFERENCE
        )

    def shown(self) -> str:
        if self.vectors is None:
            return f"{list(self.texts)} {list(self.reasons)}, {self.tokens} tokens"
        return f"vectors {self.vectors.shape}, {self.vectors[:, :3].tolist()} ..."


def draw(random: Random, kind: Kind) -> Question:
    if kind == "embedding":
        return Question(kind, _embedding(random))
    body = _chat(random) if kind == "chat" else _completion(random)
    body |= {"temperature": 0, "max_tokens": random.choice([1, 8, 16, 32, 48])}
    body["priority"] = random.choice([-1, 0, 0, 1])
    if random.random() < 0.25:
        body["n"] = 2
    if random.random() < 0.3:
        body["stop"] = random.choice([" the", [" is", "\n"], ".", ["and", " of"]])
    if random.random() < 0.1:
        body["ignore_eos"] = True
    return Question(kind, body)


def _chat(random: Random) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}] if random.random() < 0.5 else []
    subject = random.choice(SUBJECTS)
    if (
        random.random() < 0.3
    ):  # a conversation that has come some way: a long prompt, in part the same for all
        messages.append({"role": "user", "content": f"Remember these words: {_words(Random(1), 60)}."})
        messages.append({"role": "assistant", "content": "I have read them all."})
    return {"messages": [*messages, {"role": "user", "content": f"Tell me about {subject}."}]}


def _completion(random: Random) -> dict[str, Any]:
    if random.random() < 0.2:
        return {"prompt": [f"A note on {subject}:" for subject in random.sample(SUBJECTS, 2)]}
    length = random.choice([2, 10, 120, 200])
    # Two authors, each of whom always writes the same words, up to where the prompt ends.
    return {"prompt": f"{_words(Random(random.randrange(2)), length)}. {random.choice(SUBJECTS)} is"}


def _embedding(random: Random) -> dict[str, Any]:
    texts = [_words(random, random.choice([1, 5, 30, 100])) for _ in range(random.choice([2, 8, 24]))]
    return {"input": texts if random.random() < 0.6 else texts[0]}


def _words(random: Random, count: int) -> str:
    return " ".join(random.choices(WORDS, k=count))
