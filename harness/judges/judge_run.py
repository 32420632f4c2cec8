"""Judges the steps of a stored run: every step once, kept beside the samples as it is judged.

medbench judge runs/base --judge command --command "python my_judge.py"
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.contracts import MedbenchError, Question, Sample, Say
from medbench.harness.judges.asking import ask
from medbench.harness.judges.contracts import Item, Judge, Ruling, Verdict, item_id
from medbench.harness.judges.judgements import Judgement, judgements_path
from medbench.harness.judges.places import Place, places_of
from medbench.harness.judges.sources import questions_of, read_sources, sources_of
from medbench.harness.judges.steps import steps_of
from medbench.harness.runs.stored_run import StoredRun, load_run
from medbench.harness.text import did_you_mean, foreign


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply, its steps and the text that they are judged by."""

    id: str
    """Of the question."""
    cluster: str
    repeat: int
    question: str
    source: str
    steps: tuple[str, ...]
    places: tuple[Place | None, ...] = ()
    """Where each step stands in the reply."""

    def items(self) -> Iterator[Item]:
        for step in self.steps:
            yield Item(item_id(step, self.source), step, self.source)


@dataclass(frozen=True, slots=True)
class JudgedReply:
    """A reply and what the judge said of each of its steps; None where it failed."""

    reply: Reply
    verdicts: tuple[Verdict | None, ...]


@dataclass(frozen=True, slots=True)
class JudgedTask:
    """What a judge said of one task's replies."""

    task: str
    file: Path
    replies: tuple[JudgedReply, ...]
    unanswered: int
    """Failed requests, which have no reply."""
    without_source: int
    """Replies to questions without a source, which are left out."""
    asked: int
    """Items asked in this session."""
    faults: tuple[str, ...]
    """Why steps have no verdict, one for each step without one."""


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """The options of `medbench judge` besides the judge."""

    run: Path
    tasks: tuple[str, ...] = ()
    """Empty: all that have sources."""
    data: str | None = None
    sources: Path | None = None
    limit: int | None = None
    """Most questions per task, drawn by a hash of their ids, so that the same ones are taken each time."""


def judge_run(options: JudgeOptions, judge: Judge, say: Say) -> list[JudgedTask]:
    """Raises MedbenchError for a faulty request, before anything is asked, and where no step got a verdict."""
    run = load_run(options.run)
    return [_judged(run, task, replies, judge, say) for task, replies in replies_of(run, options, say).items()]


@dataclass(frozen=True, slots=True)
class Replies:
    """The replies of one task that are to be judged."""

    replies: tuple[Reply, ...]
    unanswered: int
    without_source: int


def replies_of(run: StoredRun, options: JudgeOptions, say: Say) -> dict[str, Replies]:
    """By task. Raises MedbenchError for an unknown task and where there are no sources."""
    for name in options.tasks:
        if name not in run.record.tasks:
            raise MedbenchError(
                f"{run.folder}: no task {foreign(name)!r}; {did_you_mean(name, list(run.record.tasks))}"
            )
    given = read_sources(options.sources) if options.sources is not None else None
    loader = TaskLoader(options.data, say)
    found: dict[str, Replies] = {}
    without: list[str] = []
    for task in options.tasks or run.record.tasks:
        questions = questions_of(run, task, loader)
        sources = sources_of(questions, given)
        if sources:
            found[task] = _replies(run, task, questions, sources, options.limit)
        else:
            without.append(task)
    if without:
        kind = "no text to read beside its questions" if given is None else f"no question in {options.sources}"
        line = f"{', '.join(without)}: {kind}"
        if options.tasks or not found:
            raise MedbenchError(f'{line}: name a file of {{"id", "source"}} lines with --sources')
        say(f"{line}: not judged")
    return found


def _replies(
    run: StoredRun, task: str, questions: Mapping[str, Question], sources: Mapping[str, str], limit: int | None
) -> Replies:
    samples = sorted(run.samples(task), key=lambda sample: (_draw(sample.id), sample.id, sample.repeat))
    if limit is not None:
        drawn = set(list(dict.fromkeys(sample.id for sample in samples if sample.id in sources))[:limit])
        samples = [sample for sample in samples if sample.id in drawn]
    unknown = [sample.id for sample in samples if sample.id not in questions]
    if unknown:
        raise MedbenchError(
            f"{run.folder}: {task} has no question {foreign(unknown[0], 60)!r} of its samples: one is damaged"
        )
    replied = [sample for sample in samples if sample.error is None]
    return Replies(
        tuple(_reply(sample, questions, sources[sample.id]) for sample in replied if sample.id in sources),
        unanswered=len(samples) - len(replied),
        without_source=sum(sample.id not in sources for sample in replied),
    )


def _reply(sample: Sample, questions: Mapping[str, Question], source: str) -> Reply:
    steps = steps_of(sample)
    places = tuple(places_of(steps, sample.output))
    return Reply(sample.id, sample.cluster, sample.repeat, questions[sample.id].question, source, tuple(steps), places)


def _draw(id: str) -> str:
    return hashlib.sha256(id.encode("utf-8", "replace")).hexdigest()


def _judged(run: StoredRun, task: str, asked: Replies, judge: Judge, say: Say) -> JudgedTask:
    path = judgements_path(run.folder, task, judge.name)
    items = {item.id: (item, reply.id) for reply in asked.replies for item in reply.items()}
    found = ask(judge, items, path, task, say)
    judged = tuple(JudgedReply(reply, _verdicts(reply, found.rulings)) for reply in asked.replies)
    faults = (found.fault(item.id) for reply in asked.replies for item in reply.items())
    told = tuple(fault for fault in faults if fault is not None)
    return JudgedTask(task, path, judged, asked.unanswered, asked.without_source, found.number, told)


def _verdicts(reply: Reply, known: Mapping[str, Ruling]) -> tuple[Verdict | None, ...]:
    return tuple(known[item.id].verdict if item.id in known else None for item in reply.items())


def stored(asked: Replies, lines: Sequence[Judgement]) -> tuple[JudgedReply, ...]:
    """The replies with verdicts from a file, of one judge."""
    known = {line.item: Ruling(line.item, line.verdict, line.fault) for line in lines}
    return tuple(JudgedReply(reply, _verdicts(reply, known)) for reply in asked.replies)
