"""The judge `command`: a program that answers well, and every way in which one can fail."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.judge_programs import OVERLAP, choice, program

from medbench.harness.contracts import MedbenchError
from medbench.harness.judges.contracts import Item, JudgeChoice, Ruling
from medbench.harness.judges.plugins import start_judge

ITEMS = [Item(f"i{number}", f"Step {number}", "Step 1 and 2") for number in range(4)]
READ = "import json, sys, time\nids = [json.loads(line)['id'] for line in sys.stdin]\n"


def ruled(folder: Path, source: str, timeout: float = 30.0, items: list[Item] | None = None) -> dict[str, Ruling]:
    judge = start_judge(choice(folder, source, timeout))
    return {ruling.id: ruling for ruling in judge.judge(ITEMS if items is None else items)}


def verdicts(found: dict[str, Ruling]) -> list[str | None]:
    return [found[item.id].verdict for item in ITEMS]


def test_a_program_may_answer_line_by_line_or_at_its_end_and_in_any_order(tmp_path: Path) -> None:
    assert len(ruled(tmp_path, OVERLAP)) == 4
    backwards = READ + "for id in reversed(ids): print(json.dumps({'id': id, 'verdict': 'supported', 'score': 0.9}))"
    assert verdicts(ruled(tmp_path, backwards)) == ["supported"] * 4


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("print('maybe so')", "the first not JSON: 'maybe so'"),
        ("print('[1]')", "the first without an id"),
        ("print(json.dumps({'id': 'other', 'verdict': 'supported'}))", "with an unknown id: 'other'"),
        (
            "print(json.dumps({'id': ids[0], 'verdict': 'yes'}))",
            "'yes' is none of supported, contradicted, not covered",
        ),
        ("print(json.dumps({'id': ids[0], 'verdict': ['supported']}))", "is none of supported"),
        ("print(json.dumps({'id': ids[0]}))", "a line without a verdict"),
        ('print(\'{"id": "%s", "id": "i1", "verdict": "supported"}\' % ids[0])', "given twice"),
        ("print('[' * 100000)", "not JSON"),
        ("sys.stdout.buffer.write(b'\\xff\\xfe\\n')", "not JSON"),
        ("pass", "no verdict before the program ended (status 0)"),
        ("sys.exit('out of memory\\x1b[2J')", "(status 1: out of memory\\x1b[2J)"),
    ],
)
def test_a_faulty_line_costs_its_step_and_no_other(tmp_path: Path, wrong: str, told: str) -> None:
    rest = "for id in ids[1:]: print(json.dumps({'id': id, 'verdict': 'supported'}))\nsys.stdout.flush()\n"
    found = ruled(tmp_path, READ + rest + wrong)
    assert verdicts(found) == [None, "supported", "supported", "supported"]
    assert told in str(found["i0"].fault)
    assert "\n" not in str(found["i0"].fault)
    assert "\x1b" not in str(found["i0"].fault)


def test_two_different_verdicts_on_a_step_are_none(tmp_path: Path) -> None:
    twice = READ + (
        "for id in ids:\n"
        "    for verdict in ('supported', 'contradicted' if id == 'i2' else 'supported', 'supported'):\n"
        "        print(json.dumps({'id': id, 'verdict': verdict}))"
    )
    found = ruled(tmp_path, twice)
    assert verdicts(found) == ["supported", "supported", None, "supported"]
    assert found["i2"].fault == "two different verdicts"


def test_a_program_that_hangs_is_stopped_and_keeps_what_it_said(tmp_path: Path) -> None:
    begun = time.monotonic()
    found = ruled(
        tmp_path, READ + "print(json.dumps({'id': 'i3', 'verdict': 'supported'}), flush=True)\ntime.sleep(99)", 1
    )
    assert time.monotonic() - begun < 20
    assert verdicts(found) == [None, None, None, "supported"]
    assert "no verdict within 1 s (--timeout)" in str(found["i0"].fault)


def test_a_program_that_talks_without_judging_is_stopped(tmp_path: Path) -> None:
    found = ruled(tmp_path, "while True: print('thinking', flush=True)", 1)
    assert "no verdict within 1 s" in str(found["i0"].fault)


def test_a_line_without_end_is_cut_short(tmp_path: Path) -> None:
    found = ruled(tmp_path, "import sys\nwhile True: sys.stdout.write('x' * 65536)")
    assert "a line of more than" in str(found["i0"].fault)


def test_a_program_that_reads_nothing_does_not_block(tmp_path: Path) -> None:
    many = [Item(f"i{number}", "s", "x" * 10_000) for number in range(200)]
    assert "status 3" in str(ruled(tmp_path, "raise SystemExit(3)", items=many)["i0"].fault)


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    command = f"{program(tmp_path)} ; touch {tmp_path}/harm $(touch {tmp_path}/harm) `touch {tmp_path}/harm`"
    assert len(list(start_judge(JudgeChoice("command", command=command)).judge(ITEMS))) == 4
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize(
    ("judge", "told"),
    [
        (JudgeChoice("command"), "--judge command needs --command"),
        (JudgeChoice("command", command="no-such-program-9 x"), "no such program"),
        (JudgeChoice("command", command="'open"), "no closing quotation: quote as in a shell"),
        (JudgeChoice("command", command="  "), "names no program"),
        (JudgeChoice("comand"), "did you mean command?"),
    ],
)
def test_a_command_that_cannot_be_run_is_one_line(judge: JudgeChoice, told: str) -> None:
    with pytest.raises(MedbenchError) as caught:
        start_judge(judge)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_follows_the_programs_text_and_its_arguments(tmp_path: Path) -> None:
    first = start_judge(choice(tmp_path)).fingerprint
    assert start_judge(choice(tmp_path)).fingerprint == first
    assert start_judge(choice(tmp_path, OVERLAP + "# changed\n")).fingerprint != first
    command = f"{program(tmp_path)} --strict"
    assert start_judge(JudgeChoice("command", command=command)).fingerprint != first


def test_closing_early_ends_the_program(tmp_path: Path) -> None:
    note = f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    source = f"{note}{OVERLAP}\ntime.sleep(99)"
    rulings = start_judge(choice(tmp_path, source)).judge(ITEMS)
    next(rulings)
    rulings.close()  # type: ignore[attr-defined]
    pid = int((tmp_path / "pid").read_text())
    assert not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text()
