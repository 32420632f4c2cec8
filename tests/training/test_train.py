"""`medbench train` as a user types it: the whole loop on a tiny model, kill -9 at any moment, faults in one line.

pytest tests/training/test_train.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import tiny_training
from support.tiny_training import NAME, RECIPE, TASK, command, differences, kill_when, left_behind

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.cli.main import run
from medbench.harness.engines.settings import EngineConfig
from medbench.harness.training.checkpoint_folder import read_metrics
from medbench.harness.training.journal import (
    AttemptEnded,
    AttemptStarted,
    Confirmed,
    Event,
    Gated,
    Measured,
    Promoted,
    TrainingEnded,
    read_events,
)
from medbench.harness.training.recipe import Recipe
from medbench.harness.training.train import engine_of
from medbench.trainers.rewards.rewards import COMPONENTS

SFT, GRPO = f"train-{NAME}/1-sft", f"train-{NAME}/2-grpo"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the recipe, its data and its start. Shared: do not write into it."""
    return tiny_training.build(tmp_path_factory.mktemp("tiny-training")).parent


@pytest.fixture(scope="module")
def whole(built: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """--runs of an uninterrupted training, and how it ended."""
    done = command(
        "train", built / "recipe.yaml", "--runs", built / "whole", "--data", built / "data", "--json", cwd=built
    )
    return built / "whole", done


def of(kind: type[Any], stage: str, events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind) and event.stage == stage]  # type: ignore[attr-defined]


def accuracy(event: Gated | Confirmed | Measured) -> float:
    assert event.verdict is not None
    (found,) = [gate.estimate for gate in event.verdict.gates if gate.metric == "accuracy"]
    assert found is not None
    return found


