"""Questions with options, replies of known worth to them, and recipes for `medbench synth` on them.

    from support.synth import write_rows, write_replies, good_reply, recipe

A good reply has steps in full sentences, of made-up words that are drawn from its seed, so that two replies are no
near-duplicates.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from medbench.harness.contracts import Question
from medbench.trainers.data.rows import Source, rows_in

SYLLABLES = ("ba", "do", "fi", "ku", "le", "mo", "na", "pi", "ro", "su", "ta", "vi")
KINDS = ("What is the most likely diagnosis?", "What is the best next step?", "Which treatment is best?")
OPENINGS = ("The finding of", "A course with", "Its history of", "The report of", "An exposure to", "The absence of")
VERBS = ("points to", "speaks for", "is typical of", "goes with", "is what one sees in", "argues for")
DENIALS = ("would not explain", "cannot account for", "leaves open", "does not fit with", "says nothing about")
MARK = "SYNTH_TEST"


def name_of(draw: random.Random, syllables: int = 4) -> str:
    return "".join(draw.choice(SYLLABLES) for _ in range(syllables))


def write_rows(path: Path, n: int, *, seed: int = 0) -> list[Question]:
    """`n` rows with four options, and the questions that the trainers read of them."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for at in range(n):
            findings = ", ".join(name_of(draw) for _ in range(3))
            row = {
                "question": f"A man of {20 + at % 60} years has {findings}. {KINDS[at % len(KINDS)]}",
                "options": {letter: f"{name_of(draw)} {name_of(draw)}" for letter in "ABCD"},
                "answer_idx": "ABCD"[draw.randrange(4)],
            }
            file.write(json.dumps(row) + "\n")
    return questions_in(path)


def questions_in(path: Path) -> list[Question]:
    return [row.question for row in rows_in(Source(path=str(path)))]  # type: ignore[union-attr]


def good_reply(question: Question, letter: str, seed: object) -> str:
    """A reply in the form that is asked for, which answers `letter`."""
    draw = random.Random(f"{question.id} {seed}")
    option = question.options[question.labels.index(letter)]
    sentences = [
        f"{draw.choice(OPENINGS)} {name_of(draw)} {draw.choice(VERBS)} {name_of(draw)}, which {name_of(draw)} "
        f"{draw.choice(DENIALS)} in this man."
        for _ in range(5)
    ]
    return f"{' '.join(sentences)} Of the options {option} fits the findings best.\n\nThe answer is ({letter})."


def wrong_letter(question: Question) -> str:
    return next(label for label in question.labels if label != question.gold)


Reply = str | Mapping[str, Any]


def write_replies(path: Path, questions: Iterable[Question], reply: Callable[[Question, int], Reply], n: int) -> None:
    """Replies 0 to n - 1 of each question; `reply` gives the text, or the fields of the line."""
    with path.open("w") as file:
        for question in questions:
            for sample in range(n):
                found = reply(question, sample)
                fields = {"output": found} if isinstance(found, str) else dict(found)
                file.write(json.dumps({"id": question.id, "sample": sample, **fields}) + "\n")


def write_one_wrong(folder: Path) -> None:
    """Four questions in rows.jsonl, and a reply to each in replies.jsonl: a wrong one to the second."""
    questions = write_rows(folder / "rows.jsonl", 4)
    bad = questions[1].id
    write_replies(
        folder / "replies.jsonl",
        questions,
        lambda one, number: good_reply(one, wrong_letter(one) if one.id == bad else one.gold, number),
        1,
    )


def recipe(folder: Path, **more: Any) -> Path:
    """A recipe on rows.jsonl and replies.jsonl in `folder`, without a contamination filter."""
    content: dict[str, Any] = {
        "name": "trial",
        "generator": {"model": "stored", "replies": str(folder / "replies.jsonl")},
        "sources": [{"path": str(folder / "rows.jsonl")}],
        "filters": {"contamination": None},
    }
    for key, value in more.items():
        content[key] = {**content[key], **value} if isinstance(content.get(key), dict) else value
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
