"""A gate file applied to a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from medbench.harness.contracts import OPEN_EXTRACTION, Data, MedbenchError, Question, Sample, Task
from medbench.harness.evaluation.plan import default_protocol
from medbench.harness.evaluation.requests import permuted
from medbench.harness.gates.baseline import (
    Reference,
    by_question,
    costs_beside,
    read_baseline,
    refuse_other_answers,
    weights_of,
)
from medbench.harness.gates.judged_gate import judgings_of
from medbench.harness.gates.live_gate import LiveGate, verdict_of
from medbench.harness.gates.rules import GateFile
from medbench.harness.gates.verdict import Judged, written
from medbench.harness.protocols.protocol import FOREIGN, Protocol, load_protocol
from medbench.harness.runs.comparability import describe_repeats, refuse_incomplete, refuse_shuffled
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.run_folder import read_run, read_samples

Answered = Mapping[str, Sequence[Sample]]
"""Question id -> its samples."""


def gate_finished_run(folder: Path, rules: GateFile, baseline: Path | None) -> Judged:
    """Judge a finished run and write its verdict.json.

    Imports no task and no engine, so it takes well under a second. Raises MedbenchError for a run that is unfinished,
    or that does not match the rules or the baseline.
    """
    record = read_run(folder)
    if record.status == "running":
        raise MedbenchError(f"{folder} is not finished ({record.status}): resume it with medbench eval --resume")
    refuse_shuffled(record)
    refuse_incomplete(record)
    missing = [task for task in rules.tasks if task not in record.tasks]
    if missing:
        raise MedbenchError(f"{folder} has no {', '.join(missing)}, which the gate file names")
    if record.partition != rules.partition:
        raise MedbenchError(f"{folder} holds partition {record.partition}, the gate file asks for {rules.partition}")
    if rules.names_protocol:
        asked = protocol_of(rules, None)
        if record.protocol != asked.model_dump(mode="json"):
            raise MedbenchError(
                f"{folder} was evaluated under protocol {record.protocol['name']}, not the gate file's {asked.name}: "
                f"evaluate it again, or correct the gate file"
            )
    if rules.samples not in (None, record.samples):
        raise MedbenchError(
            f"{folder} has {describe_repeats(record)}, the gate file asks for samples: {rules.samples}: "
            f"evaluate it again with --samples {rules.samples}, or correct the gate file"
        )
    if rules.decide == "population":
        _refuse_limited(rules, record, folder)
    samples = {name: by_question(read_samples(folder, name), record.samples) for name in rules.tasks}
    _refuse_unmeasured(rules, record, samples)
    reference = read_baseline(baseline, record, samples)
    tasks = [_task_of(name, record, samples[name], reference) for name in rules.tasks]
    if reference is not None:
        refuse_other_answers(tasks, reference.samples)
    orders = {task.name: _order_of(task.name, record, samples[task.name], task) for task in tasks}
    fractional = record.protocol["name"].startswith(FOREIGN)
    gate = LiveGate(
        rules,
        tasks,
        record.order,
        reference,
        unit=_most_tokens(record),
        known_orders=orders,
        samples=record.samples,
        fractional=fractional,
        judgings=judgings_of(rules, folder, samples, reference, baseline),
    )
    for name in rules.tasks:
        answered = [sample for id in orders[name] for sample in samples[name].get(id, ())]
        gate.observe(name, answered, seconds=record.totals.seconds)
    costs = costs_beside(baseline, reference, folder, record)
    verdict = verdict_of(gate, gate.results(), record).model_copy(update={"costs": costs})
    return written(verdict, folder, rules, weights_of(reference))


def _refuse_limited(rules: GateFile, record: RunRecord, folder: Path) -> None:
    """Raises MedbenchError for a run that could be extended and judged again: the test is valid for one look."""
    for name in rules.tasks:
        total = record.tasks[name].n
        if record.limit is not None and record.limit < total:
            raise MedbenchError(
                f"{folder} asked {record.limit} of the {total} questions of {name}; decide: population allows one "
                f"look, at all of them: evaluate without --limit, or decide: census"
            )


def _refuse_unmeasured(rules: GateFile, record: RunRecord, samples: Mapping[str, Answered]) -> None:
    """Raises MedbenchError for a gate on tokens or seconds if the run has not measured them."""
    found = [sample for by_id in samples.values() for some in by_id.values() for sample in some]
    answered = [sample for sample in found if sample.score is not None]
    measured = {
        "tokens_per_answer": not answered or any(sample.completion_tokens for sample in answered),
        "seconds_per_question": record.totals.seconds > 0,
    }
    for gate in rules.gates:
        if not measured.get(gate.metric, True):
            raise MedbenchError(
                f"gate '{gate.rule}': {record.run_id} was scored from stored replies, which do not have this metric: "
                f"remove the gate, or generate the replies with medbench eval"
            )


def protocol_of(rules: GateFile, baseline: Path | None, tasks: Sequence[Task] = ()) -> Protocol:
    """The gate file's protocol, else the baseline's own, else the default of `tasks`."""
    if not rules.names_protocol and baseline is not None:
        try:
            return Protocol.model_validate(read_run(baseline).protocol)
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise MedbenchError(
                f"{baseline}: its protocol cannot be used by this medbench ({'.'.join(map(str, fault['loc']))}: "
                f"{fault['msg'].lower()}): name a protocol in the gate file, or upgrade medbench"
            ) from None
    return load_protocol(
        rules.protocol or default_protocol(tasks),
        max_new_tokens=rules.max_new_tokens,
        thinking_tokens=rules.thinking_tokens,
        temperature=rules.temperature,
    )


def samples_of(rules: GateFile, baseline: Path | None) -> int:
    """Replies to each question: the gate file's number, else the baseline's where its protocol is used, else 1."""
    if rules.samples is None and not rules.names_protocol and baseline is not None:
        return read_run(baseline).samples
    return rules.samples or 1


def _task_of(name: str, record: RunRecord, samples: Answered, baseline: Reference | None) -> Task:
    """The task, as far as the samples of the run and of the baseline describe it."""
    described = record.tasks[name]
    known = {**(baseline.samples.get(name, {}) if baseline else {}), **samples}
    firsts = [some[0] for some in known.values()]
    # samples do not keep the labels; for a gate it is enough that there are some
    free = record.protocol.get("extraction") == OPEN_EXTRACTION or record.protocol["name"].startswith(FOREIGN)
    questions = tuple(
        Question(s.id, s.cluster, "", (), () if free else (s.gold,), s.gold, category=s.category) for s in firsts
    )
    data = Data(described.source, described.sha256, described.official)
    return Task(name, described.version, described.split, 0.0, questions, data)


def _order_of(name: str, record: RunRecord, samples: Answered, task: Task) -> list[str]:
    """All ids, the answered ones first: a finished run holds all questions, or the first ones of the order of `seed`.

    Questions that neither run names get placeholder ids: only their number matters.
    """
    total = record.tasks[name].n
    answered = permuted(samples, seed=record.order if record.limit is None else record.seed, task=name)
    others = permuted((q.id for q in task.questions if q.id not in samples), seed=record.seed, task=name)
    unknown = [f"(not asked {number})" for number in range(total - len(answered) - len(others))]
    return [*answered, *others, *unknown]


def _most_tokens(record: RunRecord) -> float:
    return float(record.protocol.get("decoding", {}).get("max_new_tokens", 1))
