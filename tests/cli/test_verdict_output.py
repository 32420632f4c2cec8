"""Verdicts as JUnit, Markdown and a table, hostile names included; the GitHub Action that writes them.

pytest tests/cli/test_verdict_output.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lxml import etree
from markdown_it import MarkdownIt
from support.gate_runs import answer, answers, stored_run, write_gates, write_medqa, write_replies

from medbench.harness.cli.main import run
from medbench.harness.cli.verdict_output import FLIPS_SHOWN, comparison_table, junit, markdown, verdict_table
from medbench.harness.gates.verdict import GateResult, Status, Verdict
from medbench.harness.runs.compare import compare_task

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = etree.XMLSchema(etree.parse(ROOT / "tests" / "data" / "junit-10.xsd"))
ACTION = yaml.safe_load((ROOT / ".github" / "actions" / "gate" / "action.yml").read_text())
HOSTILE = "<script>alert(1)</script> ]]> &amp; \x00\x1b[31m\x85 \ud83d \uffff \"'`|*_[x](http://a) $x$\n# h\r\nend"


def result(status: Status = "pass", **changes: Any) -> GateResult:
    values = {
        "rule": "medqa: accuracy at least 0.6",
        "task": "medqa",
        "metric": "accuracy",
        "status": status,
        "estimate": 0.62,
        "interval": (0.6, 0.64),
        "threshold": 0.6,
        "used": 96,
        "total": 1273,
        "why": "accuracy 62.0 % on 96 of 1273 questions",
    }
    return GateResult(**(values | changes))


def verdict(*gates: GateResult, **changes: Any) -> Verdict:
    values = {
        "overall": "pass",
        "why": "all gates pass",
        "alpha": 0.05,
        "decide": "census",
        "partition": "all",
        "correction": "-",
        "candidate": "step-800",
        "fingerprint": "f",
        "baseline": None,
        "protocol": "cot-v2",
        "gates": list(gates or (result(),)),
    }
    return Verdict(**(values | changes))


def parsed(*verdicts: Verdict, seconds: Sequence[float] | None = None) -> Any:
    """The suites, after checking the file against the schema."""
    content = junit(verdicts, seconds or [1.5] * len(verdicts))
    root = etree.fromstring(content)
    SCHEMA.assertValid(root)
    assert root.tag == "testsuites"
    return root


# ---- JUnit

STATUSES: dict[Status, str | None] = {
    "pass": None,
    "fail": "failure",
    "undecided": "skipped",
    "not gateable": "error",
}


@pytest.mark.parametrize("status", STATUSES)
def test_each_gate_is_a_test_case_with_its_status(status: Status) -> None:
    (case,) = parsed(verdict(result(status))).iter("testcase")
    assert (case.get("name"), case.get("classname")) == ("medqa: accuracy at least 0.6", "step-800")
    found = [child.tag for child in case if child.tag != "system-out"]
    assert found == ([STATUSES[status]] if STATUSES[status] else [])
    assert case.find("system-out").text
    for child in case:
        if child.tag != "system-out":  # GitLab shows the text, GitHub's reporters the message
            assert child.text == "accuracy 62.0 % on 96 of 1273 questions"
            assert child.get("message") == f"{status}: 62.0 %, threshold 60.0 %"


def test_the_gates_share_the_seconds_of_their_candidate() -> None:
    (suite,) = parsed(verdict(result(), result("fail"), result()), seconds=[60.0])
    assert suite.get("time") == "60.000"
    assert [case.get("time") for case in suite.iter("testcase")] == ["20.000"] * 3


def sentences(case: Any) -> list[str]:
    """Every text of a test case."""
    return [text for child in case for text in (child.get("message"), *(child.text or "").splitlines()) if text]


@pytest.mark.parametrize("status", STATUSES)
def test_no_sentence_of_a_test_case_stands_there_twice(status: Status) -> None:
    for changes in ({}, {"estimate": None, "interval": None}):
        (case,) = parsed(verdict(result(status, **changes))).iter("testcase")
        found = sentences(case)
        assert len(found) == len(set(found))
        assert "accuracy 62.0 % on 96 of 1273 questions" in found


def test_the_details_of_a_test_case_tell_its_numbers() -> None:
    full = result(
        "fail", interval_level=0.9, interval_kind="anytime", observed=0.63, controls={"base": 0.4, "old": 0.2}
    )
    (case,) = parsed(verdict(full)).iter("testcase")
    lines = case.find("system-out").text.splitlines()
    assert "questions: 96 of 1273" in lines
    assert "estimate: 62.0 %" in lines
    assert "on the questions asked: 63.0 %" in lines
    assert "interval: 60.0 to 64.0 % (90 %, whole benchmark, anytime)" in lines
    assert "controls: base, old" in lines
    census = result(interval=None, new_questions=(0.58, 0.65), used=1273)
    (case,) = parsed(verdict(census)).iter("testcase")
    assert "interval: 58.0 to 65.0 % (95 %, new questions)" in case.find("system-out").text.splitlines()


def test_a_suite_says_how_its_verdict_was_decided() -> None:
    gates = result(controls={"base": 0.4}), result(controls={"old": 0.1, "base": 0.3})
    (suite,) = parsed(verdict(*gates, baseline="base", correction="Bonferroni", number=7, order_seed="ab12"))
    found = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert found == {
        "alpha": "0.05",
        "decide": "census",
        "correction": "Bonferroni",
        "partition": "all",
        "protocol": "cot-v2",
        "baseline": "base",
        "controls": "base, old",
        "checkpoint": "7",
        "order seed": "ab12",
    }


def test_each_candidate_is_a_suite_with_its_counts() -> None:
    mixed = verdict(*(result(status) for status in (*STATUSES, "fail")))
    one, two = parsed(mixed, verdict(candidate="step-900"), seconds=[12.3456, 90000.0])
    counts = {key: one.get(key) for key in ("tests", "failures", "errors", "skipped", "time")}
    assert counts == {"tests": "5", "failures": "2", "errors": "1", "skipped": "1", "time": "12.346"}
    assert (one.get("name"), two.get("name")) == ("medbench gate step-800", "medbench gate step-900")
    assert len(list(one.iter("testcase"))) == 5


@given(st.text(), st.text(), st.text())
def test_any_name_keeps_the_file_sound(rule: str, why: str, candidate: str) -> None:
    (suite,) = parsed(verdict(result("fail", rule=rule, why=why), candidate=candidate))
    (case,) = suite.iter("testcase")
    assert len(case) == 2


def test_hostile_names_stay_text_in_junit() -> None:
    root = parsed(verdict(result("not gateable", rule=HOSTILE, why=HOSTILE), candidate=HOSTILE))
    assert list(root.iter("script")) == []
    (case,) = root.iter("testcase")
    assert "<script>alert(1)</script> ]]> &amp; " in case.get("name")
    assert "\x1b" not in case.get("name")


def test_an_invalid_checkpoint_is_one_failing_case() -> None:
    broken = result("fail", rule="invalid checkpoint", task="-", estimate=None, interval=None, used=0, total=0)
    (case,) = parsed(verdict(broken, overall="fail")).iter("testcase")
    assert case.find("failure").get("message") == "fail: no estimate"


# ---- Markdown and tables


def rendered(text: str) -> str:
    """As a page shows it, raw HTML let through."""
    return str(MarkdownIt("commonmark", {"html": True}).enable("table").render(text))


def test_the_summary_is_a_table_of_gates() -> None:
    paired = result("fail", rule="pubmedqa: accuracy not worse than the baseline's by more than 0.02", estimate=-0.051)
    text = markdown(verdict(result(), paired, overall="fail", baseline="base", warnings=["wide"]))
    lines = text.splitlines()
    assert lines[0] == "### medbench gate: FAIL"
    assert "`step-800` under `cot-v2` against `base`" in text
    header = lines.index("| gate | verdict | estimate | interval | questions | why |")
    rows = [line for line in lines[header + 2 :] if line.startswith("|")]
    assert [row.split(" | ")[1] for row in rows] == ["pass", "FAIL"]
    assert "| 62.0 % | 60.0 to 64.0 % | 96 of 1273 |" in rows[0]
    assert "| -5.1 points |" in rows[1]
    assert "> wide" in lines


def test_the_summary_says_how_the_verdict_was_decided() -> None:
    gates = result(controls={"base": 0.4}, interval_level=0.9, interval_kind="anytime"), result(controls={"old": 0.1})
    text = markdown(verdict(*gates, correction="Bonferroni"))
    assert "alpha 0.05; decide: census; correction: Bonferroni; controls: `base`, `old`" in text
    assert "| 60.0 to 64.0 % (90 %, whole benchmark, anytime) |" in text
    assert "controls: none" in markdown(verdict())
    counted = markdown(verdict(number=7, order_seed="ab12", alpha=0.00062034))
    assert "checkpoint 7 of this gate file; alpha 0.00062; decide" in counted
    assert "order seed: `ab12`" in counted


def test_the_table_shows_the_interval_and_what_it_is_about() -> None:
    text = verdict_table(verdict(result(interval_level=0.94, interval_kind="population")))
    assert "60.0 to 64.0 % (94 %, new questions)" in " ".join(text.split())


@pytest.mark.parametrize(("metric", "estimate", "shown"), [("tokens_per_answer", 312.44, "| 312.4 |"),
                                                           ("accuracy", None, "| - |")])  # fmt: skip
def test_estimates_without_a_share(metric: str, estimate: float | None, shown: str) -> None:
    assert shown in markdown(verdict(result(metric=metric, estimate=estimate, interval=None)))


def test_the_summary_names_the_flips() -> None:
    before = answers(30, 1)
    after = [answer(sample.id, float(index > 24)) for index, sample in enumerate(before)]
    text = markdown(verdict(), [compare_task("medqa", before, after)])
    assert "**medqa**: 25 lost, 1 gained of 31" in text
    assert "- gained: `q30`" in text
    lost = next(line for line in text.splitlines() if line.startswith("- lost: "))
    assert lost.count("`q") == FLIPS_SHOWN
    assert lost.endswith(f"and {25 - FLIPS_SHOWN} more")


def test_hostile_names_stay_text_in_the_summary() -> None:
    flips = compare_task("toy", [answer(HOSTILE)], [answer(HOSTILE, 0.0)])
    text = markdown(
        verdict(
            result(rule=HOSTILE, why=HOSTILE), candidate=HOSTILE, baseline=HOSTILE, protocol=HOSTILE, warnings=[HOSTILE]
        ),
        [flips],
    )
    assert "\x1b" not in text
    assert "\x00" not in text
    html = rendered(text)
    assert html.count("<tr>") == 2  # a new line in a name starts no row
    assert html.count("<td>") == 6
    assert html.count("&lt;script&gt;") == 7
    for tag in ("<script", "<a ", "<em>", "<h1"):
        assert tag not in html


@given(st.text(max_size=40))
def test_any_name_keeps_the_summarys_shape(name: str) -> None:
    html = rendered(markdown(verdict(result(rule=name, why=name), candidate=name, baseline=name or "b")))
    assert (html.count("<tr>"), html.count("<td>")) == (2, 6)


def test_tables_show_names_as_they_are() -> None:
    for text in (
        verdict_table(verdict(result(rule="[red]x[/red]", why="\x1b[31m"), candidate="\x1b]0;title", baseline="b")),
        comparison_table("\x1b[2J", "[bold]b", [compare_task("[i]\x1b", answers(3, 1), answers(2, 2))]),
    ):
        assert "\x1b" not in text
        assert "[" in text
    assert "96 of 1273" in verdict_table(verdict())


# ---- through the command


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    base = stored_run(tmp_path / "runs", "base", {"toy": answers(60, 40)})
    worse = [answer(f"q{i}", float(10 <= i < 62)) for i in range(100)]
    return base, stored_run(tmp_path / "runs", "worse", {"toy": worse})


def test_files_are_written_and_the_step_summary_grows(
    two_runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    base, worse = two_runs
    gates = write_gates(tmp_path / "gates.yaml", "{task: toy, margin: 0.02}", "{task: toy, at_least: 0.5}")
    step = tmp_path / "step.md"
    step.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step))
    out = tmp_path / "made" / "here"
    arguments = ["gate", str(worse), "--gates", str(gates), "--baseline", str(base)]
    assert run([*arguments, "--junit", str(out / "v.xml"), "--summary", str(out / "v.md")]) == 1
    (suite,) = etree.parse(out / "v.xml").getroot()
    assert SCHEMA.validate(etree.parse(out / "v.xml"))
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    summary = (out / "v.md").read_text()
    assert "**toy**: 10 lost, 2 gained of 100" in summary
    assert step.read_text() == "before\n" + summary
    printed = capfd.readouterr().out
    assert "FAIL" in printed
    assert "verdict.json" in printed
    assert run(arguments) == 1
    assert step.read_text().count("### medbench gate") == 2


def test_a_summary_of_runs_with_no_answer_in_common_has_no_flips(tmp_path: Path) -> None:
    """Nothing was scored, so that there is nothing to compare: the verdict stays not gateable."""
    base = stored_run(tmp_path, "base", {"toy": answers(20)})
    dead = stored_run(tmp_path, "dead", {"toy": answers(0, 0, 20), "more": answers(5)}, status="failed")
    gates = write_gates(tmp_path / "gates.yaml", "{task: toy, margin: 0.02}")
    arguments = ["--gates", str(gates), "--baseline", str(base), "--summary", str(tmp_path / "v.md")]
    assert run(["gate", str(dead), *arguments]) == 3
    assert "NOT GATEABLE" in (tmp_path / "v.md").read_text()


def test_an_output_that_cannot_be_written_is_one_line(
    two_runs: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gates = write_gates(tmp_path / "gates.yaml", "{task: toy, at_least: 0.5}")
    arguments = ["gate", str(two_runs[0]), "--gates", str(gates), "--json"]
    assert run([*arguments, "--junit", str(gates / "v.xml")]) == 2
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    assert run(arguments) == 2
    first, second = capfd.readouterr().err.splitlines()
    assert str(gates) in first
    assert "GITHUB_STEP_SUMMARY" in second


# ---- the action


def act(tmp_path: Path, **inputs: str) -> tuple[int, dict[str, str], str]:
    """(exit status, outputs, what it printed) of the action's script, run as GitHub runs it."""
    assert inputs.keys() <= ACTION["inputs"].keys()
    (step,) = ACTION["runs"]["steps"]
    values = {name: inputs.get(name, spec.get("default", "")) for name, spec in ACTION["inputs"].items()}
    env = {name: values[text.removeprefix("${{ inputs.").removesuffix(" }}")] for name, text in step["env"].items()}
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    (tools / "medbench").write_text(f'#!/bin/sh\nexec {sys.executable} -m medbench.harness.cli "$@"\n')
    (tools / "medbench").chmod(0o755)
    script, output = tmp_path / "script.sh", tmp_path / "output"
    script.write_text(step["run"])
    output.write_text("")
    github = {"GITHUB_OUTPUT": str(output), "GITHUB_STEP_SUMMARY": str(tmp_path / "step.md")}
    github["RUNNER_TEMP"] = str(tmp_path / "temp dir")
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        env={**os.environ, **env, **github, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line.partition("=") for line in output.read_text().splitlines()]
    return done.returncode, {name: value for name, _, value in lines}, done.stdout + done.stderr


