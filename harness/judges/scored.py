"""What a judge's verdicts come to for each reply: RUN/judgements/<task>.<judge>.scores.json, beside the verdicts.

It is all that pages, comparisons and gates read: they need no task, no source text and no judge. Written whole whenever
a run has been judged; judging again costs nothing where every step has its verdict, so a lost file is no loss.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated

import msgspec

from medbench.harness.contracts import MedbenchError, Say, sample_key
from medbench.harness.files import write_atomically
from medbench.harness.judges.contracts import VERDICTS, Judge, Verdict
from medbench.harness.judges.judge_run import JudgedReply, JudgedTask, JudgeOptions, judge_run
from medbench.harness.judges.judgements import FOLDER
from medbench.harness.judges.scores import ReplyScores, Row, TaskScores, scores_of, scores_of_rows
from medbench.harness.runs.records import SCHEMA_VERSION

ENDING = ".scores.json"
SCORES = tuple(ReplyScores.__slots__)
LETTERS: dict[str, Verdict | None] = {"s": VERDICTS[0], "c": VERDICTS[1], "n": VERDICTS[2], "-": None}
"""In ScoredReply.verdicts; "-" is a step without a verdict."""
_LETTER = {verdict: letter for letter, verdict in LETTERS.items()}
Count = Annotated[int, msgspec.Meta(ge=0, le=2**31)]
Score = Annotated[float, msgspec.Meta(ge=0, le=1)]


class ScoredReply(msgspec.Struct, frozen=True, gc=False):
    """One reply, without its text."""

    id: str
    """Of the question."""
    cluster: str
    repeat: Count
    source: str
    """Digits of a hash of the text that it was judged by."""
    verdicts: Annotated[str, msgspec.Meta(pattern="^[scn-]*$")]
    """A letter for each step, see LETTERS."""
    places: list[tuple[Count, Count] | None]
    """[start, end) of each step in the reply, in characters; None where it was not found there."""
    scores: tuple[Score, Score, Score] | None
    """As SCORES; None where every step failed."""

    @property
    def key(self) -> str:
        """As Sample.key."""
        return sample_key(self.id, self.repeat)

    @property
    def words(self) -> list[Verdict | None]:
        return [LETTERS[letter] for letter in self.verdicts]


class ScoredTask(msgspec.Struct, frozen=True):
    """The file."""

    task: str
    judge: str
    fingerprint: str
    unanswered: Count
    without_source: Count
    faults: dict[str, Count]
    """Why steps have no verdict, and how many."""
    replies: list[ScoredReply]
    sources: dict[str, str] = {}
    """ScoredReply.source -> the text, where it is not the task's own, which the prompt has."""
    schema_version: Annotated[int, msgspec.Meta(ge=1)] = SCHEMA_VERSION

    def summary(self) -> TaskScores:
        rows = [Row(one.cluster, one.words, ReplyScores(*one.scores) if one.scores else None) for one in self.replies]
        faults = (why for why, count in self.faults.items() for _ in range(count))
        return scores_of_rows(self.task, rows, self.unanswered, self.without_source, faults)


_decode = msgspec.json.Decoder(ScoredTask).decode


def scored_path(folder: Path, task: str, judge: str) -> Path:
    return folder / FOLDER / f"{task}.{judge}{ENDING}"


def judge_and_score(options: JudgeOptions, judge: Judge, say: Say) -> list[tuple[JudgedTask, TaskScores]]:
    """Judge a run and keep what comes of it. Raises MedbenchError as judge_run."""
    found = []
    for one in judge_run(options, judge, say):
        scored = _scored(one, judge, given=options.sources is not None)
        _keep(options.run, scored, limited=options.limit is not None)
        found.append((one, scored.summary()))
    return found


def read_scored(folder: Path, task: str, judge: str) -> ScoredTask | None:
    """None where `judge` has not judged the task. Raises MedbenchError for a damaged file."""
    path = scored_path(folder, task, judge)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_scored(content, path, task, judge)


def parse_scored(content: bytes, path: Path, task: str, judge: str) -> ScoredTask:
    """Raises MedbenchError for content that medbench did not write there."""
    try:
        found = _decode(content)
    except (ValueError, RecursionError):  # msgspec's own is a ValueError
        raise MedbenchError(f"{path}: not written by medbench, or damaged: judge the run again") from None
    if found.schema_version > SCHEMA_VERSION:
        raise MedbenchError(
            f"{path}: schema version {found.schema_version} is newer than {SCHEMA_VERSION}: upgrade medbench"
        )
    torn = sum(one.verdicts.count("-") for one in found.replies) != sum(found.faults.values())
    odd = any(
        len(one.places) != len(one.verdicts) or not all(place is None or place[0] < place[1] for place in one.places)
        for one in found.replies
    )
    if torn or odd or (found.task, found.judge) != (task, judge):
        raise MedbenchError(f"{path}: does not agree with itself: judge the run again")
    return found


def judged_unlike(one: ScoredTask, other: ScoredTask) -> str:
    """What differs in how two runs were judged; "" where their scores may be compared."""
    if one.fingerprint != other.fingerprint:
        return f"another version of {other.judge} ({other.fingerprint[:12]}, not {one.fingerprint[:12]})"
    texts = {reply.id: reply.source for reply in one.replies}
    if any(texts.get(reply.id, reply.source) != reply.source for reply in other.replies):
        return "other source texts"
    return ""


def _scored(judged: JudgedTask, judge: Judge, *, given: bool) -> ScoredTask:
    replies = [_reply(one) for one in judged.replies]
    texts = {source_key(one.reply.source): _plain(one.reply.source) for one in judged.replies} if given else {}
    return ScoredTask(
        task=judged.task,
        judge=judge.name,
        fingerprint=judge.fingerprint,
        unanswered=judged.unanswered,
        without_source=judged.without_source,
        faults=dict(Counter(map(_plain, judged.faults))),
        replies=replies,
        sources=texts,
    )


def _reply(one: JudgedReply) -> ScoredReply:
    scores = scores_of(one)
    return ScoredReply(
        id=_plain(one.reply.id),
        cluster=_plain(one.reply.cluster),
        repeat=one.reply.repeat,
        source=source_key(one.reply.source),
        verdicts="".join(_LETTER[verdict] for verdict in one.verdicts),
        places=list(one.reply.places),
        scores=(scores.factuality, scores.effectiveness, scores.completeness) if scores is not None else None,
    )


@lru_cache(maxsize=64)
def source_key(source: str) -> str:
    return hashlib.sha256(source.encode("utf-8", "replace")).hexdigest()[:16]


def _keep(folder: Path, scored: ScoredTask, *, limited: bool) -> None:
    """What a few questions show does not replace what more have shown of the same judge by the same texts."""
    path = scored_path(folder, scored.task, scored.judge)
    if limited and path.exists():
        try:
            before = read_scored(folder, scored.task, scored.judge)
        except MedbenchError:
            before = None
        if before is not None and before.fingerprint == scored.fingerprint and _holds(before.replies, scored.replies):
            return
    write_atomically(path, msgspec.json.encode(scored) + b"\n")


def _holds(more: Iterable[ScoredReply], few: Sequence[ScoredReply]) -> bool:
    known = {(one.id, one.repeat, one.source): one.verdicts for one in more}
    return all(known.get((one.id, one.repeat, one.source)) == one.verdicts for one in few)


def _plain(text: str) -> str:
    """With "?" for half a surrogate pair, which is no Unicode."""
    return text.encode("utf-8", "replace").decode()
