"""`import medbench`: what a script or a notebook uses.

pytest tests/test_api.py
"""

from __future__ import annotations

import inspect
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.gate_runs import write_gates, write_medqa, write_replies

import medbench
from medbench.harness.contracts import Completion, Message, Request

N = 64


@pytest.fixture
def medqa(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of a made-up medqa in data/, in an empty working directory. The answer is always A."""
    monkeypatch.chdir(tmp_path)
    return write_medqa(tmp_path / "data", N)


def stored(name: str, ids: Sequence[str], right: int, **keywords: Any) -> Any:
    """A run of stored replies, of which the first `right` are right."""
    replies = write_replies(Path(f"{name}.jsonl"), {id: place < right for place, id in enumerate(ids)})
    return medbench.evaluate(name, tasks="medqa", replies=replies, data="data", quiet=True, **keywords)


class Parrot:
    """An engine of the caller's: answers A, except to every fourth request."""

    name = "parrot"
    chat_template = "none"

    def __init__(self) -> None:
        self.asked = 0
        self.closed = False

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return "\n".join(message.content for message in messages)

    def settings(self) -> dict[str, Any]:
        return {"repeats": "A"}

    def generate(self, requests: Sequence[Request]) -> Iterator[Completion]:
        for request in requests:
            self.asked += 1
            letter = "B" if self.asked % 4 == 0 else "A"
            yield Completion(request.id, f"The answer is ({letter}).", "stop", 1, 1)

    def close(self) -> None:
        self.closed = True


def test_every_name_can_be_imported_and_is_documented() -> None:
    for name in medbench.__all__:
        assert inspect.getdoc(getattr(medbench, name)), name
    assert set(medbench.__all__) < set(dir(medbench))
    assert medbench.__version__.count(".") >= 2
    with pytest.raises(AttributeError, match="no attribute 'evalute'"):
        medbench.evalute  # type: ignore[attr-defined]  # noqa: B018


def test_importing_it_imports_nothing_else() -> None:
    code = "import sys, medbench; print(sorted(name for name in sys.modules if 'medbench.' in name or name == 'numpy'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_the_callback_imports_no_trainer() -> None:
    code = "import sys, medbench; medbench.GateCallback; print({'torch', 'transformers', 'trl'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


def test_a_run_its_samples_and_its_verdict(medqa: list[str]) -> None:
    base = stored("base", medqa, 48)
    assert base.results["medqa"].accuracy == 0.75
    assert [sample.score for sample in base.samples("medqa")].count(1.0) == 48
    assert medbench.load_run(base.folder).results == base.results
    floor = medbench.Gate(task="medqa", at_least=0.7)
    verdict = medbench.gate(base, [floor])
    assert (verdict.status, verdict.gates[0].kind, verdict.gates[0].unit) == ("pass", "floor", "share")
    assert medbench.gate(base, medbench.GateFile(gates=[floor])) == verdict
    read = medbench.gate(str(base.folder), write_gates(Path("gates.yaml"), "{task: medqa, at_least: 0.7}"))
    assert read == verdict.model_copy(update={"gate_file": "gates.yaml"})
    assert str(base.folder) in repr(base)


def test_a_candidate_is_asked_as_far_as_its_verdict_needs(medqa: list[str]) -> None:
    base = stored("base", medqa, 60)
    worse = write_replies(Path("worse.jsonl"), dict.fromkeys(medqa, False))
    margin = medbench.Gate(task="medqa", margin=0.02)
    verdict = medbench.gate("worse", [margin], baseline=base, replies=worse, data="data", quiet=True)
    assert verdict.status == "fail"
    assert verdict.gates[0].used < N
    assert verdict.gates[0].unit == "difference"


def test_several_candidates_get_a_verdict_each(medqa: list[str]) -> None:
    runs = [stored("good", medqa, 60), stored("bad", medqa, 10)]
    judged = medbench.gate_all(runs, [medbench.Gate(task="medqa", at_least=0.5)])
    assert [one.verdict.status for one in judged] == ["pass", "fail"]
    assert [one.folder for one in judged] == [run.folder for run in runs]


def test_two_runs_are_compared(medqa: list[str]) -> None:
    comparison = medbench.compare(stored("a", medqa, 32), stored("b", medqa, 48))
    assert comparison.tasks["medqa"].overall.difference == 0.25
    assert comparison.tasks["medqa"].overall.gained == 16


def test_an_engine_object_answers(medqa: list[str]) -> None:
    parrot = Parrot()
    run = medbench.evaluate("my-parrot", engine=parrot, tasks=["medqa"], data="data", quiet=True)
    assert run.results["medqa"].accuracy == 0.75
    assert run.record.model.name == "my-parrot"
    assert run.record.engine["name"] == "parrot"
    assert parrot.asked == N
    assert not parrot.closed, "whoever made the engine closes it"
    again = medbench.evaluate("my-parrot", engine=parrot, tasks=["medqa"], data="data", quiet=True)
    assert parrot.asked == N, "what the run folder holds is not asked again"
    assert again.results == run.results
    other = Parrot()
    verdict = medbench.gate(
        "another-parrot", [medbench.Gate(task="medqa", at_least=0.4)], engine=other, data="data", quiet=True
    )
    assert verdict.status == "pass"
    assert 0 < other.asked < N


@pytest.mark.parametrize(
    ("keywords", "line"),
    [
        ({"limit": 0}, "limit"),
        ({"temperature": "hot"}, "temperature"),
        ({"engine_config": {"dtyp": "auto"}}, "dtyp: unknown key; did you mean dtype"),
        ({"tasks": []}, "names no task"),
        pytest.param({"tasks": ["medqua"]}, "did you mean medqa", marks=pytest.mark.slow),
        ({"name": "a/b"}, "'a/b'"),
        ({"engine": "vlm"}, "vllm"),
        ({"engine": "vllm", "base_url": "http://localhost:1"}, "base-url"),
        ({"replies": None, "engine": "fake"}, "--replies"),
    ],
)
def test_a_wrong_keyword_is_one_line_and_nothing_is_written(
    medqa: list[str], keywords: dict[str, Any], line: str
) -> None:
    replies = write_replies(Path("r.jsonl"), dict.fromkeys(medqa, True))
    with pytest.raises(medbench.MedbenchError) as fault:
        medbench.evaluate("m", **({"tasks": "medqa", "replies": replies, "data": "data", "quiet": True} | keywords))
    assert line in str(fault.value)
    assert "\n" not in str(fault.value)
    assert not Path("runs").exists()


def test_a_wrong_gate_is_one_line(medqa: list[str]) -> None:
    run = stored("m", medqa, 48)
    with pytest.raises((medbench.MedbenchError, ValueError), match="exactly one of at_least"):
        medbench.gate(run, [medbench.Gate(task="medqa")])
    with pytest.raises(medbench.MedbenchError, match="medqua"):
        medbench.gate(run, [medbench.Gate(task="medqua", at_least=0.5)])
    with pytest.raises(medbench.MedbenchError, match="no such file"):
        medbench.gate(run, "nowhere.yaml")
    with pytest.raises(medbench.MedbenchError, match="nowhere"):
        medbench.load_run("nowhere")


def test_messages_go_to_the_logger(medqa: list[str], caplog: pytest.LogCaptureFixture, capfd: Any) -> None:
    with caplog.at_level(logging.INFO, logger="medbench"):
        stored("m", medqa, 48)
    assert any("unofficial" in record.getMessage() for record in caplog.records)
    assert {record.name for record in caplog.records} == {"medbench"}
    assert capfd.readouterr() == ("", "")


def test_pages_are_written(medqa: list[str]) -> None:
    index = medbench.report([stored("m", medqa, 48)], "site")
    assert index == Path("site/index.html")
    assert "medqa" in index.read_text().lower()


@pytest.mark.data
def test_the_example_of_the_readme_on_real_replies(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two real models' replies to MMLU-Pro health: run, gate, compare."""
    monkeypatch.chdir(tmp_path)
    folder = data_dir / "replay"
    base = medbench.score(
        folder / "mmlu_pro_health_Qwen1.5-7B-Chat.jsonl", "mmlu_pro_health", data=data_dir, model="Qwen1.5-7B-Chat"
    )
    run = medbench.score(
        folder / "mmlu_pro_health_Meta-Llama-3_1-8B-Instruct.jsonl",
        "mmlu_pro_health",
        data=data_dir,
        model="Llama-3.1-8B-Instruct",
    )
    accuracy = {one.record.model.name: one.results["mmlu_pro_health"].accuracy for one in (base, run)}
    assert accuracy["Llama-3.1-8B-Instruct"] > 0.45 > 0.35 > accuracy["Qwen1.5-7B-Chat"]
    verdict = medbench.gate(run, [medbench.Gate(task="mmlu_pro_health", margin=0.02)], baseline=base)
    assert verdict.status == "pass"
    assert verdict.gates[0].used == 818
    samples = list(run.samples("mmlu_pro_health"))
    assert len(samples) == 818
    compared = medbench.compare(base, run).tasks["mmlu_pro_health"].overall
    assert compared.difference == pytest.approx(accuracy["Llama-3.1-8B-Instruct"] - accuracy["Qwen1.5-7B-Chat"])
    assert json.loads((run.folder / "verdict.json").read_text())["overall"] == "pass"
