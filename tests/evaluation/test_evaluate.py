"""One evaluation from Python: engines that the caller made, runs that are resumed, and starts that fail."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.gate_runs import write_gates, write_medqa, write_replies

from medbench.harness.contracts import Completion, MedbenchError, Request
from medbench.harness.engines.fake import FakeEngine
from medbench.harness.engines.served_swap import StaleServer
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.evaluation.evaluate import evaluate_model
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.gates.judge import Gatekeeper
from medbench.harness.gates.rules import read_gate_file
from medbench.harness.runs.stored_run import load_run

N = 24


class Counting(FakeEngine):
    """Gives the right answer, A, to every question, and counts what it is asked."""

    def __init__(self, ids: Iterable[str]) -> None:
        super().__init__({id: {"output": "The answer is (A)."} for id in ids})
        self.asked = self.closed = 0

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for completion in super().generate(requests):
            self.asked += 1
            yield completion

    def close(self) -> None:
        self.closed += 1


class Own:
    """An engine that shares no code with medbench: always answers B."""

    name = "own"
    chat_template = "none"
    fingerprint = "version-7"

    def render(self, messages: Any, thinking: Any) -> str:
        return "\n".join(message.content for message in messages)

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        return (Completion(request.id, "The answer is (B).", "stop") for request in requests)

    def settings(self) -> dict[str, Any]:
        return {"answers": "B"}

    def close(self) -> None:
        raise AssertionError("the caller's engine was closed")


def silent(line: str) -> None: ...


@pytest.fixture
def ids(tmp_path: Path) -> list[str]:
    return write_medqa(tmp_path / "data", N)


@pytest.fixture
def options(ids: list[str], tmp_path: Path) -> EvalOptions:
    return EvalOptions("mine", tasks=("medqa",), data=str(tmp_path / "data"), runs=tmp_path / "runs", quiet=True)


def with_engine(options: EvalOptions, engine: Any) -> EvalOptions:
    return replace(options, engine=EngineChoice(instance=engine))


def test_an_engine_that_the_caller_made_answers_and_stays_open(options: EvalOptions, ids: list[str]) -> None:
    engine = Counting(ids)
    run = evaluate_model(with_engine(options, engine), silent)
    assert (engine.asked, engine.closed) == (N, 0)
    assert run.results["medqa"].accuracy == 1.0
    assert (run.record.model.name, run.record.model.kind, run.record.engine["name"]) == ("mine", "engine", "fake")
    assert run.record.notes[-1] == "mine has no chat template: questions are asked as plain text"
    assert load_run(run.folder) == run


def test_an_engine_with_a_fingerprint_of_its_own(options: EvalOptions) -> None:
    run = evaluate_model(with_engine(options, Own()), silent)
    assert run.results["medqa"].accuracy == 0.0
    assert run.record.model.fingerprint == "version-7"
    assert run.record.engine == {"name": "own", "chat_template": "none", "settings": {"answers": "B"}}


def test_engine_and_model_name_identify_a_model_without_a_fingerprint(options: EvalOptions, ids: list[str]) -> None:
    asked = with_engine(options, Counting(ids))
    runs = [evaluate_model(one, silent) for one in (asked, replace(asked, model="another"))]
    assert len({run.record.model.fingerprint for run in runs}) == 2
    with pytest.raises(MedbenchError, match="already exists: add --resume"):
        evaluate_model(asked, silent)


def test_an_object_that_is_not_an_engine_is_one_line(options: EvalOptions) -> None:
    class Half:
        name = "half"
        settings = close = render = print

    with pytest.raises(MedbenchError, match=r"a Half without chat_template, generate: implement .*contracts\.Engine$"):
        evaluate_model(with_engine(options, Half()), silent)
    assert not options.runs.exists()


def test_a_covered_run_is_returned_without_asking(options: EvalOptions, ids: list[str]) -> None:
    first = evaluate_model(with_engine(options, Counting(ids)), silent)
    again = Counting(ids)
    assert evaluate_model(replace(with_engine(options, again), resume=True), silent) == first
    assert again.asked == 0


def test_a_limited_run_is_extended(options: EvalOptions, ids: list[str]) -> None:
    few = evaluate_model(with_engine(replace(options, limit=5), Counting(ids)), silent)
    assert (few.results["medqa"].n, few.record.limit) == (5, 5)
    engine = Counting(ids)
    whole = evaluate_model(replace(with_engine(options, engine), resume=True), silent)
    assert (engine.asked, whole.results["medqa"].n, whole.record.limit) == (N - 5, N, None)


def test_answers_of_other_weights_leave_nothing_behind(options: EvalOptions, ids: list[str]) -> None:
    class Exchanged(Counting):
        def generate(self, requests: Any) -> Any:
            for number, completion in enumerate(super().generate(requests)):
                if number == 3:
                    raise StaleServer("someone loaded other weights")
                yield completion

    with pytest.raises(StaleServer):
        evaluate_model(with_engine(options, Exchanged(ids)), silent)
    assert [path for path in options.runs.rglob("*") if path.is_file() and path.name != ".lock"] == []
    few = evaluate_model(with_engine(replace(options, limit=5), Counting(ids)), silent)
    before = {path: path.read_bytes() for path in few.folder.rglob("*") if path.is_file()}
    with pytest.raises(StaleServer):
        evaluate_model(replace(with_engine(options, Exchanged(ids)), resume=True), silent)
    assert {path: path.read_bytes() for path in few.folder.rglob("*") if path.is_file()} == before


def test_another_run_of_that_name_is_refused_before_an_engine_starts(
    options: EvalOptions, ids: list[str], tmp_path: Path
) -> None:
    evaluate_model(with_engine(replace(options, name="r"), Counting(ids)), silent)
    replies = write_replies(tmp_path / "replies.jsonl", dict.fromkeys(ids, True))
    other = replace(options, name="r", resume=True, engine=EngineChoice("fake", replies=replies))
    with pytest.raises(MedbenchError, match="is another run"):
        evaluate_model(other, silent)


def test_an_engine_that_fails_to_start_leaves_no_folder(options: EvalOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    nobody = EngineChoice("openai", base_url="http://127.0.0.1:9/v1")
    with pytest.raises(MedbenchError):
        evaluate_model(replace(options, engine=nobody), silent)
    assert not options.runs.exists()


def test_a_gate_judges_with_an_engine_that_the_caller_made(
    options: EvalOptions, ids: list[str], tmp_path: Path
) -> None:
    gates = write_gates(tmp_path / "gates.yaml", "{task: medqa, at_least: 0.5}", partition="all")
    engine = Counting(ids)
    for made, overall in ((engine, "pass"), (Own(), "fail")):
        with Gatekeeper(read_gate_file(gates), None, with_engine(options, made), silent) as keeper:
            judged = keeper.judge("mine")
        assert judged.verdict.overall == overall
    assert engine.asked > 0
    assert engine.closed == 0
