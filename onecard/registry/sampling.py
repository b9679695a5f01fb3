"""The section `sampling:` of a model."""

from dataclasses import asdict, dataclass

from onecard.registry.keys import live

MAX_INT32 = 2**31 - 1


@dataclass(frozen=True)
class SamplingSpec:
    """What a request gets that is silent, under requests' names; vLLM's override_generation_config."""

    temperature: float | None = live(
        None, "0: always the likeliest token; higher: more surprising.", minimum=0, example="0.7"
    )
    top_p: float | None = live(
        None,
        "Draw from the likeliest tokens that have this much probability together; 1: from all.",
        minimum=0,
        maximum=1,
        example="0.95",
    )
    top_k: int | None = live(
        None,
        "Draw from so many of the likeliest tokens; 0 or -1: from all.",
        minimum=-1,
        maximum=MAX_INT32,
        example="40",
    )
    min_p: float | None = live(
        None,
        "Leave out tokens less likely than this share of the likeliest one's probability.",
        minimum=0,
        maximum=1,
        example="0.05",
    )
    repetition_penalty: float | None = live(
        None,
        "Above 1: what stands in the prompt or the answer already is less likely to come again.",
        above=0,
        example="1.1",
    )
    presence_penalty: float | None = live(
        None, "Above 0: tokens that the answer has are less likely.", minimum=-2, maximum=2, example="0.5"
    )
    frequency_penalty: float | None = live(
        None,
        "Above 0: the more often the answer has a token, the less likely it is.",
        minimum=-2,
        maximum=2,
        example="0.5",
    )
    max_tokens: int | None = live(
        None,
        "Longest answer of a chat, in tokens (of /v1/completions: OpenAI's 16).",
        minimum=1,
        maximum=MAX_INT32,
        example="512",
    )

    def given(self) -> dict[str, float | int]:
        """What the registry sets."""
        return {name: value for name, value in asdict(self).items() if value is not None}
