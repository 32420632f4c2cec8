"""`medbench watch --serve` as a user starts it: real checkpoints, a real engine, kill -9."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.tiny_training import arguments, environment

from medbench.harness.cli.main import run
from medbench.harness.verdict_server.queue import FILE

GATES = "max_new_tokens: 4\ngates: [{task: medqa, at_least: 0.9}]\n"


class Server:
    """The command, killed at the end."""

    def __init__(self, folder: Path, *given: str) -> None:
        self._log = folder / "log.txt"
        self._log.write_text("")
        words = ["watch", "--gates", "gates.yaml", "--engine", "hf", "--data", "sample", "--quiet", "--json", *given]
        with self._log.open("ab") as log, (folder / "verdicts.jsonl").open("ab") as out:
            self.process = subprocess.Popen(arguments(*words), cwd=folder, env=environment(), stdout=out, stderr=log)
        self.address = ""
        until = time.monotonic() + 60
        while not self.address:
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
            found = [line for line in self._log.read_text().splitlines() if "http://127.0.0.1:" in line]
            self.address = found[0].split(" at ")[1].split(",")[0] if found else ""

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        return dict(httpx.request(method, f"{self.address}{path}", json=body, timeout=120, trust_env=False).json())

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_killed_server_judges_what_it_had_accepted_and_nothing_twice(tiny_model: Path, tmp_path: Path) -> None:
    from support.tiny import build_tiny_model

    (tmp_path / "gates.yaml").write_text(GATES)
    one, two = tmp_path / "out" / "step-1", build_tiny_model(tmp_path / "out" / "step-2", seed=2)
    shutil.copytree(tiny_model, one)
    with Server(tmp_path, "--serve", "0", "--allow", "out") as server:
        first = server.ask("POST", "judge?wait=1", {"checkpoint": str(one)})
        assert (first["status"], first["exit"]) == ("fail", 1)
        assert 0 < first["verdict"]["gates"][0]["used"] <= 30
        second = server.ask("POST", "judge", {"checkpoint": str(two)})
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
    with Server(tmp_path, "--serve", "0", "--allow", "out") as server:
        assert server.ask("POST", "judge", {"checkpoint": str(one)}) == first
        again = server.ask("POST", "judge?wait=1", {"checkpoint": str(two)})
        assert (again["id"], again["accepted"], again["status"]) == (second["id"], second["accepted"], "fail")
        server.process.terminate()
        assert server.process.wait(30) == 4
    events = [json.loads(line) for line in (tmp_path / "runs" / FILE).read_text().splitlines()]
    assert Counter((event["event"], event["id"]) for event in events) == {
        (event, item["id"]): 1 for event in ("accepted", "judged") for item in (first, second)
    }
    printed = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [one["id"] for one in printed] == [first["id"], second["id"]]
    entered = (tmp_path / "runs" / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in entered] == [1, 2]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        ([], "name a folder to watch"),
        (["--serve", "0"], "name a folder to watch, or with --allow"),
        ([".", "--allow", "."], "--allow belongs to --serve"),
        ([".", "--serve", "0", "--idle", "1"], "leave out --idle"),
        ([".", "--serve", "70000"], "70000"),
        (["none", "--serve", "0"], "none: no such folder"),
        ([".", "--serve", "0", "--allow", "none"], "none: no such folder"),
    ],
)
def test_wrong_words_are_one_line(
    words: list[str], fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gates.yaml").write_text(GATES)
    assert run(["watch", *words, "--gates", "gates.yaml", "--data", "sample", "--engine", "hf"]) == 2
    *_, last = capfd.readouterr().err.splitlines()
    assert fault in last
