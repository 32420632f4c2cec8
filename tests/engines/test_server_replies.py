"""A server that sends anything, for ever or without end costs one sample, in bounded time and memory, and says why."""

from __future__ import annotations

import gzip
import itertools
import json
import logging
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from medbench.harness.cli.main import run
from medbench.harness.contracts import Completion, MedbenchError, Message, Request
from medbench.harness.engines import server_replies
from medbench.harness.engines.openai import OpenAIEngine
from medbench.harness.engines.server_replies import ChatReply, ModelList, TextReply, read_reply

MODELS = json.dumps({"data": [{"id": "m"}]}).encode()


def chat(usage: object = None, **changes: object) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "So (A)."}, "finish_reason": "stop"}
    return {"id": "x", "model": "m", "choices": [choice], "usage": usage, **changes}


class Server:
    """Answers GET with `models` and POST with `reply`: bytes, or a function that writes what it likes."""

    def __init__(self, reply: object, models: object = MODELS) -> None:
        self.reply, self.models, self.posts = reply, models, 0
        self.stopping = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(outer.models)

            def do_POST(self) -> None:
                outer.posts += 1
                self.rfile.read(int(self.headers["content-length"]))
                self.answer(outer.reply)

            def answer(self, how: Any) -> None:
                if callable(how):
                    how(self)
                    return
                self.start()
                self.wfile.write(how if isinstance(how, bytes) else json.dumps(how).encode())

            def start(self, status: int = 200, **headers: str) -> None:
                self.send_response(status)
                for name, value in ({"content_type": "application/json"} | headers).items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def drip(self, handler: Any) -> None:
        handler.start()
        while not self.stopping.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    def flood(self, handler: Any) -> None:
        handler.start()
        while not self.stopping.is_set():
            handler.wfile.write(b" " * 2**20)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    started: list[Server] = []

    def start(*arguments: object, **settings: object) -> Server:
        started.append(Server(*arguments, **settings))
        return started[-1]

    yield start
    for server in started:
        server.stopping.set()
        server.http.shutdown()
        server.http.server_close()


def asked(server: Server, **settings: Any) -> Completion:
    engine = OpenAIEngine(server.url, "m", **({"max_retries": 0} | settings))
    (got,) = engine.generate([Request("q", (Message("user", "Q"),), "Q", 8, templated=True)])
    return got


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": None, "completion_tokens": 1},
        {"prompt_tokens": "5", "completion_tokens": 1},
        {"prompt_tokens": 5, "completion_tokens": 4.5},
        {"prompt_tokens": 5, "completion_tokens": -1},
        {"prompt_tokens": 1e300, "completion_tokens": 1},
        {"prompt_tokens": 10**30, "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": [], "completion_tokens": {}},
        "many",
        [1],
        7,
    ],
    ids=repr,
)
def test_a_faulty_usage_is_the_error_of_one_sample(serve, usage: object) -> None:
    got = asked(serve(chat(usage)))
    assert got.finish_reason == "error"
    assert "usage" in str(got.error)
    assert (got.prompt_tokens, got.completion_tokens) == (0, 0)


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 5, "completion_tokens": 0, "total_tokens": "x"}])
def test_a_missing_usage_is_no_fault(serve, usage: object) -> None:
    assert asked(serve(chat(usage))).text == "So (A)."


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": 5}, "finish_reason": "stop"},
        {"message": {"content": ["a"]}, "finish_reason": "stop"},
        {"message": "text", "finish_reason": "stop"},
        {"message": {"content": "a", "reasoning": {}}, "finish_reason": "stop"},
        {"message": {"content": "a"}, "finish_reason": 5},
        {"message": {"content": "a"}, "finish_reason": {"deep": []}},
        {"message": {"content": "a"}},
        "choice",
    ],
    ids=repr,
)
def test_a_faulty_choice_is_an_error(serve, choice: object) -> None:
    got = asked(serve(chat(choices=[choice])))
    assert (got.finish_reason, got.text) == ("error", "")
    assert "\n" not in str(got.error)


def test_half_a_character_in_a_reply_can_be_stored(serve) -> None:
    choice = {"message": {"content": "(A) \ud83d"}, "finish_reason": "stop"}
    assert asked(serve(chat(choices=[choice]))).text == "(A) \ufffd"


