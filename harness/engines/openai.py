"""Any server with OpenAI's API, local (`vllm serve`, SGLang, llama.cpp) or hosted, as an engine.

The key comes from the environment (OPENAI_API_KEY) and never appears in settings, errors or logs.
"""

from __future__ import annotations

import difflib
import logging
import os
from base64 import b64encode
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast
from urllib.parse import unquote, urlsplit

from medbench.harness.contracts import (
    Checkpoint,
    Completion,
    Engine,
    FinishReason,
    Interrupted,
    MedbenchError,
    Message,
    Request,
)
from medbench.harness.engines.other_apis import is_azure, other_api
from medbench.harness.engines.server_patience import Patience
from medbench.harness.engines.server_refusals import NEWER_LIMIT, Refusals, refused_field
from medbench.harness.engines.server_replies import (
    ChatChoice,
    ChatMessage,
    ChatReply,
    ModelList,
    ServedModel,
    TextChoice,
    TextReply,
    Usage,
    bounded_client,
    read_reply,
)
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.secrets import HIDDEN, redact
from medbench.harness.text import escaped, foreign, joined

if TYPE_CHECKING:
    from concurrent.futures import Future

    from openai import AsyncOpenAI

NEEDS = ("base_url",)

# `vllm serve` takes what a request does not set from the checkpoint's generation_config.json (Qwen: top_k 20,
# repetition_penalty 1.05), which makes even greedy replies differ from those of the same model run in process.
NEUTRAL_VLLM = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}

PREFLIGHT_S = 10
"""Seconds for the list of models."""
PROBE, PROBE_TOKENS = "Hello", 16
"""What is sent to find out whether a server answers at all, and tokens of its reply."""
LEAST_KEY = 16
"""Characters of a key that is looked for in replies."""

log = logging.getLogger("medbench")

NO_LOGPROBS = "log-likelihoods need a server whose /completions supports echo with logprobs, as `vllm serve` does"


def start(name: str, checkpoint: Checkpoint | None, choice: EngineChoice) -> Engine:
    """See engines.plugins."""
    assert choice.base_url is not None
    config = choice.config
    return OpenAIEngine(
        choice.base_url, name, concurrency=config.concurrency, timeout=config.timeout, patience=config.patience
    )


class OwnTokens(Protocol):
    """A tokenizer of medbench's own for the model behind a server, which then gets tokens and no text."""

    @property
    def chat_template(self) -> Literal["model", "none"]: ...

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str: ...

    def fields(self, request: Request) -> Mapping[str, Any]:
        """What the request needs besides the usual."""

    def prompt(self, request: Request) -> list[int]: ...

    def choices(self, request: Request) -> list[tuple[list[int], list[int]]]:
        """(context, continuation) of each choice."""

    def readable(self, request: Request, text: str) -> tuple[str, bool]:
        """(the reply as an engine in this process would give it, whether a stop string ended it)"""


