"""Whole evaluations and gates over local servers that refuse settings, ask to wait, redirect, or go away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from support.servers import Answer, Call, Server, chat, refusal, serving, text

from medbench.harness.cli.main import run
from medbench.harness.contracts import Interrupted, MedbenchError, Message, Request
from medbench.harness.engines import server_patience
from medbench.harness.engines.openai import OpenAIEngine
from medbench.harness.engines.server_patience import seconds_to_wait
from medbench.harness.engines.server_replies import bounded_client

KEY = "sk-test-0123456789abcdefghij"
EVAL = ["eval", "m", "--quiet", "--name", "r", "--tasks", "medqa", "--data", "sample"]


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_patience, "LONGEST_PAUSE", 0.1)
    monkeypatch.setattr(server_patience, "LEAST_PAUSE", 0.05)


def evaluate(server: Server, *more: str, places: int = 4, patience: str = "30") -> int:
    Path("engine.yaml").write_text(f"engine_config: {{concurrency: {places}}}\n")
    options = ["--base-url", server.url, "--config", "engine.yaml", "--patience", patience]
    return run([*EVAL, *options, *more])


def samples(name: str = "r", task: str = "medqa") -> list[dict[str, Any]]:
    file = Path(f"runs/{name}/samples/{task}.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def errors() -> list[str]:
    return [sample["error"] for sample in samples() if sample["error"] is not None]


def record(name: str = "r") -> dict[str, Any]:
    return json.loads(Path(f"runs/{name}/run.json").read_text())


def ask(server: Server, **settings: Any) -> Any:
    engine = OpenAIEngine(server.url, "m", **settings)
    (got,) = engine.generate([Request("q", (Message("user", "Q"),), "Q", 8, templated=True)])
    return got


# --- settings that a server does not take ---------------------------------------------------------------------------


def strict(call: Call) -> Answer:
    """As OpenAI's reasoning models."""
    if "max_tokens" in call.body:
        return refusal(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
            "'max_completion_tokens' instead.",
            param="max_tokens",
            code="unsupported_parameter",
        )
    if call.body.get("temperature", 1) != 1:
        return refusal(
            "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) value is "
            "supported.",
            param="temperature",
            code="unsupported_value",
        )
    for name in ("top_p", "seed"):
        if name in call.body:
            return refusal(f"Unrecognized request argument supplied: {name}")
    return chat()


