"""Tokens per second by replies at once, on simulated and real engines, and what a verdict costs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.gate_runs import a_task

from medbench.harness.cli.diagnostic_tables import speed_report
from medbench.harness.cli.main import run
from medbench.harness.contracts import Completion, MedbenchError, Passed, Request
from medbench.harness.engines.fake import FakeEngine
from medbench.harness.gates.speed import REPLY_TOKENS, SHARES, Pace, Speed, paces_of
from medbench.harness.protocols.protocol import load_protocol

COT = load_protocol("cot-v2")


class Stepping(FakeEngine):
    """A step makes one token of each running reply and takes 10 ms and 1 ms per reply; `clock` is in seconds."""

    def __init__(self, places: int | None, *, fault: str | None = None) -> None:
        super().__init__({})
        self.places = places  # type: ignore[assignment]
        self.clock, self.most, self.aborted, self._fault = 0.0, 0, 0, fault

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion]:
        source, running = iter(requests), dict[str, tuple[int, int]]()
        step = 0
        try:
            while True:
                while (request := next(source, None)) is not None:
                    running[request.id] = (step, 20 + len(running) * 7 % 101)  # 20 to 120 tokens
                    self.most = max(self.most, len(running))
                if not running:
                    return
                step += 1
                self.clock += 0.010 + 0.001 * len(running)
                for id, (since, length) in list(running.items()):
                    if step - since >= length:
                        del running[id]
                        finish = "error" if self._fault else "stop"
                        yield Completion(id, "", finish, error=self._fault, completion_tokens=length)
        finally:
            self.aborted += len(running)


def paces(engine: Stepping, **given: Any) -> tuple[Pace, ...]:
    task = a_task([f"q{number}" for number in range(40)])
    return paces_of(engine, task, COT, seconds=5.0, clock=lambda: engine.clock, **given)


def test_tokens_per_second_are_those_of_the_engine_at_each_size() -> None:
    engine = Stepping(64)
    found = paces(engine)
    assert [one.at_once for one in found] == [1, 8, 64]
    for one in found:
        assert one.replies >= one.at_once
        assert one.tokens_per_second == pytest.approx(one.at_once / (0.010 + 0.001 * one.at_once), rel=0.05)
    assert engine.most == 64
    assert engine.aborted > 0


class Telling(Stepping):
    """Reads the prompt for half a second before the first token, and tells of that."""

    reports_milestones = True

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion | Passed]:  # type: ignore[override]
        for request in requests:
            if request is None:
                return
            self.clock += 0.5
            yield from [Passed(request.id, milestone) for milestone in request.milestones]
            self.clock += 0.1
            yield Completion(request.id, "", "stop", completion_tokens=10)


def test_the_time_before_the_first_token_counts_once_per_reply() -> None:
    (pace,) = paces(Telling(1))
    assert pace.tokens_per_second == pytest.approx(100)
    assert pace.seconds(3, 400) == pytest.approx(3 * (0.5 + 4.0))
    assert Pace(1, 10, 100, 6.0).seconds(3, 400) == pytest.approx(3 * 24.0)


def test_an_engine_with_fewer_places_is_not_given_more() -> None:
    engine = Stepping(4)
    assert [one.at_once for one in paces(engine)] == [1, 4]
    assert engine.most == 4


def test_an_engine_that_does_not_say_its_places_gets_blocks() -> None:
    engine = Stepping(None)
    assert [one.at_once for one in paces(engine)] == [1, 8, 32]
    assert engine.most == 32


def test_a_failing_engine_is_a_fault_and_no_speed() -> None:
    with pytest.raises(MedbenchError, match="a question of toy failed: out of memory"):
        paces(Stepping(8, fault="out of memory"))


def a_speed(**changes: Any) -> Speed:
    values = {
        "model": "[red]m[/red]",
        "engine": {"name": "vllm", "settings": {"device": "cpu", "dtype": "float32"}},
        "task": "medqa",
        "source": "local",
        "places": 32,
        "paces": (Pace(1, 3, 300, 10.0), Pace(32, 40, 4000, 400.0)),
        "questions": {"medqa": 1273, "pubmedqa": 500},
    }
    return Speed(**(values | changes))


def test_costs_are_those_of_waves_of_replies_at_the_measured_pace() -> None:
    speed = a_speed()
    assert [one.tokens_per_second for one in speed.paces] == [30.0, 320.0]
    assert speed.whole_run("medqa") == pytest.approx(math.ceil(1273 / 32) * 51.2)
    assert speed.verdict("medqa", 5) == pytest.approx(math.ceil(math.ceil(0.39 * 1273) / 32) * 51.2)
    times = [speed.verdict("pubmedqa", points) for points in (10, 5, 3, 2)]
    assert times == sorted(times)
    assert times[-1] < speed.whole_run("pubmedqa")


def test_the_report_has_every_figure() -> None:
    text = speed_report(a_speed())
    assert "[red]m[/red] · vllm on cpu, float32" in text
    assert "places: 32" in text
    rows = [line.replace("│", " ").split() for line in text.splitlines()]
    assert ["32", "320", "10.0"] in rows
    assert ["medqa", "1273", "34", "min", "6", "min", "14", "min", "20", "min", "25", "min"] in rows
    assert f"{REPLY_TOKENS} tokens" in text
    assert "does not say" in speed_report(a_speed(places=None))
    json.dumps(a_speed().as_json())


def test_the_shares_are_those_of_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "gates.md").read_text()
    (row,) = re.findall(r"\| medbench without control variates \|(.*)\|\n", page)
    header = page[: page.index("| medbench without control variates |")].splitlines()[-3]
    points = [int(number) for number in re.findall(r"\d+", header)]
    assert dict(zip(points, [int(share.strip(" %")) / 100 for share in row.split("|")], strict=True)) == SHARES


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--speed", "m", "--determinism", "m"], "choose one"),
        (["--speed", "m", "--questions", "8"], "--questions belongs to --determinism"),
        (["--engine", "hf"], "belong to --determinism MODEL or --speed MODEL"),
        (["--speed", "nope", "--data", "sample"], "model 'nope': no such folder"),
        (["--speed", "m", "--engine", "openai"], "--engine vllm or hf, not openai"),
    ],
)
def test_faults_of_the_user_are_one_line(arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err.splitlines()[-1]


@pytest.mark.engine
def test_the_command_measures_a_real_model(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    assert run(["doctor", "--speed", str(tiny_model), "--engine", "hf", "--data", "sample", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert (found["task"], found["source"], found["engine"]["name"], found["places"]) == ("medqa", "sample", "hf", 8)
    assert [one["at_once"] for one in found["paces"]] == [1, 8]
    assert all(one["tokens_per_second"] > 0 for one in found["paces"])
    assert found["costs"]["medqa"]["questions"] == 1273
    assert found["costs"]["medqa"]["verdict_seconds"]["5"] < found["costs"]["medqa"]["whole_run_seconds"]


@pytest.mark.engine
def test_a_real_vllm_is_measured(tiny_engine: Any) -> None:
    task = a_task([f"q{number}" for number in range(40)])
    protocol = load_protocol("cot-v2", max_new_tokens=16)
    found = paces_of(tiny_engine, task, protocol, seconds=0.1)
    assert [one.at_once for one in found] == [1, 8, tiny_engine.places]
    assert all(0 < one.tokens <= 16 * one.replies for one in found)
    assert not tiny_engine.llm.llm_engine.has_unfinished_requests()