class OpenAIEngine:
    """One model of one server. Requests are independent: a failure is the error of one sample only."""

    name = "openai"

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        concurrency: int = 16,
        max_retries: int = 5,
        timeout: float = 600,
        patience: float = 600,
        tokens: OwnTokens | None = None,
    ) -> None:
        """Raises MedbenchError unless the server answers, accepts the key and serves `model`.

        `timeout` is the time for one request and `patience` that for a server that is busy or away, in seconds.
        Without `tokens` the server renders and tokenises.
        """
        if other := other_api(base_url, None):
            raise MedbenchError(other)
        self._url, userinfo = split_userinfo(base_url)
        self._key = key_of_environment()
        # In the URL they would appear in every line that the HTTP client logs.
        basic = b64encode(":".join(userinfo).encode()).decode() if any(userinfo) else ""
        self._headers = {"Authorization": f"Basic {basic}"} if basic else {}
        self._secrets = [secret for secret in (self._key, basic, *userinfo) if secret not in ("", "EMPTY")]
        self._model = model
        self._concurrency = concurrency
        self._max_retries = max_retries
        self._timeout = timeout
        self._patience = patience
        self._tokens = tokens
        self._refusals = Refusals()
        self._other_model_noted = False
        card = self._find_model()
        self._is_vllm = card.owned_by == "vllm"
        self._max_model_len = card.max_model_len

    @property
    def chat_template(self) -> Literal["model", "server", "none"]:
        return "server" if self._tokens is None else self._tokens.chat_template

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        if self._tokens is not None:
            return self._tokens.render(messages, thinking)
        # Only for the record: the server gets the messages and applies its own template.
        return "\n\n".join(f"{message.role}\n {message.content}" for message in messages)

    @property
    def not_applied(self) -> Mapping[str, str]:
        return self._refusals.said

    @property
    def places(self) -> int:
        return self._concurrency

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        yield from cast(Iterator[Completion], self.replies(requests, None))

    def replies(
        self, requests: Iterable[Request | None], beat: float | None
    ) -> Generator[Completion | None, None, None]:
        """As `generate`, and a None after every `beat` seconds without a reply."""
        from anyio.from_thread import start_blocking_portal

        source = iter(requests)
        finished: SimpleQueue[Future[Completion]] = SimpleQueue()
        under_way = 0
        client, patience = self._client(self._timeout), self._new_patience()
        # The portal is an event loop in a thread: requests proceed while the caller stores completions. Leaving the
        # block early, as closing the iterator does, cancels those under way; vLLM sees the connection drop and stops.
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(client):

            def send() -> None:
                nonlocal under_way
                while under_way < self._concurrency and (request := next(source, None)) is not None:
                    portal.start_task_soon(self._answer, client, patience, request).add_done_callback(finished.put)
                    under_way += 1

            send()
            while under_way:
                try:
                    completion = finished.get(timeout=beat).result()
                except Empty:
                    yield None
                    send()
                    continue
                under_way -= 1
                send()  # before the yield, so that the server never idles
                yield completion
                send()  # the caller may have had no request before it saw the completion

    def settings(self) -> Mapping[str, Any]:
        return {
            "base_url": self._url,
            "model": self._model,
            "server": "vllm" if self._is_vllm else "unknown",
            "max_model_len": self._max_model_len,
            "concurrency": self._concurrency,
            "max_retries": self._max_retries,
            "timeout": self._timeout,
            "patience": self._patience,
        }

    def close(self) -> None:
        pass

    def _client(self, seconds: float) -> AsyncOpenAI:
        import openai

        return openai.AsyncOpenAI(
            api_key=self._key,
            base_url=self._url,
            default_headers=self._headers,
            max_retries=0,  # see server_patience
            timeout=openai.Timeout(None, connect=min(seconds, 10)),
            http_client=bounded_client(seconds),
        )

    def _new_patience(self) -> Patience:
        return Patience(self._patience, tries=self._max_retries, where=self._url, describe=self._in_words, say=log.info)

    async def _answer(self, client: AsyncOpenAI, patience: Patience, request: Request) -> Completion:
        import openai

        async def send() -> bytes:
            return await self._reply_to(client, request)

        async def probe() -> bytes:
            short = replace(request, messages=(Message("user", PROBE),), prompt=PROBE, max_new_tokens=PROBE_TOKENS)
            return await self._reply_to(client, short)

        try:
            body = await patience.answered(send, probe)
            if request.choices is not None:
                return self._scored(request, request.choices, body)
            return self._chatted(request, body) if self._is_chat(request) else self._continued(request, body)
        except Interrupted:
            raise
        except openai.AuthenticationError as fault:
            raise MedbenchError(f"{self._refused_key()} ({self._in_words(fault)}), then go on with --resume") from None
        except openai.APIStatusError as fault:
            reason = self._in_words(fault)
            if request.choices is not None and fault.status_code in (404, 405, 501):
                reason = f"{NO_LOGPROBS} ({reason})"
        except Exception as fault:  # a server may send anything; whatever that breaks is the error of this sample only
            reason = self._in_words(fault)
        return Completion(request.id, "", "error", error=self._one_line(reason))

    def _in_words(self, fault: Exception) -> str:
        """A fault of the client's or of a reply, on one line without secrets."""
        import openai

        if isinstance(fault, openai.APITimeoutError) and fault.__cause__ is None:
            said = f"no reply within {self._timeout:g} s"
        elif isinstance(fault, openai.APIConnectionError):
            said = f"the connection to {self._url} failed: {fault.__cause__ or fault}"
        elif isinstance(fault, openai.APIStatusError):
            said = f"HTTP {fault.status_code}: {_server_text(fault)}"
        else:
            said = f"the server's reply cannot be used: {fault or type(fault).__name__}"
        return self._one_line(said)

    async def _reply_to(self, client: AsyncOpenAI, request: Request) -> bytes:
        """The body of the reply. Fields that the server says it does not take are left out: of this request at once,
        and of all later ones where the request then works. Without a limit of tokens none is sent."""
        import openai

        fields, refused = self._fields(request), list[str]()
        if request.choices is not None:
            return await self._post(client, request, fields)
        while True:
            taken = self._refusals.taken(fields, refused)
            try:
                body = await self._post(client, request, taken)
            except openai.APIStatusError as fault:
                name = refused_field(fault.status_code, fault.response.content, taken)
                if name in (None, NEWER_LIMIT) or (not request.templated and name == "max_tokens"):
                    raise
                refused.append(str(name))
                continue
            for name in refused:
                if (caveat := self._refusals.learn(name, fields[name])) is not None:
                    log.info("note: %s", caveat)
            return body

    def _fields(self, request: Request) -> dict[str, Any]:
        """What a request asks for besides the prompt.

        Stop strings are not sent: on a server they would fire inside reasoning. The scorer cuts afterwards.
        """
        own = self._tokens.fields(request) if self._tokens is not None else {}
        if request.choices is not None:
            return {"max_tokens": 0, "temperature": 0, "echo": True, "logprobs": 1, **own}
        fields: dict[str, Any] = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "max_tokens": request.max_new_tokens,
        }
        fields |= NEUTRAL_VLLM if self._is_vllm else {}
        if request.top_k:
            fields["top_k"] = request.top_k
        if self._is_chat(request) and request.thinking is not None:
            fields["chat_template_kwargs"] = {"enable_thinking": request.thinking}
        return {**fields, **own}

    def _is_chat(self, request: Request) -> bool:
        """Whether the server gets the turns of a chat."""
        return self._tokens is None and request.choices is None and request.templated

    async def _post(self, client: AsyncOpenAI, request: Request, fields: Mapping[str, Any]) -> bytes:
        """Without a chat template (base models, protocols with `chat: never`) the server continues the plain prompt."""
        if self._is_chat(request):
            turns: list[Any] = [{"role": message.role, "content": message.content} for message in request.messages]
            chat = await client.chat.completions.with_raw_response.create(
                model=self._model, messages=turns, extra_body=fields
            )
            return bytes(chat.http_response.content)
        sent = await client.completions.with_raw_response.create(
            model=self._model,
            prompt=self._prompt(request),
            extra_body=fields,
        )
        return bytes(sent.http_response.content)

    def _prompt(self, request: Request) -> Any:
        """Of /completions: one text or several, or their tokens."""
        if self._tokens is None:
            return request.prompt if request.choices is None else _texts_to_score(request)
        if request.choices is None:
            return self._tokens.prompt(request)
        pairs = self._tokens.choices(request)
        if any(not context or not continuation for context, continuation in pairs):
            raise ValueError("a choice merges with the prompt's last token")
        return [context + continuation for context, continuation in pairs]

    def _chatted(self, request: Request, body: bytes) -> Completion:
        reply = read_reply(body, ChatReply)
        self._note_other_model(reply.model)
        choice = reply.choices[0]
        return self._completion(request, reply.usage, _whole_text(choice.message, choice.finish_reason), choice)

    def _continued(self, request: Request, body: bytes) -> Completion:
        reply = read_reply(body, TextReply)
        self._note_other_model(reply.model)
        return self._completion(request, reply.usage, reply.choices[0].text, reply.choices[0])

    def _scored(self, request: Request, choices: tuple[str, ...], body: bytes) -> Completion:
        """Log-likelihoods by lm-eval's rule (see chat.split_choice), in one call.

        The server also echoes the context alone, whose number of tokens says where a choice begins. The text offsets
        that it sends would be off by the text of a BOS token and by every character that spans several tokens.
        """
        reply = read_reply(body, TextReply)
        self._note_other_model(reply.model)
        if self._tokens is not None:
            return _scored_tokens(request, choices, self._tokens.choices(request), reply)
        texts = _texts_to_score(request)
        # A server that ignores echo or max_tokens sends other texts, with other numbers.
        rows = [row.logprobs.token_logprobs for row in reply.choices if row.logprobs]
        if [row.text for row in reply.choices] != texts or len(rows) < len(texts):
            raise ValueError(NO_LOGPROBS)
        seam = len(rows[0])
        if seam == 0 or any(len(row) <= seam for row in rows[1:]):
            raise ValueError("a choice adds no token of its own to the prompt")
        logprobs = {}
        for choice, row in zip(choices, rows[1:], strict=True):
            own = [value for value in row[seam:] if value is not None]
            if len(own) < len(row) - seam:
                raise ValueError("a token of a choice has no log-likelihood")
            logprobs[choice] = sum(own)
        return Completion(request.id, "", "stop", prompt_tokens=seam, logprobs=logprobs)

    def _completion(
        self, request: Request, usage: Usage | None, text: str, choice: ChatChoice | TextChoice
    ) -> Completion:
        if choice.finish_reason not in ("stop", "length"):
            raise ValueError(f"generation ended with finish_reason {foreign(choice.finish_reason, 60)!r}")
        usage = usage or Usage()
        finish: FinishReason = "length" if choice.finish_reason == "length" else "stop"
        # half of a surrogate pair is valid JSON, but no text
        whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        for secret in self._secrets:
            if len(secret) >= LEAST_KEY:  # a server may send back what it was sent; shorter ones may be words
                whole = whole.replace(secret, HIDDEN)
        if self._tokens is not None:
            whole, stopped = self._tokens.readable(request, whole)
            finish = "stop" if stopped else finish
        return Completion(request.id, whole, finish, usage.prompt_tokens, usage.completion_tokens)

    def _note_other_model(self, name: str | None) -> None:
        if name in (None, self._model) or self._other_model_noted:
            return
        self._other_model_noted = True
        log.info("note: asked for %s, the server answers as %s", self._model, self._one_line(str(name)))

    def _find_model(self) -> ServedModel:
        import openai
        from anyio.from_thread import start_blocking_portal

        usual = "correct --base-url, which usually ends in /v1"
        try:
            with start_blocking_portal() as portal:
                served = {card.id: card for card in portal.call(self._served)}
        except Interrupted:
            raise
        except openai.APITimeoutError:
            raise MedbenchError(
                f"{self._url} sends no list of models within {PREFLIGHT_S} s: start it or {usual}"
            ) from None
        except openai.APIConnectionError:
            raise MedbenchError(
                f"no server answers at {self._url}: start it (vllm serve {self._model}) or correct --base-url"
            ) from None
        except openai.APIStatusError as fault:
            if other := other_api(self._url, fault.response.content):
                raise MedbenchError(other) from None
            if isinstance(fault, openai.AuthenticationError | openai.PermissionDeniedError):
                raise MedbenchError(self._refused_key()) from None
            raise MedbenchError(
                self._one_line(f"{self._url}/models answers HTTP {fault.status_code} ({_server_text(fault)}): {usual}")
            ) from None
        except Exception as fault:  # a server may send anything
            said = self._one_line(str(fault) or type(fault).__name__)
            raise MedbenchError(
                f"{self._url}/models is not an OpenAI-compatible list of models ({said}): {usual}"
            ) from None
        if self._model in served:
            return served[self._model]
        if is_azure(self._url):
            return ServedModel(id=self._model)
        near = difflib.get_close_matches(self._model, list(served)[:1000], n=3, cutoff=0.4)
        listed = [foreign(name, 80) for name in near + [name for name in served if name not in near][:5]]
        more = f" and {len(served) - 5} more" if len(served) > 5 else ""
        hint = f"; did you mean {' or '.join(listed[: len(near)])}?" if near else ""
        raise MedbenchError(
            f"{self._url} does not serve {self._model!r}: it serves {', '.join(listed[:5]) or 'nothing'}{more}{hint}"
        )

    async def _served(self) -> list[ServedModel]:
        async with self._client(PREFLIGHT_S) as client:

            async def send() -> bytes:
                return bytes((await client.models.with_raw_response.list()).http_response.content)

            return read_reply(await self._new_patience().answered(send, None), ModelList).data

    def _refused_key(self) -> str:
        return f"{self._url} refuses the key: set OPENAI_API_KEY to one that it accepts"

    def _one_line(self, text: str) -> str:
        text = redact(text)
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return escaped(" ".join(text.split())[:300])


