"""Which runs may be compared, resumed or used as a baseline."""

from __future__ import annotations

from collections.abc import Sequence

from medbench.harness.contracts import MedbenchError
from medbench.harness.runs.records import AdapterRecord, ModelRecord, RunRecord

PROTOCOL_SETTINGS = ("temperature", "chat_template_kwargs")
"""Of a request; without them a protocol is another one."""


def describe_differences(a: RunRecord, b: RunRecord) -> list[str]:
    """Why `a` and `b` are not the same run: model, protocol, engine, seed, tasks, data. Empty where they are."""
    differences = []
    if a.model.fingerprint != b.model.fingerprint:
        differences.append(_other_adapters(a.model, b.model) or _other_model(a.model, b.model))
    if a.model.tokenizer_sha256 != b.model.tokenizer_sha256:
        differences.append("another tokenizer or chat template")
    if a.protocol != b.protocol:
        differences.append(f"protocol {a.protocol['name']}, not {b.protocol['name']}")
    if a.engine.get("name") != b.engine.get("name"):
        differences.append(f"engine {a.engine.get('name')}, not {b.engine.get('name')}")
    if a.partition != b.partition:
        differences.append(f"partition {a.partition}, not {b.partition}")
    if a.seed != b.seed:
        differences.append(f"seed {a.seed}, not {b.seed}")
    if (a.samples, a.shuffle_options) != (b.samples, b.shuffle_options):
        differences.append(f"{describe_repeats(a)}, not {describe_repeats(b)}")
    for task in sorted(a.tasks.keys() | b.tasks.keys()):
        ours, theirs = a.tasks.get(task), b.tasks.get(task)
        if ours is None or theirs is None:
            differences.append(f"task {task} in only one of them")
        elif ours.version != theirs.version:
            differences.append(f"{task} version {ours.version}, not {theirs.version}")
        elif ours.examples != theirs.examples:
            differences.append(f"{task} few-shot examples from other rows")
        elif ours.sha256 != theirs.sha256:
            differences.append(
                f"{task} data {ours.source} {ours.sha256[:12]}, not {theirs.source} {theirs.sha256[:12]}"
            )
    return differences


def _other_model(a: ModelRecord, b: ModelRecord) -> str:
    return f"model {a.name} {a.fingerprint[:12]}, not {b.fingerprint[:12]}"


def _other_adapters(a: ModelRecord, b: ModelRecord) -> str | None:
    """What differs between the adapters on one base; None where the base does, or where there are none."""
    if a.experts is None or b.experts is None or a.experts.base != b.experts.base:
        return None
    ours, theirs = a.experts.adapters, b.experts.adapters
    for target in sorted(ours.keys() | theirs.keys()):
        mine, its = ours.get(target), theirs.get(target)
        if mine is None or its is None or mine.fingerprint != its.fingerprint:
            return f"adapter of {target}: {_in_words(mine)}, not {_in_words(its)}"
    return None


def _in_words(adapter: AdapterRecord | None) -> str:
    return "none" if adapter is None else f"{adapter.name} {adapter.fingerprint[:12]}"


def setup_warnings(a: RunRecord, b: RunRecord) -> list[str]:
    """A line for each run that is not of its protocol (see `protocol_warnings`), and one on what differs in how the two
    runs' replies were computed, if anything does.

    Such runs may be compared, but the same model gives other replies: floating-point sums in another order, or kernels
    of another version, change near ties. What only one of the runs recorded is not compared.
    """
    ours, theirs = _setup(a), _setup(b)
    different = [
        f"{name} {ours[name]} and {theirs[name]}"
        for name in ours
        if name in theirs and str(ours[name]) != str(theirs[name])
    ]
    found = [*protocol_warnings(a), *protocol_warnings(b)]
    if not different:
        return found
    return [
        *found,
        f"{a.run_id} and {b.run_id} were computed differently ({', '.join(different)}), which alone can change answers "
        f"and scores: evaluate both in the same way before trusting a small difference",
    ]


