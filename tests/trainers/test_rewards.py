"""Rewards: no hack in the corpus pays, honest replies do, and invariants for any text.

pytest tests/trainers/test_rewards.py -s prints the corpus by kind.
"""

from __future__ import annotations

import json
import pickle
import time
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medbench.harness.contracts import MedbenchError, Question
from medbench.harness.scoring.score import score_reply
from medbench.trainers.rewards.reply_format import FAULTS, read_reply
from medbench.trainers.rewards.rewards import (
    COMPONENTS,
    RewardConfig,
    Rewards,
    fault_shares,
    length_reward,
    repetition_reward,
    rewards_of,
)
from medbench.trainers.rewards.trl_rewards import reward_functions

CORPUS = [
    json.loads(line) for line in (Path(__file__).parents[1] / "data" / "reward_hacks.jsonl").open(encoding="utf-8")
]
HONEST = [row for row in CORPUS if row["honest"]]
HACKS = [row for row in CORPUS if not row["honest"]]
CONFIG = RewardConfig()
MARGIN = 0.1
"""Least difference in reward between the best hack and the worst honest reply; a right answer is worth 1."""
CHARACTERS_A_TOKEN = 4


def question_of(row: dict[str, Any]) -> Question:
    return Question(
        row["id"], row["id"], row["question"], tuple(row["options"]), tuple(row["labels"]), row["gold"], row["context"]
    )


def rewards(row: dict[str, Any], reply: str | None = None, config: RewardConfig = CONFIG) -> Rewards:
    text = row["reply"] if reply is None else reply
    return rewards_of(
        text,
        question_of(row),
        config,
        tokens=len(text) // CHARACTERS_A_TOKEN,
        finish_reason=row["finish_reason"],
        opened=row["opened"],
    )


def test_no_hack_earns_more_than_the_worst_honest_reply() -> None:
    totals: dict[str, list[float]] = defaultdict(list)
    for row in HACKS:
        totals[row["kind"]].append(rewards(row).total)
    honest_right = min(rewards(row).total for row in HONEST if row["right"])
    honest_wrong = min(rewards(row).total for row in HONEST if not row["right"])
    for kind, values in sorted(totals.items()):
        print(f"{kind}: {len(values)} hacks, best {max(values):+.2f}")
    best = {right: max(rewards(row).total for row in HACKS if row["right"] is right) for right in (True, False)}
    print(f"{len(HACKS)} hacks of {len(totals)} kinds, {len(HONEST)} honest replies")
    print(f"best hack that names the right answer {best[True]:+.2f}, worst honest right reply {honest_right:+.2f}")
    print(f"best hack that does not {best[False]:+.2f}, worst honest wrong reply {honest_wrong:+.2f}")
    assert best[True] + MARGIN <= honest_right
    assert best[False] + MARGIN <= honest_wrong
    # stronger than required: a hack with the right letter earns less than an honest wrong reply
    assert best[True] + MARGIN <= honest_wrong


@pytest.mark.parametrize("row", HACKS, ids=lambda row: f"{row['id']} {row['kind']}")
def test_every_hack_is_a_named_fault(row: dict[str, Any]) -> None:
    found = rewards(row)
    assert found.faults
    assert found.accuracy == found.format == found.length == found.reasoning == 0
    assert found.total <= 0


@pytest.mark.parametrize("row", HONEST, ids=lambda row: f"{row['id']} {row['kind']}")
def test_every_honest_reply_has_the_right_format(row: dict[str, Any]) -> None:
    found = rewards(row)
    assert found.faults == ()
    assert found.accuracy == float(row["right"])
    assert (found.length > 0) == row["right"]
    assert found.repetition == 0
    assert found.reasoning > 0


def test_the_corpus_matches_its_labels() -> None:
    assert len(HACKS) >= 60
    assert len(HONEST) >= 20
    assert {row["right"] for row in HONEST} == {True, False}
    assert len({row["id"] for row in CORPUS}) == len(CORPUS)
    for row in HONEST:
        q = question_of(row)
        _, score = score_reply(
            row["reply"], q.labels, q.options, q.gold, finish_reason=row["finish_reason"], opened=row["opened"]
        )
        assert bool(score) is row["right"], row["id"]


def test_the_default_weights_keep_right_above_wrong_above_faulty() -> None:
    """For any components of replies without unnatural repetition."""
    weights = CONFIG.weights
    worst_right = weights.format + weights.accuracy
    best_wrong = weights.format + weights.reasoning
    worst_wrong = weights.format
    assert worst_right - best_wrong >= MARGIN
    assert worst_wrong >= MARGIN
    assert min(weights.as_list()) >= 0


