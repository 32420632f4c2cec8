"""Which adapter answers a question, in a run whose tasks are asked of adapters of their own.

    target_of(record.model.experts.adapters, "medqa", {"meta_info": "step1"})

A target is a task, or "task/field=value" for the questions of one category, which comes before the task's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from medbench.harness.runs.records import AdapterRecord, RunRecord


def target_of(targets: Collection[str], task: str, category: Mapping[str, str]) -> str | None:
    """The target that a question of `task` belongs to; None where the base answers it."""
    for field, value in category.items():
        if (one := f"{task}/{field}={value}") in targets:
            return one
    return task if task in targets else None


def adapter_of(record: RunRecord, task: str, category: Mapping[str, str]) -> AdapterRecord | None:
    """The adapter that answers a question of `task` in the run; None where the model itself does."""
    experts = record.model.experts
    if experts is None:
        return None
    target = target_of(experts.adapters, task, category)
    return None if target is None else experts.adapters[target]


def adapters_of_task(record: RunRecord, task: str) -> list[tuple[str, AdapterRecord]]:
    """(which of the task's questions, in words; the adapter that answered them); empty where only the model itself did.

    Questions of no category named here were answered by the base.
    """
    experts = record.model.experts
    if experts is None:
        return []
    start = f"{task}/"
    found = [(target.removeprefix(start), one) for target, one in experts.adapters.items() if target.startswith(start)]
    whole = experts.adapters.get(task)
    return [*found, *([] if whole is None else [("others" if found else "all", whole)])]


def answered_by(record: RunRecord, task: str) -> list[str]:
    """Who answered `task`, in words; empty where the model has no adapters for any task."""
    if record.model.experts is None:
        return []
    found = [f"{which}: {one.name}" if which != "all" else one.name for which, one in adapters_of_task(record, task)]
    whole = task in record.model.experts.adapters
    return found if whole else [*found, f"{'others: ' if found else ''}{record.model.base}, without an adapter"]