def _setup(record: RunRecord) -> dict[str, object]:
    """What is recorded of engine and numerics, by its name in words."""
    name, settings = record.engine.get("name"), record.engine.get("settings", {})
    found: dict[str, object] = {"engine": "stored replies" if name == "fake" else name}
    for key, words in (("vllm", "vLLM"), ("device", "device"), ("dtype", "dtype")):
        if key in settings:
            found[words] = str(settings[key]).removeprefix("torch.")
    if served := _adapters_served(record.model):
        found["adapters"] = served
    found["settings not applied"] = ", ".join(record.not_applied) or "none"
    if "vllm" in settings:
        found["batch-invariant mode"] = "on" if settings.get("batch_invariant") else "off"
        found["tensor parallel size"] = settings.get("tensor_parallel_size", 1)
    return found


def _adapters_served(model: ModelRecord) -> str | None:
    """How the adapters of a run were served; None where it has none."""
    if model.experts is not None and model.experts.served == "lora":
        return "beside their base"
    return "merged" if model.experts is not None or model.kind == "adapter" else None


def protocol_warnings(record: RunRecord) -> list[str]:
    """One line where what makes the protocol was not applied, so that the scores are those of another."""
    missing = [name for name in record.not_applied if name in PROTOCOL_SETTINGS]
    if not missing:
        return []
    return [
        f"{record.run_id}: the engine did not apply {', '.join(missing)}: its scores are those of another protocol "
        f"than {record.protocol['name']}"
    ]


def describe_repeats(record: RunRecord) -> str:
    """How often each question of the run is asked, for people."""
    if record.shuffle_options:
        return f"{record.shuffle_options} orders of the options"
    return f"{record.samples} samples per question" if record.samples > 1 else "one sample per question"


def refuse_incomplete(record: RunRecord) -> None:
    """Raises MedbenchError for a run of stored replies that lacked some."""
    if record.incomplete:
        raise MedbenchError(
            f"{record.run_id} is incomplete: {record.incomplete} questions lack replies; use medbench compare "
            f"--incomplete, which compares the questions that both runs answered"
        )


def refuse_unlike(a: RunRecord, b: RunRecord, tasks: Sequence[str]) -> None:
    """Raises MedbenchError unless both runs asked `tasks` in the same way.

    Protocol, partition, option orders, and each task's version, split, data and few-shot examples must be the same.
    """
    if not tasks:
        raise MedbenchError(
            f"{a.run_id} has {', '.join(a.tasks)}, {b.run_id} has {', '.join(b.tasks)}: no task in common"
        )
    if a.protocol != b.protocol:
        names = a.protocol["name"], b.protocol["name"]
        which = (
            f"protocol {names[0]} and {names[1]}" if names[0] != names[1] else f"two versions of protocol {names[0]}"
        )
        raise MedbenchError(f"{a.run_id} and {b.run_id} are not comparable: {which}")
    if a.partition != b.partition:
        raise MedbenchError(f"{a.run_id} and {b.run_id} are not comparable: partition {a.partition} and {b.partition}")
    if a.shuffle_options != b.shuffle_options:
        raise MedbenchError(
            f"{a.run_id} and {b.run_id} are not comparable: {describe_repeats(a)} and {describe_repeats(b)}"
        )
    for task in tasks:
        for field in ("version", "split", "sha256", "examples"):
            ours, theirs = getattr(a.tasks[task], field), getattr(b.tasks[task], field)
            if ours != theirs:
                raise MedbenchError(
                    f"{a.run_id} and {b.run_id} are not comparable: {task} {field} {str(ours)[:12]} "
                    f"and {str(theirs)[:12]}"
                )


def check_baseline(candidate: RunRecord, baseline: RunRecord, tasks: Sequence[str]) -> None:
    """Raises MedbenchError where the candidate cannot be compared with the baseline."""
    missing = [task for task in tasks if task not in baseline.tasks]
    if missing:
        raise MedbenchError(f"baseline {baseline.run_id} has no {', '.join(missing)}: evaluate it on them first")
    refuse_unlike(baseline, candidate, tasks)
    refuse_shuffled(baseline)
    refuse_incomplete(baseline)


def refuse_shuffled(record: RunRecord) -> None:
    """Raises MedbenchError for a run with shuffled options: it leaves out questions, and a gate is about all."""
    if record.shuffle_options:
        raise MedbenchError(
            f"{record.run_id} has {describe_repeats(record)}, and gates need each question as it is: "
            f"evaluate without --shuffle-options"
        )
