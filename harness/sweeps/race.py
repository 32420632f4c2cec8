"""The comparison of a sweep's checkpoints: all are asked the same questions in one order, and `halving` drops cells.

The answers are kept in an ordinary run folder a cell. What a run has is not asked again, and the rule is a function of
the answers alone, so a comparison that was killed comes to the same drops.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medbench.harness.contracts import Sample, Say, Task, sample_key
from medbench.harness.engines.pool import EngineKeeper
from medbench.harness.evaluation.options import EvalOptions
from medbench.harness.evaluation.plan import Plan, example_notes, open_evaluation, plan_evaluation
from medbench.harness.evaluation.progress import progress_for
from medbench.harness.evaluation.requests import Instance, permuted
from medbench.harness.evaluation.runner import ask, refuse_foreign_answers, seal
from medbench.harness.gates.metric_values import value_of_question
from medbench.harness.protocols.protocol import Protocol
from medbench.harness.runs.compare import paired_difference
from medbench.harness.runs.run_folder import is_run, reopen_run
from medbench.harness.stats.intervals import clustered_interval, clustered_mean_interval
from medbench.harness.stats.sequential import SequentialTest
from medbench.harness.sweeps.halving import Halving, Score, rounds
from medbench.harness.sweeps.record import CellDrop, CellScore

LEVEL = 0.05
"""1 minus the level of a score's interval."""


@dataclass(frozen=True, slots=True)
class Race:
    """What is asked, of whom."""

    task: Task
    """With the questions of the comparison only."""
    protocol: Protocol
    samples: int
    checkpoints: Mapping[str, Path]
    """Cell -> its checkpoint."""
    options: EvalOptions
    """Engine, data and the folder of run folders."""
    order_seed: str
    alpha: float
    most: int
    """Questions that a cell is asked at most."""

    @property
    def order(self) -> list[str]:
        return permuted((one.id for one in self.task.questions), seed=self.order_seed, task=self.task.name)

    def run(self, keeper: EngineKeeper, say: Say, ended: Callable[[Halving], None] = lambda rule: None) -> Halving:
        """Until one cell is left or all questions are asked; `ended` is called after each round."""
        order = self.order
        plans = {cell: self._plan(cell, say) for cell in self.checkpoints}
        rule = Halving(list(self.checkpoints), order, self.alpha, self.samples)
        begin = 0
        for end in rounds(min(self.most, len(order))):
            found = {cell: self._scores(plans[cell], order[:end], keeper, say)[begin:] for cell in rule.left}
            for drop in rule.observe(found):
                rest = ", whatever the rest would be" if drop.exact else ""
                say(f"{drop.cell}: dropped, shown to be worse than {drop.by} after {drop.after} questions{rest}")
            ended(rule)
            begin = end
            if len(rule.left) == 1 < len(rule.cells):
                break
        return rule

    def _plan(self, cell: str, say: Say) -> Plan:
        options = replace(self.options, model=str(self.checkpoints[cell]), name=cell, order_seed=self.order_seed)
        notes = example_notes([self.task], self.protocol)
        return plan_evaluation(options, [self.task], self.protocol, say, notes=notes)

    def _scores(self, plan: Plan, ids: Sequence[str], keeper: EngineKeeper, say: Say) -> list[Score]:
        """Of the first questions of the order, those asked that the cell's run does not have."""
        if is_run(plan.folder):
            with reopen_run(plan.folder, plan.wanted) as run:
                refuse_foreign_answers(run, [self.task])
                stored = {sample.key: sample for sample in run.answered(self.task.name)}
            if all(key in stored for key in self._keys(ids)):
                return self._scored(ids, stored)
        questions = {question.id: question for question in self.task.questions}
        with open_evaluation(plan, say, keeper) as (run, engine), progress_for(quiet=plan.options.quiet) as progress:
            stored = {sample.key: sample for sample in run.answered(self.task.name)}
            wanted = self._keys(ids)
            progress.start(self.task.name, len(wanted), sum(key in stored for key in wanted))
            missing = [
                Instance(self.task, questions[id], repeat)
                for id in ids
                for repeat in range(self.samples)
                if sample_key(id, repeat) not in stored
            ]
            for _, found in ask(run, missing, self.protocol, engine):
                if isinstance(found, Sample):
                    stored[found.key] = found
                    progress.advance(self.task.name, found)
            if len(ids) == len(questions) and run.record.status == "running":
                seal(run, [self.task], self.protocol)
        return self._scored(ids, stored)

    def _keys(self, ids: Sequence[str]) -> list[str]:
        return [sample_key(id, repeat) for id in ids for repeat in range(self.samples)]

    def _scored(self, ids: Sequence[str], stored: Mapping[str, Sample]) -> list[Score]:
        found = []
        for id in ids:
            samples = [stored[key] for key in self._keys([id]) if key in stored]
            whole = len(samples) == self.samples
            found.append(value_of_question(samples, "accuracy") if whole else None)
        return found