def test_settings_are_learnt_once_and_named_in_the_run(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(strict) as server:
        assert evaluate(server, "--max-new-tokens", "77", "--limit", "12", places=1) == 0
    assert len(server.calls) == 12 + 4
    assert all(set(call.body) == {"model", "messages", "max_completion_tokens"} for call in server.calls[4:])
    assert {call.body["max_completion_tokens"] for call in server.calls[4:]} == {77}
    assert errors() == []
    notes = " ".join(record()["notes"])
    for words in ("max_completion_tokens", "temperature 0", "another protocol", "no seed", "top_p 1"):
        assert words in notes
    assert record()["engine"]["settings"]["not_applied"] == ["max_tokens", "seed", "temperature", "top_p"]
    shown = capfd.readouterr()
    assert "scores are those of another protocol" in " ".join(shown.out.split())
    assert "note: the server does not take temperature 0" in shown.err


def test_many_requests_at_once_learn_together() -> None:
    with serving(strict) as server:
        assert evaluate(server, places=8) == 0
    refused = [call for call in server.calls if strict(call)[0] == 400]
    assert 4 <= len(refused) <= 4 * 8
    assert errors() == []


def test_a_run_without_its_temperature_is_marked_where_it_is_compared_gated_and_shown(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with serving(strict) as server:
        assert evaluate(server) == 0
    with serving(lambda _: chat()) as server:
        assert evaluate(server, "--name", "plain") == 0
    Path("gates.yaml").write_text("gates: [{task: medqa, margin: 0.5}]\n")
    capfd.readouterr()
    assert run(["compare", "runs/plain", "runs/r", "--json"]) == 0
    warned = " ".join(json.loads(capfd.readouterr().out)["warnings"])
    assert "did not apply temperature" in warned
    assert "another protocol than cot-v2" in warned
    run(["gate", "runs/r", "--gates", "gates.yaml", "--baseline", "runs/plain", "--json"])
    assert "did not apply temperature" in capfd.readouterr().out
    assert run(["report", "runs", "-o", "site"]) == 0
    pages = "".join(page.read_text() for page in Path("site").rglob("*.html"))
    assert "not applied: max_tokens, seed, temperature, top_p" in pages
    assert "scores are those of another protocol" in pages


def test_without_any_limit_no_question_is_asked() -> None:
    def no_limit(call: Call) -> Answer:
        for name in ("max_tokens", "max_completion_tokens"):
            if name in call.body:
                return refusal(f"Unsupported parameter: '{name}'", param=name, code="unsupported_parameter")
        return chat()

    with serving(no_limit) as server:
        assert evaluate(server, "--limit", "3") == 3
    assert len(errors()) == 3
    assert all({"max_tokens", "max_completion_tokens"} & set(call.body) for call in server.calls)


def test_a_prompt_that_is_too_long_teaches_nothing() -> None:
    def too_long(call: Call) -> Answer:
        if call.number == 2:
            return refusal(
                "This model's maximum context length is 10 tokens, so max_tokens is not supported: reduce it",
                param="max_tokens",
                code="context_length_exceeded",
            )
        return chat()

    with serving(too_long) as server:
        assert evaluate(server, "--limit", "6", places=1) == 3
    assert len(errors()) == 1
    assert len(server.calls) == 6
    assert all("max_tokens" in call.body for call in server.calls)
    assert "not_applied" not in record()["engine"]["settings"]


def test_a_field_is_given_up_only_where_a_request_works_without_it() -> None:
    def blames_the_seed(call: Call) -> Answer:
        return refusal("Unsupported parameter: 'seed'") if call.number <= 2 else chat()

    def always_wrong(call: Call) -> Answer:
        if "seed" in call.body and call.number <= 2:
            return refusal("Unsupported parameter: 'seed'")
        return refusal("no such thing") if call.number == 2 else chat()

    with serving(always_wrong) as server:
        assert evaluate(server, "--limit", "4", places=1) == 3
    assert ["seed" in call.body for call in server.calls] == [True, False, True, True, True]
    assert "not_applied" not in record()["engine"]["settings"]
    with serving(blames_the_seed) as server:
        assert evaluate(server, "--limit", "4", "--name", "s", places=1) == 3
    assert len(server.calls) == 2 + 3


def test_what_is_learnt_stays_in_a_resumed_run() -> None:
    with serving(strict) as server:
        assert evaluate(server, "--limit", "4") == 0
        server.script = lambda _: chat()
        assert evaluate(server, "--resume") == 0
    assert "temperature" in record()["engine"]["settings"]["not_applied"]
    assert len(samples()) == 30


def test_stops_are_never_sent_and_are_applied_to_the_text() -> None:
    def rambles(call: Call) -> Answer:
        assert "stop" not in call.body
        return text(" So the answer is (A).\n\nQuestion: Which?\nThe answer is (B).")

    with serving(rambles) as server:
        assert evaluate(server, "--protocol", "mmlu-pro-official", "--shots", "0", "--limit", "5") == 0
    assert {sample["extracted"] for sample in samples()} == {"A"}


@pytest.mark.parametrize(
    ("content", "more", "got"),
    [
        ([{"type": "text", "text": "The answer "}, {"type": "text", "text": "is (B)."}], {}, "The answer is (B)."),
        ([{"type": "output_text", "text": "B"}, {"type": "image_url", "image_url": {"url": "x"}}], {}, "B"),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "A? "}, {"type": "text", "text": "No."}]},
             {"type": "text", "text": "B"}],
            {},
            "<think>A? No.</think>B",
        ),
        ([{"type": "reasoning", "text": "A?"}, {"type": "text", "text": "B"}], {}, "<think>A?</think>B"),
        ([{"type": "text", "text": "B"}], {"reasoning_content": "A?"}, "<think>A?</think>B"),
        ([{"type": "refusal", "refusal": "I cannot."}], {}, "I cannot."),
        ([], {"refusal": "I cannot."}, "I cannot."),
        ([], {}, ""),
    ],
)  # fmt: skip
def test_a_reply_in_parts_is_joined(content: object, more: dict[str, object], got: str) -> None:
    with serving(lambda _: chat(content, **more)) as server:
        assert ask(server).text == got


