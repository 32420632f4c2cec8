"""The text that the steps of a reply are judged by: the task's own, such as PubMedQA's abstract, or that of a file.

The file has JSON lines {"id", "source"}, for instance the reference reasoning of a data set's rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.benchmarks.rows import read_jsonl
from medbench.harness.contracts import MedbenchError, Question, Say
from medbench.harness.runs.stored_run import StoredRun
from medbench.harness.text import foreign


def read_sources(path: Path) -> dict[str, str]:
    """Question id -> its text. Raises MedbenchError naming file and line."""
    found: dict[str, str] = {}
    for number, row in read_jsonl(path):
        id, source = row.get("id"), row.get("source")
        if not isinstance(id, str) or not isinstance(source, str) or not source.strip():
            raise MedbenchError(f'{path}:{number}: each line must be {{"id": question id, "source": text}}, both text')
        if found.setdefault(id, source) != source:
            raise MedbenchError(f"{path}:{number}: question {foreign(id, 60)!r} has another source above: keep one")
    if not found:
        raise MedbenchError(f'{path}: no lines: each must be {{"id": question id, "source": text}}')
    return found


def refuse_without_sources(tasks: Sequence[str], data: str | None, file: Path | None, say: Say) -> None:
    """Before an evaluation. Raises MedbenchError where none of `tasks` could be judged, and for a faulty file."""
    given = read_sources(file) if file is not None else None
    loader = TaskLoader(data, say)
    for name in tasks:
        if sources_of({question.id: question for question in loader.load(name).questions}, given):
            return
    kind = "no text to read beside their questions" if given is None else f"no question in {file}"
    raise MedbenchError(f"{', '.join(tasks)}: {kind}, so no step can be judged: leave --judge out")


def questions_of(run: StoredRun, task: str, loader: TaskLoader) -> dict[str, Question]:
    """Question id -> question, of the rows that were asked. Raises MedbenchError where the data are others."""
    record = run.record.tasks[task]
    loaded = loader.load(task, record.split)
    if loaded.data.sha256 != record.sha256:
        raise MedbenchError(
            f"{run.folder}: {task} was asked from other rows (sha256 {record.sha256[:12]}) than those at hand "
            f"({loaded.data.sha256[:12]}): name theirs with --data"
        )
    return {question.id: question for question in loaded.questions}


def sources_of(questions: Mapping[str, Question], given: Mapping[str, str] | None) -> dict[str, str]:
    """Question id -> source: `given`'s where there is a file, else the question's own text to read; without empties."""
    if given is not None:
        return {id: given[id] for id in questions if id in given}
    return {id: question.context for id, question in questions.items() if question.context.strip()}
