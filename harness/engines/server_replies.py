"""What a server sends, within limits of time and size, and checked before anything of it is stored.

Fields that medbench does not use are ignored, whatever they hold.
"""

from __future__ import annotations

import json
import zlib
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medbench.harness.text import foreign, joined

LARGEST = 32 * 2**20
"""Bytes of a reply, also after decompression: several times the log-likelihoods of a prompt of 32,000 tokens."""


class _Sent(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, protected_namespaces=())


Count = Annotated[int, Field(ge=0, le=10**9)]


class Usage(_Sent):
    """Numbers of tokens; many servers leave it out."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0


class Text(_Sent):
    """A part that may have a text."""

    text: str | None = None


class Part(Text):
    """A part of a message. One of a kind that is neither text nor thought nor refusal is left out."""

    type: str = "text"
    thinking: str | list[Text] | None = None
    """Mistral's; other servers have the text of a thought in `text`."""
    refusal: str | None = None

    @property
    def thought(self) -> str:
        if self.type not in ("thinking", "reasoning"):
            return ""
        parts = [Text(text=self.thinking)] if isinstance(self.thinking, str) else self.thinking
        return "".join(part.text or "" for part in parts or [self])

    @property
    def said(self) -> str:
        if self.type in ("text", "output_text"):
            return self.text or ""
        return self.refusal or "" if self.type == "refusal" else ""


class ChatMessage(_Sent):
    """`choices[].message`"""

    content: str | list[Part] | None = None
    refusal: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None

    @property
    def text(self) -> str:
        """The content, its parts joined."""
        return "".join(part.said for part in self.content) if isinstance(self.content, list) else self.content or ""

    @property
    def thought(self) -> str:
        """Reasoning that the server split off."""
        # vLLM's current name, and the older one that DeepSeek and SGLang still use
        found = self.reasoning or self.reasoning_content
        parts = self.content if isinstance(self.content, list) else []
        return found or "".join(part.thought for part in parts)


class ChatChoice(_Sent):
    """`choices[]` of /chat/completions"""

    message: ChatMessage
    finish_reason: str | None = None


class ChatReply(_Sent):
    """/chat/completions"""

    choices: list[ChatChoice] = Field(min_length=1)
    usage: Usage | None = None
    model: str | None = None


class Logprobs(_Sent):
    """`choices[].logprobs`; the first token of a text has no log-likelihood."""

    token_logprobs: list[Annotated[float, Field(allow_inf_nan=False)] | None]


class TextChoice(_Sent):
    """`choices[]` of /completions"""

    text: str
    finish_reason: str | None = None
    logprobs: Logprobs | None = None


class TextReply(_Sent):
    """/completions"""

    choices: list[TextChoice] = Field(min_length=1)
    usage: Usage | None = None
    model: str | None = None


class ServedModel(_Sent):
    """One model of the list."""

    id: str
    owned_by: str | None = None
    max_model_len: Count | None = None


class ModelList(_Sent):
    """/models"""

    data: list[ServedModel]


R = TypeVar("R", bound=_Sent)


def read_reply(body: bytes, model: type[R]) -> R:
    """Raises ValueError with what is wrong, in words of the server's where it sends an error."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as fault:
        why = "nested too deeply" if isinstance(fault, RecursionError) else "not JSON"
        raise ValueError(f"{why}: {foreign(body[:200].decode(errors='replace'))}") from None
    if isinstance(content, dict) and (error := content.get("error")):
        said = error.get("message") if isinstance(error, dict) else error
        raise ValueError(f"the server says: {foreign(joined(said or error))}")
    try:
        return model.model_validate(content)
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{where}: {first['msg'].lower()} (found {foreign(first['input'], 60)})") from None


def bounded_client(seconds: float) -> Any:
    """An HTTP client whose requests take at most `seconds` from beginning to end, and whose replies at most LARGEST.

    It follows no redirect to another host: questions go only where the user sends them.
    """
    import anyio
    import openai

    class Bounded(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, *, stream: bool = False, **settings: Any) -> Any:
            request.headers["Accept-Encoding"] = "identity"  # what is packed would have no known size
            try:
                with anyio.fail_after(seconds):
                    response = await super().send(request, stream=True, **settings)
                    try:
                        body = await _read(response)
                    finally:
                        await response.aclose()
            except TimeoutError:
                raise openai.APITimeoutError(request=request) from None
            headers = [(name, value) for name, value in response.headers.items() if name.lower() not in _OF_TRANSFER]
            return type(response)(response.status_code, headers=headers, content=body, request=response.request)

    async def stay_here(response: Any) -> None:
        if response.has_redirect_location:
            there, here = response.request.url.join(response.headers["location"]), response.request.url
            if (there.scheme, there.host, there.port) != (here.scheme, here.host, here.port):
                origin = foreign(f"{there.scheme}://{there.host}{f':{there.port}' if there.port else ''}", 80)
                raise _unusable(f"it redirects to {origin}, where no question is sent: see --base-url")

    return Bounded(event_hooks={"response": [stay_here]})


_OF_TRANSFER = {"content-encoding", "content-length", "transfer-encoding"}


async def _read(response: Any) -> bytes:
    """The whole body, unpacked."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > LARGEST:
            raise _too_large()
    packed = response.headers.get("content-encoding", "identity").strip().lower()
    if packed in ("identity", ""):
        return bytes(body)
    if packed not in ("gzip", "x-gzip", "deflate"):
        raise _unusable(f"it is packed as {foreign(packed, 60)}, which was not asked for")
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by its header
    try:
        plain = unpacking.decompress(bytes(body), LARGEST + 1)
    except zlib.error:
        raise _unusable(f"it is not {packed}, as its header says") from None
    if len(plain) > LARGEST:
        raise _too_large()
    return plain


def _too_large() -> Exception:
    return _unusable(f"it is larger than {LARGEST >> 20} MiB")


def _unusable(why: str) -> Exception:
    # of the client's own kind, so that it does not try again
    import openai

    return openai.OpenAIError(why)
