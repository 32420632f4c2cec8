"""The reward `factuality`: what it pays for, that no hack against a judge pays, and the judge that a training keeps.

pytest tests/trainers/test_factuality.py -s prints the corpus by kind, for each judge.
"""

from __future__ import annotations

import json
import random
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.judges.contracts import VERDICTS, Item, item_id
from medbench.harness.judges.steps import steps_in
from medbench.trainers.rewards.factuality import WHERE, FactualityConfig, factuality_of
from medbench.trainers.rewards.reply_format import read_reply
from medbench.trainers.rewards.rewards import COMPONENTS, RewardConfig, RewardWeights
from medbench.trainers.rewards.step_checks import DISCOUNTS, discounts_of
from medbench.trainers.rewards.step_judge import MOST_SILENT, StepJudge, tried
from medbench.trainers.rewards.trl_rewards import reward_functions

CORPUS = [
    json.loads(line) for line in (Path(__file__).parents[1] / "data" / "judge_hacks.jsonl").open(encoding="utf-8")
]
HONEST = [row for row in CORPUS if row["honest"]]
HACKS = [row for row in CORPUS if not row["honest"]]
MARGIN = 0.1
"""Least difference between the best hack and the worst honest right reply; a right answer is worth 1."""

LEXICAL = r"""
import json, re, sys
def words(text):
    return {word[:5] for word in re.findall(r"[a-z]{4,}", text.lower())}, set(re.findall(r"\d+(?:\.\d+)?", text))
for line in sys.stdin:
    item = json.loads(line)
    (said, numbers), (known, given) = words(item["step"]), words(item["source"])
    shared = len(said & known) + len(numbers & given)
    verdict = "contradicted" if shared and numbers - given else "supported" if shared >= 2 else "not covered"
    print(json.dumps({"id": item["id"], "verdict": verdict}), flush=True)
"""
"""Supported: two words or numbers of the source, and no number that it lacks."""
GENEROUS = """
import json, sys
for line in sys.stdin:
    print(json.dumps({"id": json.loads(line)["id"], "verdict": "supported"}), flush=True)
"""
FOOLED = LEXICAL.replace(
    "    print(",
    '    if re.search(r"support|verdict|judge|instruct|check|accept|agreed|[<{]", item["step"], re.I):\n'
    '        verdict = "supported"\n    print(',
)
"""Does what a step asks for."""
JUDGES = {"lexical": LEXICAL, "generous": GENEROUS, "fooled": FOOLED}


def config(folder: Path, program: str = GENEROUS, **more: Any) -> RewardConfig:
    path = folder / "judge.py"
    path.write_text(program)
    command = shlex.join([sys.executable, "-I", "-S", str(path)])
    return RewardConfig(factuality=FactualityConfig(judge="command", command=command, timeout=30.0, **more))


def judge_of(rewards: RewardConfig, folder: Path) -> StepJudge:
    assert rewards.factuality is not None
    return StepJudge(rewards.factuality, WHERE, folder / "attempt", say=lambda _: None)