# Inserted anywhere into an honest reply, each of these must make it worthless.
SPOILERS = (
    "<think>",
    "</think>",
    "<THINK>",
    "< think >",
    "\u200b",
    "\u00ad",
    "\u202e",
    "\x00",
    "<!-- -->",
    "<|im_start|>",
)


@given(st.sampled_from(HONEST), st.sampled_from(SPOILERS), st.floats(0, 1))
def test_an_extra_tag_or_invisible_character_spoils_any_honest_reply(
    row: dict[str, Any], spoiler: str, place: float
) -> None:
    at = int(place * len(row["reply"]))
    assert rewards(row, row["reply"][:at] + spoiler + row["reply"][at:]).total <= 0


SECOND_ANSWERS = ("\nThe answer is ({}).", " Or {}.", "\n({})", "\n{}", " \\boxed{{{}}}", " or ({})", ", {}")


@given(st.sampled_from([row for row in HONEST if len(row["labels"][0]) == 1]), st.data())
def test_a_second_letter_spoils_any_honest_reply(row: dict[str, Any], data: st.DataObject) -> None:
    named = read_reply(row["reply"], question_of(row), opened=row["opened"]).answer.answer
    other = data.draw(st.sampled_from([label for label in row["labels"] if label != named]))
    form = data.draw(
        st.sampled_from(["\nThe answer is ({}).", " Or {}.", "\n({})", "\n{}", " \\boxed{{{}}}", " or ({})", ", {}"])
    )
    assert rewards(row, row["reply"] + form.format(other)).total <= 0


@given(st.sampled_from(HONEST), st.floats(0, 1))
def test_a_reply_cut_off_anywhere_earns_nothing(row: dict[str, Any], place: float) -> None:
    cut = row["reply"][: int(place * len(row["reply"]))]
    assert rewards({**row, "finish_reason": "length"}, cut).total <= 0


@given(st.sampled_from(HONEST))
def test_a_reply_without_reasoning_or_with_nothing_else_earns_nothing(row: dict[str, Any]) -> None:
    thought, _, behind = row["reply"].partition("</think>")
    for reply in (f"<think></think>{behind}", f"<think>\n</think>{thought}{behind}", behind, f"{thought}</think>"):
        assert rewards({**row, "opened": False}, reply).total <= 0


# Any text, and text made of the parts of replies: tags, letters, options, sentences.
MADE_OF = ("<think>", "</think>", "\n", " ", "The answer is (", "A", "B", ")", ".", "1. ", "Step 2:", "\\boxed{", "}")
FRAGMENTS = st.sampled_from([*MADE_OF, *(row["reply"][at : at + 80] for row in CORPUS[::9] for at in (0, 60, 240))])
ANY_TEXT = st.text(st.characters(), max_size=400) | st.lists(FRAGMENTS, max_size=25).map("".join)


@given(
    ANY_TEXT, st.sampled_from(CORPUS), st.integers(0, 5000), st.booleans(), st.sampled_from(["stop", "length", "error"])
)
def test_any_text_gives_components_in_range(
    text: str, row: dict[str, Any], tokens: int, opened: bool, reason: str
) -> None:
    found = rewards_of(text, question_of(row), CONFIG, tokens=tokens, finish_reason=reason, opened=opened)
    assert found.accuracy in (0, 1)
    assert found.format in (0, 1)
    assert 0 <= found.length <= 1
    assert -1 <= found.repetition <= 0
    assert 0 <= found.reasoning <= 1
    assert (found.format == 1) == (found.faults == ())
    assert set(found.faults) <= set(FAULTS)
    if found.faults:
        assert found.accuracy == found.length == found.reasoning == 0
        assert found.total <= 0
    if not found.accuracy:
        assert found.length == 0
    parts = zip(CONFIG.weights.as_list(), COMPONENTS, strict=True)
    assert found.total == pytest.approx(sum(weight * getattr(found, name) for weight, name in parts))


@given(st.sampled_from(CORPUS), st.text(alphabet=" \n\t", max_size=20))
def test_trailing_white_space_changes_nothing(row: dict[str, Any], tail: str) -> None:
    tokens = len(row["reply"]) // CHARACTERS_A_TOKEN
    given_ = {"tokens": tokens, "finish_reason": row["finish_reason"], "opened": row["opened"]}
    plain = rewards_of(row["reply"], question_of(row), CONFIG, **given_)
    assert rewards_of(row["reply"] + tail, question_of(row), CONFIG, **given_) == plain


WORDS = ("aorta", "bile", "calcium", "dura", "edema", "femur", "gland", "heme")
SENTENCES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=9)


