"""Supervised fine-tuning on the tiny model: it learns, resumes bit for bit after kill -9, runs on two processes.

pytest tests/trainers/test_sft.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.checkpoints.weights import check_safetensors
from medbench.harness.contracts import MedbenchError, Question, Request
from medbench.harness.engines.hf import HFEngine
from medbench.harness.extraction.answer import extract
from medbench.harness.protocols.protocol import load_protocol
from medbench.harness.training import checkpoint_folder
from medbench.harness.training.trainer_plugins import FailedAttempt, _faults
from medbench.trainers import sft
from medbench.trainers.data.rendering import Renderer
from medbench.trainers.data.rows import load_rows

pytestmark = pytest.mark.slow

SCRIPT = """
import sys
from pathlib import Path
from medbench.trainers import sft
config, start, folder = sys.argv[1:]
sft.train(sft.Config.model_validate_json(config), start=Path(start), folder=Path(folder), seed=5)
"""
COSTS = ("step_time", "peak_memory_gib")
ORGANS = ("heart", "lung", "liver", "brain", "kidney", "spleen", "skin", "bone", "eye", "ear", "nose", "throat")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 questions with two options whose answer depends only on the first."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    with path.open("w") as file:
        for n in range(24):
            organ, other = ORGANS[n % 12], ORGANS[(n + 5) % 12]
            right = "A" if n % 2 else "B"
            options = {right: organ, "B" if right == "A" else "A": other}
            reasoning = f"The {organ} is swollen." + " Which is the most likely diagnosis?" * (n % 3)
            row = {
                "question": f"Which is swollen, case {n}?",
                "options": options,
                "answer_idx": right,
                "reasoning": reasoning,
            }
            file.write(json.dumps(row) + "\n")
    return path


def config(rows: Path, *, lora: dict[str, Any] | None, **training: Any) -> dict[str, Any]:
    return {
        "data": [{"path": str(rows)}],
        "lora": lora,
        "training": {"steps": 7, "batch_size": 4, "learning_rate": 0.01, "save_every": 2, **training},
    }


LORA = {"rank": 4, "dropout": 0.1, "use_dora": True, "use_rslora": True}


def train(content: dict[str, Any], start: Path, folder: Path) -> None:
    sft.train(sft.Config(**content), start=start, folder=folder, seed=5)


def weights(folder: Path) -> dict[str, bytes]:
    return {
        f"{one.step}/{name}": (one.path / name).read_bytes()
        for one in checkpoint_folder.checkpoints(folder)
        for name in ("adapter_model.safetensors", "adapter_config.json")
    }


def without_times(folder: Path) -> list[dict[str, object]]:
    lines = checkpoint_folder.read_metrics(folder)
    return [{name: value for name, value in line.items() if name not in COSTS} for line in lines]


def wait_for(there: Callable[[], bool], child: subprocess.Popen[bytes], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert child.poll() is None, "the training ended too early"
        assert time.monotonic() < end, "the training takes too long"
        time.sleep(0.05)


def test_a_killed_training_resumes_to_the_same_weights(tmp_path: Path, tiny_model: Path, rows: Path) -> None:
    content = config(rows, lora=LORA, optimizer="exadam")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-c", SCRIPT, json.dumps(content), str(tiny_model), str(killed)]
    with (tmp_path / "log").open("wb") as log:
        child = subprocess.Popen(command, env={**os.environ, checkpoint_folder.WAIT: "1"}, stdout=log, stderr=log)
    wait_for(lambda: len(checkpoint_folder.checkpoints(killed)) == 1, child)
    time.sleep(0.5)
    assert [line["step"] for line in checkpoint_folder.read_metrics(killed)] == [1, 2]  # it waits to be judged
    checkpoint_folder.mark_judged(killed, 2)
    wait_for(lambda: len(checkpoint_folder.checkpoints(killed)) == 2, child)
    checkpoint_folder.mark_judged(killed, 4)
    wait_for(lambda: checkpoint_folder.read_metrics(killed)[-1]["step"] == 5, child)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    # no progress bars, and no warnings except one of transformers' for two saves close together
    said = [line for line in (tmp_path / "log").read_text().splitlines() if "mtime may not be reliable" not in line]
    assert said == []

    train(content, tiny_model, killed)
    train(content, tiny_model, whole)
    assert [one.step for one in checkpoint_folder.checkpoints(killed)] == [2, 4, 6, 7]
    assert weights(killed) == weights(whole)
    assert without_times(killed) == without_times(whole)
    assert [line["step"] for line in checkpoint_folder.read_metrics(whole)] == [1, 2, 3, 4, 5, 6, 7]

    before = (killed / checkpoint_folder.METRICS).read_bytes()
    train(content, tiny_model, killed)  # finished: nothing is done again
    assert (killed / checkpoint_folder.METRICS).read_bytes() == before


def test_it_learns_to_reply_and_to_stop(tmp_path: Path, tiny_model: Path, rows: Path) -> None:
    """The published adapter, merged and asked as in an evaluation, gives the taught reasoning and answer, and stops."""
    content = config(rows, lora={"rank": 16}, steps=80, batch_size=8, learning_rate=0.002, save_every=80)
    content["data"][0]["limit"] = 8
    folder = tmp_path / "attempt"
    train(content, tiny_model, folder)
    losses = [float(str(line["loss"])) for line in checkpoint_folder.read_metrics(folder)]
    assert losses[-1] < 0.1 * losses[0]

    merged = resolve(str(folder / "step-000080"))
    assert merged.kind == "adapter"
    renderer = Renderer(tiny_model, load_protocol("cot-v2"))
    taught = [renderer.render(row) for row in load_rows(sft.Config(**content).data)]
    engine = HFEngine(merged.path)
    asked = [Request(str(n), (), one.prompt, 128, templated=True) for n, one in enumerate(taught)]
    replies = {int(one.id): one for one in engine.generate(asked)}
    engine.close()
    assert {one.finish_reason for one in replies.values()} == {"stop"}
    assert None not in [extract(one.text, labels=("A", "B")).answer for one in replies.values()]
    assert sum(replies[n].text == one.reply for n, one in enumerate(taught)) >= 4  # word for word; none at the start


def test_all_weights_can_be_trained(tmp_path: Path, tiny_model: Path, rows: Path) -> None:
    folder = tmp_path / "attempt"
    train(config(rows, lora=None, steps=2), tiny_model, folder)
    published = folder / "step-000002"
    for name in ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (published / name).read_bytes() == (tiny_model / name).read_bytes()
    start, trained = (check_safetensors(one / "model.safetensors") for one in (tiny_model, published))
    start.pop("__metadata__", None)
    trained.pop("__metadata__", None)
    shapes = [{name: (one["dtype"], one["shape"]) for name, one in header.items()} for header in (start, trained)]
    assert shapes[0] == shapes[1]
    assert resolve(str(published)).fingerprint != resolve(str(tiny_model)).fingerprint


def test_two_processes_train_one_model(tmp_path: Path, tiny_model: Path, rows: Path) -> None:
    script, folder = tmp_path / "child.py", tmp_path / "attempt"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]
    launch += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = [*launch, str(script), json.dumps(config(rows, lora=LORA, steps=3)), str(tiny_model), str(folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [one.step for one in checkpoint_folder.checkpoints(folder)] == [2, 3]
    lines = (folder / checkpoint_folder.METRICS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert (folder / ".trainer" / "checkpoint-3" / "rng_state_1.pth").exists()  # there were two
    assert resolve(str(folder / "step-000003")).merge_deviation is not None


def test_loss_is_on_the_reply_only(tiny_model: Path, rows: Path) -> None:
    renderer = Renderer(tiny_model, load_protocol("cot-v2"))
    rendered = [renderer.render(row) for row in load_rows(sft.Config(**config(rows, lora=None)).data)]
    for one, line in zip(rendered, sft.tokenized(rendered), strict=True):
        prompt = len(one.prompt_ids)
        assert line["labels"] == [-100] * prompt + line["input_ids"][prompt:]
        assert renderer.tokenizer.decode(line["input_ids"][prompt:]) == f"{one.reply}<|im_end|>"


@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 60), st.integers(0, 9))
def test_every_row_is_trained_on_equally_often(lengths: list[int], rows_a_step: int, steps: int, seed: int) -> None:
    order = sft.in_order(lengths, rows_a_step, steps, seed)
    assert len(order) == rows_a_step * steps
    times = Counter(order)
    assert max(times.values()) - min(times[row] for row in range(len(lengths))) <= 1
    assert order == sft.in_order(lengths, rows_a_step, steps, seed)


def test_rows_of_similar_length_share_a_step() -> None:
    import random

    lengths = [random.Random(n).randint(50, 1000) for n in range(500)]
    order = sft.in_order(lengths, 8, 62, seed=1)
    assert order != sft.in_order(lengths, 8, 62, seed=2)
    padded = sum(8 * max(lengths[row] for row in order[at : at + 8]) for at in range(0, len(order), 8))
    assert padded < 1.1 * sum(lengths[row] for row in order)
    first = [lengths[row] for row in order[:248]]
    assert abs(sum(first) / 248 - sum(lengths) / 500) < 60  # lengths are not in order over the training


BENCHMARK = Question(
    "7", "7", "Which is swollen, case 3 of the men over sixty who smoke and drink a lot?", ("x", "y"), ("A", "B"), "A"
)


def test_prepare_reports_what_would_be_trained_and_train_leaves_out_the_overlaps(tmp_path, tiny_model, rows) -> None:
    asked = BENCHMARK.question
    leaked = tmp_path / "leaked.jsonl"
    row = {"question": asked, "options": ["x", "y"], "answer": "x", "reasoning": "Known by heart."}
    long = {"question": "Long?", "options": ["x", "y"], "answer": "x", "reasoning": "word " * 3000}
    leaked.write_text(rows.read_text() + json.dumps(row) + "\n" + json.dumps(long) + "\n")
    content = config(leaked, lora=LORA, steps=2, log_every=1)
    stage = tmp_path / "stage"
    lines = sft.prepare(sft.Config(**content), start=tiny_model, folder=stage, benchmarks={"medqa": [BENCHMARK]})
    assert "26 rows; 1 overlap a benchmark, 1 longer than 2048 tokens, 24 trained on" in lines[0]
    assert lines[1] == "2 steps of 4 rows on one process (0.3 epochs), 1 checkpoints"
    assert "parameters trained" in lines[2]
    assert lines[3].startswith("memory about ")
    assert [one["row"] for one in json.loads((stage / "contamination.json").read_text())["overlaps"]] == [25]

    without = tmp_path / "without"
    train(content, tiny_model, stage / "attempt-1")
    train(config(rows, lora=LORA, steps=2), tiny_model, without / "attempt-1")
    assert weights(stage / "attempt-1") == weights(without / "attempt-1")

    leaked.write_text(rows.read_text())
    with pytest.raises(MedbenchError, match="it covers 26 rows, the data now has 24"):
        train(content, tiny_model, stage / "attempt-2")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"lora": {"targets": ["q_porj"]}}, "'q_porj' matches no linear layer"),
        ({"training": {"steps": 1, "optimizer": "exadm"}}, "unknown optimizer 'exadm'; did you mean .*exadam"),
        ({"packing": True}, "packing: needs a GPU and the package flash-attn"),
        ({"protocol": "cot-v3"}, "unknown protocol 'cot-v3'"),
        ({"max_length": 20}, "none of 24 rows has at most 20 tokens: raise max_length"),
        ({"data": [{"path": "/nowhere.jsonl"}]}, r"/nowhere\.jsonl: no such file"),
    ],
)
def test_prepare_refuses_before_any_training(tmp_path, tiny_model, rows, change: dict[str, Any], says: str) -> None:
    with pytest.raises(MedbenchError, match=says) as caught:
        sft.prepare(
            sft.Config(**{**config(rows, lora=LORA), **change}), start=tiny_model, folder=tmp_path, benchmarks={}
        )
    assert "\n" not in str(caught.value)


def test_protocols_without_a_reply_to_train_are_refused(tmp_path: Path, tiny_model: Path, rows: Path) -> None:
    from medbench.harness.protocols.protocol import built_in_names

    for name in built_in_names():
        protocol = load_protocol(name)
        if protocol.method != "generate" or protocol.shots:
            given = sft.Config(**{**config(rows, lora=None), "protocol": name})
            with pytest.raises(MedbenchError, match="no reply to train"):
                sft.prepare(given, start=tiny_model, folder=tmp_path, benchmarks={})


def test_the_plugin_has_what_the_loop_expects(rows: Path) -> None:
    assert _faults(sft) == []
    given = sft.Config(**config(rows, lora=None))
    calmer = sft.adapt(given, FailedAttempt("NaN", diverged=True))
    assert calmer.training.learning_rate == given.training.learning_rate / 2
    assert sft.adapt(given, FailedAttempt("gate failed", improving=True)) == given
