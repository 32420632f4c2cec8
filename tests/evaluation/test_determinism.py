"""Differences between settings on scripted engines and on real ones; where batch-invariant mode is refused."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.gate_runs import answer
from support.questions import COT, a_task, right

from medbench.harness.cli.diagnostic_tables import determinism_report
from medbench.harness.cli.main import run
from medbench.harness.contracts import Completion, MedbenchError, Request, Sample
from medbench.harness.engines import vllm
from medbench.harness.engines.fake import FakeEngine
from medbench.harness.engines.pool import start_engine
from medbench.harness.engines.settings import EngineChoice, EngineConfig
from medbench.harness.engines.vllm import Probe
from medbench.harness.evaluation.determinism import (
    AGAIN,
    BATCH,
    ORDER,
    SETTINGS,
    Determinism,
    Difference,
    Pass,
    Setting,
    ask_all,
    conclude,
    differences,
)
from medbench.harness.evaluation.repeatability import Noise

only_cpu = pytest.mark.skipif(not vllm.runs_on_cpu(), reason="a GPU build of vLLM takes batch_invariant")


class Crowded(FakeEngine):
    """Changes two of its replies when it gets fewer than four requests: one in wording, one in its answer."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        together = list(requests)
        for completion in super().generate(together):
            if len(together) < 4 and completion.id == "toy/q2":
                completion = replace(completion, text="The answer must be (A).")
            if len(together) < 4 and completion.id == "toy/q4":
                completion = replace(completion, text="The answer is (B).")
            yield completion


