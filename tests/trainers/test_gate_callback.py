"""GateCallback in the trainers of transformers and TRL: what it does at each save, and what it does not break."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from support.judging import Keeper, judging
from support.tiny_training import environment, write_questions

import medbench
from medbench.harness.contracts import MedbenchError
from medbench.trainers import judging_client
from medbench.trainers.judging_client import JudgingClient, NoVerdict

ROOT = Path(__file__).resolve().parent.parent.parent
GATES = "max_new_tokens: 4\ngates: [{task: medqa, at_least: 0.0}]\n"

pytestmark = pytest.mark.slow


@contextmanager
def server(folder: Path, found: Mapping[str, tuple[str, float]]) -> Iterator[str]:
    """A judging server for the trainings in `folder`/out."""
    (folder / "out").mkdir(exist_ok=True)
    with judging(Keeper(found), folder / "runs", [folder / "out"]) as address:
        yield address


def trained(tiny_model: Path, folder: Path, callback: Any, *, steps: int = 6, **changes: Any) -> Any:
    """A trainer of transformers that has trained for `steps` and saved every second, unless it was stopped."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, at: int) -> dict[str, Any]:
            tokens = torch.arange(at, at + 8)
            return {"input_ids": tokens, "labels": tokens}

    options = {
        "output_dir": str(folder / "out"),
        "max_steps": steps,
        "save_steps": 2,
        "per_device_train_batch_size": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_only_model": True,
    }
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(tiny_model),
        TrainingArguments(**(options | changes)),
        train_dataset=Rows(),
        callbacks=[callback],
    )
    trainer.train()
    return trainer


def stored(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "out" / "gates.json").read_text())


