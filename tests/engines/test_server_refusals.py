"""What real servers say of fields that they do not take is understood; what they say of anything else is not taken for
it."""

from __future__ import annotations

import json

import pytest

from medbench.harness.engines.server_refusals import Refusals, refused_field

SENT = {"temperature": 0.0, "top_p": 1.0, "seed": 3, "max_tokens": 64, "top_k": 20, "chat_template_kwargs": {}}


def openai(message: str, **error: object) -> dict[str, object]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None, **error}}


def litellm(message: str) -> dict[str, object]:
    return {"error": {"message": message, "type": None, "param": None, "code": "400"}}


EXTRA = {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted", "input": 3}
NO_MAX_TOKENS = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
)
NO_ZERO = (
    "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported."
)
BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."


@pytest.mark.parametrize(
    ("name", "status", "body"),
    [
        # OpenAI and Azure
        ("max_tokens", 400, openai(NO_MAX_TOKENS, param="max_tokens", code="unsupported_parameter")),
        ("max_tokens", 400, openai(NO_MAX_TOKENS)),
        ("temperature", 400, openai(NO_ZERO, param="temperature", code="unsupported_value")),
        ("temperature", 400, openai(NO_ZERO)),
        ("seed", 400, openai("?", param="seed", code="unknown_parameter")),
        ("top_k", 400, openai("Unrecognized request argument supplied: top_k")),
        ("top_p", 400, openai("Unrecognized request arguments supplied: frequencyPenalty, presencePenalty, topP")),
        ("chat_template_kwargs", 400, openai("Unrecognized request argument supplied: chat_template_kwargs")),
        # Groq
        ("top_k", 400, openai("property 'top_k' is unsupported, did you mean 'top_p'?")),
        # xAI
        (
            "seed",
            400,
            {"code": "Client specified an invalid argument", "error": "Argument not supported on this model: seed"},
        ),
        ("seed", 400, {"error": "Model grok-4.6 does not support parameter seed."}),
        # Google
        ("seed", 400, [openai('Invalid JSON payload received. Unknown name "seed": Cannot find field.', code=400)]),
        # Mistral and FastAPI
        ("seed", 422, {"detail": [EXTRA]}),
        (
            "seed",
            422,
            {"object": "error", "message": {"detail": [EXTRA]}, "type": "invalid_request_error", "param": None},
        ),
        ("seed", 422, {"object": "error", "message": json.dumps({"detail": [EXTRA]}), "code": "1000"}),
        ("seed", 400, {"message": f"[{EXTRA}]", "type": "BadRequestError", "code": 400}),
        # Anthropic behind a gateway, Bedrock
        ("top_p", 400, litellm(f"litellm.BadRequestError: AnthropicException - {json.dumps(openai(BOTH))}")),
        ("temperature", 400, litellm("BedrockException - `temperature` is deprecated for this model.")),
        ("top_k", 400, openai("top_k: Extra inputs are not permitted")),
        # LiteLLM
        (
            "temperature",
            400,
            litellm(
                "litellm.UnsupportedParamsError: gpt-5-nano doesn't support temperature=0.1 while "
                "reasoning is active. Only temperature=1 is supported. To drop unsupported params "
                "set `litellm.drop_params = True`No fallback model group found"
            ),
        ),
        ("seed", 500, litellm("ollama does not support parameters: {'seed': 1}, for model=llama3:latest.")),
        ("top_k", 400, litellm("openai does not support parameters: ['top_k'], for model=gpt-4o")),
        # Moonshot
        ("temperature", 400, openai("invalid temperature: only 1 is allowed for this model")),
        # Dynamo
        ("top_k", 400, {"message": "Unsupported parameter(s): `documents`, `top_k`", "code": 400}),
        # TGI, GigaChat, vLLM on a TPU, llama.cpp
        (
            "top_p",
            422,
            {"error": "Input validation error: `top_p` must be > 0.0 and < 1.0", "error_type": "validation"},
        ),
        ("temperature", 422, {"error": "Input validation error: `temperature` must be strictly positive"}),
        ("temperature", 422, {"status": 422, "message": "Invalid params: temperature must be in range (0, +inf)"}),
        ("seed", 400, openai("Torch XLA does not support per-request seed.")),
        ("seed", 500, {"error": {"code": 500, "message": "Unsupported param: seed", "type": "server_error"}}),
        (
            "temperature",
            422,
            {"detail": [{"type": "greater_than", "loc": ["body", "temperature"], "msg": "?", "input": 0}]},
        ),
    ],
)
def test_the_words_of_real_servers(name: str, status: int, body: object) -> None:
    assert refused_field(status, json.dumps(body).encode(), SENT) == name


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            400,
            openai(
                "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4936 in "
                "the messages, 64 in the completion). Please reduce the length of the messages or max_tokens, which is "
                "not supported.",
                code="context_length_exceeded",
                param="messages",
            ),
        ),
        (
            400,
            openai(
                "'max_tokens' or 'max_completion_tokens' is too large: 64. This model's maximum context length "
                "is 32 tokens and your request has 20 input tokens"
            ),
        ),
        (
            400,
            openai(
                "max_tokens is too large: 64. This model supports at most 32 completion tokens",
                param="max_tokens",
                code="invalid_value",
            ),
        ),
        (
            400,
            openai("Invalid max_tokens value, the valid range of max_tokens is [1, 32]", code="invalid_request_error"),
        ),
        (
            400,
            openai(
                "The response was filtered due to the prompt triggering Azure OpenAI's content management policy. "
                "The seed is not allowed.",
                code="content_filter",
                param="prompt",
            ),
        ),
        (404, openai("The model `seed` does not exist or you do not have access to it.", code="model_not_found")),
        (400, openai("The model `temperature` does not exist", param="model", code="model_not_found")),
        (401, openai("Unsupported parameter: 'seed'")),
        (400, openai("temperature must be at most 2, got 9", param="temperature")),
        (400, openai("Unsupported parameter: 'logprobs' is not supported with this model")),
        (400, openai("Unsupported parameter: 'stop' is not supported with this model")),
        (400, openai("Your messages are not allowed: stop taking the seed")),
        (
            422,
            {
                "detail": [
                    {
                        "type": "string_type",
                        "loc": ["body", "messages", 0, "content"],
                        "msg": "not a string",
                        "input": "Unsupported parameter: 'seed' is not supported",
                    }
                ]
            },
        ),
        (422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "messages", "seed"], "msg": "?", "input": 1}]}),
        (500, openai("CUDA error: an illegal memory access was encountered")),
        (400, "<html>Bad Request</html>"),
        (400, None),
        (400, [[[[[]]]]]),
        (400, {"error": {"message": {"deep": 1}, "code": ["unsupported_parameter"], "param": ["seed"]}}),
    ],
)
def test_other_faults_are_not_taken_for_a_refused_field(status: int, body: object) -> None:
    assert refused_field(status, json.dumps(body).encode(), SENT) is None


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[" * 100_000, b"Unsupported parameter: '" * 100_000, b"x, " * 100_000]
)
def test_any_bytes_are_read_in_bounded_time(body: bytes) -> None:
    assert refused_field(400, body, SENT) is None


def test_only_what_was_sent_can_be_refused() -> None:
    body = json.dumps(openai("Unsupported parameter: 'seed'")).encode()
    assert refused_field(400, body, {"temperature": 1}) is None
    newer = json.dumps(openai("Unsupported parameter: 'max_completion_tokens'")).encode()
    assert refused_field(400, newer, {"max_completion_tokens": 1}) == "max_completion_tokens"


def test_a_limit_is_never_left_out() -> None:
    refusals = Refusals()
    assert refusals.taken(SENT, ["max_tokens", "seed"]) == {
        "temperature": 0.0, "top_p": 1.0, "top_k": 20, "chat_template_kwargs": {}, "max_completion_tokens": 64
    }  # fmt: skip
    assert "max_completion_tokens" in str(refusals.learn("max_tokens", 64))
    assert refusals.learn("max_tokens", 64) is None
    assert refusals.taken(SENT)["max_completion_tokens"] == 64