class Hasty(FakeEngine):
    """Words the first reply of each batch differently."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        together = list(requests)
        for number, completion in enumerate(super().generate(together)):
            hasty = number == 0 and len(together) > 1
            yield replace(completion, text=f"Well. {completion.text}") if hasty else completion


class Moody(FakeEngine):
    """Answers B to one question from the second pass over all questions onwards."""

    passes = 0

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        together = list(requests)
        self.passes += len(together) > 4
        for completion in super().generate(together):
            moody = self.passes > 1 and completion.id == "toy/q0"
            yield replace(completion, text="The answer is (B).") if moody else completion


class Remembering(FakeEngine):
    """Says "Again." to a question seen since the last forget(); its probe depends on the batch size."""

    def __init__(self, replies: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(replies)
        self.seen: set[str] = set()

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for completion in super().generate(requests):
            yield replace(completion, text="Again.") if completion.id in self.seen else completion
            self.seen.add(completion.id)

    def forget(self) -> None:
        self.seen.clear()

    def probe(self, *, through_cache: bool, beside: Sequence[Request] = ()) -> Probe:
        assert not through_cache
        assert not self.seen
        return Probe([-1.0, -2.0 - 0.001 * len(beside)], 0)


def found_by(engine: Any, questions: int = 12) -> dict[str, Difference]:
    reference, passes = ask_all(a_task(), COT, engine, questions=questions)
    return {one.setting.name: one for one in differences(reference, passes, str.split)}


def counts(found: Mapping[str, Difference]) -> list[tuple[int, int]]:
    """(replies, answers) of each setting in turn."""
    return [(one.noise.replies, one.noise.answers) for one in found.values()]


def a_finding(changes: Mapping[str, tuple[int, int]], engine: str = "vllm", **settings: Any) -> Determinism:
    """32 questions, of which (replies, answers) change with each of `changes`; batch size by "one at a time" only."""
    return Determinism(
        model="m",
        fingerprint="f",
        task="toy",
        source="local",
        protocol="cot-v2",
        engine={"name": engine, "settings": settings},
        asked=32,
        answered=30,
        differences=tuple(
            Difference(
                setting,
                Noise(asked=32, replies=changed[0], answers=changed[1], scores=0),
                7.0 if changed[0] else None,
                0.5,
            )
            for setting in SETTINGS
            for changed in [changes.get(setting.varies, (0, 0)) if setting.at_once != 4 else (0, 0)]
        ),
    )


def test_a_steady_engine_shows_no_difference() -> None:
    found = found_by(FakeEngine(right(a_task())))
    assert list(found) == ["one at a time", "4 at a time", "all at once, backwards", "all at once, again"]
    assert counts(found) == [(0, 0)] * 4
    assert {(one.noise.asked, one.parted_after, one.probe_nats) for one in found.values()} == {(12, None, None)}


def test_each_setting_submits_what_its_name_says() -> None:
    batches: list[list[str]] = []

    class Noting(FakeEngine):
        def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
            together = list(requests)
            batches.append([request.id for request in together])
            return super().generate(together)

    found_by(Noting(right(a_task())), questions=10)
    order = batches[0]
    assert len(set(order)) == 10
    assert batches[1:] == [*[[id] for id in order], order[:4], order[4:8], order[8:], order[::-1], order]


def test_replies_that_depend_on_the_batch_are_counted() -> None:
    all_a = {id: {"output": "The answer is (A)."} for id in right(a_task())}
    found = found_by(Crowded(all_a))
    assert counts(found) == [(2, 1), (0, 0), (0, 0), (0, 0)]
    assert found["one at a time"].parted_after == 2.5  # after "The answer" and after "The answer is"
    assert found["one at a time"].noise.scores == 1


def test_replies_that_depend_on_the_order_are_counted() -> None:
    found = found_by(Hasty(right(a_task())))
    # one at a time: none is first of several; 4 at a time: two more are first; backwards: the last one is first
    assert counts(found) == [(1, 0), (2, 0), (2, 0), (0, 0)]
    assert found["all at once, backwards"].parted_after == 0


def test_replies_that_change_at_random_are_counted() -> None:
    all_a = {id: {"output": "The answer is (A)."} for id in right(a_task())}
    assert counts(found_by(Moody(all_a))) == [(0, 0), (0, 0), (1, 1), (1, 1)]


def test_each_setting_starts_from_a_clean_state() -> None:
    found = found_by(Remembering(right(a_task())))
    assert counts(found) == [(0, 0)] * 4


def test_the_probe_runs_in_the_batch_of_its_setting() -> None:
    moved = [one.probe_nats for one in found_by(Remembering(right(a_task()))).values()]
    assert moved == pytest.approx([0.011, 0.008, 0, 0])


def test_a_failed_question_is_not_a_difference() -> None:
    some = dict(list(right(a_task()).items())[:6])
    assert {one.noise.asked for one in found_by(FakeEngine(some)).values()} == {6}


def test_an_engine_that_answers_nothing_is_one_line() -> None:
    with pytest.raises(MedbenchError, match="every question of toy failed: no reply is stored"):
        found_by(FakeEngine({}))


@given(st.lists(st.tuples(st.text("ab ", max_size=9), st.text("ab ", max_size=9)), max_size=8))
def test_differences_are_those_of_the_texts(texts: list[tuple[str, str]]) -> None:
    def samples(side: int) -> dict[str, Sample]:
        return {
            str(n): answer(str(n), 0.0, output=pair[side], extracted=None, outcome="unparsed", logprobs={})
            for n, pair in enumerate(texts)
        }

    setting = Setting("x", BATCH, 1)
    (one,) = differences(Pass(samples(0), None), [(setting, Pass(samples(1), None))], list)
    # where the reply is empty its log-likelihoods count, here "{}"
    pairs = [(a or "{}", b or "{}") for a, b in texts]
    assert one.noise.replies == sum(a != b for a, b in pairs)
    assert (one.parted_after is None) == (one.noise.replies == 0)
    for a, b in pairs:
        if one.noise.replies == 1 and a != b:
            n = int(one.parted_after or 0)
            assert a[:n] == b[:n]
            assert a[: n + 1] != b[: n + 1]


def test_the_conclusion_says_what_changes_and_what_it_means() -> None:
    assert conclude(a_finding({})) == ("answers do not depend on batch size or order on this machine (32 questions)")
    line = conclude(a_finding({BATCH: (3, 1), ORDER: (2, 0)}, device="cuda"))
    assert line.startswith(
        "3 of 32 replies (1 answer) change with batch size, 2 of 32 replies (0 answers) change with the order of "
        "questions: differences of 3.1 points or less are noise; set batch_invariant"
    )
    line = conclude(a_finding({AGAIN: (3, 0)}, device="cuda"))
    assert "3 of 32 replies (0 answers) change with repetition: no answer changes (30 replies have one)" in line


@pytest.mark.parametrize(
    ("engine", "settings", "offered"),
    [
        ("vllm", {"device": "cuda", "batch_invariant": False}, True),
        ("vllm", {"device": "cuda", "batch_invariant": True}, False),
        ("vllm", {"device": "cpu", "batch_invariant": False}, False),
        ("hf", {"device": "cuda", "dtype": "bfloat16"}, False),
    ],
)
def test_batch_invariant_is_offered_where_it_can_help(engine: str, settings: dict[str, Any], offered: bool) -> None:
    line = conclude(a_finding({BATCH: (3, 1)}, engine, **settings))
    assert ("batch_invariant" in line) == offered
    assert ("float32" in line) == (engine == "hf")
    assert "\n" not in line


def test_the_report_shows_every_setting_and_its_figures() -> None:
    finding = replace(a_finding({BATCH: (3, 1)}, device="cpu", dtype="float32"), model="[red]m[/red]")
    text = determinism_report(finding)
    assert "[red]m[/red] · vllm on cpu, float32" in text
    assert all(setting.name in text for setting in SETTINGS)
    row = next(line for line in text.splitlines() if line.startswith(" one at a time"))
    assert row.replace("│", " ").split()[4:] == ["32", "3", "1", "0", "7", "5.0e-01"]
    assert conclude(finding) in text
    json.dumps(finding.as_json())


def fault(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """The last line of `medbench doctor`, which exits with status 2."""
    capfd.readouterr()
    assert run(["doctor", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("medbench: ")]
    assert err.endswith(f"{line}\n")
    assert "Traceback" not in err
    return line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--determinism", "nope", "--data", "sample"], "model 'nope': no such folder"),
        (["--determinism", "smollm2-135m", "--questions", "0"], "0 is not in the range"),
        (
            ["--determinism", "smollm2-135m", "--engine", "openai"],
            "--engine vllm or hf, not openai",
        ),
        (["--questions", "8"], "belongs to --determinism"),
        (["--determinism", "smollm2-135m", "--data", "nowhere"], "nowhere"),
        (["--determinism", "smollm2-135m", "--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
    ],
)
def test_faults_of_the_user_are_one_line(arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert said in fault(arguments, capfd)


def test_a_server_cannot_be_measured(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "eval.yaml").write_text("{engine: openai, base_url: http://localhost}")
    line = fault(["--determinism", "m", "--data", "sample", "--config", str(tmp_path / "eval.yaml")], capfd)
    assert "--engine vllm or hf, not openai" in line


@pytest.mark.engine
def test_a_broken_task_is_skipped(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from medbench.harness.benchmarks.task_folders import tasks_folder

    shutil.copytree(tasks_folder() / "pubmedqa" / "sample", tmp_path / "pubmedqa")
    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path))
    arguments = ["--determinism", str(tiny_model), "--engine", "hf", "--questions", "2", "--json"]
    assert run(["doctor", *arguments]) == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["task"] == "pubmedqa"
    assert "using pubmedqa instead" in err


@only_cpu
def test_batch_invariant_on_a_cpu_is_refused_in_one_line(
    tiny_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "eval.yaml").write_text("engine_config: {batch_invariant: true}")
    config = ["--config", str(tmp_path / "eval.yaml"), "--data", "sample"]
    line = fault(["--determinism", str(tiny_model), *config], capfd)
    assert "engine_config.batch_invariant: this is a CPU build of vLLM" in line


@only_cpu
def test_the_variable_is_refused_like_the_setting(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    with pytest.raises(MedbenchError, match="VLLM_BATCH_INVARIANT: this is a CPU build"):
        vllm.VLLMEngine(str(tiny_model), EngineConfig())


@pytest.mark.parametrize("engine", ["hf", "openai", "fake"])
def test_another_engine_does_not_take_batch_invariant_silently(engine: str) -> None:
    choice = EngineChoice(engine, EngineConfig(batch_invariant=True))
    with pytest.raises(MedbenchError, match=f"leave it out with --engine {engine}"):
        start_engine(choice, "m", None)


@pytest.mark.engine
def test_a_real_vllm_is_measured(tiny_engine: Any) -> None:
    protocol = COT.model_copy(update={"decoding": COT.decoding.model_copy(update={"max_new_tokens": 24})})
    reference, passes = ask_all(a_task(), protocol, tiny_engine, questions=8)
    found = differences(reference, passes, list)
    assert [one.noise.asked for one in found] == [8] * 4
    assert [one.noise.replies for one in found] == [0] * 4
    moved = [one.probe_nats for one in found]
    assert all(nats is not None and nats < 1e-3 for nats in moved)
    assert moved[-1] == 0.0
    assert tiny_engine.settings()["batch_invariant"] is False


@pytest.mark.engine
def test_vllm_forgets_its_prefix_cache(tiny_engine: Any) -> None:
    from vllm import SamplingParams

    def cached() -> int:
        prompts = [{"prompt_token_ids": list(range(100, 420))}]
        (output,) = tiny_engine.llm.generate(prompts, SamplingParams(max_tokens=1), use_tqdm=False)
        return int(output.num_cached_tokens)

    cached()
    assert cached() > 0
    tiny_engine.forget()
    assert cached() == 0


@pytest.mark.engine
def test_other_prompts_in_the_batch_hardly_move_the_probe(tiny_engine: Any) -> None:
    alone = tiny_engine.probe(through_cache=False).logprobs
    beside = [Request(str(n), (), f"Which drug is number {n}? " * 4, 1) for n in range(5)]
    assert tiny_engine.probe(through_cache=False, beside=beside).logprobs == pytest.approx(alone, abs=1e-3)
    assert not any(math.isnan(logprob) for logprob in alone)


@pytest.mark.engine
def test_batch_invariant_cannot_be_switched_on_after_the_start(
    tiny_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VLLM_BATCH_INVARIANT", raising=False)
    assert "vllm" in sys.modules
    with pytest.raises(MedbenchError, match="vLLM started without it"):
        vllm._set_batch_invariant(EngineConfig(batch_invariant=True), cpu=False)


@pytest.mark.engine
def test_the_command_measures_a_real_model(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--determinism", str(tiny_model), "--engine", "hf", "--data", "sample", "--questions", "6"]
    capfd.readouterr()
    assert run(["doctor", *arguments, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["task"], found["source"], found["engine"]["name"]) == ("medqa", "sample", "hf")
    assert found["asked"] == 6
    assert [one["replies"] for one in found["differences"]] == [0] * 4
    assert {one["probe_nats"] for one in found["differences"]} == {None}
    assert found["conclusion"].startswith("answers do not depend")