def order_seed_of(seed: int, fingerprints: Sequence[str]) -> str:
    """The seed of a comparison's order. It depends on all weights that are compared, so that no training can have been
    influenced by the order, and is the same when a sweep is resumed."""
    digest = hashlib.sha256("\0".join(sorted(fingerprints)).encode()).hexdigest()
    return f"{seed} {digest}"


def drop_of(rule: Halving, cell: str) -> CellDrop | None:
    """As it is kept; infinite evidence as 1e9, for JSON has no infinity."""
    found = next((drop for drop in rule.dropped if drop.cell == cell), None)
    return CellDrop(by=found.by, after=found.after, exact=found.exact, log_e=min(found.log_e, 1e9)) if found else None


def best_of(rule: Halving, trained: Mapping[str, int | None]) -> str:
    """Of the cells that are left the one with the highest score; if equal, with fewer `trained` parameters."""
    return max(rule.left, key=lambda cell: (_mean(rule.scores[cell]) or 0.0, -(trained.get(cell) or 0)))


def scores_of(rule: Halving, task: Task, best: str) -> dict[str, CellScore]:
    """Each cell's score, with its difference to the best one's."""
    clusters = {question.id: question.cluster for question in task.questions}
    return {cell: _score_of(rule, clusters, cell, best) for cell in rule.cells}


def _score_of(rule: Halving, clusters: Mapping[str, str], cell: str, best: str) -> CellScore:
    scores, order = rule.scores[cell], rule.order
    whole = len(scores) == len(order) and None not in scores
    to_best, to_best_interval = None, None
    if cell != best:
        pairs = [
            (clusters[id], own, other)
            for id, own, other in zip(order, scores, rule.scores[best], strict=False)
            if own is not None and other is not None
        ]
        if pairs:
            found = paired_difference(pairs)
            to_best = found.difference
            to_best_interval = found.interval if whole and len(pairs) == len(order) else None
    return CellScore(
        asked=len(scores),
        failed=scores.count(None),
        score=_mean(scores),
        interval=_for_new(rule, clusters, scores) if whole else _for_all(rule, scores),
        of_new_questions=whole,
        to_best=to_best,
        to_best_interval=to_best_interval,
    )


def _for_new(rule: Halving, clusters: Mapping[str, str], scores: Sequence[Score]) -> tuple[float, float]:
    grouped: dict[str, list[float]] = defaultdict(list)
    for id, score in zip(rule.order, scores, strict=True):
        grouped[clusters[id]].append(score or 0.0)
    if rule.samples > 1:
        return clustered_mean_interval(list(grouped.values()), LEVEL)
    return clustered_interval([(len(one), sum(one)) for one in grouped.values()], LEVEL)


def _for_all(rule: Halving, scores: Sequence[Score]) -> tuple[float, float]:
    """Of the mean over all questions, from those asked so far; failed requests may have been either."""
    ends = []
    for failed in (0.0, 1.0):
        test = SequentialTest(
            rule.order, at_least=0.5, alpha_pass=LEVEL / 2, alpha_fail=LEVEL / 2, resolution=rule.samples
        )
        test.observe([failed if one is None else one for one in scores])
        ends.append(test.evidence().interval)
    return ends[0][0], ends[1][1]


def _mean(scores: Sequence[Score]) -> float | None:
    known = [one for one in scores if one is not None]
    return sum(known) / len(known) if known else None
