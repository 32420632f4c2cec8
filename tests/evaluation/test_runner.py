"""Order, storage, resuming and failures, on scripted replies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.questions import COT, a_task, right

from medbench.harness.contracts import Completion, Data, MedbenchError, Passed, Question, Request, Sample, Task
from medbench.harness.engines.fake import FakeEngine
from medbench.harness.evaluation.requests import Instance, build_request, permuted, sampling_seed
from medbench.harness.evaluation.runner import KEEP_SECONDS, RunsOn, ask, evaluate
from medbench.harness.protocols.protocol import Continuation, load_protocol
from medbench.harness.runs.records import ModelRecord, RunRecord, Totals
from medbench.harness.runs.run_folder import Run, create_run, read_result, read_run, read_samples, samples_path


class Silent:
    def start(self, task: str, total: int, done: int) -> None: ...
    def advance(self, task: str, sample: Sample) -> None: ...
    def expect(self, time: str) -> None: ...


def a_run(root: Path, limit: int | None = None, **changes: Any) -> Run:
    record = RunRecord(
        run_id="run",
        status="running",
        created="2026-01-01T00:00:00+00:00",
        command=["medbench"],
        model=ModelRecord(name="m", kind="replies", fingerprint="f"),
        tasks={},
        protocol=COT.model_dump(mode="json"),
        seed=0,
        limit=limit,
        engine={},
        packages={},
        git_commit=None,
    ).model_copy(update=changes)
    return create_run(root, record)


def ids(folder: Path, task: str = "toy") -> list[str]:
    return [sample.id for sample in read_samples(folder, task)]


def test_the_order_is_the_same_on_every_machine() -> None:
    assert permuted(["a", "b", "c", "d", "e"], seed=0, task="medqa") == ["a", "b", "d", "e", "c"]


@given(st.sets(st.text(max_size=8), max_size=30), st.integers(0, 5), st.data())
def test_the_order_depends_only_on_seed_and_task(ids: set[str], seed: int, data: st.DataObject) -> None:
    order = permuted(ids, seed=seed, task="t")
    assert sorted(order) == sorted(ids)
    assert permuted(data.draw(st.permutations(order)), seed=seed, task="t") == order
    subset = data.draw(st.sets(st.sampled_from(order))) if order else set()
    assert permuted(subset, seed=seed, task="t") == [id for id in order if id in subset]


def test_answers_are_scored_stored_and_summarised(tmp_path: Path) -> None:
    task = a_task()
    with a_run(tmp_path) as run:
        results = evaluate(run, [task], COT, FakeEngine(right(task)), limit=None, progress=Silent())
    assert results["toy"].accuracy == 1.0
    assert read_run(tmp_path / "run").status == "complete"
    assert read_result(tmp_path / "run", "toy") == results["toy"]
    assert ids(tmp_path / "run") == permuted([q.id for q in task.questions], seed=0, task="toy")


def test_a_limit_takes_the_first_questions_and_can_be_raised(tmp_path: Path) -> None:
    task = a_task()
    order = permuted([q.id for q in task.questions], seed=0, task="toy")
    with a_run(tmp_path) as run:
        evaluate(run, [task], COT, FakeEngine(right(task)), limit=5, progress=Silent())
        assert ids(run.folder) == order[:5]
        evaluate(run, [task], COT, FakeEngine(right(task)), limit=9, progress=Silent())
        assert ids(run.folder) == order[:9]


def test_a_failed_request_is_not_a_wrong_answer_and_is_asked_again(tmp_path: Path) -> None:
    task = a_task()
    some = {id: reply for id, reply in right(task).items() if id not in ("q3", "q7")}
    with a_run(tmp_path) as run:
        first = evaluate(run, [task], COT, FakeEngine(some), limit=None, progress=Silent())["toy"]
        assert (first.accuracy, first.n, first.n_error) == (1.0, 12, 2)
        second = evaluate(run, [task], COT, FakeEngine(right(task)), limit=None, progress=Silent())["toy"]
    assert (second.n, second.n_error) == (12, 0)
    assert sorted(ids(tmp_path / "run")) == sorted(q.id for q in task.questions)


def test_nothing_scored_is_a_failed_run(tmp_path: Path) -> None:
    with a_run(tmp_path) as run:
        results = evaluate(run, [a_task()], COT, FakeEngine({}), limit=None, progress=Silent())
    assert results["toy"].accuracy is None
    assert read_run(tmp_path / "run").status == "failed"


class Interrupting(FakeEngine):
    """Ctrl-C after three answers."""

    closed = False

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        try:
            for count, completion in enumerate(super().generate(requests)):
                if count == 3:
                    raise KeyboardInterrupt
                yield completion
        finally:
            self.closed = True


def test_ctrl_c_keeps_finished_samples(tmp_path: Path) -> None:
    task = a_task()
    engine = Interrupting(right(task))
    with a_run(tmp_path) as run, pytest.raises(KeyboardInterrupt):
        evaluate(run, [task], COT, engine, limit=None, progress=Silent())
    assert engine.closed
    assert len(ids(tmp_path / "run")) == 3
    assert read_run(tmp_path / "run").status == "running"


class Shuffled(FakeEngine):
    """Completions in a different order from the requests, as with continuous batching."""

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        yield from reversed(list(super().generate(requests)))


def test_completion_order_changes_no_sample(tmp_path: Path) -> None:
    task = a_task()
    stored = []
    for name, engine in (("one", FakeEngine(right(task))), ("two", Shuffled(right(task)))):
        with a_run(tmp_path / name) as run:
            evaluate(run, [task], COT, engine, limit=None, progress=Silent())
        stored.append(sorted((tmp_path / name / "run/samples/toy.jsonl").read_bytes().splitlines()))
    assert stored[0] == stored[1]


def test_a_request_carries_the_protocols_decoding() -> None:
    protocol = load_protocol("cot-v2", max_new_tokens=7, thinking=False)
    request = build_request(a_task(), a_task().questions[0], protocol, FakeEngine({}), seed=3)
    assert (request.max_new_tokens, request.seed) == (7, sampling_seed(3, "toy", "q0"))
    assert request.thinking is False
    assert request.stop == ("\nQuestion:",)  # no chat template: a base model would continue with the next question
    direct = build_request(a_task(), a_task().questions[0], load_protocol("direct-v1"), FakeEngine({}), seed=3)
    assert direct.choices == (" A", " B")
    assert direct.prompt.endswith("Answer:")


class Scripted(FakeEngine):
    """Answers by `reply` and records the requests."""

    def __init__(self, reply: Callable[[Request], Completion]) -> None:
        super().__init__({})
        self.reply = reply
        self.asked: list[Request] = []

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for request in requests:
            self.asked.append(request)
            yield self.reply(request)


def test_each_sample_of_a_question_has_its_own_seed_and_is_asked_once(tmp_path: Path) -> None:
    engine = Scripted(lambda request: Completion(request.id, f"The answer is ({'AB'[request.repeat % 2]}).", "stop"))
    with a_run(tmp_path, samples=4) as run:
        result = evaluate(run, [a_task()], COT, engine, limit=3, progress=Silent())["toy"]
        assert len({request.id for request in engine.asked}) == 12
        assert len({request.seed for request in engine.asked}) == 12
        assert [s.repeat for s in read_samples(run.folder, "toy")] == [0, 1, 2, 3] * 3
        again = Scripted(engine.reply)
        evaluate(run, [a_task()], COT, again, limit=4, progress=Silent())
    assert len(again.asked) == 4
    assert result.accuracy == 0.5
    assert result.sampling is not None
    assert (result.sampling.n, result.sampling.k, result.sampling.maj_at_k) == (3, 4, 0.5)
    assert result.sampling.pass_at[4] == 1.0


def test_shuffled_options_are_asked_as_shuffled_and_read_back(tmp_path: Path) -> None:
    names = ("Iron", "Zinc", "Gold", "Lead")
    question = Question("q", "q", "Which?", names, tuple("ABCD"), "C")
    task = Task("toy", "1", "test", 0.25, (question,), Data("local", "0" * 64, True))
    always_b = Scripted(lambda request: Completion(request.id, "The answer is (B).", "stop"))
    with a_run(tmp_path, shuffle_options=4) as run:
        result = evaluate(run, [task], COT, always_b, limit=None, progress=Silent())["toy"]
        samples = list(read_samples(run.folder, "toy"))
    for sample, request in zip(samples, always_b.asked, strict=True):
        assert sample.order is not None
        shown = [names[index] for index in sample.order]
        assert "\n".join(f"{label}. {name}" for label, name in zip("ABCD", shown, strict=True)) in request.prompt
        assert shown["ABCD".index(sample.gold)] == "Gold"
    assert len({sample.order for sample in samples}) == 4
    assert result.accuracy == 0.25
    assert result.shuffling is not None
    assert (result.shuffling.follows_letter, result.shuffling.follows_text) == (1.0, 0.0)


FORCED = COT.model_copy(update={"continuation": Continuation(cue="\nFinal answer:", max_new_tokens=5)})


def test_truncated_reasoning_is_continued_after_the_cue(tmp_path: Path) -> None:
    def reply(request: Request) -> Completion:
        if request.prompt.endswith("\nFinal answer:"):
            return Completion(request.id, " (B)", "stop", 90, 3)
        if "Which is 1?" in request.prompt:
            return Completion(request.id, "<think>on and on", "length", 10, 20)
        return Completion(request.id, "The answer is (A).", "stop", 10, 7)

    engine = Scripted(reply)
    with a_run(tmp_path) as run:
        evaluate(run, [a_task(2)], FORCED, engine, limit=None, progress=Silent())
        samples = {sample.id: sample for sample in read_samples(run.folder, "toy")}
    (forced,) = (one for one in engine.asked if one.prompt.endswith("\nFinal answer:"))
    assert (len(engine.asked), forced.max_new_tokens) == (3, 5)
    cut = samples["q1"]
    assert cut.output == "<think>on and on\nFinal answer: (B)"
    assert (cut.finish_reason, cut.prompt_tokens, cut.completion_tokens) == ("stop", 10, 23)
    assert forced.prompt == cut.prompt + "<think>on and on\nFinal answer:"
    assert samples["q0"].output == "The answer is (A)."


def cut_short(request: Request) -> Completion:
    """Replies that a budget cuts off: a thought, an answer after its thought, and one without marks."""
    if request.prompt.endswith("\n</think>\n\nThe answer is ("):
        return Completion(request.id, "B).", "stop", 90, 3)
    if request.prompt.endswith("Zinc is\n\nThe answer is ("):
        return Completion(request.id, "A", "length", 90, 44)
    if request.prompt.endswith("</think>The answer"):
        return Completion(request.id, " is (A).", "stop", 90, 5)
    for which, text in (("0", "<think>on and \ufffd"), ("1", "<think>Zinc</think>The answer"), ("2", "Zinc is")):
        if f"Which is {which}?" in request.prompt:
            return Completion(request.id, text, "length", 10, 20)
    return Completion(request.id, "<think>Zinc</think>The answer is (A).", "stop", 10, 19)


def test_a_budget_ends_thoughts_and_lets_answers_go_on(tmp_path: Path) -> None:
    protocol = load_protocol("cot-v2", max_new_tokens=64, thinking_tokens=20)
    engine = Scripted(cut_short)
    with a_run(tmp_path, protocol=protocol.model_dump(mode="json")) as run:
        result = evaluate(run, [a_task(4)], protocol, engine, limit=None, progress=Silent())["toy"]
        samples = {sample.id: sample for sample in read_samples(run.folder, "toy")}
    assert sorted(request.max_new_tokens for request in engine.asked) == [20, 20, 20, 20, 44, 44, 44]
    assert samples["q0"].output == "<think>on and \n</think>\n\nThe answer is (B)."
    assert samples["q1"].output == "<think>Zinc</think>The answer is (A)."
    assert samples["q2"].output == "Zinc is\n\nThe answer is (A"
    assert samples["q3"].output == "<think>Zinc</think>The answer is (A)."
    assert [samples[f"q{n}"].extracted for n in range(4)] == ["B", "A", "A", "A"]
    assert [samples[f"q{n}"].completion_tokens for n in range(4)] == [23, 25, 64, 19]
    assert [samples[f"q{n}"].note for n in range(4)] == ["cued", None, "cued", None]
    assert (result.notes, result.n_truncated) == ({"cued": 2}, 1)


def test_without_a_budget_an_answer_that_is_cut_off_stays_so(tmp_path: Path) -> None:
    protocol = load_protocol("m1", max_new_tokens=20)
    engine = Scripted(lambda request: Completion(request.id, "<think>Zinc</think>The answer", "length", 10, 20))
    with a_run(tmp_path) as run:
        evaluate(run, [a_task(1)], protocol, engine, limit=None, progress=Silent())
        (sample,) = read_samples(run.folder, "toy")
    assert (len(engine.asked), sample.output, sample.note) == (1, "<think>Zinc</think>The answer", None)


def test_milestones_count_over_both_parts_of_a_continued_reply(tmp_path: Path) -> None:
    class Reporting(Scripted):
        def generate(self, requests: Iterable[Request]) -> Iterator[Completion | Passed]:  # type: ignore[override]
            for request in requests:
                self.asked.append(request)
                yield from (Passed(request.id, one) for one in request.milestones[:2])
                yield self.reply(request)

    def reply(request: Request) -> Completion:
        if request.prompt.endswith("\nFinal answer:"):
            return Completion(request.id, " (A)", "stop", 90, 60)
        return Completion(request.id, "<think>on and on", "length", 10, 20)

    engine, task = Reporting(reply), a_task(1)
    with a_run(tmp_path) as run:
        instances = [Instance(task, task.questions[0])]
        found = [one for _, one in ask(run, instances, FORCED, engine, milestones=(5, 10, 20, 70, 100))]
        stored = list(read_samples(run.folder, "toy"))
    assert [request.milestones for request in engine.asked] == [(5, 10, 20, 70, 100), (0, 50, 80)]
    *told, sample = found
    assert told == [RunsOn(task.questions[0].id, tokens) for tokens in (5, 10, 20, 70)]
    assert stored == [sample]
    assert isinstance(sample, Sample)
    assert sample.completion_tokens == 80


def test_a_continuation_that_fails_is_an_error(tmp_path: Path) -> None:
    def reply(request: Request) -> Completion:
        if request.prompt.endswith("\nFinal answer:"):
            return Completion(request.id, "", "error", error="lost")
        return Completion(request.id, "<think>on", "length", 10, 20)

    with a_run(tmp_path) as run:
        result = evaluate(run, [a_task(2)], FORCED, Scripted(reply), limit=None, progress=Silent())["toy"]
    assert (result.n_error, result.accuracy) == (2, None)


def test_a_refused_resume_changes_nothing(tmp_path: Path) -> None:
    """The check comes before the first question, not with the sealing."""
    engine = Scripted(lambda request: Completion(request.id, "The answer is (A).", "stop"))
    with a_run(tmp_path) as run:
        evaluate(run, [a_task(2)], COT, engine, limit=None, progress=Silent())
        samples_path(run.folder, "toy").write_text(samples_path(run.folder, "toy").read_text().replace('"q1"', '"q77"'))
        before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
        asked = len(engine.asked)
        run.begin(status="running")
        with pytest.raises(MedbenchError, match="'q77', which toy does not have"):
            evaluate(run, [a_task(4)], COT, engine, limit=None, progress=Silent())
        assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == before
        assert len(engine.asked) == asked


def test_a_killed_session_loses_little_of_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ceiling on the time per question must not pass because a session was killed."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("medbench.harness.evaluation.runner.time", SimpleNamespace(monotonic=lambda: clock.now))
    kept: list[float] = []

    def reply(request: Request) -> Completion:
        kept.append(clock.now - read_run(tmp_path / "run").totals.seconds)
        clock.now += 3
        return Completion(request.id, "The answer is (A).", "stop", 10, 7)

    with a_run(tmp_path) as run:
        evaluate(run, [a_task(20)], COT, Scripted(reply), limit=None, progress=Silent())
    assert clock.now == 60
    assert max(kept) <= KEEP_SECONDS + 6
    assert read_run(tmp_path / "run").totals == Totals(seconds=60, prompt_tokens=200, completion_tokens=140)


def test_answers_to_questions_that_the_task_does_not_have_are_never_sealed(tmp_path: Path) -> None:
    engine = Scripted(lambda request: Completion(request.id, "The answer is (A).", "stop"))
    with a_run(tmp_path) as run:
        evaluate(run, [a_task(2)], COT, engine, limit=None, progress=Silent())
        path = samples_path(run.folder, "toy")
        path.write_text(path.read_text().replace('"q1"', '"q77"'))
        with pytest.raises(MedbenchError, match="'q77', which toy does not have"):
            evaluate(run, [a_task(2)], COT, engine, limit=None, progress=Silent())
