"""Contamination: planted overlaps are found, similar questions are not, and known misses stay known.

pytest tests/trainers/test_contamination.py -s prints what the real training files share with the real benchmarks.
"""

from __future__ import annotations

import json
import random
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from medbench.harness.contracts import MedbenchError, Question
from medbench.tasks.medqa import rows as medqa
from medbench.tasks.mmlu_pro_medical import rows as mmlu_pro
from medbench.tasks.pubmedqa import rows as pubmedqa
from medbench.trainers.data.contamination import ContaminationConfig, screen
from medbench.trainers.data.overlap import Overlap, TrainingText, find_overlaps

pytestmark = pytest.mark.slow


def asked(id: str, text: str, options: tuple[str, ...], gold: str = "A", context: str = "") -> Question:
    labels = options if options == ("yes", "no", "maybe") else tuple("ABCDEFGHIJ"[: len(options)])
    return Question(id, id, text, options, labels, gold, context)


VIGNETTE = asked(
    "vignette",
    "A 58-year-old baker is brought to the clinic by his daughter because he has walked with short shuffling steps for "
    "a year and his handwriting has become tiny. He drools at night, his face hardly moves, and his right hand shakes "
    "while it rests in his lap but not when he kneads dough. His arms resist passive movement in jerks. He takes no "
    "drugs and has never had a stroke. Loss of cells in which of the following structures explains his illness?",
    ("Subthalamic nucleus", "Substantia nigra", "Caudate nucleus", "Locus coeruleus"),
    "B",
)
SHORT = asked(
    "short",
    "Who described the circulation of the blood?",
    ("William Harvey", "Galen of Pergamon", "Andreas Vesalius", "Marcello Malpighi"),
)
GENERIC = asked(
    "generic",
    "Which of the following statements is true?",
    (
        "Bile is made in the gallbladder and stored in the liver until a fatty meal arrives",
        "Bile is made in the liver and thickened in the gallbladder between two meals",
        "Bile contains enzymes that split the triglycerides of a meal in the duodenum",
        "Bile salts are lost with the stool and made anew from cholesterol each day",
    ),
    "B",
)
TINY = asked(
    "tiny", "The soleus muscle:", ("flexes the foot", "extends the knee", "abducts the hip", "inverts the hand")
)
TRIAL = asked(
    "trial",
    "Does chewing gum after caesarean section bring back bowel movement sooner?",
    ("yes", "no", "maybe"),
    "yes",
    "Ileus after abdominal surgery delays feeding and discharge. We asked whether sham feeding by chewing gum shortens "
    "it. Three hundred and six women were randomised after caesarean section to chew gum for half an hour thrice a "
    "day or to routine care. Flatus passed after a median of 18 hours in the gum group and 26 hours with routine care "
    "(p < 0.001). Women who chewed gum were also fed earlier and left hospital 10 hours sooner. No woman complained of "
    "jaw pain, and rates of vomiting were equal in both groups.",
)
BENCHMARKS = {"medqa": [VIGNETTE, GENERIC], "mmlu": [SHORT, TINY], "pubmedqa": [TRIAL]}
CASE = (
    "A woman of 70 was seen on the ward after a fall. Her son reported that she had been dizzy for a week and that her "
    "tablets had been changed twice. The sodium was low and the diuretic was stopped. "
)


def found(text: str, stem: str = "", benchmarks: dict[str, list[Question]] | None = None) -> list[Overlap]:
    return find_overlaps([TrainingText(1, text, stem)], BENCHMARKS if benchmarks is None else benchmarks)


def with_options(question: Question, text: str | None = None, order: int = 1) -> str:
    options = list(question.options)[::order]
    listed = "\n".join(f"{label}. {option}" for label, option in zip(question.labels, options, strict=True))
    return f"{question.question if text is None else text}\n{listed}"


def changed(text: str, share: float, seed: int = 0) -> str:
    """The text with this `share` of its words replaced."""
    draw = random.Random(seed)
    return " ".join("velvet" if draw.random() < share else word for word in text.split())


def shuffled_sentences(text: str) -> str:
    sentences = re.split(r"(?<=[.?])\s+", text)
    random.Random(0).shuffle(sentences)
    return " ".join(sentences)


