"""What others' servers take for generation and embeddings, and this one refuses or need not look at.

Names are OpenAI's and vLLM's, and those under which llama.cpp and SGLang constrain or reshape an answer.
"""

from typing import Annotated, Any

from onecard.gateway.schemas.base import Harmless, NotOffered, Refusal, RequestModel

NoObject = Annotated[Any, Refusal(({}, "", False))]


class KnownInGeneration(RequestModel):
    """Of chat and completions."""

    structured_outputs: NotOffered = None
    guided_json: NotOffered = None
    guided_regex: NotOffered = None
    guided_choice: NotOffered = None
    guided_grammar: NotOffered = None
    guided_decoding_backend: NotOffered = None
    guided_whitespace_pattern: NotOffered = None
    grammar: NotOffered = None
    json_schema: NotOffered = None
    regex: NotOffered = None
    ebnf: NotOffered = None
    logits_processors: NotOffered = None
    custom_logit_processor: NotOffered = None
    allowed_token_ids: NotOffered = None
    bad_words: NotOffered = None
    use_beam_search: NotOffered = None
    logprob_token_ids: NotOffered = None
    watermarking: NotOffered = None
    repetition_detection: NotOffered = None
    thinking_token_budget: Annotated[Any, Refusal((-1,))] = None
    truncation_side: Annotated[Any, Refusal(("left",), "can only be left for this route")] = None
    kv_transfer_params: NoObject = None
    ec_transfer_params: NoObject = None
    vllm_xargs: NoObject = None
    mirostat: Annotated[Any, Refusal((0,))] = None
    typical_p: Annotated[Any, Refusal((1,))] = None
    dry_multiplier: Annotated[Any, Refusal((0,))] = None
    xtc_probability: Annotated[Any, Refusal((0,))] = None
    dynatemp_range: Annotated[Any, Refusal((0,))] = None
    repeat_penalty: Annotated[Any, Refusal((1,), "is not known here; send it as `repetition_penalty`")] = None
    lora_path: NotOffered = None

    length_penalty: Harmless = None
    spaces_between_special_tokens: Harmless = None
    stream_interval: Harmless = None
    return_token_offsets: Harmless = None
    return_mm_kwargs: Harmless = None
    routed_experts_prompt_start: Harmless = None


class KnownInChat(RequestModel):
    """Of chat alone."""

    functions: NotOffered = None
    function_call: Annotated[Any, Refusal(("", "none", "auto"))] = None
    audio: NotOffered = None
    web_search_options: NotOffered = None
    moderation: NotOffered = None
    verbosity: Annotated[Any, Refusal(("medium",))] = None
    include_reasoning: Annotated[Any, Refusal((True,))] = None

    metadata: Harmless = None
    store: Harmless = None
    safety_identifier: Harmless = None
    prompt_cache_key: Harmless = None
    prompt_cache_retention: Harmless = None
    prompt_cache_options: Harmless = None
    service_tier: Harmless = None
    prediction: Harmless = None


class KnownInPooling(RequestModel):
    """Of embeddings and reranking."""

    truncation_side: Annotated[Any, Refusal(("right",), "can only be right for this route")] = None
    padding: Annotated[Any, Refusal(("do_not_pad",))] = None
    mm_processor_kwargs: NoObject = None

    cache_salt: Harmless = None


class KnownInEmbeddings(KnownInPooling):
    """Of embeddings alone: vLLM also embeds conversations."""

    messages: Annotated[Any, Refusal(([],), "are not embedded; send the text as `input`")] = None
    embed_dtype: Annotated[Any, Refusal(("float32",))] = None
    endianness: Annotated[Any, Refusal(("native", "little"))] = None

    add_generation_prompt: Harmless = None
    continue_final_message: Harmless = None
    chat_template: Harmless = None
    chat_template_kwargs: Harmless = None
    media_io_kwargs: Harmless = None
