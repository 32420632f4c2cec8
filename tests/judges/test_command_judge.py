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


# --- kept for a training ---


def counting(folder: Path, source: str = OVERLAP) -> str:
    """A program that notes each of its starts in `folder`/starts."""
    return f"import os\nopen({str(folder / 'starts')!r}, 'a').write(f'{{os.getpid()}}\\n')\n{source}"


def starts(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "starts").read_text().split()]


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text()


def test_a_kept_program_is_started_once_and_ends_with_the_judge(tmp_path: Path) -> None:
    judge = start_judge(choice(tmp_path, counting(tmp_path), kept=True))
    for number in range(3):
        items = [Item(f"{number}-{at}", f"Step {at}", "Step 1 and 2") for at in range(number + 1)]
        assert [ruling.id for ruling in judge.judge(items)] == [item.id for item in items]
    (pid,) = starts(tmp_path)
    assert alive(pid)
    judge.close()
    assert not alive(pid)
    judge.close()


def test_a_kept_program_that_crashes_is_started_again_for_the_next_steps(tmp_path: Path) -> None:
    crashing = OVERLAP.replace(
        "item = json.loads(line)", "item = json.loads(line)\n    if item['id'] == 'i2': sys.exit(7)"
    )
    judge = start_judge(choice(tmp_path, counting(tmp_path, crashing), kept=True))
    found = {ruling.id: ruling for ruling in judge.judge(ITEMS)}
    assert [found[item.id].verdict is None for item in ITEMS] == [False, False, True, True]
    assert "status 7" in str(found["i3"].fault)
    assert next(iter(judge.judge(ITEMS[3:]))).verdict is not None
    judge.close()
    assert len(starts(tmp_path)) == 2


def test_a_kept_program_that_waits_for_the_end_of_its_input_is_told_so(tmp_path: Path) -> None:
    judge = start_judge(choice(tmp_path, counting(tmp_path, READ), 1, kept=True))
    found = list(judge.judge(ITEMS))
    assert "no verdict within 1 s" in str(found[0].fault)
    assert "must answer each line as it comes" in str(found[0].fault)
    assert not any(alive(pid) for pid in starts(tmp_path))
    judge.close()


def test_what_a_kept_program_says_late_does_not_count_for_the_next_steps(tmp_path: Path) -> None:
    twice = OVERLAP.replace(
        "    print(", "    print('thinking')\n    print(json.dumps({'id': 'i0', 'verdict': 'x'}))\n    print("
    )
    judge = start_judge(choice(tmp_path, twice, kept=True))
    list(judge.judge(ITEMS[:1]))
    assert all(ruling.verdict is not None for ruling in judge.judge(ITEMS[1:]))
    judge.close()
