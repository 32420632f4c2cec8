"""Counts over all replies of a selection, in memory that does not grow with them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from medbench.harness.contracts import Question
from medbench.harness.runs.synth_record import Card, Example, FilterCount, KindCount, StrategyCount
from medbench.harness.stats.intervals import counted_clusters_interval
from medbench.harness.synth.candidates import Candidate
from medbench.harness.synth.filters import FILTERS, Dropped, Passed
from medbench.harness.synth.questions import Asked

EXAMPLE_CHARACTERS = 1200
QUESTION_CHARACTERS = 600
EXAMPLES_PER_KIND = 2


class Tally:
    """Fed with every question, and then with what became of each of its replies, in order."""

    def __init__(self) -> None:
        self.files: dict[str, int] = {}
        self.judge: dict[str, Any] | None = None
        self._reasons: Counter[tuple[str, str]] = Counter()
        self._kinds: dict[str, Counter[str]] = {}
        self._hashes: dict[str, str] = {}
        self._strategies: dict[str, Counter[str]] = {}
        self._sizes: Counter[tuple[int, float]] = Counter()
        self._totals: Counter[str] = Counter()
        self._chance = 0.0
        self._accepted: dict[str, list[Example]] = {}
        self._dropped: dict[str, Example] = {}
        self._open: dict[int, list[int]] = {}
        """Questions whose replies are on their way: place -> [replies, those to come, accepted]."""

    def begin(self, asked: Asked, candidates: Sequence[Candidate]) -> None:
        kind = self._kinds.setdefault(asked.kind.name, Counter())
        kind["questions"] += 1
        self._hashes[asked.kind.name] = asked.kind.sha256
        self._totals["questions"] += 1
        self._open[asked.at] = [len(candidates), len(candidates), 0]

    def add(self, asked: Asked, candidate: Candidate, found: Dropped | Passed) -> None:
        accepted = isinstance(found, Passed)
        for counts in (
            self._kinds[asked.kind.name],
            self._strategies.setdefault(candidate.strategy, Counter()),
            self._totals,
        ):
            counts["replies"] += 1
            counts["right"] += bool(candidate.right)
            counts["accepted"] += accepted
        totals = self._totals
        totals["told"] += candidate.is_told
        totals["told_accepted"] += accepted and candidate.is_told
        totals["prompt_tokens"] += candidate.prompt_tokens
        totals["completion_tokens"] += candidate.completion_tokens
        if candidate.round == 0 and candidate.right is not None:
            totals["first"] += 1
            totals["first_right"] += candidate.right
            self._chance += 1 / len(asked.question.labels) if asked.question.labels else 0.0
        if isinstance(found, Dropped):
            self._reasons[found.filter, found.reason] += 1
        self._show(asked, candidate, found)
        self._close(asked.at, accepted)

    def card(self) -> Card:
        totals = self._totals
        low, high = counted_clusters_interval(self._sizes) if totals["replies"] else (0.0, 1.0)
        return Card(
            questions=totals["questions"],
            replies=totals["replies"],
            accepted=totals["accepted"],
            low=low,
            high=high,
            answered=sum(times for (_, accepted), times in self._sizes.items() if accepted),
            first_right=totals["first_right"] / totals["first"] if totals["first"] else None,
            chance=self._chance / totals["first"] if totals["first"] else None,
            told=totals["told"],
            told_accepted=totals["told_accepted"],
            prompt_tokens=totals["prompt_tokens"],
            completion_tokens=totals["completion_tokens"],
            filters=self._filters(),
            kinds=[
                KindCount(kind=kind, sha256=self._hashes[kind], **_of(counts, "questions"))
                for kind, counts in sorted(self._kinds.items())
            ],
            strategies=[
                StrategyCount(strategy=strategy, **_of(counts)) for strategy, counts in sorted(self._strategies.items())
            ],
            files=dict(sorted(self.files.items())),
            judge=self.judge,
            examples=[
                *(example for kind in sorted(self._accepted) for example in self._accepted[kind]),
                *(self._dropped[name] for name in FILTERS if name in self._dropped),
            ],
        )

    def _filters(self) -> list[FilterCount]:
        found, seen = [], self._totals["replies"]
        for name in FILTERS:
            reasons = {reason: n for (other, reason), n in sorted(self._reasons.items()) if other == name}
            dropped = sum(reasons.values())
            found.append(FilterCount(filter=name, seen=seen, dropped=dropped, reasons=reasons))
            seen -= dropped
        return found

    def _close(self, at: int, accepted: bool) -> None:
        counts = self._open[at]
        counts[1] -= 1
        counts[2] += accepted
        if not counts[1]:
            replies, _, passed = self._open.pop(at)
            self._sizes[replies, float(passed)] += 1

    def _show(self, asked: Asked, candidate: Candidate, found: Dropped | Passed) -> None:
        if isinstance(found, Passed):
            shown = self._accepted.setdefault(asked.kind.name, [])
            if len(shown) < EXAMPLES_PER_KIND:
                shown.append(_example(asked, candidate, None, "", found.parts.reasoning))
        elif found.filter not in self._dropped:
            reason = f"{found.reason} ({found.detail})" if found.detail else found.reason
            self._dropped[found.filter] = _example(asked, candidate, found.filter, reason, candidate.output)


def _of(counts: Counter[str], *more: str) -> dict[str, int]:
    return {name: counts[name] for name in (*more, "replies", "right", "accepted")}


def _example(asked: Asked, candidate: Candidate, filter: str | None, reason: str, text: str) -> Example:
    return Example(
        key=candidate.key,
        kind=asked.kind.name,
        filter=filter,
        reason=reason,
        question=_short(_asked(asked.question), QUESTION_CHARACTERS),
        text=_short(text, EXAMPLE_CHARACTERS),
    )


def _asked(question: Question) -> str:
    if not question.labels or question.options == question.labels:
        return f"{question.question} ({question.gold})"
    options = "; ".join(f"{label}. {text}" for label, text in zip(question.labels, question.options, strict=True))
    return f"{question.question} {options} (right: {question.gold})"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most].rstrip()} ..."
