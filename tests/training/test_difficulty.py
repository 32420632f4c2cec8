"""A stage's start answers the questions that the stage trains on, by the real engine, also when it is killed meanwhile.

pytest tests/training/test_difficulty.py
"""

from __future__ import annotations

import json
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from support import tiny_training
from support.tiny_training import NAME, RECIPE, command, kill_when

from medbench.harness.contracts import MedbenchError
from medbench.harness.runs.run_folder import read_run, read_samples
from medbench.harness.training.checkpoint_folder import read_metrics, scores
from medbench.harness.training.difficulty import read_shares
from medbench.harness.training.journal import Gated, Measured, Probed, StageStarted, read_events
from medbench.harness.training.state import worth_of

SFT = f"train-{NAME}/1-sft"
ROWS, SAMPLES = 60, 3


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """One short attempt, which will fail."""
    tiny_training.build(tmp_path)
    content: dict[str, Any] = deepcopy(RECIPE) | {"budget": {"attempts": 1}}
    stage = content["stages"][0]
    content["stages"] = [stage]
    stage["config"]["data"][0]["limit"] = ROWS
    stage["config"]["training"] |= {"steps": 2, "save_every": 1}
    stage["config"]["order"] = {"by": "difficulty", "samples": SAMPLES, "max_new_tokens": 12}
    return tiny_training.write_recipe(tmp_path, content)


@pytest.mark.engine
def test_difficulty_is_measured_once_as_a_run_and_a_killed_measurement_goes_on(recipe: Path) -> None:
    runs = recipe.parent / "runs"
    folder = runs / f"train-{NAME}"
    samples = folder / "runs/sft-difficulty/samples/difficulty.jsonl"
    process = tiny_training.start(recipe, runs)
    assert kill_when(process, runs, lambda _: samples.exists() and samples.stat().st_size > 0) is not None
    assert not any(isinstance(event, Probed) for event in read_events(folder))
    before = samples.read_bytes()
    ended = command("train", recipe, "--runs", runs, "--data", recipe.parent / "data", "--resume", cwd=recipe.parent)
    assert ended.returncode == 1, ended.stderr  # the attempt failed, as it should

    found = list(read_samples(folder / "runs/sft-difficulty", "difficulty"))
    asked = Counter(one.id for one in found)
    assert (len(asked), set(asked.values())) == (ROWS, {SAMPLES})
    assert samples.read_bytes().startswith(before[: before.rfind(b"\n") + 1])
    assert read_run(folder / "runs/sft-difficulty").protocol["decoding"]["temperature"] == 1
    shares = read_shares(runs / SFT)
    assert shares.keys() == asked.keys()
    assert all(
        shares[id] == pytest.approx(sum(one.score or 0 for one in found if one.id == id) / SAMPLES) for id in shares
    )
    events = list(read_events(folder))
    (probed,) = [event for event in events if isinstance(event, Probed)]
    assert (probed.questions, probed.run) == (ROWS, "runs/sft-difficulty")
    assert f"{ROWS} questions" in probed.said
    (begun,) = [event for event in events if isinstance(event, StageStarted)]
    cost = f"difficulty: before the first attempt the start answers {ROWS} questions, {SAMPLES} replies each"
    assert any(line.startswith(cost) for line in begun.prepared)
    (measured,) = [event for event in events if isinstance(event, Measured)]
    gated = [event for event in events if isinstance(event, Gated)]
    assert measured.verdict is not None
    worth = {0: worth_of(measured.verdict), **{one.step: worth_of(one.verdict) for one in gated}}
    assert scores(runs / SFT / "attempt-1") == pytest.approx(worth)
    assert [line["curriculum/open_bands"] for line in read_metrics(runs / SFT / "attempt-1")] == [1, 1]
    pages = command("report", runs, "-o", recipe.parent / "site", cwd=recipe.parent)
    assert pages.returncode == 0, pages.stderr
    page = (recipe.parent / "site" / "trainings" / f"train-{NAME}" / "index.html").read_text()
    assert f"difficulty: {probed.said}" in page


@pytest.mark.parametrize("content", [None, "", "[]", '{"right": 3}', '{"right": {"q": "x"}}', '{"right": null}'])
def test_a_damaged_file_of_difficulties_is_one_line(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "difficulty.json").write_text(content)
    with pytest.raises(MedbenchError, match="delete it, and resume the training to measure them again") as caught:
        read_shares(tmp_path)
    assert len(caught.value.lines) == 1


def test_scores_of_another_version_or_damaged_ones_are_left_out(tmp_path: Path) -> None:
    for name, text in {"000000": "0.25", "000010": "", "000020": "{}", "000030": json.dumps(0.5), "x": "1"}.items():
        (tmp_path / f".judged-{name}").write_text(text)
    assert scores(tmp_path) == {0: 0.25, 30: 0.5}
