"""`medbench score`: stored replies, scored as an evaluation scores them, into a sealed run folder; no model is needed.

    medbench score replies.jsonl --task mmlu_pro_health --protocol mmlu-pro-official

The file is read twice, once to check it, so that a faulty one leaves nothing behind, and once to score it. Nothing that
grows with the number of replies is held.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.contracts import Completion, Interrupted, MedbenchError, Question, Request, Sample, Say, Task
from medbench.harness.engines.fake import FakeEngine
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.engines.stored_replies import Replies, Reply, check_replies, refuse_unreadable
from medbench.harness.evaluation.options import EvalOptions, refuse_bad_name
from medbench.harness.evaluation.plan import new_record, protocol_for
from medbench.harness.evaluation.requests import build_request
from medbench.harness.evaluation.runner import seal
from medbench.harness.files import write_atomically
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.records import ModelRecord, RunRecord
from medbench.harness.runs.run_folder import Run, create_run, read_run, reopen_run, samples_path
from medbench.harness.runs.stored_run import StoredRun
from medbench.harness.scoring.score import score_completion

ENGINE = "stored"
"""Named in run.json where an evaluation names its engine."""


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What `medbench score` was asked."""

    file: Path
    task: str
    protocol: str | None = None
    data: str | None = None
    runs: Path = Path("runs")
    name: str | None = None
    model: str | None = None
    incomplete: bool = False

    @property
    def model_name(self) -> str:
        # a file name may hold bytes that are no text; those would be in no JSON either
        return (self.model or self.file.stem).encode("utf-8", "replace").decode()

    def as_eval(self) -> EvalOptions:
        """The same as an evaluation would be asked it."""
        return EvalOptions(
            model=self.model_name,
            tasks=(self.task,),
            protocol=self.protocol,
            engine=EngineChoice("fake", replies=self.file),
            data=self.data,
            runs=self.runs,
            name=self.name,
        )


def score_file(options: ScoreOptions, say: Say) -> StoredRun:
    """Raises MedbenchError before anything is written if something of what was asked is wrong."""
    notes: list[str] = []

    def warn(line: str) -> None:
        notes.append(line)
        say(line)

    refuse_bad_name(options.name)
    refuse_unreadable(options.file)
    task = TaskLoader(options.data, warn).load(options.task)
    return score_task(options, task, notes, warn)


def score_task(options: ScoreOptions, task: Task, notes: list[str], warn: Callable[[str], None]) -> StoredRun:
    """As score_file; `warn` adds to `notes`, which run.json keeps."""
    as_eval = options.as_eval()
    protocol = protocol_for([task], as_eval)
    scorer = Scorer(task, protocol)
    replies = replies_to(task, options.file)
    lacking = count_lacking(replies, task, allowed=options.incomplete)
    if lacking:
        warn(f"incomplete: {lacking} of {len(task.questions)} questions {_lack(replies)}, which are in no figure")
    model = ModelRecord(name=options.model_name, kind="replies", fingerprint=replies.sha256)
    record = new_record(replace(as_eval, samples=replies.samples), model, [task], protocol, notes)
    # until all replies are scored all questions lack theirs: what kill -9 leaves compares with nothing
    with _opened(
        options.runs, record.model_copy(update={"engine": {"name": ENGINE}, "incomplete": len(task.questions)})
    ) as run:
        try:
            for reply in replies.read():
                run.append(task.name, scorer.sample(reply))
            run.update(incomplete=lacking)
            results = seal(run, [task], protocol)
        except KeyboardInterrupt:
            raise Interrupted(f"{run.folder} is unfinished: run the same command again to score it anew") from None
    return StoredRun(run.folder, run.record, results)


class Scorer:
    """The scorer of an evaluation, for replies to one task under one protocol."""

    def __init__(self, task: Task, protocol: Protocol) -> None:
        """Raises MedbenchError for a protocol that does not score replies."""
        compared = task.foreign is not None and task.foreign.continuations(task.questions[0].id) is not None
        if protocol.method == "loglikelihood" or compared:
            raise MedbenchError(f"{task.name} under protocol {protocol.name} is scored by log-likelihoods, not by "
                                f"replies: choose a protocol that generates")  # fmt: skip
        self._task = task
        # What stood before a stored reply and how it was decoded is over and not known: the samples keep the question's
        # own prompt. A published script reads the text that was left, whole; medbench's reader still cuts where a base
        # model went on to invent the next question, because the last answer counts to it.
        stop = protocol.stop if protocol.extraction == "medbench" else []
        self._protocol = protocol.model_copy(update={"shots": 0, "stop": stop})
        self._questions = {question.id: question for question in task.questions}
        self._requests: dict[str, Request] = {}
        self._plain = FakeEngine({})

    def sample(self, reply: Reply) -> Sample:
        question = self._questions[reply.id]
        completion = Completion(reply.id, reply.output, reply.finish_reason)
        return score_completion(self._task, question, self._request(question, reply.repeat), completion)

    def _request(self, question: Question, repeat: int) -> Request:
        if question.id not in self._requests:
            self._requests[question.id] = build_request(self._task, question, self._protocol, self._plain, seed=0)
        request = self._requests[question.id]
        return replace(request, repeat=repeat) if repeat else request


def replies_to(task: Task, file: Path) -> Replies:
    """The file's replies. Raises MedbenchError with all its faults."""
    replies = check_replies(file, {question.id for question in task.questions}, task.name)
    if replies.samples > 1 and task.foreign is not None:
        raise MedbenchError(f"{file}: several replies to a question; {task.name} is lm-eval's own, which asks once")
    return replies


def count_lacking(replies: Replies, task: Task, *, allowed: bool) -> int:
    """How many questions have no reply, or not all. Raises MedbenchError where that is not `allowed`."""
    lacking = replies.lacking([question.id for question in task.questions])
    if lacking and not allowed:
        raise MedbenchError(f"{replies.path}: {lacking} of {len(task.questions)} questions {_lack(replies)}: add "
                            f"--incomplete to score the {replies.n} replies that are there")  # fmt: skip
    return lacking


def _lack(replies: Replies) -> str:
    return "have no reply" if replies.samples == 1 else f"lack some of their {replies.samples} replies"


def _opened(runs: Path, record: RunRecord) -> Run:
    """A new run folder; or that of an earlier scoring of the same replies that was cut off, emptied."""
    folder = runs / record.run_id
    if not (folder / "run.json").exists():
        return create_run(runs, record)
    if read_run(folder).status == "complete":
        raise MedbenchError(f"{folder} exists already: give another --name, or delete it to score anew")
    run = reopen_run(folder, record)
    for task in record.tasks:
        write_atomically(samples_path(folder, task), b"")
    run.record = record
    run.update()
    return run
