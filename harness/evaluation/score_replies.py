"""`medbench score`: stored replies, scored as in an evaluation, to a sealed run folder; no model is needed.

    medbench score replies.jsonl --task mmlu_pro_health --protocol mmlu-pro-official

The file is read twice: once to check it, so that a faulty one leaves nothing behind, and once to score it. Memory does
not grow with the number of replies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.contracts import Completion, Interrupted, MedbenchError, Question, Request, Sample, Say, Task
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.engines.stored_replies import Replies, Reply, check_replies, refuse_unreadable
from medbench.harness.evaluation.options import EvalOptions, refuse_bad_name
from medbench.harness.evaluation.plan import Clock, Model, Plan, plan_evaluation, protocol_for, utc_now
from medbench.harness.evaluation.requests import PlainText, build_request
from medbench.harness.evaluation.runner import seal
from medbench.harness.extraction.published import OWN
from medbench.harness.files import write_atomically
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.records import ModelRecord
from medbench.harness.runs.run_folder import Run, create_run, read_run, reopen_run, samples_path
from medbench.harness.runs.stored_run import StoredRun
from medbench.harness.scoring.score import score_completion

ENGINE = "stored"
"""The engine's name in run.json."""


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """The options of `medbench score`."""

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
        # a file name may hold bytes that are not text, which cannot be written as JSON
        return (self.model or self.file.stem).encode("utf-8", "replace").decode()

    def as_eval(self) -> EvalOptions:
        """The corresponding options of an evaluation."""
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
    """Score the file and seal a run. Raises MedbenchError for a faulty request, before writing anything."""
    notes: list[str] = []

    def warn(line: str) -> None:
        notes.append(line)
        say(line)

    refuse_bad_name(options.name)
    refuse_unreadable(options.file)
    task = TaskLoader(options.data, warn).load(options.task)
    return score_task(options, task, notes, warn)


def score_task(options: ScoreOptions, task: Task, notes: list[str], warn: Say, *, clock: Clock = utc_now) -> StoredRun:
    """As score_file; `warn` also adds to `notes`, which go to run.json."""
    as_eval = options.as_eval()
    protocol = protocol_for([task], as_eval)
    scorer = Scorer(task, protocol)
    replies = replies_to(task, options.file)
    lacking = count_lacking(replies, task, allowed=options.incomplete)
    if lacking:
        warn(f"incomplete: {lacking} of {len(task.questions)} questions {_lack(replies)}, which no figure includes")
    model = Model(ModelRecord(name=options.model_name, kind="replies", fingerprint=replies.sha256))
    as_eval = replace(as_eval, samples=replies.samples)
    plan = plan_evaluation(as_eval, [task], protocol, warn, model=model, notes=notes, clock=clock)
    with _opened(plan) as run:
        try:
            for reply in replies.read():
                run.append(task.name, scorer.sample(reply))
            run.update(incomplete=lacking)
            results = seal(run, [task], protocol)
        except KeyboardInterrupt:
            raise Interrupted(
                f"{run.folder} is unfinished: run the same command again to score it from scratch"
            ) from None
    return StoredRun(run.folder, run.record, results)


class Scorer:
    """Scores replies to one task under one protocol, as an evaluation would."""

    def __init__(self, task: Task, protocol: Protocol) -> None:
        """Raises MedbenchError for a protocol that scores log-likelihoods."""
        compared = task.foreign is not None and task.foreign.continuations(task.questions[0].id) is not None
        if protocol.method == "loglikelihood" or compared:
            raise MedbenchError(
                f"{task.name} under protocol {protocol.name} is scored by log-likelihoods, not by "
                f"replies: choose a protocol that generates"
            )
        self._task = task
        # The prompt and the decoding of a stored reply are not known: samples get the plain prompt, without few-shot
        # examples. Published scripts read the whole text. medbench's extractor takes the last answer, so it still cuts
        # where a base model goes on to invent the next question.
        stop = protocol.stop if protocol.extraction in OWN else []
        self._protocol = protocol.model_copy(update={"shots": 0, "stop": stop})
        self._questions = {question.id: question for question in task.questions}
        self._requests: dict[str, Request] = {}
        self._plain = PlainText()

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
    """The file's replies. Raises MedbenchError with the file's faults."""
    replies = check_replies(file, {question.id for question in task.questions}, task.name)
    if replies.samples > 1 and task.foreign is not None:
        raise MedbenchError(
            f"{file}: several replies per question, but {task.name} is lm-eval's own and asked once: keep one of each"
        )
    return replies


def count_lacking(replies: Replies, task: Task, *, allowed: bool) -> int:
    """How many questions lack one or all of their replies. Raises MedbenchError where any does and not `allowed`."""
    lacking = replies.lacking([question.id for question in task.questions])
    if lacking and not allowed:
        raise MedbenchError(
            f"{replies.path}: {lacking} of {len(task.questions)} questions {_lack(replies)}: add "
            f"--incomplete to score the {replies.n} replies in the file"
        )
    return lacking


def _lack(replies: Replies) -> str:
    return "have no reply" if replies.samples == 1 else f"lack some of their {replies.samples} replies"


def _opened(plan: Plan) -> Run:
    """A new run folder; or that of an interrupted scoring of the same replies, emptied."""
    # until every reply is scored, every question counts as lacking its replies: what kill -9 leaves cannot be compared
    incomplete = sum(len(task.questions) for task in plan.tasks)
    record = plan.wanted.model_copy(update={"engine": {"name": ENGINE}, "incomplete": incomplete})
    if not plan.begun:
        return create_run(plan.options.runs, record)
    if read_run(plan.folder).status == "complete":
        raise MedbenchError(f"{plan.folder} already exists: give another --name, or delete it to score again")
    run = reopen_run(plan.folder, record)
    for task in record.tasks:
        write_atomically(samples_path(run.folder, task), b"")
    run.record = record
    run.update()
    return run
