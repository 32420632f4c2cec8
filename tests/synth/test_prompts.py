"""The prompts: every kind can be asked, nothing of a question is lost, and a question's braces are its own.

pytest tests/synth/test_prompts.py
"""

from __future__ import annotations

from pathlib import Path

import pytest

from medbench.harness.contracts import Question
from medbench.harness.synth.prompts import (
    FIRST,
    KINDS,
    TOLD,
    checked_kind,
    kind_by_rules,
    load_kind,
    messages_of,
)
from medbench.harness.synth.recipe import STRATEGIES

OPTIONS = Question("1", "1", "What is {task} of a man with {fever}?", ("Flu {gold}", "Cold"), ("A", "B"), "A")
ABSTRACT = Question(
    "2", "2", "Does it help?", ("yes", "no", "maybe"), ("yes", "no", "maybe"), "no", "We gave it to 12."
)
SHORT = Question("3", "3", "How many?", (), (), "4 days")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", [FIRST, *STRATEGIES, TOLD])
@pytest.mark.parametrize("question", [OPTIONS, ABSTRACT, SHORT], ids=["options", "abstract", "short"])
def test_every_kind_asks_every_question_as_it_is(kind: str, strategy: str, question: Question) -> None:
    earlier = [] if strategy == FIRST else ["I thought {task}.", "Then {finish}."]
    (message,) = messages_of(load_kind(kind), question, strategy=strategy, earlier=earlier, verifiable=True)
    text = message.content
    for part in (question.question, question.context, *question.options):
        assert part in text
    assert "The answer is" in text
    assert text.count("{") == sum(
        one.count("{")
        for one in (question.question, *question.options, *earlier_shown(strategy, earlier), told(strategy, question))
    )


def earlier_shown(strategy: str, earlier: list[str]) -> list[str]:
    if strategy in (FIRST, TOLD):
        return []
    return earlier if strategy == "backtracking" else earlier[-1:]


def told(strategy: str, question: Question) -> str:
    return question.options[0] if strategy == TOLD and question is OPTIONS else ""


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("What is the most likely diagnosis?", "diagnosis"),
        ("Which of the following is the most likely cause of her symptoms?", "diagnosis"),
        ("What is the best next step in management?", "decision"),
        ("Investigation of choice for this patient is", "decision"),
        ("Drug of choice for absence seizures is", "treatment"),
        ("Which treatment should be given?", "treatment"),
        ("Which of these worsens the prognosis?", "prognosis"),
        ("What is the most common complication of this?", "prognosis"),
        ("Concentration of tropicamide:", "general"),
    ],
)
def test_the_kind_of_a_question_is_found_by_its_words(text: str, kind: str) -> None:
    assert kind_by_rules(Question("1", "1", text, ("x", "y"), ("A", "B"), "A")) == kind


def test_an_abstract_with_a_yes_or_no_question_is_research() -> None:
    assert kind_by_rules(ABSTRACT) == "research"


def test_no_strategy_tells_the_answer() -> None:
    for strategy in STRATEGIES:
        (message,) = messages_of(load_kind("general"), ABSTRACT, strategy=strategy, earlier=["x"], verifiable=True)
        assert "known" not in message.content
        assert "X is yes, no or maybe" in message.content


def test_a_prompt_of_the_users_own_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("about: mine\nsystem: You are brief.\nask: 'Think. {task} {finish}'\n")
    kind = load_kind(str(path))
    system, user = messages_of(kind, ABSTRACT, strategy=FIRST, verifiable=True)
    assert (system.role, system.content) == ("system", "You are brief.")
    assert user.content.startswith("Think. We gave it to 12.")


@pytest.mark.parametrize("ask", ["no placeholder", "{task} only", "{finish} only"])
def test_a_prompt_that_does_not_ask_is_refused(tmp_path: Path, ask: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"about: mine\nask: '{ask}'\n")
    with pytest.raises(ValueError, match="ask: must contain"):
        checked_kind(str(path))


def test_another_wording_has_another_hash() -> None:
    assert len({load_kind(kind).sha256 for kind in KINDS}) == len(KINDS)