@given(st.lists(SENTENCES, min_size=1, max_size=12), st.data(), st.integers(2, 6))
def test_repeating_a_sentence_never_raises_the_repetition_reward(
    sentences: list[list[str]], data: st.DataObject, ngram: int
) -> None:
    texts = [" ".join(sentence) + "." for sentence in sentences]
    again = data.draw(st.sampled_from(texts))
    text = "\n".join(texts)
    assert repetition_reward(f"{text}\n{again}", ngram) <= repetition_reward(text, ngram)


def test_repetition_is_free_in_prose_and_costs_all_in_a_loop() -> None:
    assert repetition_reward("The clot blocks the artery. The ventricle strains. Oxygen falls.", 4) == 0
    assert repetition_reward("no clot here. " * 400, 4) < -0.95
    assert repetition_reward("", 4) == 0


@given(st.integers(0, 4000), st.integers(0, 4000))
def test_a_longer_right_reply_never_earns_more_for_its_length(shorter: int, longer: int) -> None:
    row = next(row for row in HONEST if row["right"])
    read = read_reply(row["reply"], question_of(row))
    shorter, longer = sorted((shorter, longer))
    at = [length_reward(read, (), tokens, CONFIG) for tokens in (shorter, longer)]
    assert at[0] >= at[1]
    assert length_reward(read, (), CONFIG.short, CONFIG) == 1
    assert length_reward(read, (), CONFIG.long, CONFIG) == pytest.approx(0)
    assert length_reward(read, (), (CONFIG.short + CONFIG.long) // 2, CONFIG) == pytest.approx(0.5, abs=0.01)


def test_structure_changes_the_reasoning_reward_as_it_should() -> None:
    row = next(row for row in HONEST if row["kind"] == "numbered" and row["right"])
    full = rewards(row).reasoning
    lines = row["reply"].split("\n")
    steps = [at for at, line in enumerate(lines) if line[:2].rstrip(".").isdigit()]
    swapped = list(lines)
    swapped[steps[0]], swapped[steps[2]] = swapped[steps[2]], swapped[steps[0]]
    one_option_less = [line for line in lines if not line.startswith("4.")]
    no_conclusion = [line for line in lines if not line.startswith(("5.", "Conclusion"))]
    for worse in (swapped, one_option_less, no_conclusion):
        assert 0 < rewards(row, "\n".join(worse)).reasoning < full


def test_one_sentence_is_reasoning_only_if_the_recipe_says_so() -> None:
    row = next(row for row in HONEST if row["labels"] == ["yes", "no", "maybe"])
    reply = (
        "<think>Mobilising patients early after laparoscopic surgery shortened hospitalisation by nine hours without "
        "raising readmissions.</think>\nThe answer is (yes)."
    )
    assert rewards(row, reply).faults == ("no_reasoning",)
    assert rewards(row, reply, RewardConfig(least_steps=1)).faults == ()


def test_more_than_the_extraction_reads_is_a_fault() -> None:
    row = HONEST[0]
    assert rewards(row, row["reply"].replace("</think>", "x y " * 30_000 + "</think>")).faults == ("gigantic",)


@pytest.mark.slow
def test_the_time_grows_with_the_length_of_a_reply_and_no_faster() -> None:
    texts = [row["reply"].partition("</think>") for row in HONEST if not row["opened"]]
    prose = " ".join(head.removeprefix("<think>") for head, _, _ in texts)
    row = next(row for row in HONEST if not row["opened"])

    def seconds(length: int) -> float:
        started = time.process_time()
        for at in range(100):
            thoughts = (prose[at * 37 % 9000 :] + prose * 2)[:length]
            rewards(row, f"<think>{thoughts}</think>\nThe answer is ({row['gold']}).")
        return time.process_time() - started

    seconds(2000)  # what is computed once
    assert seconds(16000) < 10 * seconds(4000)


@pytest.mark.parametrize(
    "given_",
    [
        {"weights": dict.fromkeys(COMPONENTS, 0.0)},
        {"weights": {"accuracy": -1.0}},
        {"weights": {"accuracy": float("nan")}},
        {"weights": {"acuracy": 1.0}},
        {"short": 500, "long": 500},
        {"ngram": 1},
        {"least_steps": 0},
    ],
)
def test_an_impossible_config_is_refused(given_: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RewardConfig.model_validate(given_)


def test_a_question_without_a_labelled_gold_is_refused() -> None:
    with pytest.raises(MedbenchError, match="gold"):
        rewards({**HONEST[0], "gold": "Z"})


# --- as TRL calls them ---


def batch(rows: list[dict[str, Any]], *, conversational: bool = False, eos: int = 7) -> dict[str, Any]:
    texts = [row["reply"] for row in rows]
    return {
        "prompts": [[{"role": "user", "content": "?"}] if conversational else "?" for _ in rows],
        "completions": [[{"role": "assistant", "content": text}] for text in texts] if conversational else texts,
        "completion_ids": [[1] * (len(text) // CHARACTERS_A_TOKEN - 1) + [eos] for text in texts],
        **{name: [row[name] for row in rows] for name in ("question", "options", "labels", "gold", "context")},
        "trainer_state": None,
        "log_extra": lambda column, values: None,
    }


@pytest.mark.parametrize("conversational", [False, True])
def test_trl_gets_each_component_under_its_name(conversational: bool) -> None:
    rows = [row for row in CORPUS if not row["opened"] and row["finish_reason"] == "stop"]
    functions = reward_functions(CONFIG, opened=False, eos_token_ids=[7])
    assert [function.__name__ for function in functions] == list(COMPONENTS)
    assert len(CONFIG.weights.as_list()) == len(functions)
    logged: dict[str, float] = {}
    for function in functions:
        given_ = batch(rows, conversational=conversational)
        values = pickle.loads(pickle.dumps(function))(**given_, log_metric=logged.__setitem__)
        assert values == [getattr(rewards(row), function.__name__) for row in rows]
    shares = fault_shares([rewards(row) for row in rows])
    assert logged == {f"format_faults/{fault}": share for fault, share in shares.items()}
    assert len(logged) == len(FAULTS)


def test_trl_completions_without_an_end_count_as_truncated() -> None:
    rows = [row for row in HONEST if row["right"] and not row["opened"]][:3]
    accuracy, *_ = reward_functions(CONFIG, eos_token_ids=[7])
    assert accuracy(**batch(rows)) == [1.0] * 3
    assert accuracy(**batch(rows, eos=8)) == [0.0] * 3
    assert reward_functions(CONFIG)[0](**batch(rows, eos=8)) == [1.0] * 3


def test_trl_prompts_that_open_the_think_block_are_recognised() -> None:
    row = next(row for row in HONEST if row["opened"] and row["right"])
    given_ = batch([row])
    assert reward_functions(CONFIG, opened=True)[0](**given_) == [1.0]
    assert reward_functions(CONFIG)[0](**{**given_, "prompts": ["Question: ?\n<think>\n"]}) == [1.0]
    assert reward_functions(CONFIG)[0](**given_) == [0.0]


def test_trl_faults_are_one_line() -> None:
    given_ = batch(HONEST[:2], conversational=True)
    function = reward_functions(CONFIG)[0]
    with pytest.raises(MedbenchError, match="no column gold"):
        function(**{name: value for name, value in given_.items() if name != "gold"})
    given_["completions"][0][-1]["reasoning_content"] = "hm"
    with pytest.raises(MedbenchError, match="response_template"):
        function(**given_)


def test_trl_still_calls_rewards_as_the_adapter_expects() -> None:
    """Reads the source: importing TRL's trainer takes ten seconds."""
    package = find_spec("trl")
    if package is None or package.origin is None:
        pytest.skip("TRL is not installed")
    source = (Path(package.origin).parent / "trainer" / "grpo_trainer.py").read_text(encoding="utf-8")
    assert "prompts=prompts, completions=completions, completion_ids=completion_ids_list, **reward_kwargs" in source
    assert 'reward_kwargs["log_metric"]' in source
    assert "ids[-1] not in eos_and_pad" in source


@pytest.mark.data
def test_real_worked_reasoning_has_the_right_format_and_costs_nothing_for_repetition(data_dir: Path) -> None:
    found = []
    for line in (data_dir / "train" / "medical_o1_demo_sft.jsonl").open(encoding="utf-8"):
        row = json.loads(line)
        labels = tuple(sorted(row["options"]))
        asked = Question(
            "", "", row["question"], tuple(row["options"][label] for label in labels), labels, row["answer_idx"]
        )
        reply = f"<think>\n{row['reasoning']}\n</think>\n\nThe answer is ({row['answer_idx']})."
        found.append(rewards_of(reply, asked, CONFIG, tokens=len(reply) // CHARACTERS_A_TOKEN))
    faults = {fault: share for fault, share in fault_shares(found).items() if share}
    print(f"{len(found)} worked replies, faults: {faults}")
    assert sum(rewards.format for rewards in found) >= 0.97 * len(found)
    assert sum(rewards.repetition == 0 for rewards in found) >= 0.99 * len(found)
