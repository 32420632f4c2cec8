"""Two judged runs: the paired differences of their scores, where one judge has judged both by the same texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from medbench.harness.judges.judgements import FOLDER
from medbench.harness.judges.scored import ENDING, SCORES, ScoredTask, judged_unlike, read_scored
from medbench.harness.runs.compare import Difference, paired_difference


@dataclass(frozen=True, slots=True)
class JudgedComparison:
    """One task, one judge, both runs."""

    task: str
    judge: str
    fault: str
    """Why the scores cannot be compared; "" where they can."""
    fingerprint: str = ""
    scores: Mapping[str, Difference] | None = None
    """Name of each score -> B minus A on the questions that have one in both; with several replies to a question, of
    their means. `lost` and `gained` count questions with a lower and a higher score in B."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def judges_of(folder: Path, task: str) -> list[str]:
    """Names of the judges that have scored a task of a run, sorted."""
    try:
        names = [file.name for file in (folder / FOLDER).iterdir()]
    except OSError:
        return []
    start = f"{task}."
    found = [name[len(start) : -len(ENDING)] for name in names if name.startswith(start) and name.endswith(ENDING)]
    # a task's name may have dots, a judge's has none: "a" is not judged by "b.command"
    return sorted(name for name in found if name and "." not in name)


def compare_judged(a: Path, b: Path, tasks: Iterable[str]) -> list[JudgedComparison]:
    """Every task and judge of either run. Raises MedbenchError for a damaged file."""
    return [
        comparison_of(task, judge, read_scored(a, task, judge), read_scored(b, task, judge))
        for task in tasks
        for judge in sorted({*judges_of(a, task), *judges_of(b, task)})
    ]


def comparison_of(task: str, judge: str, a: ScoredTask | None, b: ScoredTask | None) -> JudgedComparison:
    """At least one of them is there."""
    if a is None or b is None:
        return JudgedComparison(task, judge, f"only {'A' if b is None else 'B'} was judged by it")
    if unlike := judged_unlike(a, b):
        return JudgedComparison(task, judge, f"B was judged by {unlike}")
    first, second = _by_question(a), _by_question(b)
    shared = sorted(first.keys() & second.keys())
    if not shared:
        return JudgedComparison(task, judge, "no question has a score in both")
    scores = {
        name: paired_difference([(first[id][0], first[id][1][place], second[id][1][place]) for id in shared])
        for place, name in enumerate(SCORES)
    }
    return JudgedComparison(task, judge, "", a.fingerprint, scores)


def _by_question(scored: ScoredTask) -> dict[str, tuple[str, tuple[float, ...]]]:
    """Question id -> cluster, and the mean of each score over its replies."""
    found: dict[str, tuple[str, list[tuple[float, ...]]]] = {}
    for reply in scored.replies:
        if reply.scores is not None:
            found.setdefault(reply.id, (reply.cluster, []))[1].append(reply.scores)
    return {id: (cluster, tuple(map(fmean, zip(*some, strict=True)))) for id, (cluster, some) in found.items()}