def test_the_action_is_composite_and_whole() -> None:
    assert ACTION["runs"]["using"] == "composite"
    assert {"candidate", "gates", "baseline", "data", "runs", "args", "undecided"} == ACTION["inputs"].keys()
    (step,) = ACTION["runs"]["steps"]
    assert step["shell"] == "bash"
    assert "${{" not in step["run"]  # an input that is written into the script could run
    for spec in ACTION["outputs"].values():
        assert spec["value"].startswith("${{ steps.gate.outputs.")


def test_the_action_passes_and_fails_as_the_verdict_does(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    base, worse = two_runs
    gates = str(write_gates(tmp_path / "gates.yaml", "{task: toy, margin: 0.02}"))
    status, outputs, printed = act(tmp_path, candidate=str(worse), gates=gates, baseline=str(base))
    assert (status, outputs["verdict"], outputs["exit"]) == (1, "fail", "1"), printed
    assert SCHEMA.validate(etree.parse(outputs["junit"]))
    assert json.loads(Path(outputs["json"]).read_text())["exit"] == 1
    assert (tmp_path / "step.md").read_text().startswith("### medbench gate: FAIL")
    both = f"{base}\n\n{base}\n"
    status, outputs, printed = act(tmp_path, candidate=both, gates=gates, baseline=str(base))
    assert (status, outputs["verdict"], outputs["exit"]) == (0, "pass", "0"), printed
    assert len(json.loads(Path(outputs["json"]).read_text())["verdicts"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("samples", "verdict"), [(answers(60, 37, 3), "undecided"), (answers(0, 0, 9), "not gateable")]
)
def test_the_action_can_let_an_open_verdict_through(samples: Any, verdict: str, tmp_path: Path) -> None:
    folder = str(stored_run(tmp_path, "c", {"toy": samples}))
    gates = str(write_gates(tmp_path / "gates.yaml", "{task: toy, at_least: 0.61}"))
    status, outputs, _ = act(tmp_path, candidate=folder, gates=gates)
    assert (status, outputs["verdict"], outputs["exit"]) == (3, verdict, "3")
    status, outputs, printed = act(tmp_path, candidate=folder, gates=gates, undecided="pass")
    assert (status, outputs["verdict"], outputs["exit"]) == (0, verdict, "3")
    assert "::warning::" in printed


def test_the_action_fails_on_wrong_input(tmp_path: Path) -> None:
    gates = str(write_gates(tmp_path / "gates.yaml", "{task: toy, at_least: 60}"))
    status, outputs, printed = act(tmp_path, candidate="; touch hacked #$(touch hacked)", gates=gates)
    assert (status, outputs["verdict"], outputs["exit"]) == (2, "", "2")
    assert "write 0.6 for 60 %" in printed
    assert not (tmp_path / "hacked").exists()
    assert act(tmp_path, candidate="x", gates=gates, undecided="ignore")[0] == 2
    assert act(tmp_path, candidate="\n", gates=gates)[0] == 2


@pytest.mark.slow
def test_the_action_evaluates_a_candidate(tmp_path: Path) -> None:
    ids = write_medqa(tmp_path / "data", 120)
    replies = write_replies(tmp_path / "replies.jsonl", {id: i % 10 > 0 for i, id in enumerate(ids)})
    gates = str(write_gates(tmp_path / "gates.yaml", "{task: medqa, at_least: 0.6}"))
    more = f"--replies {replies}\n  --seed 1 --quiet"
    status, outputs, printed = act(
        tmp_path, candidate="fake", gates=gates, data=str(tmp_path / "data"), runs="kept", args=more
    )
    assert (status, outputs["verdict"]) == (0, "pass"), printed
    (found,) = json.loads(Path(outputs["json"]).read_text())["verdicts"]
    assert found["gates"][0]["used"] < 120
    assert (tmp_path / found["run"] / "verdict.json").exists()
    assert found["run"].startswith("kept/")
