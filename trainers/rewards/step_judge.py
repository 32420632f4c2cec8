"""A judge that a training asks at each step, and the file of its verdicts in the training's folder.

Started with the first reply to be judged, and kept until the training ends. No step is asked twice: also one on which
the judge failed keeps that outcome, so that a resumed training gets the rewards that the killed one got. Each process
of a training has a judge and a file of its own, FOLDER/judgements-RANK/JUDGE.jsonl, in the form of judgements.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from medbench.harness.contracts import MedbenchError, Say
from medbench.harness.judges.contracts import Item, Judge, Ruling, item_id
from medbench.harness.judges.judgements import Judgement, JudgementLog
from medbench.harness.judges.settings import JudgeSettings, start_from
from medbench.harness.judges.steps import sentences
from medbench.harness.text import foreign

MOST_SILENT = 20
"""Steps in a row, over whole batches, without a verdict: the judge is then taken to be broken."""
TRIAL_SECONDS = 120.0
"""For the first verdict of a program, which may have to load a model."""


def tried(settings: JudgeSettings, where: str, source: str, say: Say = lambda _: None) -> str:
    """The judge's fingerprint, if it can be started. A program is also asked about a sentence of `source`, and must
    answer without waiting for the end of its input; other judges load a model for that, which is left to the training.

    Raises MedbenchError.
    """
    timeout = min(settings.timeout, TRIAL_SECONDS)
    judge = start_from(settings.model_copy(update={"timeout": timeout}), where, say, kept=True)
    try:
        if settings.command is not None:
            step = (sentences(source) or [source])[0]
            item = Item(item_id(step, source), step, source)
            rulings = list(judge.judge([item])) or [Ruling(item.id, None, "no verdict")]
            if rulings[-1].verdict is None:
                raise MedbenchError(f"{where}: the judge {judge.name} failed on a first step: {rulings[-1].fault}")
        return judge.fingerprint
    finally:
        judge.close()


class StepJudge:
    """See the module."""

    def __init__(self, settings: JudgeSettings, where: str, folder: Path, *, rank: int = 0, say: Say = print) -> None:
        """`where`: see start_from. Nothing is started yet."""
        self._settings, self._where, self._say = settings, where, say
        self._path = folder / f"judgements-{rank}" / f"{settings.judge}.jsonl"
        self._judge: Judge | None = None
        self._log: JudgementLog | None = None
        self._known: dict[str, Ruling] = {}
        self._silent = 0

    def rulings(self, items: Mapping[str, tuple[Item, str]]) -> dict[str, Ruling]:
        """Item id -> ruling, of each of `items`: item id -> (item, id of its question).

        Raises MedbenchError where the judge cannot be asked, and where it gives no verdict at all again and again.
        """
        judge, log = self._opened()
        wanted = [item for id, (item, _) in items.items() if id not in self._known]
        if wanted:
            self._ask(judge, log, wanted, {id: question for id, (_, question) in items.items()})
        return {id: self._known.get(id, Ruling(id, None, "no verdict")) for id in items}

    def close(self) -> None:
        try:
            if self._judge is not None:
                self._judge.close()
        finally:
            if self._log is not None:
                self._log.__exit__()
            self._judge = self._log = None

    def _opened(self) -> tuple[Judge, JudgementLog]:
        if self._judge is None:
            self._judge = start_from(self._settings, self._where, self._say, kept=True)
        if self._log is None:
            self._path.parent.parent.mkdir(parents=True, exist_ok=True)
            self._log = JudgementLog(self._path)
            self._known = {
                line.item: Ruling(line.item, line.verdict, line.fault)
                for line in self._log.before
                if line.judge == self._judge.fingerprint
            }
        return self._judge, self._log

    def _ask(self, judge: Judge, log: JudgementLog, wanted: Sequence[Item], questions: Mapping[str, str]) -> None:
        asked = {item.id: item for item in wanted}
        failed: dict[str, Ruling] = {id: Ruling(id, None, "no verdict") for id in asked}
        for ruling in judge.judge(list(asked.values())):
            if ruling.id not in asked:
                raise MedbenchError(
                    f"{self._where}: the judge {judge.name} rules on {foreign(ruling.id, 60)!r}, which was not asked"
                )
            if ruling.verdict is None:
                failed[ruling.id] = ruling
            else:
                failed.pop(ruling.id, None)
                self._keep(log, asked[ruling.id], ruling, questions)
        if len(failed) == len(asked):
            self._bear_silence(judge, list(failed.values()))
            return
        self._silent = 0
        for id, ruling in failed.items():
            self._keep(log, asked[id], ruling, questions)

    def _keep(self, log: JudgementLog, item: Item, ruling: Ruling, questions: Mapping[str, str]) -> None:
        assert self._judge is not None
        fingerprint = self._judge.fingerprint
        log.append(Judgement(fingerprint, item.id, questions[item.id], item.step, ruling.verdict, ruling.fault))
        self._known[item.id] = ruling

    def _bear_silence(self, judge: Judge, failed: Sequence[Ruling]) -> None:
        """Of a batch without a verdict nothing is kept: a judge that is down for a while is asked again."""
        self._silent += len(failed)
        said = f"{self._where}: the judge {judge.name} gave no verdict on {self._silent} steps in a row, last: "
        if self._silent >= MOST_SILENT:
            raise MedbenchError(f"{said}{failed[-1].fault}: fix it, then --resume")
        self._say(f"{said}{failed[-1].fault}")