@pytest.mark.parametrize("model", [TextReply, ChatReply, ModelList])
@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe", b"", b"1" * 5000, b'{"choices": [' + b"[" * 500, b"null", b"3"],
)
def test_any_bytes_are_one_short_line(body: bytes, model: Any) -> None:
    with pytest.raises(ValueError) as fault:
        read_reply(body, model)
    assert len(str(fault.value)) < 500
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"error": {"message": "out\nof memory"}}, "the server says: out of memory"),
        ({"error": "overloaded"}, "the server says: overloaded"),
        ({"error": {"code": 7}}, "the server says: {'code': 7}"),
        (b"<html><h1>Bad gateway</h1></html>", "not JSON: <html><h1>Bad gateway"),
    ],
)
def test_what_a_server_says_in_a_200_is_told(serve, body: object, said: str) -> None:
    assert said in str(asked(serve(body)).error)


@pytest.mark.parametrize(
    "models",
    [{"data": None}, {"data": [{"id": None}]}, {"data": [{}]}, {"data": [{"id": {}}]}, {"data": "m"}, {}, [],
     b"[" * 100_000, b"<html>welcome</html>", {"error": {"message": "no"}},
     {"data": [{"id": "m", "max_model_len": "x"}]}],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
def test_a_faulty_list_of_models_is_a_user_error(serve, models: object) -> None:
    with pytest.raises(MedbenchError, match="is not an OpenAI-compatible list of models") as fault:
        asked(serve(chat(), models=models))
    assert len(str(fault.value)) < 700
    assert "\n" not in str(fault.value)


def test_names_of_models_are_shown_short_and_escaped(serve) -> None:
    models = {"data": [{"id": "m\x1b[2J" + "o" * 5000}, {"id": "a\nb"}]}
    with pytest.raises(MedbenchError, match=r"it serves .*\\x1b") as fault:
        asked(serve(chat(), models=models))
    assert len(str(fault.value)) < 700
    assert "\x1b" not in str(fault.value)
    assert "\n" not in str(fault.value)


def test_a_reply_byte_by_byte_ends_at_the_deadline(serve) -> None:
    server = serve(None)
    server.reply = server.drip
    assert asked(server, timeout=0.5, max_retries=3).error == "no reply within 0.5 s"
    assert server.posts == 1


def test_a_list_of_models_byte_by_byte_ends_at_the_deadline(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medbench.harness.engines.openai.PREFLIGHT_S", 0.5)
    server = serve(chat())
    server.models = server.drip
    with pytest.raises(MedbenchError, match=r"no list of models within 0\.5 s"):
        asked(server)


def packed(body: bytes, encoding: str) -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        handler.start(content_encoding=encoding)
        handler.wfile.write(body)

    return answer


def test_a_reply_has_a_largest_size(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_replies, "LARGEST", 2**20)
    server = serve(None)
    server.reply = server.flood
    assert "larger than 1 MiB" in str(asked(server, max_retries=3).error)
    bomb = gzip.compress(b" " * 2**26)
    server.reply = packed(bomb, "gzip")
    assert "larger than 1 MiB" in str(asked(server, max_retries=3).error)
    assert server.posts == 2
    server.models = packed(bomb, "gzip")
    with pytest.raises(MedbenchError, match="larger than 1 MiB"):
        asked(server)


@pytest.mark.parametrize(
    ("body", "encoding", "said"),
    [
        (gzip.compress(json.dumps(chat()).encode(), mtime=0), "gzip", None),
        (zlib.compress(json.dumps(chat()).encode()), "deflate", None),
        (json.dumps(chat()).encode(), "identity", None),
        (b"plain", "gzip", "it is not gzip"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "gzip, gzip", "packed as gzip, gzip"),
        (b"{}", "br", "packed as br"),
    ],
)
def test_packed_replies(serve, body: bytes, encoding: str, said: str | None) -> None:
    got = asked(serve(packed(body, encoding)))
    assert (got.error is None) == (said is None)
    assert (said or "") in str(got.error)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_question_goes_to_another_host(serve, status: int) -> None:
    other = serve(chat())

    def move(handler: Any) -> None:
        handler.start(status, location=f"{other.url.replace('127.0.0.1', 'localhost')}/chat/completions")

    server = serve(move)
    got = asked(server, max_retries=3)
    assert "redirects to http://localhost" in str(got.error)
    assert (other.posts, server.posts) == (0, 1)
    server.models = move
    with pytest.raises(MedbenchError, match="redirects to http://localhost"):
        asked(server)


def test_a_redirect_within_the_server_is_followed(serve) -> None:
    def move(handler: Any) -> None:
        if handler.path.endswith("/there"):
            handler.answer(chat())
        else:
            handler.start(307, location="/there")

    assert asked(serve(move)).text == "So (A)."


def test_another_model_is_noted_once(serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="medbench")
    engine = OpenAIEngine(serve(chat(model="other-model\n")).url, "m", max_retries=0)
    requests = [Request(f"q{n}", (Message("user", "Q"),), "Q", 8, templated=True) for n in range(3)]
    assert [got.error for got in engine.generate(requests)] == [None] * 3
    assert [record.getMessage() for record in caplog.records if record.name == "medbench"] == [
        "note: asked for m, the server answers as other-model"
    ]


@pytest.mark.parametrize(
    ("key", "said"),
    [("sk-ключ-123", "not ASCII"), ("sk-1234\n", "line break"), (" sk-123", "blank"), ("sk-\x1b123", "control")],
)
def test_a_key_that_no_header_can_carry_is_told(serve, key: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve(chat())
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(MedbenchError, match=f"OPENAI_API_KEY has .*{said}") as fault:
        asked(server)
    assert key.strip() not in str(fault.value)


def test_a_run_with_faulty_replies_is_sealed_and_keeps_the_sound_ones(
    serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve(None)

    number = itertools.count()

    def by_turns(handler: Any) -> None:
        faulty = [chat({"prompt_tokens": None}), chat({"prompt_tokens": 1e300}), b"[" * 100_000, {"error": "busy"}]
        handler.answer((chat(), *faulty)[next(number) % 5])

    server.reply = by_turns
    monkeypatch.chdir(tmp_path)
    fixed = ["--quiet", "--name", "r", "--tasks", "medqa", "--data", "sample"]
    arguments = ["eval", "m", "--base-url", server.url, *fixed]
    assert run(arguments) == 3
    samples = [json.loads(line) for line in Path("runs/r/samples/medqa.jsonl").read_text().splitlines()]
    assert len(samples) == 30
    assert sum(sample["error"] is None for sample in samples) == 6
    server.reply = chat()
    assert run([*arguments, "--resume"]) == 0
    samples = [json.loads(line) for line in Path("runs/r/samples/medqa.jsonl").read_text().splitlines()]
    assert sum(sample["error"] is None for sample in samples) == 30


@pytest.mark.slow
def test_no_password_is_left_on_disk_and_a_rotated_one_resumes(
    serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve({"error": {"message": "no entry for nurse:s3cret-pass with hf-t0ken-value"}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf-t0ken-value")
    Path("gates.yaml").write_text("gates: [{task: medqa, at_least: 0.5}]\n")
    fixed = ["--quiet", "--tasks", "medqa", "--data", "sample", "--resume"]

    def ask(password: str) -> int:
        url = server.url.replace("http://", f"http://nurse:{password}@")
        monkeypatch.setattr("sys.argv", ["medbench", "eval", "m", "--base-url", url, "--name", "hf-t0ken-value"])
        return run(["eval", "m", "--base-url", url, *fixed])

    assert ask("s3cret-pass") == 3
    server.reply = chat()
    assert ask("r0tated-pass") == 0
    (folder,) = Path("runs").iterdir()
    assert run(["gate", str(folder), "--gates", "gates.yaml", "--junit", "j.xml", "--summary", "s.md"]) == 1
    assert run(["report", "runs", "-o", "site"]) == 0
    assert run(["report", "runs", "-o", "exports", "--format", "lm-eval"]) == 0
    printed = "".join(capfd.readouterr())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for secret in ("s3cret-pass", "r0tated-pass", "hf-t0ken-value"):
        assert secret not in printed
        assert [path for path in files if secret.encode() in path.read_bytes()] == []
