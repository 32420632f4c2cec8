"""From the journal to rows: every filter in its order, every reply in exactly one file.

Reads questions and replies side by side, both in order, and holds a block of replies at most. The same journal gives
the same bytes, whatever came in between while it was written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.files import cannot_write
from medbench.harness.judges.contracts import Judge
from medbench.harness.synth.candidates import Candidate, by_question, read_candidates
from medbench.harness.synth.chains import is_complete
from medbench.harness.synth.filters import Dropped, Passed, judged_alone
from medbench.harness.synth.generate import changed_source
from medbench.harness.synth.judging import BLOCK, JudgeOfReplies
from medbench.harness.synth.near_duplicates import NearDuplicates
from medbench.harness.synth.questions import Asked
from medbench.harness.synth.recipe import SynthRecipe
from medbench.harness.synth.rows import form_of, row_of
from medbench.harness.synth.tally import Tally
from medbench.harness.text import foreign
from medbench.trainers.data.overlap import OverlapIndex
from medbench.trainers.data.questions import Row

ACCEPTED = "accepted"
REJECTED = "rejected.jsonl"
PART = ".part"


@dataclass(slots=True)
class _Reply:
    """A reply on its way through the filters."""

    asked: Asked
    candidate: Candidate
    pass_rate: float | None
    found: Dropped | Passed
    judged: dict[str, int] | None = None

    @property
    def passed(self) -> Passed | None:
        return self.found if isinstance(self.found, Passed) else None


class Selection:
    """One pass over the journal in `folder`."""

    def __init__(
        self,
        recipe: SynthRecipe,
        folder: Path,
        generator: str,
        benchmarks: Mapping[str, Sequence[Question]],
        judge: Judge | None,
    ) -> None:
        """`generator`: fingerprint of the model that wrote the replies."""
        self._recipe, self._folder, self._generator = recipe, folder, generator
        self._judge = judge
        self._near: NearDuplicates | None = None
        filters = recipe.filters
        self._overlaps = OverlapIndex(benchmarks, filters.contamination) if filters.contamination else None
        self.tally = Tally()

    def run(self, questions: Iterator[Asked]) -> Tally:
        """Write accepted/ and rejected.jsonl. Raises MedbenchError where the sources have changed, and Interrupted
        for a full disk, leaving the files of an earlier pass as they were."""
        filters = self._recipe.filters
        with ExitStack() as open_things:
            if filters.near_duplicates is not None:
                self._near = open_things.enter_context(NearDuplicates(filters.near_duplicates, self._folder))
            judge = None
            if self._judge is not None:
                judge = open_things.enter_context(JudgeOfReplies(self._folder, self._judge, filters))
            self._files = open_things.enter_context(_Files(self._folder))
            for block in _blocks(self._replies(questions)):
                if judge is not None:
                    _judge(block, judge)
                for reply in block:
                    self._settle(reply)
            self._files.install()
        if judge is not None:
            assert self._judge is not None
            self.tally.judge = {
                "name": self._judge.name,
                "fingerprint": self._judge.fingerprint,
                "steps": judge.steps,
                "failed": judge.failed,
            }
        self.tally.files = self._files.counts
        return self.tally

    def _replies(self, questions: Iterator[Asked]) -> Iterator[_Reply]:
        recipe = self._recipe
        for at, candidates, is_done in by_question(
            read_candidates(self._folder), lambda found: is_complete(found, recipe)
        ):
            asked = next(questions, None)
            if asked is None:
                return  # fewer questions than before are wanted
            if not is_done or asked.at != at:
                raise MedbenchError(f"{self._folder}: replies to question {at} are missing: run again with --resume")
            if asked.question.id != candidates[0].id:
                raise changed_source(asked, candidates[0])
            rate = _pass_rate(candidates)
            ordered = sorted(candidates, key=lambda one: (one.attempt, one.round))
            self.tally.begin(asked, ordered)
            for candidate in ordered:
                yield _Reply(asked, candidate, rate, judged_alone(candidate, asked, recipe.filters))

    def _settle(self, reply: _Reply) -> None:
        """The filters that look at more than one reply, then the file."""
        row = None
        if isinstance(reply.found, Passed):
            reply.found, row = self._among_others(reply, reply.found)
        if isinstance(reply.found, Dropped):
            self._files.reject(self._rejected(reply, reply.found))
        else:
            assert row is not None
            self._files.accept(form_of(reply.asked), row)
        self.tally.add(reply.asked, reply.candidate, reply.found)

    def _among_others(self, reply: _Reply, passed: Passed) -> tuple[Dropped | Passed, dict[str, Any] | None]:
        asked, filters, reasoning = reply.asked, self._recipe.filters, passed.parts.reasoning
        if filters.pass_rate is not None and reply.pass_rate is not None:
            low, high = filters.pass_rate
            if not low <= reply.pass_rate <= high:
                hard = reply.pass_rate < low
                return Dropped("pass_rate", "too hard" if hard else "too easy", f"{reply.pass_rate:.3f}"), None
        if self._near is not None and (found := self._near.find(reasoning)):
            return Dropped("near_duplicate", "of an earlier reasoning", f"row {found[0]}, {found[1]:.3f}"), None
        if self._overlaps is not None and (overlap := self._overlap(asked, passed)):
            return overlap, None
        try:
            row = row_of(asked, passed.parts)
        except ValueError as error:
            return Dropped("form", "no trainer could read it", foreign(str(error))), None
        if self._near is not None:
            self._near.keep(reasoning)
        return passed, row | {"provenance": self._provenance(reply, passed)}

    def _overlap(self, asked: Asked, passed: Passed) -> Dropped | None:
        assert self._overlaps is not None
        answer = "" if asked.question.labels else passed.parts.answer
        text = Row(asked.where, asked.question, passed.parts.reasoning, answer, asked.system).screened(asked.at)
        found = next(self._overlaps.overlaps(text), None)
        if found is None:
            return None
        detail = f"question {foreign(found.question_id, 60)} ({found.part}, {found.kind} {found.score})"
        return Dropped("contamination", f"overlaps {found.task}", detail)

    def _provenance(self, reply: _Reply, passed: Passed | None) -> dict[str, Any]:
        candidate, asked = reply.candidate, reply.asked
        found: dict[str, Any] = {
            "source": asked.source,
            "id": asked.question.id,
            "reply": candidate.key,
            "generator": self._generator,
            "kind": candidate.prompt,
            "prompt_sha256": asked.kind.sha256,
            "strategy": candidate.strategy,
            "attempt": candidate.attempt,
            "round": candidate.round,
            "seed": candidate.seed,
            "told_answer": candidate.is_told,
            "answer": candidate.answer,
            "right": candidate.right,
            "pass_rate": reply.pass_rate,
        }
        if passed is not None:
            found |= {"repetition": round(passed.repetition, 4), "judge": reply.judged}
        return found

    def _rejected(self, reply: _Reply, dropped: Dropped) -> dict[str, Any]:
        return {**asdict(dropped), "output": reply.candidate.output, "provenance": self._provenance(reply, None)}


def _pass_rate(candidates: Sequence[Candidate]) -> float | None:
    """Share of right answers among the first replies that did not fail; None without any that is right or wrong."""
    first = [one.right for one in candidates if one.round == 0 and one.right is not None]
    return sum(first) / len(first) if first else None


def _blocks(replies: Iterator[_Reply]) -> Iterator[list[_Reply]]:
    """Each holds BLOCK replies that passed so far, the last one fewer."""
    block: list[_Reply] = []
    passed = 0
    for reply in replies:
        block.append(reply)
        passed += reply.passed is not None
        if passed == BLOCK or len(block) == 16 * BLOCK:
            yield block
            block, passed = [], 0
    if block:
        yield block


def _judge(block: list[_Reply], judge: JudgeOfReplies) -> None:
    passed = [(reply, found) for reply in block if (found := reply.passed) is not None]
    shares = judge.shares([(reply.asked, found.parts.reasoning) for reply, found in passed])
    for (reply, _), share in zip(passed, shares, strict=True):
        if isinstance(share, Dropped):
            reply.found = share
        else:
            reply.judged = share


class _Files:
    """Files under temporary names until all are complete. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def accept(self, form: str, row: Mapping[str, Any]) -> None:
        self._write(f"{ACCEPTED}/{form}.jsonl", row)

    def reject(self, row: Mapping[str, Any]) -> None:
        self._write(REJECTED, row)

    def install(self) -> None:
        """Replace what an earlier pass wrote."""
        self._file(REJECTED)
        (self._folder / ACCEPTED).mkdir(exist_ok=True)
        for name in list(self._open):
            self._open.pop(name).close()
            self._temporary(name).replace(self._folder / name)
        for path in (self._folder / ACCEPTED).glob("*.jsonl"):
            if f"{ACCEPTED}/{path.name}" not in self.counts:
                path.unlink()

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            self._file(name).write(line)
        except OSError as error:
            raise cannot_write(self._folder / name, error) from None
        self.counts[name] += 1

    def _file(self, name: str) -> Any:
        if name not in self._open:
            path = self._temporary(name)
            try:
                path.parent.mkdir(exist_ok=True)
                self._open[name] = path.open("wb")
            except OSError as error:
                raise cannot_write(path, error) from None
            self.counts[name] = 0
        return self._open[name]

    def _temporary(self, name: str) -> Path:
        path = self._folder / name
        return path.with_name(f".{path.name}{PART}")

    def __enter__(self) -> _Files:
        for folder in (self._folder, self._folder / ACCEPTED):  # of a pass that was killed
            for path in folder.glob(f".*{PART}"):
                path.unlink()
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._open):
            self._open.pop(name).close()
            self._temporary(name).unlink(missing_ok=True)