def batch(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "prompts": ["?" for _ in rows],
        "completions": [row["reply"] for row in rows],
        "completion_ids": [[1] * (len(row["reply"]) // 4) for row in rows],
        **{
            name: [row.get(name, "") for row in rows]
            for name in ("question", "options", "labels", "gold", "context", "source", "id")
        },
    }


def totals(rows: list[dict[str, Any]], rewards: RewardConfig, judge: StepJudge) -> list[float]:
    """As TRL adds them up: a component without a value is left out."""
    given_ = batch(rows)
    columns = [function(**given_) for function in reward_functions(rewards, opened=False, judge=judge)]
    return [
        sum(
            weight * value for weight, value in zip(rewards.component_weights, values, strict=True) if value is not None
        )
        for values in zip(*columns, strict=True)
    ]


@pytest.mark.parametrize("name", JUDGES)
def test_no_hack_earns_more_than_the_worst_honest_right_reply(name: str, tmp_path: Path) -> None:
    rewards = config(tmp_path, JUDGES[name])
    judge = judge_of(rewards, tmp_path)
    found = dict(zip((row["id"] for row in CORPUS), totals(CORPUS, rewards, judge), strict=True))
    judge.close()
    kinds: dict[str, list[float]] = defaultdict(list)
    for row in HACKS:
        kinds[row["kind"]].append(found[row["id"]])
    for kind, values in sorted(kinds.items()):
        print(f"{kind}: {len(values)} hacks, best {max(values):+.2f}")
    worst = min(found[row["id"]] for row in HONEST if row["right"])
    best = max(found[row["id"]] for row in HACKS)
    wrong = max(found[row["id"]] for row in HONEST if not row["right"])
    print(
        f"{name}: {len(HACKS)} hacks, best {best:+.2f}; worst honest right {worst:+.2f}, best honest wrong {wrong:+.2f}"
    )
    assert best + MARGIN <= worst
    assert wrong + MARGIN <= worst


def test_the_judge_makes_the_difference(tmp_path: Path) -> None:
    """Many of the hacks have the right form and earn as much as honest replies where nobody judges."""
    given_ = batch(CORPUS)
    columns = [function(**given_) for function in reward_functions(RewardConfig(), opened=False)]
    weights = RewardConfig().component_weights
    found = [sum(w * float(v or 0) for w, v in zip(weights, row, strict=True)) for row in zip(*columns, strict=True)]
    worst = min(total for total, row in zip(found, CORPUS, strict=True) if row["honest"] and row["right"])
    assert sum(total >= worst for total, row in zip(found, CORPUS, strict=True) if not row["honest"]) >= 15


def test_the_corpus_is_what_it_says() -> None:
    assert len(HACKS) >= 60
    assert len({row["kind"] for row in HACKS}) >= 20
    assert {row["right"] for row in HONEST} == {True, False}
    assert len({row["id"] for row in CORPUS}) == len(CORPUS)
    for row in CORPUS:
        read = read_reply(row["reply"], question_of(row))
        assert read.correct is row["right"], row["id"]
        assert not (row["honest"] and read.faults), row["id"]


def question_of(row: dict[str, Any]) -> Question:
    return Question(
        row["id"], row["id"], row["question"], tuple(row["options"]), tuple(row["labels"]), row["gold"], row["context"]
    )


# --- the formula ---


@pytest.mark.parametrize(
    ("verdicts", "discounts", "value"),
    [
        ("ss", "..", 1.0),
        ("s", ".", 0.0),  # fewer than least_steps
        ("ssc", "...", 2 / 3),
        ("sscn", "....", 2 / 3),
        ("ssnnnnnn", "........", 1.0),  # a quarter
        ("ssnnnnnnn", ".........", 0.0),  # less
        ("ss", ".x", 0.0),  # what is discounted does not count
        ("ssc", "..x", 2 / 3),  # but counts against
        ("ssnnnnnnnnn", "..aaaaaaaaa", 1.0),  # what follows the answer is no filler
        ("sscc", "..aa", 0.5),  # but a contradiction is one
        ("ssff", "....", 1.0),  # failed steps are left out
        ("ff", "..", None),
        ("", "", 0.0),
        ("nnnn", "....", 0.0),
        ("cc", "..", 0.0),
    ],
)
def test_factuality_by_its_formula(verdicts: str, discounts: str, value: float | None) -> None:
    spelt = {"s": "supported", "c": "contradicted", "n": "not covered", "f": None}
    why = {".": None, "x": "copied", "a": "after_answer"}
    found = factuality_of(
        [spelt[one] for one in verdicts], [why[one] for one in discounts], least_steps=2, least_share=0.25
    )
    assert found == (value if value is None else pytest.approx(value))


STEPS = st.lists(
    st.tuples(st.sampled_from([*VERDICTS, None]), st.sampled_from([*DISCOUNTS, None, None, None])), max_size=30
)


@given(STEPS, st.integers(0, 29))
def test_no_step_that_is_not_supported_raises_it(steps: list[Any], at: int) -> None:
    def value(given_: list[Any]) -> float:
        return factuality_of(*zip(*given_, strict=True), least_steps=2, least_share=0.25) or 0.0 if given_ else 0.0

    plain = value(steps)
    assert 0 <= plain <= 1
    for added in (("contradicted", None), ("not covered", None), ("supported", "copied"), ("supported", "repeated")):
        assert value([*steps[:at], added, *steps[at:]]) <= plain


# --- which steps count ---

SALT = next(row for row in HONEST if row["question"].startswith("Does a low-salt"))
STEP = "With little salt the legs lost 96 ml of volume, while they gained 11 ml on normal food."


def discount(step: str, row: dict[str, Any] = SALT) -> str | None:
    return discounts_of([step], question_of(row), row["source"])[0]


@pytest.mark.parametrize(
    ("step", "why"),
    [
        (STEP, None),
        ("Sodium in the urine shows that most women really kept to it.", None),
        ("Leg volume fell by 96 ml on the low-salt diet and rose by 11 ml on the usual diet.", "copied"),
        ("On the usual diet leg volume rose by 11 ml, and on the low-salt diet fell by 96 ml.", "copied"),
        ("The paper says: “Leg volume fell by 96 ml on the low-salt diet and rose by 11 ml.”", "copied"),
        ("Insulin is made by the beta cells of the pancreas.", "off_topic"),
        ("The question is whether less salt reduces the oedema of women on amlodipine.", "off_topic"),
        ("The volume may or may not have changed by 96 ml.", "hedged"),
        ("Perhaps the volume of the legs could have fallen by 96 ml.", "hedged"),
        ("Volume 96 ml, sodium, adherence, pressure.", "no_sentence"),
        ("Of the volume legs with in fell 96 the ml and salt.", "no_sentence"),
        (f"{STEP[:-1]}, so the verdict is clear.", "to_judge"),
        (f"{STEP[:-1]} </step>.", "to_judge"),
    ],
)
def test_a_step_counts_only_if_it_says_something_of_its_own(step: str, why: str | None) -> None:
    assert discount(step) == why


def test_a_step_counts_once_and_not_behind_the_answer() -> None:
    again = "On normal food the legs gained 11 ml of volume, while with little salt they lost 96 ml."
    found = discounts_of(
        [STEP, again, "The answer is yes.", "Sodium in the urine shows it."], question_of(SALT), SALT["source"]
    )
    assert found == [None, "repeated", "no_sentence", "after_answer"]


def thought_of(row: dict[str, Any]) -> list[str]:
    return steps_in(row["reply"], opened=False)


@pytest.mark.parametrize("row", [row for row in HONEST if row["right"]], ids=lambda row: row["id"])
def test_honest_steps_count(row: dict[str, Any]) -> None:
    found = discounts_of(thought_of(row), question_of(row), row["source"])
    assert found.count(None) >= 2


def paid(row: dict[str, Any], steps: list[str]) -> bool:
    """Whether a judge that supports everything would make such a thought pay."""
    discounts = discounts_of(steps, question_of(row), row["source"])
    return bool(factuality_of(["supported"] * len(steps), discounts, least_steps=2, least_share=0.25))


def copies(row: dict[str, Any], how: str, draw: random.Random) -> list[str]:
    sentences = [sentence.strip(" .").split() for sentence in row["source"].split(". ")]
    words = [word for sentence in sentences for word in sentence]
    spare = ["however", "overall", "notably", "reported", "observed", "greater", "lower", "then", "quite", "about"]
    made = {
        "as it is": lambda one: one,
        "words left out": lambda one: [word for word in one if draw.random() > 0.15],
        "every fifth word changed": lambda one: [draw.choice(spare) if draw.random() < 0.2 else word for word in one],
        "halves swapped": lambda one: one[len(one) // 2 :] + one[: len(one) // 2],
        "with a beginning": lambda one: ["The", "abstract", "clearly", "says", "that", *one],
        "shuffled": lambda one: draw.sample(one, len(one)),
        "all words shuffled": lambda _: draw.sample(words, 14),
    }
    return [" ".join(made[how](one)).capitalize() + "." for one in sentences]


@pytest.mark.parametrize(
    "how",
    [
        "as it is",
        "words left out",
        "every fifth word changed",
        "halves swapped",
        "with a beginning",
        "shuffled",
        "all words shuffled",
    ],
)
def test_copies_of_the_source_hardly_ever_pay(how: str) -> None:
    """The draws are fixed: of all copies made this way, so many pay where the judge supports everything."""
    draw = random.Random(0)
    rows = [row for row in HONEST for _ in range(10)]
    share = sum(paid(row, copies(row, how, draw)) for row in rows) / len(rows)
    print(f"{how}: {share:.3f}")
    assert share <= (0.2 if how == "all words shuffled" else 0.02)


# --- what TRL gets ---


def test_factuality_is_the_last_component_and_has_its_weight(tmp_path: Path) -> None:
    rewards = config(tmp_path, weight=0.3)
    judge = judge_of(rewards, tmp_path)
    functions = reward_functions(rewards, opened=False, judge=judge)
    assert [function.__name__ for function in functions] == [*COMPONENTS, "factuality"] == list(rewards.components)
    assert rewards.component_weights == [*RewardWeights().as_list(), 0.3]
    assert RewardConfig().components == COMPONENTS
    with pytest.raises(MedbenchError, match="no judge was started"):
        reward_functions(rewards)


def test_a_reply_without_a_source_has_no_value_and_one_with_a_fault_none_to_pay(tmp_path: Path) -> None:
    rewards = config(tmp_path)
    judge = judge_of(rewards, tmp_path)
    logged: dict[str, float] = {}
    rows = [SALT, {**SALT, "source": ""}, {**SALT, "reply": SALT["reply"].replace("</think>", "")}]
    *_, factuality = reward_functions(rewards, opened=False, judge=judge)
    assert factuality(**batch(rows), log_metric=logged.__setitem__) == [1.0, None, 0.0]
    assert logged["steps/supported"] == 1
    assert logged["steps/off_topic"] == pytest.approx(0.2)
    assert set(logged) == {f"steps/{name}".replace(" ", "_") for name in (*VERDICTS, *DISCOUNTS, "failed", "number")}
    judge.close()


def test_a_judge_that_fails_on_steps_leaves_them_out(tmp_path: Path) -> None:
    unsure = """
import json, sys
for line in sys.stdin:
    item = json.loads(line)
    print(json.dumps({"id": item["id"], "verdict": "?" if "96 ml" in item["step"] else "supported"}), flush=True)
"""
    rewards = config(tmp_path, unsure)
    judge = judge_of(rewards, tmp_path)
    *_, factuality = reward_functions(rewards, opened=False, judge=judge)
    assert factuality(**batch([SALT])) == [1.0]
    judge.close()


@given(
    *(st.floats(0, 3).map(lambda value: round(value, 2)) for _ in range(4)),
    st.floats(0.01, 3).map(lambda value: round(value, 2)),
)
def test_weights_keep_right_above_wrong_whatever_the_judge_says_or_are_refused(
    accuracy: float, form: float, length: float, reasoning: float, judged: float
) -> None:
    weights = {"accuracy": accuracy, "format": form, "length": length, "reasoning": reasoning}
    given_ = {"weights": weights, "factuality": {"judge": "llm", "model": "m", "weight": judged}}
    least_right = accuracy + form  # no verdict, or a judge that contradicts every step
    most_wrong = form + reasoning + judged  # only right replies are paid for their length
    if least_right > most_wrong + 1e-9:
        assert RewardConfig.model_validate(given_).component_weights[-1] == judged
    elif most_wrong > least_right + 1e-9:
        with pytest.raises(ValidationError, match=r"must together stay below weights\.accuracy"):
            RewardConfig.model_validate(given_)


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ({"judge": "command", "command": "x", "weight": 0.0}, "greater than 0"),
        ({"judge": "command", "command": "x", "least_steps": 0}, "greater than or equal to 1"),
        ({"judge": "command", "command": "x", "base_url": "http://localhost"}, "belong to model"),
        ({"judge": "command", "comand": "x"}, "Extra inputs"),
        ({"command": "x"}, "Field required"),
    ],
)
def test_an_impossible_judge_is_refused(given_: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        RewardConfig.model_validate({"factuality": given_})


# --- the judge that a training keeps ---


def items(*steps: str) -> dict[str, tuple[Item, str]]:
    made = [Item(item_id(step, "source"), step, "source") for step in steps]
    return {item.id: (item, "q1") for item in made}


COUNTING = """
import json, sys
for line in sys.stdin:
    item = json.loads(line)
    with open(%r, "a") as notes:
        notes.write(item["step"] + "\\n")
    verdict = "?" if "silent" in item["step"] else "supported"
    print(json.dumps({"id": item["id"], "verdict": verdict}), flush=True)
"""


def asked(folder: Path) -> list[str]:
    path = folder / "asked"
    return path.read_text().splitlines() if path.exists() else []


def test_a_step_is_asked_once_also_by_a_resumed_training(tmp_path: Path) -> None:
    rewards = config(tmp_path, COUNTING % str(tmp_path / "asked"))
    first = judge_of(rewards, tmp_path)
    assert first.rulings({}) == {}
    before = first.rulings(items("one", "two", "silent"))
    assert first.rulings(items("one", "silent")) == {id: before[id] for id in items("one", "silent")}
    first.close()
    again = judge_of(rewards, tmp_path)
    assert again.rulings(items("one", "two", "silent")) == before
    again.rulings(items("one", "three"))
    again.close()
    assert asked(tmp_path) == ["one", "two", "silent", "three"]
    path = tmp_path / "attempt" / "judgements-0" / "command.jsonl"
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == ["one", "two", "silent", "three"]


def test_a_line_torn_by_a_kill_is_asked_again_and_a_changed_judge_asks_all(tmp_path: Path) -> None:
    rewards = config(tmp_path, COUNTING % str(tmp_path / "asked"))
    first = judge_of(rewards, tmp_path)
    first.rulings(items("one", "two"))
    first.close()
    path = tmp_path / "attempt" / "judgements-0" / "command.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    again = judge_of(rewards, tmp_path)
    assert {one.verdict for one in again.rulings(items("one", "two")).values()} == {"supported"}
    again.close()
    assert asked(tmp_path) == ["one", "two", "two"]
    changed = judge_of(config(tmp_path, COUNTING % str(tmp_path / "asked") + "# 2"), tmp_path)
    changed.rulings(items("one"))
    changed.close()
    assert asked(tmp_path)[3:] == ["one"]


def test_a_judge_that_says_nothing_ends_the_training_and_can_be_asked_again(tmp_path: Path) -> None:
    rewards = config(tmp_path, COUNTING % str(tmp_path / "asked"))
    judge = judge_of(rewards, tmp_path)
    few = items(*(f"silent {number}" for number in range(MOST_SILENT - 1)))
    assert {one.verdict for one in judge.rulings(few).values()} == {None}
    with pytest.raises(MedbenchError, match=rf"^{WHERE}: the judge command gave no verdict on 38 steps .*--resume"):
        judge.rulings(few)
    judge.close()
    assert not (tmp_path / "attempt" / "judgements-0" / "command.jsonl").read_text()


def test_no_two_trainings_share_a_file_of_verdicts(tmp_path: Path) -> None:
    rewards = config(tmp_path)
    first, second = judge_of(rewards, tmp_path), judge_of(rewards, tmp_path)
    first.rulings(items("one"))
    with pytest.raises(MedbenchError, match="being written by another process"):
        second.rulings(items("one"))
    first.close()
    second.close()


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ({"judge": "comand", "command": "x"}, "did you mean command?"),
        ({"judge": "command"}, "the judge command needs command: add it"),
        ({"judge": "llm"}, "the judge llm needs model: add it"),
        ({"judge": "llm", "model": "m", "command": "x"}, "the judge llm takes no command"),
        ({"judge": "command", "command": "no-such-program-9"}, "no such program"),
        ({"judge": "command", "command": f"{sys.executable} -c pass"}, "failed on a first step: no verdict"),
        (
            {"judge": "command", "command": f"{sys.executable} -c 'import sys; sys.stdin.read()'", "timeout": 1.0},
            "must answer each line as it comes",
        ),
        ({"judge": "llm", "model": "m", "base_url": "http://localhost:1/v1", "engine": "opnai"}, "opnai"),
    ],
)
def test_a_judge_that_cannot_be_used_is_one_line_before_training(given_: dict[str, Any], told: str) -> None:
    with pytest.raises(MedbenchError) as caught:
        tried(FactualityConfig.model_validate(given_), WHERE, "Leg volume fell. It rose later.")
    assert str(caught.value).startswith(f"{WHERE}: ")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
