"""Parts of messages reach the model as they are; one that takes text only joins texts, refuses the rest."""

import pytest

from onecard.engines.api import AudioPart, ImagePart, TextPart, VideoPart

CHAT = "/v1/chat/completions"
URL = "data:image/png;base64,AAAA"

TEXTS = [
    ("Hi", "Hi"),
    ("", ""),
    ([], ""),
    (["a", "b"], "a\nb"),
    ([{"type": "text", "text": "a"}, "", {"text": "b"}], "a\n\nb"),
    ([{"type": "input_text", "text": "a"}, {"type": "output_text", "text": "b"}], "a\nb"),
    ([{"type": "refusal", "refusal": "no"}, {"type": "thinking", "thinking": "hm"}], "no\nhm"),
]
MEDIA = [
    ({"type": "image_url", "image_url": {"url": URL, "detail": "low"}}, ImagePart(URL, "low")),
    ({"type": "image_url", "image_url": {"url": URL, "detail": None, "x": 1}}, ImagePart(URL)),
    ({"type": "image_url", "image_url": URL}, ImagePart(URL)),
    ({"type": "input_image", "image_url": URL, "detail": "high"}, ImagePart(URL, "high", "input_image")),
    ({"type": "image", "image": URL}, ImagePart(URL, type="image")),
    (
        {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}},
        AudioPart("UklG", None, "wav"),
    ),
    ({"type": "audio_url", "audio_url": {"url": URL}}, AudioPart(url=URL, type="audio_url")),
    ({"type": "video_url", "video_url": {"url": URL}}, VideoPart(URL)),
]
WRONG = [
    {"type": "image_url"},
    {"type": "image_url", "image_url": 3},
    {"type": "image_url", "image_url": {"url": 3}},
    {"type": "image_url", "image_url": {"url": URL, "detail": []}},
    {"type": "input_audio", "input_audio": "UklG"},
    {"type": "input_audio", "input_audio": {"url": URL}},
    {"type": "video_url", "video_url": [URL]},
    {"type": "hologram", "hologram": {"url": URL}},
    {"type": ["text"], "text": "a"},
    {"type": None, "text": "a"},
    {},
]


def asked(content):
    return {
        "model": "talker",
        "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": content}],
    }


@pytest.mark.parametrize(("content", "text"), TEXTS)
async def test_texts_are_joined_with_line_ends(client, content, text):
    reply = await client.post("/tokenize", asked(content))
    assert bytes(reply.body["tokens"]).decode() == f"system: x\nuser: {text}\n"


async def test_parts_are_kept_until_the_model_is_known(client, node):
    parts = [{"type": "input_text", "text": "What is"}, *(given for given, _ in MEDIA)]
    await client.post(CHAT, asked(parts))
    kept = (TextPart("What is", "input_text"), *(part for _, part in MEDIA))
    assert [message["content"] for message in node.chat.requests[0].prompt.messages] == ["x", kept]


@pytest.mark.parametrize(("given", "part"), MEDIA)
@pytest.mark.parametrize("path", [CHAT, "/tokenize"])
async def test_a_text_model_refuses_media_and_says_what_it_takes(client, given, part, path):
    reply = await client.post(path, asked([{"type": "text", "text": "What is this?"}, given]))
    assert reply.status == 400
    assert reply.error == {
        "message": f"`messages[1].content`: this model takes text only, not parts of type '{part.type}'",
        "type": "BadRequestError",
        "param": "messages[1].content",
        "code": None,
    }


@pytest.mark.parametrize("part", WRONG)
async def test_what_is_no_part_is_refused_before_any_model(client, node, part):
    reply = await client.post(CHAT, asked(["a", part]))
    assert (reply.status, reply.error["param"]) == (400, "messages[1].content")
    assert node.chat.requests == []