@pytest.mark.engine
def test_tiny_loop_fails_reruns_and_passes_by_learning(
    built: Path, whole: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    runs, done = whole
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # one object and nothing else
    promoted = runs / GRPO / "promoted"
    assert (told["outcome"], Path(told["checkpoint"])) == ("passed", promoted)
    assert "Traceback" not in done.stderr
    events = list(read_events(runs / f"train-{NAME}"))
    assert isinstance(events[-1], TrainingEnded)

    first, *_, last = of(AttemptEnded, "sft", events)
    assert (first.outcome, first.crashed, first.improving) == ("failed", False, True)
    assert first.reason.startswith("no checkpoint passed; the best, step 32: pubmedqa: accuracy")
    assert (last.outcome, last.attempt) in [("passed", 2), ("passed", 3)]
    starts = of(AttemptStarted, "sft", events)
    assert starts[1].start == "1-sft/attempt-1/step-000032"
    assert len({one.seed for one in starts}) == len(starts)
    form, answers = (accuracy(one) for one in of(Gated, "sft", events)[:2])
    assert form < 0.2  # has not learnt to reply yet
    assert 0.3 < answers < 0.7  # replies, always with the same answer
    for stage in ("sft", "grpo"):
        *_, confirmed = of(Confirmed, stage, events)
        assert (confirmed.verdict.overall, confirmed.verdict.partition) == ("pass", "report")
    assert accuracy(of(Measured, "sft", events)[0]) < 0.1
    assert accuracy(of(Confirmed, "sft", events)[-1]) > 0.75

    for attempt in sorted(runs.glob(f"{SFT}/attempt-*")):
        assert all("loss" in line for line in read_metrics(attempt))
    logged = read_metrics(runs / GRPO / "attempt-1")
    assert logged
    assert all(f"rewards/{name}/mean" in line for line in logged for name in COMPONENTS)
    assert (runs / SFT / "contamination.json").exists()

    assert resolve(str(promoted)).kind == "full"
    (last_promoted,) = of(Promoted, "grpo", events)
    assert resolve(str(promoted)).fingerprint == last_promoted.fingerprint
    evaluated = command(
        "eval",
        promoted,
        "--engine",
        "hf",
        "--tasks",
        TASK,
        "--partition",
        "report",
        "--max-new-tokens",
        "40",
        "--data",
        built / "data",
        "--runs",
        built / "evaluated",
        "--json",
        cwd=built,
    )
    assert json.loads(evaluated.stdout)["results"][TASK]["accuracy"] > 0.8  # by another engine


@pytest.mark.engine
def test_a_training_is_not_started_twice_and_resuming_a_finished_one_does_nothing(
    built: Path, whole: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    runs, done = whole
    given = ["train", built / "recipe.yaml", "--runs", runs, "--data", built / "data", "--json"]
    journal = (runs / f"train-{NAME}" / "journal.jsonl").read_bytes()
    again = command(*given, cwd=built)
    assert (again.returncode, again.stdout) == (2, "")
    (line,) = again.stderr.splitlines()
    assert "already exists: add --resume" in line
    resumed = command(*given, "--resume", cwd=built)
    assert resumed.returncode == 0
    assert json.loads(resumed.stdout) == json.loads(done.stdout)
    assert (runs / f"train-{NAME}" / "journal.jsonl").read_bytes() == journal


@pytest.mark.engine
def test_a_training_of_an_earlier_version_is_resumed_and_another_recipe_is_refused(
    built: Path, whole: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(whole[0], runs)
    path = runs / f"train-{NAME}" / "training.json"
    training = json.loads(path.read_text())
    for stage in training["recipe"]["stages"]:
        for gate in stage["gates"]["gates"]:
            del gate["judge"], gate["least_kappa"]  # these came later
    training["recipe_sha256"] = "0" * 64  # which no version can compute again
    path.write_text(json.dumps(training))
    given = ["--runs", runs, "--data", built / "data", "--resume", "--json"]
    resumed = command("train", built / "recipe.yaml", *given, cwd=built)
    assert resumed.returncode == 0, resumed.stderr
    recipe = yaml.safe_load((built / "recipe.yaml").read_text())
    other = tmp_path / "recipe.yaml"
    other.write_text(yaml.safe_dump(recipe | {"seed": recipe.get("seed", 0) + 1}))
    refused = command("train", other, *given, cwd=built)
    assert refused.returncode == 2
    assert "was started with another recipe" in refused.stderr


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "training, between two checkpoints": lambda runs: len(read_metrics(runs / SFT / "attempt-1")) >= 24,
    "gating": lambda runs: (runs / f"train-{NAME}/runs/sft-a1-step-000032-gate").exists(),
    "training the rerun, before any checkpoint": lambda runs: len(read_metrics(runs / SFT / "attempt-2")) >= 7,
    "reinforcement learning": lambda runs: len(read_metrics(runs / GRPO / "attempt-1")) >= 2,
}


@pytest.mark.engine
@pytest.mark.timeout(1800)  # many starts of the loop
def test_kill_9_at_any_moment_changes_nothing(
    built: Path, whole: tuple[Path, subprocess.CompletedProcess[str]]
) -> None:
    """Twenty random moments: tests/bench/kills.py."""
    runs = built / "torn"
    for name, there in MOMENTS.items():
        process = tiny_training.start(built / "recipe.yaml", runs)
        killed = kill_when(process, runs, lambda _, there=there: there(runs))
        assert killed is not None, f"{name}: it ended first: {(runs / 'log.txt').read_text()[-2000:]}"
    assert tiny_training.start(built / "recipe.yaml", runs).wait(300) == 0, (runs / "log.txt").read_text()[-2000:]
    assert differences(runs, whole[0]) == []
    assert left_behind(runs) == []


def changed(content: Mapping[str, Any], keys: str, value: Any) -> dict[str, Any]:
    """A copy of `content` with the value at the dotted `keys` replaced."""
    copy: Any = deepcopy(dict(content))
    inside = copy
    *path, last = keys.split(".")
    for key in path:
        inside = inside[int(key) if isinstance(inside, list) else key]
    inside[last] = value
    return copy  # type: ignore[no-any-return]


@pytest.fixture
def train(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`medbench train` on a changed RECIPE, in this process; its exit status."""
    monkeypatch.delenv("MEDBENCH_DATA", raising=False)

    def train(content: Mapping[str, Any], *more: str | Path) -> int:
        start = str(built / "model") if content["start"] == "model" else content["start"]
        recipe = tiny_training.write_recipe(tmp_path, {**content, "start": start})
        given = more if "--data" in more else (*more, "--data", built / "data")
        return run(["train", str(recipe), "--runs", str(tmp_path / "runs"), *map(str, given)])

    return train


DATA = "stages.0.config.data"
ROW: dict[str, Any] = {
    "question": "Does it help?",
    "context": {"contexts": ["It was tried."]},
    "long_answer": "It helped.",
    "final_decision": "yes",
}
CHOICE = {"question": "Which?", "options": ["this", "that"], "answer": "this"}
FAULTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no start": ({"start": "/nowhere/model"}, ["/nowhere/model"]),
    "rank 0": ({"stages.0.config.lora.rank": 0}, ["stages.0.config.lora.rank"]),
    "all reward weights 0": (
        {"stages.1.config.rewards.weights": dict.fromkeys(COMPONENTS, 0.0)},
        ["stages.1.config.rewards.weights", "all weights are 0"],
    ),
    "an adapter without a target": ({"stages.0.config.lora.targets": ["q_porj"]}, ["lora.targets", "q_porj", "q_proj"]),
    "an unknown benchmark": ({"benchmarks": ["pubmedqaa"]}, ["pubmedqaa", "pubmedqa"]),
    "a missing data file": ({DATA: [{"path": "nowhere.jsonl"}]}, ["nowhere.jsonl", "no such file"]),
    "a missing program": (
        {"stages.1.trainer": "command", "stages.1.config": {"command": ["no-such-program"]}},
        ["no-such-program"],
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_and_nothing_is_trained(
    name: str, train: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    changes, says = FAULTS[name]
    content = dict(RECIPE)
    for keys, value in changes.items():
        content = changed(content, keys, value)
    assert train(content) == 2
    assert_refused(capfd, tmp_path, *says)


def assert_refused(capfd: pytest.CaptureFixture[str], folder: Path, *says: str) -> None:
    printed = capfd.readouterr()
    assert printed.out == ""
    (line,) = [line for line in printed.err.splitlines() if line.startswith("medbench: ")]
    assert [text for text in says if text not in line] == []
    left = [path.name for path in (folder / "runs").rglob("*") if path.is_file()]
    assert set(left) <= {".lock", "contamination.json"}


@pytest.mark.parametrize(
    ("row", "form", "says"),
    [
        ({"case": "?", "answer": "!"}, "auto", "the columns case, answer match no format"),
        ({"case": "?", "answer": "!"}, "structured_medical", "no column reasoning"),
        (ROW | {"long_answer": "  "}, "auto", "long_answer is empty"),
        (ROW | {"final_decision": "perhaps"}, "auto", "'perhaps' is not one of yes, no, maybe"),
        (CHOICE | {"answer": "these"}, "auto", "'these' is not one of the options A, B"),
        ({"case": "?", "reasoning": "Because.", "answer": ""}, "auto", "answer is empty"),
    ],
)
def test_a_faulty_row_is_named_with_its_file_and_line(
    row: dict[str, Any],
    form: str,
    says: str,
    train: Callable[..., int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sound = CHOICE if "options" in row else ROW if "context" in row else row
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(sound)}\n{json.dumps(row)}\n")
    assert train(changed(RECIPE, DATA, [{"path": str(path), "format": form}])) == 2
    assert_refused(capfd, tmp_path, f"{path}:{1 if sound is row else 2}", says)


def test_all_faults_of_a_recipe_are_reported_at_once(
    train: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    content = changed(RECIPE, "seed", -1)
    content = changed(content, "budget", {"attempt": 3})
    content = changed(content, "watchdogs", {"window": 1})
    content = changed(content, "stages.0.config.training.step", 5)
    content = changed(content, "stages.0.gates.gates", [{"task": TASK, "at_least": 80}])
    content = changed(content, "stages.1.trainer", "grppo")
    assert train(content) == 2
    assert_refused(
        capfd,
        tmp_path,
        "seed",
        "budget.attempt",
        "watchdogs.window",
        "stages.0.config.training.step",
        "stages.0.gates.gates.0",
        "write 0.6 for 60 %",
        "stages.1.trainer",
        "grpo",
    )


def test_a_gate_on_judged_reasoning_is_refused_before_anything_is_trained(
    train: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gate = {"task": TASK, "metric": "factuality", "judge": "llm", "at_least": 0.5}
    assert train(changed(RECIPE, "stages.0.gates.gates", [gate]), "--dry-run") == 2
    assert_refused(capfd, tmp_path, "gates.0: factuality is decided on finished, judged runs only")


def test_a_path_below_a_data_folder_that_is_not_set(
    train: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(RECIPE, "--data", "sample") == 2
    assert_refused(capfd, tmp_path, "$MEDBENCH_DATA/pubmedqa/train.jsonl", "MEDBENCH_DATA is not set")


def test_a_dry_run_prints_a_plan_and_leaves_nothing(
    train: Callable[..., int], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(RECIPE, "--dry-run") == 0
    out = capfd.readouterr().out
    for said in (
        f"training {NAME} in {tmp_path / 'runs' / f'train-{NAME}'}: at most 5 attempts per stage",
        "stage 1, sft",
        "overlap a benchmark",
        "32 steps of 16 rows",
        "2 checkpoints",
        "stage 2, grpo",
        "4 completions",
        "memory about",
        f"gate: {TASK}: accuracy at least 0.75",
        "questions while training",
        "    >>><think>",
        "right answer: ",
    ):
        assert said in out
    assert not (tmp_path / "runs").exists()
    assert "MEDBENCH_DATA" not in os.environ  # set only while the trainers looked for their data
    assert train(RECIPE, "--dry-run", "--json") == 0
    assert json.loads(capfd.readouterr().out)["plan"][:3] == out.splitlines()[:3]


# a GPU shared with the engine


def shared(**engine: Any) -> Recipe:
    return Recipe.model_construct(device="shared", engine=EngineConfig(**engine))


def test_an_engine_that_shares_a_gpu_leaves_room_for_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training keeps its weights and optimizer there while a checkpoint is judged."""
    monkeypatch.setattr("medbench.harness.engines.vllm.runs_on_cpu", lambda: False)
    found = engine_of(shared())
    assert (found.gpu_memory_utilization, found.vllm_args) == (0.45, {"enable_sleep_mode": True})
    own = engine_of(shared(gpu_memory_utilization=0.6, vllm_args={"enable_sleep_mode": False}))
    assert (own.gpu_memory_utilization, own.vllm_args) == (0.6, {"enable_sleep_mode": False})


def test_an_engine_with_a_gpu_of_its_own_takes_what_vllm_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medbench.harness.engines.vllm.runs_on_cpu", lambda: False)
    separate = Recipe.model_construct(device="separate", engine=EngineConfig())
    assert engine_of(separate) == EngineConfig()