def test_training_stops_at_the_first_checkpoint_that_passes(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with server(tmp_path, {"checkpoint-2": ("fail", 0.3), "checkpoint-4": ("pass", 0.6)}) as address:
        callback = medbench.GateCallback(server=address)
        trainer = trained(tiny_model, tmp_path, callback)
    assert trainer.state.global_step == 4
    assert [one.status for one in callback.judged] == ["fail", "pass"]
    assert callback.best is not None
    assert callback.best.step == stored(tmp_path)["best"]["step"] == 4
    assert "checkpoint-4: pass: accuracy 0.6; training stops" in caplog.text


def test_or_at_the_first_that_fails(tiny_model: Path, tmp_path: Path) -> None:
    with server(tmp_path, {"checkpoint-2": ("undecided", 0.5), "checkpoint-4": ("fail", 0.1)}) as address:
        trainer = trained(tiny_model, tmp_path, medbench.GateCallback(server=address, on_fail="stop"))
    assert trainer.state.global_step == 4


def test_or_it_goes_on_and_the_best_is_marked_and_kept(tiny_model: Path, tmp_path: Path) -> None:
    found = {"checkpoint-2": ("fail", 0.9), "checkpoint-4": ("pass", 0.6), "checkpoint-6": ("pass", 0.5)}
    found |= {"checkpoint-8": ("undecided", 0.7)}
    with server(tmp_path, found) as address:
        callback = medbench.GateCallback(server=address, on_pass="continue")
        trainer = trained(tiny_model, tmp_path, callback, steps=8, save_total_limit=2)
    assert trainer.state.global_step == 8
    assert Path(trainer.state.best_model_checkpoint).name == "checkpoint-4"
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8"}
    best = stored(tmp_path)["best"]
    assert (best["step"], best["status"]) == (4, "pass")
    assert best["because"] == "the highest estimate (0.6) of 2 judged that pass"


def test_the_trainers_own_metric_of_the_best_is_left_alone(tiny_model: Path, tmp_path: Path) -> None:
    with server(tmp_path, {"checkpoint-2": ("pass", 0.5)}) as address:
        callback = medbench.GateCallback(server=address)
        trainer = trained(tiny_model, tmp_path, callback, metric_for_best_model="loss")
    assert trainer.state.best_model_checkpoint is None
    assert stored(tmp_path)["best"]["step"] == 2


def test_a_training_goes_on_without_a_verdict_unless_told_otherwise(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging_client, "POLL_SECONDS", 0.01)

    def no_verdict(self: Keeper, name: str) -> None:
        raise MedbenchError("the base is not there: copy it")

    monkeypatch.setattr(Keeper, "judge", no_verdict)
    with server(tmp_path, {}) as address:
        callback = medbench.GateCallback(server=address)
        assert trained(tiny_model, tmp_path, callback, steps=4).state.global_step == 4
        assert callback.best is None
        assert "no verdict: the base is not there: copy it" in caplog.text
        assert [one["status"] for one in stored(tmp_path)["judged"]] == [None, None]
        with pytest.raises(MedbenchError, match="no verdict: the base is not there"):
            trained(tiny_model, tmp_path, medbench.GateCallback(server=address, on_error="raise"), steps=4)


def test_a_resumed_training_knows_its_earlier_verdicts_and_a_new_one_does_not(tiny_model: Path, tmp_path: Path) -> None:
    found = {"checkpoint-2": ("fail", 0.4), "checkpoint-4": ("fail", 0.3), "checkpoint-6": ("fail", 0.2)}
    with server(tmp_path, found) as address:
        trained(tiny_model, tmp_path, medbench.GateCallback(server=address), steps=4, save_only_model=False)
        callback = medbench.GateCallback(server=address)
        trainer = trained(tiny_model, tmp_path, callback, steps=2, save_only_model=False)
        assert [one.step for one in callback.judged] == [2]
        trainer.args.max_steps = 6
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
        assert [one.step for one in callback.judged] == [2, 4, 6]
    assert stored(tmp_path)["best"]["step"] == 2


def test_a_server_that_is_not_there_or_may_not_judge_the_folder_is_told_before_training(
    tiny_model: Path, tmp_path: Path
) -> None:
    with server(tmp_path, {}) as address:
        elsewhere = str(tmp_path / "elsewhere")
        with pytest.raises(MedbenchError, match=r"may not judge .*: start it with --allow /"):
            trained(tiny_model, tmp_path, medbench.GateCallback(server=address), output_dir=elsewhere)
    with pytest.raises(MedbenchError, match="start it with medbench watch --serve PORT"):
        trained(tiny_model, tmp_path, medbench.GateCallback(server=address))


@pytest.mark.parametrize(
    ("keywords", "fault"),
    [
        ({}, "needs a gate file, or the address of a server"),
        ({"gates": "gates.yaml", "server": "http://127.0.0.1:1"}, "give one of them"),
        ({"gates": "none.yaml"}, "none.yaml"),
        ({"gates": "wrong.yaml"}, "wrong.yaml"),
        ({"gates": "gates.yaml", "baseline": "none"}, "none"),
        ({"gates": "gates.yaml", "on_pass": "halt"}, "on_pass is 'halt': it must be 'stop' or 'continue'"),
        ({"gates": "gates.yaml", "on_error": "stop"}, "on_error is 'stop'"),
        ({"server": "127.0.0.1:8750"}, "give an address, as http://"),
        ({"server": "http://[::"}, "give an address, as http://"),
        ({"server": "http://127.0.0.1:1", "baseline": "runs/base"}, "the server decides about baseline"),
    ],
)
def test_wrong_options_are_one_line_before_any_training(
    keywords: dict[str, str], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gates.yaml").write_text(GATES)
    Path("wrong.yaml").write_text("gates: [{tsak: medqa}]\n")
    with pytest.raises(MedbenchError, match=re.escape(fault)) as raised:
        medbench.GateCallback(**keywords)  # type: ignore[arg-type]
    assert len(str(raised.value).splitlines()) == 1


def test_a_client_outlives_a_server_that_restarts(tmp_path: Path) -> None:
    checkpoint = tmp_path / "out" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.json").write_text("{}")
    found = {"checkpoint-2": ("pass", 0.6)}
    first = Keeper(found)
    first.free.clear()
    with judging(first, tmp_path / "runs", [tmp_path / "out"]) as address:
        verdicts: list[str] = []
        client = JudgingClient(address, patience_seconds=30)
        waiting = threading.Thread(target=lambda: verdicts.append(client.judge(checkpoint)["overall"]))
        waiting.start()
        wait_until(lambda: first.asked == ["checkpoint-2"])
    time.sleep(0.5)
    with judging(Keeper(found), tmp_path / "runs", [tmp_path / "out"], port=urlsplit(address).port or 0):
        waiting.join(30)
    assert verdicts == ["pass"]


def test_and_gives_up_on_one_that_stays_away(tmp_path: Path) -> None:
    with judging(Keeper(), tmp_path / "runs", [tmp_path]) as address:
        pass
    with pytest.raises(NoVerdict, match="is medbench watch --serve running"):
        JudgingClient(address, patience_seconds=0.1).judge(tmp_path)


@pytest.mark.timeout(300)
def test_all_processes_of_a_training_stop_together(tmp_path: Path) -> None:
    """The second process is told by the first; each has its own control, as in a trainer."""
    script = tmp_path / "rank.py"
    script.write_text(
        """
import sys
from types import SimpleNamespace
import torch.distributed
import medbench

rank, store, address, out = int(sys.argv[1]), *sys.argv[2:]
torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
callback = medbench.GateCallback(server=address)
args = SimpleNamespace(output_dir=out, metric_for_best_model=None)
stopped = []
for step in (0, 2, 4):
    state = SimpleNamespace(global_step=step, is_world_process_zero=rank == 0)
    control = SimpleNamespace(should_training_stop=False)
    (callback.on_save if step else callback.on_train_begin)(args, state, control)
    stopped.append(control.should_training_stop)
print(stopped, [one.status for one in callback.judged], state.best_global_step)
"""
    )
    for step in (2, 4):
        path = tmp_path / "out" / f"checkpoint-{step}"
        path.mkdir(parents=True)
        (path / "config.json").write_text("{}")
    with server(tmp_path, {"checkpoint-2": ("fail", 0.1), "checkpoint-4": ("pass", 0.6)}) as address:
        ranks = [
            subprocess.Popen(
                [sys.executable, str(script), str(rank), str(tmp_path / "store"), address, str(tmp_path / "out")],
                env=environment(),
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        said = [rank.communicate(timeout=280)[0] for rank in ranks]
    assert said == ["[False, False, True] ['fail', 'pass'] 4\n"] * 2


def wait_until(moment: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not moment():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def work(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder as docs/training.md assumes it: a model, rows to train on, and a gate file."""
    (tmp_path / "model").symlink_to(tiny_model)
    write_questions(tmp_path / "rows.jsonl", 16, first=1, seed=0)
    rows = [{"prompt": f"Question {n}?", "completion": "The answer is yes."} for n in range(16)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "gates.yaml").write_text(GATES)
    return tmp_path


def blocks_of(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.timeout(300)
def test_the_example_for_trl_works_as_it_stands(work: Path) -> None:
    (example,) = (block for block in blocks_of("training.md", "python") if "SFTTrainer" in block)
    (work / "example.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=work, env=environment(), capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((work / "out" / "gates.json").read_text())
    assert [one["status"] for one in found["judged"]] == ["pass"]
    assert found["best"]["run"]
    assert (work / found["best"]["run"] / "verdict.json").exists()
    assert "training stops" in done.stderr
    assert not list((work / "out").glob("checkpoint-*"))[1:]


def test_the_examples_for_axolotl_and_verl_ask_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their base classes are stand-ins with the signatures of axolotl 0.19.0 and verl 0.9.1."""

    def stand_in(module: str, **content: Any) -> None:
        for name in (".".join(module.split(".")[:depth]) for depth in range(1, module.count(".") + 2)):
            monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
        vars(sys.modules[module]).update(content)

    stand_in("axolotl.integrations.base", BasePlugin=object)
    stand_in("verl.trainer.ppo.checkpoint_callback", CheckpointCallback=object)
    shown = "\n".join(block for block in blocks_of("training.md", "python") if "axolotl" in block or "verl" in block)
    weights = tmp_path / "out" / "global_step_50" / "actor" / "huggingface"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    with server(tmp_path, {"huggingface": ("pass", 0.6)}) as address:
        examples: dict[str, Any] = {}
        exec(shown.replace("http://127.0.0.1:8750/", address).replace("http://127.0.0.1:8750", address), examples)
        (callback,) = examples["GatePlugin"]().add_callbacks_post_trainer(None, None)
        assert isinstance(callback, medbench.GateCallback)
        with pytest.raises(RuntimeError, match="step 50 passes its gates"):
            examples["Gate"]().on_save(
                trainer=None, global_step=50, checkpoint_dir=str(tmp_path / "out" / "global_step_50"), async_save=False
            )
        missing = str(tmp_path / "out" / "global_step_100")
        examples["Gate"]().on_save(trainer=None, global_step=100, checkpoint_dir=missing, async_save=False)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel ends the child on Linux only")
@pytest.mark.timeout(120)
def test_a_trainer_that_is_killed_leaves_no_process_behind(work: Path) -> None:
    code = (
        "import medbench, pathlib\n"
        "callback = medbench.GateCallback('gates.yaml', engine='hf', data='sample')\n"
        "callback._judge(pathlib.Path('model'), 2)\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], cwd=work, env=environment())
    children: list[psutil.Process] = []

    def judges() -> bool:
        children[:] = [one for one in psutil.Process(trainer.pid).children() if "gate" in one.cmdline()]
        return bool(children) and children[0].memory_info().rss > 60 << 20  # past its first lines

    wait_until(judges)
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.wait()
    assert psutil.wait_procs(children, timeout=30)[1] == []


def test_a_gate_that_cannot_be_judged_by_a_child_says_why(
    work: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(work)
    caplog.set_level(logging.INFO)
    (work / "out" / "checkpoint-2").mkdir(parents=True)
    callback = medbench.GateCallback("gates.yaml", engine="no-such-engine")
    found = callback._judge(work / "out" / "checkpoint-2", 2)
    assert found.status is None
    assert "medbench gate ended with status 2: medbench: " in found.why
    assert "no-such-engine" in found.why
