"""The script for machines with a GPU, as far as it runs everywhere: its steps need minutes, see check.py --tiny."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parent / "check.py"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(CHECK), *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_a_step_writes_its_figures_and_a_failed_one_its_end(tmp_path: Path) -> None:
    out = tmp_path / "figures.jsonl"
    done = check("--tiny", "--out", str(out), "--data", str(tmp_path / "none"), "--only", "versions,evaluation")
    assert done.returncode == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    found = {line["figure"]: line["value"] for line in lines if line["step"] == "versions"}
    assert {"torch", "transformers", "seconds"} <= found.keys()
    last = lines[-1]
    assert (last["step"], last["failed"]) == ("evaluation", 1)
    assert "none" in last["end"]
    assert "evaluation: " in done.stdout


def test_an_unknown_step_is_refused(tmp_path: Path) -> None:
    done = check("--out", str(tmp_path / "figures.jsonl"), "--only", "evil")
    assert done.returncode == 2
    assert "no step 'evil'; steps: versions, start, evaluation" in done.stderr
    assert not list(tmp_path.iterdir())
