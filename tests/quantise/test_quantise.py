"""Quantising a checkpoint: the interpreter that has llm-compressor, what is written, and what a fault leaves."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.quantized import quantize

import medbench
from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.cli.main import run
from medbench.harness.contracts import MedbenchError
from medbench.harness.quantise.interpreter import VARIABLE, find_interpreter
from medbench.harness.quantise.quantise import QuantiseOptions, quantise
from medbench.harness.quantise.record import RECORD, Quantised
from medbench.harness.quantise.schemes import SCHEMES, config_groups, group_size_for
from medbench.harness.quantise.texts import write_texts

REAL = os.environ.get(VARIABLE)
needs_llm_compressor = pytest.mark.skipif(not REAL, reason=f"{VARIABLE} names no interpreter with llm-compressor")

STAND_IN = """#!{python}
# An interpreter with llm-compressor, as far as medbench sees of it; the weights are rounded by tests/support.
import json, sys
from pathlib import Path
if "-c" in sys.argv:
    print(json.dumps({{"llmcompressor": "0.0.1", "compressed-tensors": "0.0.2"}}))
    sys.exit(0)
sys.path.insert(0, {tests!r})
job = json.loads(Path(sys.argv[-1]).read_text())
def tell(**fields): print(json.dumps(fields), flush=True)
tell(event="started", versions={{"torch": "9.9"}})
print("a library's chatter")
{body}
"""
ROUND = """
from support.quantized import quantize
texts = Path(job["texts"]).read_text().splitlines() if job["texts"] else []
tell(event="loaded", device="cpu")
if texts:
    tell(event="calibrating", rows=len(texts))