def key_of_environment() -> str:
    """OPENAI_API_KEY. Raises MedbenchError for one that no request header can carry."""
    key = os.environ.get("OPENAI_API_KEY") or "EMPTY"
    if not key.isascii():
        raise MedbenchError("OPENAI_API_KEY has a character that is not ASCII: copy the key again")
    if not key.isprintable() or key != key.strip():
        raise MedbenchError(
            "OPENAI_API_KEY has a line break, a blank at an end or a control character: copy the key again, alone"
        )
    return key


def split_userinfo(base_url: str) -> tuple[str, tuple[str, str]]:
    """(the URL without user and password, (user, password)). Raises MedbenchError if it is not plain http(s)."""
    try:
        parts = urlsplit(base_url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and not parts.query
        fits = fits and base_url.isprintable() and not any(map(str.isspace, base_url))
    except ValueError:  # the port is not a number
        fits = False
    if not fits:
        shown = foreign(base_url.rpartition("@")[2].partition("?")[0])
        raise MedbenchError(f"--base-url {shown!r} is not the URL of a server: write it like http://localhost:8000/v1")
    url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    return url, (unquote(parts.username or ""), unquote(parts.password or ""))


def _texts_to_score(request: Request) -> list[str]:
    """The context alone, and the prompt with each choice."""
    context = request.prompt.rstrip()
    if not context:
        raise ValueError("there is no prompt that the choices could continue")
    return [context, *(request.prompt + choice for choice in request.choices or ())]


def _scored_tokens(
    request: Request, choices: tuple[str, ...], sent: list[tuple[list[int], list[int]]], reply: TextReply
) -> Completion:
    """Log-likelihoods of the tokens that were sent, by lm-eval's rule."""
    rows = [row.logprobs.token_logprobs for row in reply.choices if row.logprobs]
    if [len(row) for row in rows] != [len(context) + len(continuation) for context, continuation in sent]:
        raise ValueError(NO_LOGPROBS)
    logprobs = {}
    for choice, (context, continuation), row in zip(choices, sent, rows, strict=True):
        own = [value for value in row[len(context) :] if value is not None]
        if len(own) < len(continuation):
            raise ValueError("a token of a choice has no log-likelihood")
        logprobs[choice] = sum(own)
    return Completion(request.id, "", "stop", prompt_tokens=len(sent[0][0]), logprobs=logprobs)


def _whole_text(message: ChatMessage, finish_reason: str | None) -> str:
    """The completion as the model wrote it: reasoning that the server split off is put back, for medbench to split."""
    content = message.text or message.refusal or ""
    thought = message.thought
    if not thought:
        return content
    if finish_reason == "length" and not content:
        return f"<think>{thought}"  # truncated inside the reasoning, which must not look closed
    return f"<think>{thought}</think>{content}"


def _server_text(fault: Any) -> str:
    """The server's own error message."""
    body = fault.body
    said = body.get("message") or body.get("detail") if isinstance(body, dict) else body
    return foreign(joined(said or fault.message), 300)
