"""Rows in the order of their difficulty, with the real TRL trainers on the tiny model.

pytest tests/trainers/test_curriculum.py
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.config import check_mapping
from medbench.harness.contracts import MedbenchError
from medbench.harness.training import checkpoint_folder
from medbench.harness.training.difficulty import DIFFICULTY
from medbench.trainers import grpo, sft
from medbench.trainers.curriculum import OPENED, Draws, OrderSettings, bands_of, open_bands

ORDER = {"by": "difficulty", "samples": 4, "bands": 3, "rise": 0.1}
SHARES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=60)


# --- bands, without a trainer


@given(SHARES, st.integers(1, 6))
def test_bands_hold_every_row_once_and_get_harder(shares: list[float], count: int) -> None:
    bands = bands_of(shares, count, skip=False)
    assert sorted(row for band in bands.rows for row in band) == list(range(len(shares)))
    assert 1 <= len(bands.rows) <= count
    for easier, harder in zip(bands.rows, bands.rows[1:], strict=False):
        assert min(shares[row] for row in easier) > max(shares[row] for row in harder)


@given(SHARES)
def test_rows_without_a_signal_are_left_out_and_counted(shares: list[float]) -> None:
    kept = [at for at, share in enumerate(shares) if 0 < share < 1]
    if not kept:
        with pytest.raises(MedbenchError, match=r"order\.skip: all \d+ rows are left out"):
            bands_of(shares, 3, skip=True)
        return
    bands = bands_of(shares, 3, skip=True)
    assert sorted(row for band in bands.rows for row in band) == kept
    assert (bands.never, bands.always) == (shares.count(0.0), shares.count(1.0))


def test_bands_of_different_shares_have_about_equal_sizes() -> None:
    assert [len(band) for band in bands_of([at / 100 for at in range(90)], 3, skip=False).rows] == [30, 30, 30]


@pytest.mark.parametrize(
    ("scores", "opened"),
    [
        ({}, 1),
        ({0: 0.4}, 1),
        ({0: 0.4, 2: 0.3}, 1),
        ({0: 0.4, 2: 0.5}, 2),
        ({0: 0.4, 2: 0.5, 4: 0.3}, 2),  # what is open stays open
        ({0: 0.4, 2: 0.9}, 3),
        ({0: 0.4, 2: 0.4, 6: 0.9}, 1),  # not judged yet when step 4 was
        ({2: 0.4, 4: 0.5}, 2),  # the start was not measured
    ],
)
def test_a_band_opens_for_each_rise_of_the_best_score(scores: dict[int, float], opened: int) -> None:
    assert open_bands(scores, 4, OrderSettings(by="difficulty", rise=0.1, patience=None), 3) == opened


@pytest.mark.parametrize(
    ("scores", "opened"),
    [
        ([0.4, 0.4], 1),
        ([0.4, 0.4, 0.4], 2),  # two checkpoints without a rise
        ([0.4, 0.4, 0.4, 0.4], 2),
        ([0.4, 0.4, 0.4, 0.4, 0.3], 3),
        ([0.4, 0.5, 0.5], 2),  # it opened by a rise, and one has been waited for
        ([0.4, 0.5, 0.5, 0.5], 3),
        ([0.4] * 20, 3),
    ],
)
def test_a_band_opens_when_none_has_for_as_long_as_patience_lasts(scores: list[float], opened: int) -> None:
    settings = OrderSettings(by="difficulty", rise=0.1, patience=2)
    assert open_bands(dict(enumerate(scores)), len(scores), settings, 3) == opened
    assert open_bands(dict(enumerate(scores[1:], 1)), len(scores), settings, 3) >= 1  # the start was not measured


@given(
    SHARES, st.integers(1, 7), st.integers(1, 3), st.integers(0, 2**31), st.dictionaries(st.integers(1, 20), st.just(2))
)
def test_only_open_rows_are_drawn_each_once_in_a_pass(
    shares: list[float], batch: int, steps: int, seed: int, opened: dict[int, int]
) -> None:
    bands = bands_of(shares, 2, skip=False)
    opened = {step: min(count, len(bands.rows)) for step, count in opened.items()}
    draws = Draws(bands, seed, batch, steps, opened=opened)
    first = min((step for step, count in opened.items() if count > 1), default=10**9) + 2
    rows = [draws.row(position) for position in range(20 * batch)]
    early = [row for at, row in enumerate(rows) if (at // batch) * steps + 1 < first]
    assert set(early) <= set(bands.rows[0])
    for begin in range(0, len(early) - len(bands.rows[0]) + 1, len(bands.rows[0])):
        assert sorted(early[begin : begin + len(bands.rows[0])]) == sorted(bands.rows[0])
    late = rows[len(early) :]
    open_rows = [row for band in bands.rows[: draws.open_at(10**8)] for row in band]
    if len(late) >= len(open_rows):
        assert sorted(late[: len(open_rows)]) == sorted(open_rows)  # a new pass over all that is open


def test_rows_of_a_batch_are_sorted_by_length_where_lengths_are_known() -> None:
    lengths = [9, 3, 7, 1, 5, 8]
    draws = Draws(bands_of([0.5] * 6, 1, skip=False), 1, 3, lengths=lengths)
    found = [lengths[draws.row(position)] for position in range(6)]
    assert found == sorted(found[:3]) + sorted(found[3:])
    assert sorted(found) == sorted(lengths)


def test_settings_survive_the_way_to_the_training_process() -> None:
    for settings in (OrderSettings(), OrderSettings.model_validate(ORDER)):
        assert OrderSettings.model_validate(json.loads(json.dumps(settings.model_dump(mode="json")))) == settings
    with pytest.raises(ValueError, match="bands belongs to by: difficulty"):
        OrderSettings.model_validate({"bands": 2})


# --- with TRL

KINDS = {"easy": 0.75, "hard": 0.25, "never": 0.0}


def a_row(number: int, kind: str) -> dict[str, Any]:
    return {
        "question": f"Which of these two substances is {kind} number {number}?",
        "options": ["Iron", "Zinc"],
        "answer": "AB"[number % 2],
        "kind": kind,
        "reasoning": "Iron and zinc are metals. The body needs both.",
    }


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    content = [a_row(number, kind) for number in range(4) for kind in KINDS]
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


def settled(content: dict[str, Any], model: Any) -> Any:
    config, faults = check_mapping(content, model, "recipe.yaml")
    assert config is not None, faults
    return config


def grpo_config(path: Path) -> grpo.Config:
    return settled(  # type: ignore[no-any-return]
        {
            "prompts": [{"path": str(path)}],
            "lora": {"rank": 4, "alpha": 8.0},
            "training": {"steps": 6, "batch_size": 8, "save_every": 2, "learning_rate": 2e-3, "warmup_steps": 0},
            "rollout": {"completions": 4, "max_completion_tokens": 16},
            "rewards": {"ngram": 2, "short": 4, "long": 16},
            "loss": {"mask_truncated": False, "advantage": {"kind": "domain", "by": "kind", "warmup": 100}},
            "order": ORDER,
        },
        grpo.Config,
    )


def sft_config(path: Path) -> sft.Config:
    return settled(  # type: ignore[no-any-return]
        {
            "data": [{"path": str(path)}],
            "lora": {"rank": 4, "alpha": 8.0},
            "training": {"steps": 6, "batch_size": 2, "save_every": 2, "learning_rate": 2e-3, "warmup_steps": 0},
            "order": ORDER | {"bands": 2},
        },
        sft.Config,
    )


def measured(trainer: Any, config: Any, start: Path, stage: Path) -> None:
    """What the loop does before an attempt, with made-up shares of right replies."""
    lines = trainer.prepare(config, start=start, folder=stage, benchmarks={})
    assert any(line.startswith("difficulty: before the first attempt the start answers 12 questions") for line in lines)
    probe = trainer.probe(config, start=start, folder=stage)
    right = {one.id: KINDS[next(kind for kind in KINDS if kind in one.question)] for one in probe.questions}
    assert len(right) == 12
    assert probe.protocol.decoding.temperature == 1
    (stage / DIFFICULTY).write_text(json.dumps({"run": "x", "samples": probe.samples, "right": right}))


SCORES = {0: 0.3, 2: 0.45, 4: 0.45, 6: 0.45}
"""A second band opens at step 2."""


def judge(attempt: Path, over: threading.Event) -> None:
    """As the loop does, while the training waits."""
    while not over.is_set():
        for one in checkpoint_folder.checkpoints(attempt):
            checkpoint_folder.mark_judged(attempt, one.step, SCORES[one.step])
        time.sleep(0.02)


def trained(trainer: Any, config: Any, start: Path, attempt: Path) -> list[dict[str, object]]:
    attempt.mkdir(exist_ok=True)
    for path in attempt.glob(".judged-*"):
        path.unlink()
    checkpoint_folder.mark_judged(attempt, 0, SCORES[0])
    over = threading.Event()
    thread = threading.Thread(target=judge, args=(attempt, over))
    thread.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(checkpoint_folder.WAIT, "1")
            trainer.train(config, start=start, folder=attempt, seed=3)
    finally:
        over.set()
        thread.join()
    times = ("step_time", "generation_time", "reward_time", "peak_memory_gib")
    lines = checkpoint_folder.read_metrics(attempt)
    return [{name: value for name, value in line.items() if name not in times} for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", [grpo, sft], ids=["grpo", "sft"])
def test_a_band_opens_two_steps_after_the_score_rose_and_a_resumed_training_goes_on_alike(
    trainer: Any, rows: Path, tiny_model: Path, tmp_path: Path
) -> None:
    config = grpo_config(rows) if trainer is grpo else sft_config(rows)
    stage = tmp_path / "stage"
    measured(trainer, config, tiny_model, stage)
    attempt = stage / "attempt-1"
    through = trained(trainer, config, tiny_model, attempt)
    assert [line["curriculum/open_bands"] for line in through] == [1, 1, 1, 2, 2, 2]
    if trainer is grpo:
        asked = [{name.split("/")[1] for name in line if name.startswith("domains/")} for line in through]
        assert asked[:3] == [{"easy"}] * 3
        assert set().union(*asked[3:]) == {"easy", "hard"}  # never "never": those are left out
        assert all(0 <= line["groups/all_wrong"] <= 1 for line in through)  # type: ignore[operator]
    weights = (attempt / "step-000006" / "adapter_model.safetensors").read_bytes()
    opened = (attempt / OPENED).read_text()
    shutil.rmtree(attempt / "step-000006")  # as after a kill in step 5,
    (attempt / OPENED).write_text(opened.splitlines(keepends=True)[0])  # and before step 4's line was written
    assert trained(trainer, config, tiny_model, attempt) == through
    assert (attempt / "step-000006" / "adapter_model.safetensors").read_bytes() == weights
    assert (attempt / OPENED).read_text() == opened


@pytest.mark.slow
def test_rows_that_the_order_cannot_use_are_refused_in_one_line(rows: Path, tiny_model: Path, tmp_path: Path) -> None:
    free = tmp_path / "free.jsonl"
    free.write_text(json.dumps({"question": "How much iron is in 2 g of it?", "answer": "2 g", "kind": "free"}) + "\n")
    for trainer, config in ((grpo, grpo_config(free)), (sft, sft_config(free))):
        with pytest.raises(MedbenchError, match=r"free\.jsonl:1: order\.by: difficulty counts right replies"):
            trainer.prepare(config, start=tiny_model, folder=tmp_path / "stage", benchmarks={})
    config, stage = grpo_config(rows), tmp_path / "other"
    measured(grpo, config, tiny_model, stage)
    shares = json.loads((stage / DIFFICULTY).read_text())["right"]
    for content, says in (
        ({}, "no difficulties can be read"),
        ({"right": dict(list(shares.items())[:5])}, "the rows have changed since difficulties were measured"),
        ({"right": dict.fromkeys(shares, 1.0)}, "all 12 rows are left out, 0 never right and 12 always"),
    ):
        (stage / DIFFICULTY).write_text(json.dumps(content))
        with pytest.raises(MedbenchError, match=says):
            grpo.train(config, start=tiny_model, folder=stage / "attempt-1", seed=1)