@pytest.mark.parametrize(
    ("text", "id", "part", "kinds"),
    [
        (with_options(VIGNETTE), "vignette", "question", "stem"),
        (with_options(VIGNETTE, order=-1), "vignette", "question", "stem"),
        (re.sub(r"[.,-]", " ", VIGNETTE.question.upper()), "vignette", "question", "stem"),
        (VIGNETTE.question.replace(" ", "\u00a0\n"), "vignette", "question", "stem"),
        (CASE * 8 + VIGNETTE.question + CASE * 8, "vignette", "question", "stem"),
        (VIGNETTE.question[: len(VIGNETTE.question) // 2] + CASE, "vignette", "question", "ngram"),
        (shuffled_sentences(VIGNETTE.question), "vignette", "question", "ngram near"),
        (changed(VIGNETTE.question, 0.15), "vignette", "question", "ngram near"),
        (CASE + changed(VIGNETTE.question, 0.15) + CASE, "vignette", "question", "ngram near"),
        (changed(VIGNETTE.question, 0.1) + " Substantia nigra", "vignette", "question", "ngram near"),
        (with_options(SHORT), "short", "question", "stem"),
        (SHORT.question + " It was William Harvey.", "short", "question", "stem"),
        (with_options(GENERIC, order=-1), "generic", "question", "stem"),
        (with_options(GENERIC, "Choose what is right about the secretion of the liver."), "generic", "options", "near"),
        (TRIAL.question, "trial", "question", "stem"),
        (TRIAL.context, "trial", "context", "stem"),
        (CASE + changed(TRIAL.context, 0.15), "trial", "context", "ngram near"),
        (TRIAL.context[:300], "trial", "context", "ngram"),
    ],
)
def test_planted_overlaps_are_found(text: str, id: str, part: str, kinds: str) -> None:
    overlaps = found(text)
    assert any(each.part == part and each.kind in kinds for each in overlaps)
    assert {each.question_id for each in overlaps} == {id}
    assert all(0.25 <= each.score <= 1 and each.excerpt and each.row == 1 for each in overlaps)


def test_a_very_short_stem_is_found_only_as_a_rows_question() -> None:
    assert [each.question_id for each in found(with_options(TINY), TINY.question)] == ["tiny"]
    assert found("The soleus muscle: a review of its anatomy.", "The soleus muscle") == []


NEIGHBOURS = (
    "Which of the following statements is true?\nA. Saliva is made by three pairs of glands\nB. Saliva has no enzymes",
    "Which of the following is the most likely diagnosis?\nA. Parkinson disease\nB. Essential tremor",
    # the same illness in another case
    "A 66-year-old teacher has become slow over two years. She turns in many small steps, her voice is soft, and a "
    "tremor of the left hand disappears when she reaches for a cup. Which treatment relieves her slowness best?\n"
    "A. Levodopa\nB. Propranolol\nC. Primidone\nD. Haloperidol",
    # the same opening, and the same options
    "A 58-year-old baker is brought to the clinic by his daughter because he coughs at work. Spirometry is worse on "
    "Fridays than on Mondays.\nA. Subthalamic nucleus\nB. Substantia nigra\nC. Caudate nucleus\nD. Locus coeruleus",
    "Who described the structure of the villi?\nA. William Harvey\nB. Galen of Pergamon",
    "Loss of cells in the substantia nigra explains the slowness of Parkinson disease, and deep brain stimulation of "
    "the subthalamic nucleus relieves it.",
    "Does chewing gum after colectomy shorten the stay in hospital? Forty patients chewed gum. Flatus came sooner.",
    "Three hundred men were randomised after hernia repair to early discharge or to routine care. Pain was mild.",
    CASE,
    "",
)


@pytest.mark.parametrize("text", NEIGHBOURS)
def test_questions_on_the_same_topic_are_not_overlaps(text: str) -> None:
    assert found(text, text.split("\n")[0]) == []


@pytest.mark.parametrize(
    "text",
    [
        # the same question in other words
        "A man in his late fifties who bakes bread moves ever more slowly. His writing shrinks, his expression is "
        "frozen and one hand shakes at rest. On examination there is cogwheel rigidity. Where are neurons dying?",
        # a short question with short options, reworded
        with_options(SHORT, "Which scholar was first to explain how blood circulates?"),
        "Ein 58-jähriger Bäcker geht seit einem Jahr mit kleinen Schritten und seine Schrift ist winzig geworden.",
    ],
)
def test_overlaps_that_the_docstring_calls_missed_are_missed(text: str) -> None:
    assert found(text) == []


@given(st.integers(0, 10_000), st.sampled_from([VIGNETTE.question, TRIAL.context]))
def test_any_85_per_cent_of_the_words_of_a_long_text_suffice(seed: int, text: str) -> None:
    words = text.split()
    places = set(random.Random(seed).sample(range(len(words)), k=int(0.15 * len(words))))
    assert found(" ".join("velvet" if at in places else word for at, word in enumerate(words)))


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    assert found(text, text) == []


@given(st.permutations(range(5)))
def test_the_order_of_the_rows_decides_only_the_order_of_the_overlaps(order: list[int]) -> None:
    texts = [with_options(VIGNETTE), CASE, TRIAL.context, with_options(SHORT), changed(VIGNETTE.question, 0.1)]
    rows = [TrainingText(number, text) for number, text in enumerate(texts)]
    overlaps = find_overlaps([rows[at] for at in order], BENCHMARKS)
    assert sorted(overlaps, key=lambda each: each.row) == find_overlaps(rows, BENCHMARKS)
    assert [each.row for each in overlaps] == [at for at in order if at != 1]


def test_stock_phrases_of_many_questions_are_not_overlaps() -> None:
    """Vital signs and the last line are the same in 30 vignettes; a row with them too is not a copy of any."""
    phrase = "His temperature is 37 C, pulse is 80/min, respirations are 14/min, and blood pressure is 120/80 mm Hg."
    many = [
        asked(
            f"q{at}",
            f"Man {at} has sign{at}. {phrase} Which of the following is the most likely diagnosis?",
            (f"cause{at}", "other"),
        )
        for at in range(30)
    ]
    row = f"A plumber has a rash. {phrase} Which of the following is the most likely diagnosis?"
    assert found(row, benchmarks={"medqa": many}) == []


def test_a_row_with_a_whole_benchmark_many_times_over_is_fast() -> None:
    text = " ".join(with_options(question) + question.context for rows in BENCHMARKS.values() for question in rows)
    started = time.process_time()
    overlaps = found(text * 400)
    assert {each.question_id for each in overlaps} == {"vignette", "generic", "short", "trial"}
    assert time.process_time() - started < 10


def test_a_screening_lists_what_it_drops(tmp_path: Path) -> None:
    rows = [TrainingText(number, f"{CASE} Case number {number}.") for number in range(1, 20)]
    rows.append(TrainingText(20, with_options(VIGNETTE)))
    screened = screen(iter(rows), BENCHMARKS, ContaminationConfig(), tmp_path / "contamination.json", "rows.jsonl")
    assert (screened.n_rows, screened.dropped) == (20, {20})
    report = json.loads((tmp_path / "contamination.json").read_text(encoding="utf-8"))
    assert (report["schema_version"], report["rows"], report["dropped"], report["share"]) == (1, 20, 1, 0.05)
    assert report["questions"] == {"medqa": 2, "mmlu": 2, "pubmedqa": 1}
    (listed,) = report["overlaps"]
    assert (listed["row"], listed["task"], listed["question_id"], listed["kind"]) == (20, "medqa", "vignette", "stem")
    assert listed["excerpt"].startswith("a 58 year old baker")
    before = (tmp_path / "contamination.json").read_bytes()
    screen(iter(rows), BENCHMARKS, ContaminationConfig(), tmp_path / "contamination.json", "rows.jsonl")
    assert (tmp_path / "contamination.json").read_bytes() == before


def test_too_many_overlaps_refuse_training_and_name_their_list(tmp_path: Path) -> None:
    rows = [TrainingText(1, CASE), TrainingText(2, with_options(VIGNETTE))]
    with pytest.raises(MedbenchError, match=r"1 of 2 rows \(50.0%\).*contamination\.json") as caught:
        screen(rows, BENCHMARKS, ContaminationConfig(), tmp_path / "contamination.json", "rows.jsonl")
    assert "\n" not in str(caught.value)
    assert json.loads((tmp_path / "contamination.json").read_text(encoding="utf-8"))["dropped"] == 1
    assert screen(rows, BENCHMARKS, ContaminationConfig(most=0.5), tmp_path / "contamination.json", "x").dropped == {2}


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match="no rows"):
        screen([], BENCHMARKS, ContaminationConfig(), tmp_path / "contamination.json", "rows.jsonl")


@pytest.mark.parametrize("given_", [{"ngram": 1}, {"ngram_share": 0.0}, {"near": 0.2}, {"most": 1.5}, {"nears": 0.7}])
def test_an_impossible_config_is_refused(given_: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ContaminationConfig.model_validate(given_)


# --- real files ---


def read(path: Path, row: Any) -> list[Question]:
    return [row.model_validate_json(line).canonical() for line in path.open(encoding="utf-8")]


@pytest.fixture(scope="module")
def real(data_dir: Path) -> dict[str, list[Question]]:
    return {
        "medqa": read(data_dir / "medqa" / "test.jsonl", medqa.Row),
        "mmlu_pro_medical": read(data_dir / "mmlu_pro_medical" / "health.jsonl", mmlu_pro.Row)
        + read(data_dir / "mmlu_pro_medical" / "biology.jsonl", mmlu_pro.Row),
        "pubmedqa": read(data_dir / "pubmedqa" / "test.jsonl", pubmedqa.Row),
    }


@pytest.mark.data
def test_every_real_question_is_found_in_a_row_made_from_it(real: dict[str, list[Question]]) -> None:
    rows, ids = [], []
    for task, questions in real.items():
        for question in questions:
            rows.append(
                TrainingText(len(rows), f"{CASE} {with_options(question)} {question.context}", question.question)
            )
            ids.append((task, question.id))
    overlaps = {(each.row, each.task, each.question_id) for each in find_overlaps(rows, real)}
    missed = [row for row, (task, id) in enumerate(ids) if (row, task, id) not in overlaps]
    print(f"{len(rows)} questions as rows, {len(missed)} missed")
    assert len(missed) <= 0.002 * len(rows)


@pytest.mark.data
def test_real_training_files_against_the_real_test_sets(data_dir: Path, real: dict[str, list[Question]]) -> None:
    sources = {
        name: list(enumerate(map(json.loads, (data_dir / name).open(encoding="utf-8")), 1))
        for name in ("train/medmcqa_mcq.jsonl", "train/medical_o1_demo_sft.jsonl", "pubmedqa/train.jsonl")
    }
    for name, lines in sources.items():
        rows = []
        for number, row in lines:
            texts = [row["question"], *row.get("options", {}).values(), row.get("reasoning", "")]
            texts += [*row.get("context", {}).get("contexts", []), row.get("long_answer", "")]
            rows.append(TrainingText(number, "\n".join(texts), row["question"]))
        overlaps = find_overlaps(rows, real)
        dropped = {each.row for each in overlaps}
        print(f"{name}: {len(dropped)} of {len(rows)} rows flagged")
        for each in overlaps:
            print(
                f"  row {each.row} {each.task} {each.question_id} {each.part} {each.kind} {each.score}: {each.excerpt}"
            )
        assert len(dropped) <= 0.01 * len(rows)


@pytest.mark.data
def test_real_questions_are_not_confused_with_each_other(real: dict[str, list[Question]]) -> None:
    """Each MedQA question against all others: only MedQA's own near-duplicates are flagged, a handful."""
    rows = [TrainingText(at, with_options(question), question.question) for at, question in enumerate(real["medqa"])]
    overlaps = find_overlaps(rows, {"medqa": real["medqa"]})
    others = {each.row for each in overlaps if real["medqa"][each.row].id != each.question_id}
    print(f"{len(others)} of {len(rows)} MedQA questions are near another one")
    assert len(others) <= 0.02 * len(rows)


def test_a_question_without_options_is_found_by_its_text() -> None:
    free = Question("free", "free", "Name the enzyme that joins oxygen to the iron of haem.", (), (), "none")
    assert [each.kind for each in found(f"{CASE} {free.question}", benchmarks={"foreign": [free]})] == ["stem"]


def test_a_question_under_two_tasks_is_listed_under_both() -> None:
    both = {"medqa": [VIGNETTE], "medqa_again": [replace(VIGNETTE, id="again")]}
    assert [each.task for each in found(VIGNETTE.question, benchmarks=both)] == ["medqa", "medqa_again"]
