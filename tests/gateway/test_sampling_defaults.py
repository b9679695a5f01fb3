"""What a request gets that is silent: the registry's `sampling`, above the model's generation config."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from onecard.engines.kinds.kind import following
from onecard.gateway.schemas.chat import ChatRequest
from onecard.registry.loader import load_registry
from onecard.registry.shape import keys_of
from onecard.registry.spec import ModelSpec, RegistryError, SamplingSpec

CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "Hi"}]
VALUES = [-3, -2, -1, -0.5, 0.5, 1, 1.5, 2, 3, 100, 2**31 - 1, 2**31, 1e300]


@pytest.mark.parametrize("name", keys_of(SamplingSpec))
def test_the_registry_takes_what_a_request_takes(name: str, tmp_path) -> None:
    path = tmp_path / "registry.yaml"

    def registry_takes(value: float) -> bool:
        path.write_text(f"models: [{{name: m, source: hf:o/n, sampling: {{{name}: {value}}}}}]")
        try:
            load_registry(path)
        except RegistryError:
            return False
        return True

    def request_takes(value: float) -> bool:
        try:
            ChatRequest.model_validate({"messages": USER, name: value})
        except ValidationError:
            return False
        return True

    assert [v for v in VALUES if registry_takes(v)] == [v for v in VALUES if request_takes(v)]


async def test_a_request_is_above_the_registry_and_that_above_the_generation_config(client, node):
    info = replace(node.chat.info, generation_config={"temperature": 0.6, "top_p": 0.8, "top_k": 20})
    spec = ModelSpec("talker", aliases=info.aliases, sampling=SamplingSpec(temperature=0.0, top_p=0.9))
    node.chat.info = following(info, spec)
    await client.post(CHAT, {"messages": USER, "top_p": 0.5})
    sampling = node.chat.requests[0].sampling
    assert (sampling.top_p, sampling.temperature, sampling.top_k, sampling.min_p) == (0.5, 0.0, 20, 0.0)

    node.chat.info = following(node.chat.info, replace(spec, sampling=SamplingSpec()))
    assert node.chat.info.default_sampling == info.generation_config, "what a reload takes out is gone"


async def test_models_shows_what_a_silent_request_gets(client, node):
    node.chat.info = replace(node.chat.info, default_sampling={"temperature": 0.2, "max_tokens": 512})
    card = (await client.get("/v1/models/talker")).body
    assert card["default_sampling"] == {"temperature": 0.2, "max_tokens": 512}