made = quantize(Path(job["model"]), Path(job["out"]), "compressed-tensors")
(made / "tokenizer.json").write_text("{}")
(made / "model.safetensors").chmod(0o600)
tell(event="done")
"""


@pytest.fixture(autouse=True)
def _own_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))


def stand_in(folder: Path, body: str = ROUND) -> str:
    path = folder / "python"
    tests = str(Path(__file__).resolve().parents[1])
    path.write_text(STAND_IN.format(python=sys.executable, tests=tests, body=body))
    path.chmod(0o755)
    return str(path)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["quantise", *words]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medbench: ")]
    return line


def test_the_result_is_complete_and_says_where_it_comes_from(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "small"
    said: list[str] = []
    folder, record = quantise(QuantiseOptions(str(tiny_model), "w4a16", out, stand_in(tmp_path)), said.append)
    assert folder == out
    parent, made = resolve(str(tiny_model)), resolve(str(out))
    assert made.quantization == "compressed-tensors 4 bit"
    assert made.tokenizer_sha256 == parent.tokenizer_sha256
    assert (made.weight_bytes or 0) < (parent.weight_bytes or 0)
    assert (out / "model.safetensors").stat().st_mode & stat.S_IRGRP
    assert Quantised.model_validate_json((out / RECORD).read_text()) == record
    assert (record.parent.fingerprint, record.fingerprint) == (parent.fingerprint, made.fingerprint)
    assert (record.scheme, record.method, record.group_size) == ("w4a16", "round to nearest", 128)
    assert record.versions == {"llmcompressor": "0.0.1", "compressed-tensors": "0.0.2", "torch": "9.9"}
    assert record.calibration is None
    assert any("rounded to nearest" in line for line in said)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_rows_are_calibrated_with_as_the_model_sees_them(tiny_model: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = {"question": "Which drug?", "options": {"A": "aspirin", "B": "iron"}, "answer": "A"}
    rows.write_text("".join(json.dumps(row | {"question": f"Which drug is {n}?"}) + "\n" for n in range(5)))
    options = QuantiseOptions(str(tiny_model), "w8a8", tmp_path / "small", stand_in(tmp_path), (str(rows),), samples=3)
    _, record = quantise(options, lambda _: None)
    assert record.method == "gptq"
    assert record.calibration is not None
    assert (record.calibration.rows, record.calibration.sources) == (3, [str(rows)])
    assert write_texts([str(rows)], tiny_model, "cot-v2", 2, tmp_path / "texts") == 2
    first = json.loads((tmp_path / "texts").read_text().splitlines()[0])
    assert first.startswith("<|im_start|>user\nQuestion: Which drug is 0?")
    assert first.endswith("The answer is (A).")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ('tell(event="fault", line="RuntimeError: no\\nmemory"); sys.exit(1)', r"RuntimeError: no\nmemory"),
        ("sys.exit(3)", "exit status 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9, as for lack of memory"),
        ("pass", "wrote nothing"),
        ('import shutil; shutil.copytree(job["model"], job["out"])', "quantised nothing"),
        ('Path(job["out"]).mkdir()', "what llm-compressor wrote cannot be served"),
    ],
)
def test_a_fault_is_one_line_and_leaves_no_folder(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, said: str
) -> None:
    out = tmp_path / "out" / "small"
    python = stand_in(tmp_path, body)
    line = refused(capsys, str(tiny_model), "--scheme", "w8a8", "-o", str(out), "--python", python)
    assert said in line
    assert not out.exists()
    assert {path.name for path in out.parent.iterdir()} <= {"small.log"}


def test_what_a_killed_process_left_is_removed(tiny_model: Path, tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    left = tmp_path / f".small.{ended.pid}.tmp"
    left.mkdir()
    quantise(QuantiseOptions(str(tiny_model), "w8a8", tmp_path / "small", stand_in(tmp_path)), lambda _: None)
    assert not left.exists()


@pytest.mark.parametrize("named", ["--python", VARIABLE])
def test_an_interpreter_without_llm_compressor_is_told_with_how_to_install_it(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    named: str,
) -> None:
    python = str(tmp_path / "bin" / "python")
    Path(python).parent.mkdir()
    Path(python).write_text(f"#!{sys.executable}\nraise SystemExit('PackageNotFoundError: llmcompressor')\n")
    Path(python).chmod(0o755)
    words = [str(tiny_model), "--scheme", "w8a8", "-o", str(tmp_path / "out")]
    if named == VARIABLE:
        monkeypatch.setenv(VARIABLE, str(tmp_path))  # a virtual environment's folder will do
    line = refused(capsys, *words, *(["--python", python] if named == "--python" else []))
    assert line.startswith(f"medbench: {named}: {python} has no llm-compressor (PackageNotFoundError: llmcompressor)")
    assert "pip install llmcompressor==" in line


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be run (No such file or directory)"), ("#!/bin/sh\necho hello\n", "is no Python interpreter")],
)
def test_a_path_that_is_no_interpreter(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "python"
    if content is not None:
        path.write_text(content)
        path.chmod(0o755)
    with pytest.raises(MedbenchError) as raised:
        find_interpreter(str(path))
    assert said in str(raised.value)


def test_a_quantised_checkpoint_is_not_quantised_again(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = quantize(tiny_model, tmp_path / "small", "gptq")
    line = refused(capsys, str(small), "--scheme", "w8a8", "--python", stand_in(tmp_path))
    assert "is quantised already (gptq 4 bit): name the checkpoint that it was made from" in line


def test_a_folder_that_exists_is_left_alone(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, str(tiny_model), "--scheme", "w8a8", "-o", str(tmp_path), "--python", stand_in(tmp_path))
    assert "already exists: name another folder by -o" in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--scheme", "w8a8"], "name MODEL and --scheme"),
        (["x"], "name MODEL and --scheme"),
        (["x", "--scheme", "w2a2"], "'w2a2' is not one of"),
        (["x", "--schemes"], "--schemes stands alone"),
    ],
)
def test_options_that_do_not_go_together(capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert said in refused(capsys, *words)


def test_the_group_size_divides_every_layer(tiny_model: Path) -> None:
    assert group_size_for("w4a16", tiny_model, None) == 128
    assert group_size_for("w4a16", tiny_model, 32) == 32
    assert group_size_for("w8a8", tiny_model, None) is None
    with pytest.raises(MedbenchError, match="is 128 wide, which 48 does not divide"):
        group_size_for("w4a16", tiny_model, 48)
    with pytest.raises(MedbenchError, match="scheme fp8 has no groups"):
        group_size_for("fp8", tiny_model, 64)


@needs_llm_compressor
@pytest.mark.engine
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_llm_compressor_writes_what_the_schemes_say(tiny_model: Path, tmp_path: Path, scheme: str) -> None:
    out = tmp_path / scheme
    quantise(QuantiseOptions(str(tiny_model), scheme, out, REAL), lambda _: None)
    content: dict[str, Any] = json.loads((out / "config.json").read_text())["quantization_config"]
    (written,) = content["config_groups"].values()
    wanted = config_groups(scheme, 128)["group_0"]
    assert written["format"] == content["format"] == SCHEMES[scheme].format
    for part in ("weights", "input_activations"):
        for key, value in (wanted[part] or {}).items():
            assert written[part][key] == value


@needs_llm_compressor
@pytest.mark.engine
def test_a_checkpoint_quantised_by_llm_compressor_is_served_and_gated(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "w8a8"
    quantise(QuantiseOptions(str(tiny_model), "w8a8", out, REAL), lambda _: None)
    given: dict[str, Any] = {"tasks": ["medqa"], "data": "sample", "max_new_tokens": 8, "quiet": True}
    given |= {"engine_config": {"kv_cache_gib": 1}, "runs": tmp_path / "runs"}
    base, small = medbench.evaluate(tiny_model, **given), medbench.evaluate(out, **given)
    assert small.record.model.quantization == "compressed-tensors 8 bit"
    verdict = medbench.gate(small, [medbench.Gate(task="medqa", margin=0.5)], baseline=base)
    before, after = verdict.costs
    assert after.weight_bytes is not None
    assert before.weight_bytes is not None
    assert after.weight_bytes < before.weight_bytes