# --- servers that are busy ------------------------------------------------------------------------------------------


def busy_once(seconds: str, status: int = 429) -> Callable[[Call], Answer]:
    return lambda call: refusal("slow down", status, {"retry-after": seconds}) if call.number == 3 else chat()


@pytest.mark.parametrize("status", [429, 503])
def test_all_requests_wait_together_as_told(status: int, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(busy_once("1", status)) as server:
        assert evaluate(server, "--limit", "20", places=4) == 0
    refused = server.calls[2].at
    later = [call.at - refused for call in server.calls[3:]]
    assert sum(seconds < 0.95 for seconds in later) <= 3  # those that were under way
    assert len(server.calls) == 21
    assert "asks to wait 1 s (HTTP 429: slow down)".replace("429", str(status)) in capfd.readouterr().err


def test_a_wait_longer_than_patience_stops_at_once_and_can_be_resumed(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(busy_once("7200")) as server:
        started = time.monotonic()
        assert evaluate(server, patience="10m", places=1) == 4
        assert time.monotonic() - started < 5
        said = capfd.readouterr().err
        assert "asks to wait 2 h" in said
        assert "--resume" in said
        assert "--patience, now 10 min" in said
        assert (len(samples()), errors(), record()["status"]) == (2, [], "running")
        assert evaluate(server, "--resume") == 0
    assert (len(samples()), errors()) == (30, [])


def test_a_server_that_is_always_busy_is_given_up(short_pauses, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(lambda _: refusal("rate limit", 429)) as server:
        assert evaluate(server, patience="1") == 4
    assert 2 < len(server.calls) < 200
    assert samples() == []
    assert "has answered nothing for 1 s (HTTP 429: rate limit)" in capfd.readouterr().err


def test_an_account_without_money_is_not_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(lambda _: refusal("You exceeded your current quota", 429, code="insufficient_quota")) as server:
        assert evaluate(server, places=1) == 4
    assert len(server.calls) == 1
    assert "quota is used up" in capfd.readouterr().err


def test_a_server_that_is_still_loading_is_waited_for(short_pauses) -> None:
    answers = iter([refusal("Loading model", 503)] * 3)
    server = Server(lambda _: chat(), models=lambda: next(answers, (200, {"data": [{"id": "m"}]}, {})))
    server.start()
    assert ask(server).error is None
    server.stop()


def test_times_to_wait() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    later = format_datetime(now + timedelta(seconds=90), usegmt=True)
    assert seconds_to_wait({"retry-after": "90"}) == 90
    assert seconds_to_wait({"retry-after": "0.5"}) == 0.5
    assert seconds_to_wait({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert seconds_to_wait({"retry-after": later, "date": format_datetime(now, usegmt=True)}) == 90
    assert seconds_to_wait({"retry-after": later}) == 0  # long past
    assert seconds_to_wait({"retry-after": "1e999"}) == float("inf")
    for nothing in ({}, {"retry-after": "soon"}, {"retry-after": "-3"}, {"retry-after": "nan"}, {"retry-after": ""}):
        assert seconds_to_wait(nothing) is None


# --- servers that are gone, and questions that are at fault ---------------------------------------------------------


def test_a_server_that_goes_away_interrupts_the_run_and_is_used_again(
    short_pauses, capfd: pytest.CaptureFixture[str]
) -> None:
    def dies(call: Call) -> Answer | None:
        if call.number == 10:
            threading.Thread(target=server.stop).start()
        return None if call.number >= 10 else chat()

    with serving(dies) as server:
        started = time.monotonic()
        assert evaluate(server, patience="1s") == 4
        assert time.monotonic() - started < 15
        assert "has answered nothing for 1 s" in capfd.readouterr().err
        assert (errors(), record()["status"]) == ([], "running")
        assert 5 <= len(samples()) <= 9  # a reply may be lost on its way
        server.script = lambda _: chat()
        server.start()
        assert evaluate(server, "--resume") == 0
    assert (len(samples()), errors(), record()["status"]) == (30, [], "complete")


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_server_that_only_fails_is_gone(status: int, short_pauses, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(lambda _: refusal("engine dead", status)) as server:
        assert evaluate(server, patience="1") == 4
    assert samples() == []
    assert f"HTTP {status}: engine dead" in capfd.readouterr().err


def test_a_server_that_is_away_for_a_moment_costs_no_question(short_pauses) -> None:
    began = time.monotonic()

    def restarts(call: Call) -> Answer:
        return refusal("restarting", 502) if 0.2 < time.monotonic() - began < 1.2 else chat()

    with serving(restarts) as server:
        assert evaluate(server, "--samples", "8", "--temperature", "0.5") == 0
    assert (len(samples()), errors()) == (240, [])


@pytest.mark.parametrize("places", [1, 4])
def test_one_poisonous_question_is_an_error_of_its_own(places: int, short_pauses) -> None:
    poison: list[str] = []

    def poisoned(call: Call) -> Answer:
        if not poison and call.number == 7:
            poison.append(call.text)
        return refusal("out of memory", 500) if call.text in poison else chat()

    with serving(poisoned) as server:
        assert evaluate(server, places=places) == 3  # 1 of 30 is more than 2 %
        assert errors() == ["HTTP 500: out of memory"]
        assert len(samples()) == 30
        # alone in a resumed run it is told from a server that is gone, too
        assert evaluate(server, "--resume", places=places) == 3
        assert len(samples()) == 30
        poison[:] = ["nothing"]
        assert evaluate(server, "--resume", places=places) == 0
    assert errors() == []


def test_a_question_that_closes_the_connection_is_an_error_of_its_own(short_pauses) -> None:
    poison: list[str] = []

    def poisoned(call: Call) -> Answer | None:
        if not poison and call.number == 7:
            poison.append(call.text)
        return None if call.text in poison else chat()

    with serving(poisoned) as server:
        assert evaluate(server) == 3
    (error,) = errors()
    assert "the connection to" in error


def test_a_key_that_is_refused_later_is_wrong_input(capfd: pytest.CaptureFixture[str]) -> None:
    with serving(
        lambda call: refusal(f"Incorrect API key provided: {KEY}", 401) if call.number > 3 else chat()
    ) as server:
        assert evaluate(server, places=1) == 2
    assert (len(samples()), errors(), len(server.calls)) == (3, [], 4)
    said = capfd.readouterr().err
    assert "set OPENAI_API_KEY" in said
    assert KEY not in said


@pytest.mark.parametrize(("failed", "status"), [(2, 3), (1, 0)])
def test_more_than_two_percent_of_errors_is_no_score(
    failed: int, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    def some(call: Call) -> Answer:
        return refusal("no") if call.number <= failed else chat()

    with serving(some) as server:  # 60 replies
        assert evaluate(server, "--samples", "2", "--temperature", "0.5", places=1) == status
        shown = capfd.readouterr()
        said = " ".join(shown.out.split())
        assert ("3.3 % of the questions are errors, so this is not the task's score" in said) == (status == 3)
        assert ("more than 2 % of the questions of medqa are errors" in shown.err) == (status == 3)
        assert evaluate(server, "--samples", "2", "--temperature", "0.5", "--resume") == 0
    assert errors() == []


GATES = "gates: [{task: medqa, at_least: 0.01}]\npartition: all\n"


def gate(server: Server, *more: str) -> int:
    Path("gates.yaml").write_text(GATES)
    options = ["--base-url", server.url, "--data", "sample", "--junit", "j.xml", "--patience", "1", "--quiet"]
    return run(["gate", "m", "--gates", "gates.yaml", *options, *more])


def test_no_gate_passes_by_missing_questions(capfd: pytest.CaptureFixture[str]) -> None:
    right = {json.dumps(sample["prompt"]): sample["gold"] for sample in _gold()}

    def some(call: Call) -> Answer:
        if call.number <= 3:
            return refusal("no")
        gold = next(
            gold for prompt, gold in right.items() if json.loads(prompt).endswith(call.body["messages"][-1]["content"])
        )
        return chat(f"The answer is ({gold}).")

    with serving(some) as server:
        assert gate(server) == 3
    assert "3 of" in capfd.readouterr().out
    assert "<error" in Path("j.xml").read_text()


def _gold() -> list[dict[str, Any]]:
    with serving(lambda _: chat()) as server:
        assert evaluate(server, "--name", "gold") == 0
    return samples("gold")


def test_a_gate_on_a_server_that_goes_away_gives_no_verdict(short_pauses, capfd: pytest.CaptureFixture[str]) -> None:
    with serving(lambda call: chat() if call.number < 5 else refusal("dead", 502)) as server:
        assert gate(server) == 4
        assert "has answered nothing" in capfd.readouterr().err
        assert "<error" in Path("j.xml").read_text()
        assert not list(Path("runs").rglob("verdict.json"))
        server.script = lambda _: chat()
        assert gate(server) in (0, 1)


# --- where keys and questions go ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_carries_the_key_to_another_port(status: int) -> None:
    with serving(lambda _: chat()) as other:
        moved = (status, b"", {"location": f"{other.url}/chat/completions"})
        with serving(lambda _: moved) as server:
            assert evaluate(server, "--limit", "2") == 3
            assert all("redirects to http://127.0.0.1" in error for error in errors())
            server.models = lambda: (status, b"", {"location": f"{other.url}/models"})
            with pytest.raises(MedbenchError, match="redirects to"):
                ask(server)
        assert (other.calls, other.keys) == ([], [])


@pytest.mark.parametrize(
    ("here", "there", "refused"),
    [
        ("https://host/v1/models", "http://host/v1/models", True),
        ("http://host/v1/models", "https://host/v1/models", True),
        ("https://host/v1/models", "https://host:8443/v1/models", True),
        ("https://host/v1/models", "//other/v1/models", True),
        ("https://host/v1/models", "https://host.other/v1/models", True),
        ("https://host/v1/models", "https://nurse@other/v1/models", True),
        ("https://host/v1/models", "/v1/models/", False),
        ("https://host/v1/models", "https://host:443/v1/models/", False),
        ("https://host/v1/models", "https://HOST/v1/models/", False),
    ],
)
def test_which_redirects_are_refused(here: str, there: str, refused: bool) -> None:
    import anyio
    import openai

    client = bounded_client(5)
    module = __import__(type(client).__mro__[-2].__module__.partition(".")[0])
    (hook,) = client.event_hooks["response"]
    response = module.Response(307, headers={"location": there}, request=module.Request("GET", here))
    if refused:
        with pytest.raises(openai.OpenAIError, match="redirects to"):
            anyio.run(hook, response)
    else:
        anyio.run(hook, response)


def test_a_server_that_echoes_the_key_leaves_it_nowhere(capfd: pytest.CaptureFixture[str]) -> None:
    def echoes(call: Call) -> Answer:
        leak = f"you sent {call.headers['authorization']}"
        if call.number % 3 == 0:
            return refusal(leak)
        if call.number % 3 == 1:
            return refusal(leak, 429, {"retry-after": "0"})
        return chat(f"{leak}. The answer is (A).", reasoning=leak)

    models = lambda: (200, {"data": [{"id": "m", "owned_by": KEY}, {"id": KEY}]}, {})  # noqa: E731
    with serving(echoes, models=models) as server:
        assert evaluate(server, places=2) == 3
        assert run([*EVAL, "--name", "x", "--base-url", server.url.replace("/v1", "/v1"), "--limit", "1"]) in (0, 3)
        assert run(["eval", "nobody", "--base-url", server.url, "--data", "sample"]) == 2
        assert server.keys
        assert set(server.keys) == {f"Bearer {KEY}"}
    assert run(["report", "runs", "-o", "site"]) == 0
    printed = "".join(capfd.readouterr())
    assert KEY not in printed
    files = [path for path in Path().rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert [path for path in files if b"you sent Bearer ***" in path.read_bytes()]


# --- other APIs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (
            "https://x.openai.azure.com/openai/deployments/d?api-version=2024-10-21",
            "https://x.openai.azure.com/openai/v1",
        ),
        ("https://x.openai.azure.com/openai/deployments/d", "https://x.openai.azure.com/openai/v1"),
        ("https://x.openai.azure.com", "https://x.openai.azure.com/openai/v1"),
        ("https://gateway.example/openai/deployments/d/", "/openai/v1"),
        ("https://api.anthropic.com/v1", "LiteLLM"),
        ("https://gateway.example/v1/messages", "LiteLLM"),
    ],
)
def test_other_apis_are_told_by_their_url(url: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*EVAL, "--base-url", url]) == 2
    shown = capfd.readouterr().err
    assert "is not supported" in shown
    assert said in shown
    assert len([line for line in shown.splitlines() if line.startswith("medbench:")]) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {"type": "error", "error": {"message": "x-api-key header is required"}}, {}),
         "Anthropic's API is not supported"),
        ((400, {"type": "error", "error": {"message": "anthropic-version: header is required"}}, {}), "LiteLLM"),
        ((404, {"error": {"code": "404", "message": "Resource not found"}}, {}), "/openai/v1"),
        ((401, {"error": {"code": "401", "message": "Access denied due to invalid subscription key"}}, {}),
         "/openai/v1"),
    ],
)  # fmt: skip
def test_other_apis_are_told_by_their_first_answer(
    answer: Answer, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda _: chat(), models=lambda: answer) as server:
        assert run([*EVAL, "--base-url", server.url]) == 2
    assert said in capfd.readouterr().err


