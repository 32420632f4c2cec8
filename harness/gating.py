"""`medbench gate`: candidates in, verdicts out. Finished runs are judged at once; checkpoints share one warm engine.

medbench gate checkpoints/step-800 checkpoints/step-1600 --gates gates.yaml --baseline runs/base
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from medbench.harness.benchmarks.partition import keep_partition
from medbench.harness.contracts import Data, MedbenchError, Question, Sample, Say, Task
from medbench.harness.engines.pool import EngineKeeper
from medbench.harness.evaluation.requests import permuted
from medbench.harness.files import write_atomically
from medbench.harness.gate_file import GateFile, read_gate_file, refuse_unknown_tasks
from medbench.harness.gate_output import junit, markdown
from medbench.harness.judging import Asked, Judged, judge_checkpoint, read_baseline, written
from medbench.harness.live_gate import LiveGate, Reference, verdict_of
from medbench.harness.protocols.protocol import DEFAULT, FOREIGN, Protocol, load_protocol
from medbench.harness.runs.comparability import refuse_incomplete, refuse_repeats
from medbench.harness.runs.compare import TaskComparison, compare_task
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.run_folder import read_run, read_samples, samples_path

EVAL_ONLY = (
    "tasks", "protocol", "partition", "limit", "max_new_tokens", "thinking", "temperature", "shots", "samples",
    "shuffle_options", "name",
)  # fmt: skip
"""Options of eval that a gate takes from its file."""


def exit_status(judged: Sequence[Judged]) -> int:
    """1 when any failed, else 3 when any is undecided or not gateable, else 0."""
    found = {one.verdict.overall for one in judged}
    return 1 if "fail" in found else 0 if found <= {"pass"} else 3


def write_outputs(
    judged: Sequence[Judged], baseline: Path | None, junit_file: Path | None, summary: Path | None
) -> None:
    """JUnit and Markdown files, and the step summary of a GitHub workflow where one runs."""
    if junit_file is not None:
        _write(junit_file, junit([one.verdict for one in judged], [one.seconds for one in judged]))
    step = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary is None and not step:
        return
    text = "\n".join(markdown(one.verdict, _comparisons(one, baseline)) for one in judged)
    if summary is not None:
        _write(summary, text.encode("utf-8", "replace"))
    if step:
        try:
            with Path(step).open("a", encoding="utf-8", errors="replace") as file:
                file.write(text)
        except OSError as error:
            raise MedbenchError(f"GITHUB_STEP_SUMMARY {step}: cannot be written ({error.strerror})") from None


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedbenchError(f"{path.parent}: cannot be made ({error.strerror})") from None
    write_atomically(path, content)


def _comparisons(one: Judged, baseline: Path | None) -> list[TaskComparison]:
    if baseline is None or one.folder is None:
        return []
    found = []
    for task in dict.fromkeys(gate.task for gate in one.verdict.gates):
        if samples_path(one.folder, task).exists():  # not for the mean, nor for a task that was not asked
            with suppress(MedbenchError):  # no question that both answered
                found.append(compare_task(task, read_samples(baseline, task), read_samples(one.folder, task)))
    return found


def gate_finished_run(folder: Path, rules: GateFile, baseline: Path | None) -> Judged:
    """Judge what a sealed run holds; starts in well under a second, imports no task and no engine."""
    record = read_run(folder)
    if record.status == "running":
        raise MedbenchError(f"{folder} is not finished ({record.status}): go on with medbench eval --resume")
    refuse_repeats(record)
    refuse_incomplete(record)
    missing = [task for task in rules.tasks if task not in record.tasks]
    if missing:
        raise MedbenchError(f"{folder} has no {', '.join(missing)}, which the gate file names")
    if record.partition != rules.partition:
        raise MedbenchError(f"{folder} holds partition {record.partition}, the gate file asks for {rules.partition}")
    if rules.protocol is not None or rules.max_new_tokens is not None:
        asked = protocol_of(rules, None)
        if record.protocol != asked.model_dump(mode="json"):
            raise MedbenchError(f"{folder} was asked under {record.protocol['name']}, not under the gate file's "
                                f"{asked.name}: evaluate it again, or correct the gate file")  # fmt: skip
    samples = {name: {s.id: s for s in read_samples(folder, name)} for name in rules.tasks}
    _refuse_unmeasured(rules, record, samples)
    reference = read_baseline(baseline, record, samples)
    tasks = [_task_of(name, record, samples[name], reference) for name in rules.tasks]
    orders = {task.name: _order_of(task.name, record, samples[task.name], task) for task in tasks}
    fractional = record.protocol["name"].startswith(FOREIGN)
    gate = LiveGate(
        rules, tasks, record.seed, reference, unit=_most_tokens(record), orders=orders, fractional=fractional
    )
    for name in rules.tasks:
        gate.observe(name, [samples[name][id] for id in orders[name] if id in samples[name]])
    gate.seconds = record.totals.seconds
    return written(verdict_of(gate, gate.results(), record), folder)


def _refuse_unmeasured(rules: GateFile, record: RunRecord, samples: Mapping[str, Mapping[str, Sample]]) -> None:
    """Raises MedbenchError for a gate on the tokens or seconds of replies that came without either."""
    answered = [sample for some in samples.values() for sample in some.values() if sample.score is not None]
    measured = {
        "tokens_per_answer": not answered or any(sample.completion_tokens for sample in answered),
        "seconds_per_question": record.totals.seconds > 0,
    }
    for gate in rules.gates:
        if not measured.get(gate.metric, True):
            raise MedbenchError(f"gate '{gate.rule}': {record.run_id} has no count of that, its replies were stored: "
                                f"leave the gate out, or generate with medbench eval")  # fmt: skip


def gate_candidates(
    candidates: Sequence[str],
    gates: Path,
    baseline: Path | None,
    given: Mapping[str, Any],
    tasks_folder: Path,
    say: Say,
) -> list[Judged]:
    """A verdict for each candidate, in turn; `given` are the command line's options.

    Raises MedbenchError for a fault of the user's.
    """
    if all((Path(name) / "run.json").exists() for name in candidates):
        rules = read_gate_file(gates)
        return [gate_finished_run(Path(name), rules, baseline) for name in candidates]
    with Gatekeeper(gates, baseline, given, tasks_folder, say) as keeper:
        return [keeper.judge(name) for name in candidates]


class Gatekeeper:
    """Tasks, gate file and one engine, kept for many checkpoints. Use as a context manager."""

    def __init__(
        self, gates: Path, baseline: Path | None, given: Mapping[str, Any], tasks_folder: Path, say: Say
    ) -> None:
        from medbench.harness.benchmarks.catalog import TaskLoader
        from medbench.harness.evaluation.evaluate import options_of

        self._options = options_of({**dict.fromkeys(EVAL_ONLY), "model": "", "resume": True, **given})
        self._rules, self._baseline, self._say = read_gate_file(gates), baseline, say
        self._aa: int = given.get("aa") or 0
        loader = TaskLoader(tasks_folder, self._options.data, say)
        refuse_unknown_tasks(self._rules, gates, list(loader.cards))
        self._tasks = [keep_partition(loader.load(name), self._rules.partition) for name in self._rules.tasks]
        self._protocol = protocol_of(self._rules, baseline)
        self._keeper = EngineKeeper(say)

    def judge(self, name: str) -> Judged:
        """Evaluate `name` as far as the verdict needs, and judge; `medbench eval --resume` can finish the run.

        A checkpoint folder that is itself broken fails; raises MedbenchError for any other fault.
        """
        if (Path(name) / "run.json").exists():
            return gate_finished_run(Path(name), self._rules, self._baseline)
        options = replace(self._options, model=name, limit=None)
        asked = Asked(self._rules, self._tasks, self._protocol, self._baseline, self._aa)
        return judge_checkpoint(options, asked, self._keeper, self._say)

    def __enter__(self) -> Gatekeeper:
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.close()


def protocol_of(rules: GateFile, baseline: Path | None) -> Protocol:
    """The gate file's protocol, else the baseline's own, else the default."""
    if rules.protocol is None and rules.max_new_tokens is None and baseline is not None:
        return Protocol.model_validate(read_run(baseline).protocol)
    return load_protocol(rules.protocol or DEFAULT, max_new_tokens=rules.max_new_tokens)


def _task_of(name: str, record: RunRecord, samples: Mapping[str, Sample], baseline: Reference | None) -> Task:
    """As much of the task as its samples tell."""
    described = record.tasks[name]
    known = {**(baseline.samples.get(name, {}) if baseline else {}), **samples}
    questions = tuple(Question(s.id, s.cluster, "", (), (), s.gold, category=s.category) for s in known.values())
    data = Data(described.source, described.sha256, described.official)
    return Task(name, described.version, described.split, 0.0, questions, data)


def _order_of(name: str, record: RunRecord, samples: Mapping[str, Sample], task: Task) -> list[str]:
    """All ids, the answered ones first: a sealed run holds the first questions of the order, or all.

    Where nothing names the others they get stand-ins: only their number matters then.
    """
    total = record.tasks[name].n
    answered = permuted(samples, seed=record.seed, task=name)
    others = permuted((q.id for q in task.questions if q.id not in samples), seed=record.seed, task=name)
    unknown = [f"(not asked {number})" for number in range(total - len(answered) - len(others))]
    return [*answered, *others, *unknown]


def _most_tokens(record: RunRecord) -> float:
    return float(record.protocol.get("decoding", {}).get("max_new_tokens", 1))
