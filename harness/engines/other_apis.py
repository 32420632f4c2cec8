"""APIs that are not OpenAI's, told by their URL or first answer, so that the user knows what to give instead.

other_api("https://x.openai.azure.com/openai/deployments/d", None)     # "Azure's API of deployments and ..."
"""

from __future__ import annotations

from urllib.parse import urlsplit

AZURE_HOSTS = (".openai.azure.com", ".cognitiveservices.azure.com", ".services.ai.azure.com")
AZURE_WORDS = (b"subscription key", b'"resource not found"', b": resource not found")
ANTHROPIC_WORDS = (b"x-api-key", b"anthropic-version")
PROXY = "put a LiteLLM proxy before it (litellm --model anthropic/NAME) and give --base-url http://localhost:4000/v1"


def is_azure(url: str) -> bool:
    """Whether Azure serves it, which lists the models that could be deployed, and not the deployments."""
    return (urlsplit(url).hostname or "").endswith(AZURE_HOSTS)


def other_api(url: str, body: bytes | None) -> str:
    """What is wrong and how to fix it, where another API is recognised; else empty.

    `url` may be any text. `body` is that of an answer which was no list of models, None before any answer.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    host, path, said = parts.hostname or "", parts.path.rstrip("/"), (body or b"")[:2000].lower()
    deployment = "/openai/deployments/" in path or "api-version=" in parts.query
    elsewhere = not path.endswith("/openai/v1") and (is_azure(url) or any(words in said for words in AZURE_WORDS))
    if deployment or elsewhere:
        there = host if is_azure(url) else "NAME.openai.azure.com"
        return (
            f"Azure's API of deployments and api-version is not supported: give --base-url https://{there}/openai/v1, "
            f"the deployment's name as MODEL, and the key in OPENAI_API_KEY"
        )
    anthropic = host == "api.anthropic.com" or path.endswith("/v1/messages")
    if anthropic or any(words in said for words in ANTHROPIC_WORDS):
        return f"Anthropic's API is not supported: {PROXY}"
    return ""
