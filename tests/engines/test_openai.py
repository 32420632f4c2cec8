"""The client of OpenAI-compatible servers: right answers from a real vLLM server, right errors from a failing one.

The stand-in server of the second half only fails in ways that a real server cannot be made to fail.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.vllm_server import vllm_server

from medbench.harness.contracts import Completion, Engine, Interrupted, MedbenchError, Message, Request
from medbench.harness.engines.openai import NEUTRAL_VLLM, OpenAIEngine

KEY = "sk-test-0123456789abcdef"
MAX_MODEL_LEN = 512


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(text: str, id: str = "q", **settings) -> Request:
    messages = (Message("user", text),)
    return Request(id, messages, f"user\n {text}", **{"max_new_tokens": 24, "templated": True} | settings)


def questions(n: int, **settings) -> list[Request]:
    return [ask(f"Question {i}: which drug is best for patient {i * i}?", id=f"q{i}", **settings) for i in range(n)]


def answers(engine: Engine, requests: list[Request]) -> dict[str, Completion]:
    completions = list(engine.generate(requests))
    assert sorted(c.id for c in completions) == sorted(r.id for r in requests)
    return {completion.id: completion for completion in completions}


# --- a real server --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served_folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with decoding defaults like those of Qwen, which `vllm serve` applies by itself."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("served") / "model")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"repetition_penalty": 1.8, "top_k": 20, "top_p": 0.8}))
    return folder


@pytest.fixture(scope="module")
def server_url(served_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # few at once, so that requests queue up at the server
    limits = ("--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", "4")
    with vllm_server(served_folder, tmp_path_factory.mktemp("server"), "--api-key", KEY, *limits) as url:
        yield url


@pytest.fixture(scope="module")
def direct(server_url: str):
    """The official client, without medbench."""
    import openai

    return openai.OpenAI(base_url=server_url, api_key=KEY)


@pytest.fixture
def engine(server_url: str) -> OpenAIEngine:
    return OpenAIEngine(server_url, "tiny", concurrency=4, timeout=120)


@pytest.mark.engine
def test_it_is_an_engine(engine: OpenAIEngine, server_url: str) -> None:
    assert isinstance(engine, Engine)
    assert engine.chat_template == "server"
    assert engine.render((Message("system", "A"), Message("user", "B")), None) == "system\n A\n\nuser\n B"
    settings = json.loads(json.dumps(engine.settings()))
    assert settings["base_url"] == server_url
    assert (settings["server"], settings["max_model_len"]) == ("vllm", MAX_MODEL_LEN)


@pytest.mark.engine
def test_greedy_replies_equal_direct_calls(engine: OpenAIEngine, direct) -> None:
    got = answers(engine, questions(12))
    for request in questions(12):
        reply = direct.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": request.messages[0].content}],
            temperature=0,
            max_tokens=24,
            extra_body=NEUTRAL_VLLM,
        )
        assert got[request.id] == Completion(
            id=request.id,
            text=reply.choices[0].message.content,
            finish_reason=reply.choices[0].finish_reason,
            prompt_tokens=reply.usage.prompt_tokens,
            completion_tokens=reply.usage.completion_tokens,
        )
    # otherwise half of this test proves nothing
    assert {completion.finish_reason for completion in got.values()} == {"stop", "length"}


@pytest.mark.engine
@pytest.mark.parametrize("thinking", [None, False])
def test_a_server_and_transformers_answer_alike(engine: OpenAIEngine, tiny_model: Path, thinking: bool | None) -> None:
    from medbench.harness.engines.hf import HFEngine

    local = HFEngine(str(tiny_model), device="cpu")
    requests = questions(6, thinking=thinking)
    rendered = [replace(request, prompt=local.render(request.messages, thinking)) for request in requests]
    served = answers(engine, requests)
    for id, completion in answers(local, rendered).items():
        # vLLM withholds the bytes of an incomplete character, transformers writes U+FFFD for them
        assert served[id] == replace(completion, text=completion.text.rstrip("\ufffd"))


@pytest.mark.engine
def test_without_neutral_settings_the_servers_defaults_would_change_greedy_replies(
    engine: OpenAIEngine, direct
) -> None:
    got = answers(engine, questions(6))
    left_open = [
        direct.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": r.messages[0].content}], temperature=0, max_tokens=24
        )
        for r in questions(6)
    ]
    assert [reply.choices[0].message.content for reply in left_open] != [got[f"q{i}"].text for i in range(6)]


@pytest.mark.engine
def test_a_prompt_without_a_template_is_continued_unchanged(engine: OpenAIEngine, direct) -> None:
    request = Request("q", (Message("user", "Once"),), "A 45-year-old man comes to", max_new_tokens=12)
    reply = direct.completions.create(
        model="tiny", prompt=request.prompt, temperature=0, max_tokens=12, extra_body=NEUTRAL_VLLM
    )
    assert answers(engine, [request])["q"].text == reply.choices[0].text


@pytest.mark.engine
def test_sampling_settings_reach_the_server(engine: OpenAIEngine) -> None:
    hot = answers(engine, questions(4, temperature=1.5, seed=1))
    assert hot == answers(engine, questions(4, temperature=1.5, seed=1))
    assert hot != answers(engine, questions(4, temperature=1.5, seed=2))
    assert answers(engine, questions(4, temperature=1.5, top_k=1)) == answers(engine, questions(4))


@pytest.mark.engine
def test_log_likelihoods_equal_those_of_transformers(engine: OpenAIEngine, tiny_model: Path) -> None:
    from medbench.harness.engines.hf import HFEngine

    choices = (" A", " the patient takes aspirin", " é", "日本", " no")
    prompts = ("Is it aspirin? Answer:", "Fièvre à 38 °C. Diagnostic:", "The answer is ", "<|im_start|>user\nhé\n")
    requests = [Request(f"q{i}", (), prompt, 1, choices=choices) for i, prompt in enumerate(prompts)]
    local, served = answers(HFEngine(str(tiny_model), device="cpu"), requests), answers(engine, requests)
    for id, completion in served.items():
        assert completion.logprobs == pytest.approx(local[id].logprobs, abs=1e-3)
        assert (completion.prompt_tokens, completion.text) == (local[id].prompt_tokens, "")


@pytest.mark.engine
def test_a_prompt_that_is_too_long_is_only_that_samples_error(engine: OpenAIEngine) -> None:
    requests = [ask("x" * 2000, id="long"), *questions(3), ask("x" * 2000, id="scored", choices=(" A", " B"))]
    got = answers(engine, requests)
    for id in ("long", "scored"):
        assert (got[id].text, got[id].finish_reason) == ("", "error")
        assert f"maximum context length is {MAX_MODEL_LEN} tokens" in got[id].error
        assert "\n" not in got[id].error
    assert all(got[f"q{i}"].error is None for i in range(3))


@pytest.mark.engine
def test_closing_early_stops_the_server_generating(server_url: str) -> None:
    def metric(name: str) -> float:
        with urllib.request.urlopen(server_url.removesuffix("/v1") + "/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        found = [line for line in lines if line.startswith(f"vllm:{name}{{") and 'finished_reason="abort"' not in line]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    before = metric("request_success_total")
    # greedy, the model ends its replies after a few tokens; drawn nearly at random, they take ten times as long
    requests = [
        ask("Is it?", id="short", max_new_tokens=1),
        *questions(400, max_new_tokens=400, temperature=10.0),
    ]
    completions = OpenAIEngine(server_url, "tiny", concurrency=401).generate(requests)
    next(completions)
    completions.close()
    deadline = time.monotonic() + 20
    while metric("num_requests_running") + metric("num_requests_waiting") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert metric("num_requests_running") == metric("num_requests_waiting") == 0
    # vLLM counts an aborted request under "abort" or, if the engine forgot it first, not at all
    finished = metric("request_success_total") - before
    print(f"{finished:.0f} of 401 requests finished, {metric('generation_tokens_total'):.0f} tokens")
    assert finished < 300


@pytest.mark.engine
def test_an_unknown_model_is_reported_with_those_served(server_url: str) -> None:
    with pytest.raises(MedbenchError, match=r"does not serve 'tinny': it serves tiny; did you mean tiny\?"):
        OpenAIEngine(server_url, "tinny")


@pytest.mark.engine
def test_a_wrong_key_is_a_user_error(server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-key")
    with pytest.raises(MedbenchError, match="set OPENAI_API_KEY") as fault:
        OpenAIEngine(server_url, "tiny")
    assert "sk-wrong-key" not in str(fault.value)


# --- a failing server -----------------------------------------------------------------------------------------------


@dataclass
class StandIn:
    """Answers POSTs by `script(number of the call, body) -> (status, body)`; a body of bytes is sent unchanged."""

    script: Callable[[int, dict], tuple[int, object]]
    models: tuple[int, object] = (200, {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "me"}]})
    calls: list[dict] = field(default_factory=list)
    url: str = ""
    server: ThreadingHTTPServer | None = None


@pytest.fixture
def stand_in() -> Iterator[Callable[..., StandIn]]:
    started: list[StandIn] = []

    def start(script: Callable[[int, dict], tuple[int, object]], **settings) -> StandIn:
        state = StandIn(script, **settings)

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(*state.models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                state.calls.append({"path": self.path, "key": self.headers["authorization"], **body})
                self.reply(*state.script(len(state.calls), body))

            def reply(self, status: int, body: object) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.end_headers()
                self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # the client went away, as in the tests of timeouts and of close()

        state.server = Server(("127.0.0.1", 0), Handler)
        state.url = f"http://127.0.0.1:{state.server.server_address[1]}/v1"
        threading.Thread(target=state.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        started.append(state)
        return state

    yield start
    for state in started:
        _stop(state)


def _stop(state: StandIn) -> None:
    if state.server is not None:
        state.server.shutdown()
        state.server.server_close()
        state.server = None


def reply(content: str | None = "yes", finish_reason: str = "stop", **message: str) -> tuple[int, dict]:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": finish_reason,
    }
    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    return 200, {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    }


def failed(completion: Completion) -> str:
    """The error of a completion that must not be an answer."""
    assert (completion.text, completion.finish_reason, completion.logprobs) == ("", "error", None)
    assert completion.error
    assert "\n" not in completion.error
    return completion.error


def test_the_body_sent_matches_the_request(stand_in) -> None:
    server = stand_in(lambda *_: reply())
    engine = OpenAIEngine(server.url, "m")
    request = ask("Q", temperature=0.7, top_p=0.9, top_k=30, seed=3, stop=("Question:",), thinking=False)
    assert answers(engine, [request])["q"] == Completion("q", "yes", "stop", 5, 1)
    assert server.calls == [
        {
            "path": "/v1/chat/completions",
            "key": f"Bearer {KEY}",
            "model": "m",
            "messages": [{"role": "user", "content": "Q"}],
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 3,
            "max_tokens": 24,
            "top_k": 30,
            "chat_template_kwargs": {"enable_thinking": False},
        }
    ]


def test_fields_outside_the_standard_are_sent_only_when_set(stand_in) -> None:
    server = stand_in(lambda *_: reply())
    answers(OpenAIEngine(server.url, "m"), [ask("Q")])
    assert not {"top_k", "chat_template_kwargs", "stop", *NEUTRAL_VLLM} & set(server.calls[0])


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_that_the_server_split_off_is_put_back(stand_in, name: str) -> None:
    server = stand_in(lambda *_: reply("B", **{name: "A or B?"}))
    assert answers(OpenAIEngine(server.url, "m"), [ask("Q")])["q"].text == "<think>A or B?</think>B"


def test_truncated_reasoning_stays_open(stand_in) -> None:
    server = stand_in(lambda *_: reply(None, "length", reasoning="The answer is (A), or"))
    got = answers(OpenAIEngine(server.url, "m"), [ask("Q")])["q"]
    assert (got.text, got.finish_reason) == ("<think>The answer is (A), or", "length")


def test_a_refusal_counts_as_the_reply(stand_in) -> None:
    server = stand_in(lambda *_: reply(None, refusal="I cannot help with that."))
    assert answers(OpenAIEngine(server.url, "m"), [ask("Q")])["q"].text == "I cannot help with that."


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_transient_fault_is_retried(stand_in, status: int) -> None:
    server = stand_in(lambda call, _: (status, {"error": {"message": "busy"}}) if call == 1 else reply())
    assert answers(OpenAIEngine(server.url, "m"), [ask("Q")])["q"].text == "yes"
    assert len(server.calls) == 2


def test_a_permanent_fault_is_no_answer(stand_in, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medbench.harness.engines.server_patience.LONGEST_PAUSE", 0.1)
    server = stand_in(lambda *_: (500, {"error": {"message": "engine\ndead"}}))
    engine = OpenAIEngine(server.url, "m", max_retries=1, patience=0.5)
    with pytest.raises(Interrupted, match=r"answered nothing for 1 s \(HTTP 500: engine dead\): .* --resume"):
        answers(engine, questions(3))
    assert len(server.calls) >= 6


def test_a_bad_request_is_not_retried(stand_in) -> None:
    server = stand_in(lambda *_: (400, {"error": {"message": "too long"}}))
    assert failed(answers(OpenAIEngine(server.url, "m"), [ask("Q")])["q"]) == "HTTP 400: too long"
    assert len(server.calls) == 1


def test_a_server_that_hangs_is_a_timeout(stand_in) -> None:
    release = threading.Event()
    server = stand_in(lambda *_: release.wait(30) and reply())
    started = time.monotonic()
    got = answers(OpenAIEngine(server.url, "m", timeout=0.5, max_retries=0), questions(2))
    release.set()
    assert time.monotonic() - started < 10
    assert {failed(completion) for completion in got.values()} == {"no reply within 0.5 s"}


@pytest.mark.parametrize(
    "body",
    [b"{not json", b"<html>gateway</html>", b"null", b"[]", {}, {"choices": []}, {"choices": [{}]}, {"choices": None}],
    ids=repr,
)
def test_an_invalid_reply_is_an_error(stand_in, body: object) -> None:
    server = stand_in(lambda *_: (200, body))
    assert "cannot be used" in failed(answers(OpenAIEngine(server.url, "m"), [ask("Q")])["q"])


@pytest.mark.parametrize("reason", ["content_filter", "abort", "tool_calls"])
def test_a_reply_that_the_server_aborted_is_an_error(stand_in, reason: str) -> None:
    server = stand_in(lambda *_: reply("The answer is (A)", reason))
    assert reason in failed(answers(OpenAIEngine(server.url, "m"), [ask("Q")])["q"])


@pytest.mark.parametrize("echo", ["none", "generated", "no logprobs", "404"])
def test_a_server_without_log_likelihoods_says_so(stand_in, echo: str) -> None:
    def script(_: int, body: dict) -> tuple[int, object]:
        if echo == "404":
            return 404, {"detail": "Not Found"}
        logprobs = None if echo == "no logprobs" else {"token_logprobs": [-1.0, -2.0], "tokens": ["a", "b"]}
        texts = ["" if echo == "none" else text + " and" if echo == "generated" else text for text in body["prompt"]]
        rows = [
            {"index": i, "text": text, "logprobs": logprobs, "finish_reason": "stop"} for i, text in enumerate(texts)
        ]
        return 200, {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": rows}

    server = stand_in(script)
    error = failed(answers(OpenAIEngine(server.url, "m"), [ask("Q", choices=(" A", " B"))])["q"])
    assert "log-likelihoods need a server" in error


def test_a_server_that_dies_interrupts_and_does_not_hang(stand_in, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medbench.harness.engines.server_patience.LONGEST_PAUSE", 0.1)
    server = stand_in(lambda *_: reply())
    completions = OpenAIEngine(server.url, "m", concurrency=2, patience=0.5).generate(questions(40))
    assert next(completions).text == "yes"
    started = time.monotonic()
    _stop(server)
    with pytest.raises(Interrupted, match="connection"):
        list(completions)
    assert time.monotonic() - started < 10


def test_concurrency_is_bounded_and_requests_are_pulled_as_needed(stand_in) -> None:
    lock, now, peak = threading.Lock(), [0], [0]

    def script(*_: object) -> tuple[int, object]:
        with lock:
            now[0] += 1
            peak[0] = max(peak[0], now[0])
        time.sleep(0.05)
        with lock:
            now[0] -= 1
        return reply()

    pulled: list[str] = []

    def stream() -> Iterator[Request]:
        for request in questions(20):
            pulled.append(request.id)
            yield request

    completions = OpenAIEngine(stand_in(script).url, "m", concurrency=3).generate(stream())
    assert not pulled
    seen = 0
    for _ in completions:
        seen += 1
        assert len(pulled) <= seen + 3
    assert (seen, peak[0]) == (20, 3)


def test_closing_early_aborts_requests_under_way(stand_in) -> None:
    release = threading.Event()
    server = stand_in(lambda call, _: reply() if call == 1 else release.wait(30) and reply())
    completions = OpenAIEngine(server.url, "m", concurrency=4).generate(questions(50))
    next(completions)
    started = time.monotonic()
    completions.close()
    assert time.monotonic() - started < 5
    release.set()
    assert len(server.calls) <= 5


def test_no_server_is_a_user_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(MedbenchError) as fault:
        OpenAIEngine(url, "Qwen/Qwen3-4B")
    expected = f"no server answers at {url}: start it (vllm serve Qwen/Qwen3-4B) or correct --base-url"
    assert str(fault.value) == expected


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1",
        "ftp://host/v1",
        "http://",
        "http://host:port/v1",
        "",
        "http://[/",
        "http://host/v1?key=secret",
    ],
)
def test_an_invalid_url_is_a_user_error(url: str) -> None:
    with pytest.raises(MedbenchError, match="is not the URL of a server") as fault:
        OpenAIEngine(url, "m")
    assert "secret" not in str(fault.value)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ((401, {"error": {"message": f"bad key {KEY}"}}), "set OPENAI_API_KEY"),
        ((403, {}), "set OPENAI_API_KEY"),
        ((404, b"<html>not here</html>"), "ends in /v1"),
        ((200, b"<html>welcome</html>"), "ends in /v1"),
        ((200, b"{not json"), "ends in /v1"),
        ((200, {"data": []}), "it serves nothing"),
        ((200, {"data": [{"id": f"model-{i}"} for i in range(9)]}), "it serves model-0, .* and 4 more$"),
    ],
    ids=["401", "403", "404", "html", "malformed", "nothing", "others"],
)
def test_the_preflight_says_what_is_wrong(stand_in, models: tuple[int, object], message: str) -> None:
    server = stand_in(lambda *_: reply(), models=models)
    with pytest.raises(MedbenchError, match=message) as fault:
        OpenAIEngine(server.url, "m")
    assert "\n" not in str(fault.value)
    assert KEY not in str(fault.value)


def test_key_and_password_appear_in_no_output(stand_in, capfd, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    basic = b64encode(b"nurse:s3cret-pass").decode()
    leak = f"wrong key {KEY} {basic} of nurse:s3cret-pass at http://nurse:s3cret-pass@host"
    server = stand_in(lambda *_: (400, {"error": {"message": leak}}))
    url = server.url.replace("http://", "http://nurse:s3cret-pass@")
    engine = OpenAIEngine(url, "m", patience=0.3)
    got = answers(engine, [ask("Q")])["q"]
    assert server.calls[0]["key"] == f"Basic {basic}"
    with pytest.raises(MedbenchError) as unknown:
        OpenAIEngine(url, "other")
    _stop(server)
    with pytest.raises(Interrupted) as down:
        answers(engine, [ask("Q")])
    written = capfd.readouterr()
    outputs = [failed(got), str(down.value), str(unknown.value), json.dumps(dict(engine.settings())), repr(engine)]
    for output in (*outputs, written.out, written.err, caplog.text):
        for secret in (KEY, "s3cret-pass", basic):
            assert secret not in output
    assert engine.settings()["base_url"] == server.url