# --- patience -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"), [("90", 90.0), ("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0), ("2 min", 120.0)]
)
def test_patience_is_given_in_seconds_or_with_a_unit(given: str, kept: float) -> None:
    with serving(lambda _: chat()) as server:
        assert evaluate(server, "--limit", "1", patience=given) == 0
    assert record()["engine"]["settings"]["patience"] == kept


def test_patience_may_be_in_the_config_file() -> None:
    Path("c.yaml").write_text("engine_config: {patience: 2m, concurrency: 3}\n")
    with serving(lambda _: chat()) as server:
        assert run([*EVAL, "--base-url", server.url, "--config", "c.yaml", "--limit", "1"]) == 0
    assert record()["engine"]["settings"]["patience"] == 120


@pytest.mark.parametrize("given", ["soon", "-1", "10 days", "1e9", ""])
def test_any_other_patience_is_refused(given: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*EVAL, "--base-url", "http://127.0.0.1:9/v1", "--patience", given]) == 2
    assert "write seconds, or 90s, 10m, 2h" in capfd.readouterr().err
    Path("c.yaml").write_text(f"engine_config: {{patience: {json.dumps(given)}}}\n")
    assert run([*EVAL, "--base-url", "http://127.0.0.1:9/v1", "--config", "c.yaml"]) == 2
    assert "engine_config.patience" in capfd.readouterr().err


def test_from_python_a_server_that_is_gone_raises(short_pauses) -> None:
    with serving(lambda _: refusal("dead", 500)) as server, pytest.raises(Interrupted, match="answered nothing"):
        ask(server, patience=0.3)
