"""A stored run is judged: each step once, kept beside the samples, resumable."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.judge_programs import OVERLAP, choice, program, pubmedqa_run, thought

from medbench.harness.contracts import MedbenchError
from medbench.harness.judges.contracts import Item, Ruling, Verdict
from medbench.harness.judges.judge_run import JudgedTask, JudgeOptions, judge_run
from medbench.harness.judges.judgements import read_judgements
from medbench.harness.judges.plugins import start_judge


@dataclass
class Noting:
    """A judge that supports everything, notes what it is asked, and fails on the steps in `fails`."""

    name: str = "noting"
    fingerprint: str = "one"
    fails: tuple[str, ...] = ()
    asked: list[str] = field(default_factory=list)

    def judge(self, items: Sequence[Item]) -> Iterator[Ruling]:
        verdict: Verdict = "supported"
        for item in items:
            self.asked.append(item.step)
            failed = item.step.startswith(self.fails) if self.fails else False
            yield Ruling(item.id, None, "broken") if failed else Ruling(item.id, verdict)

    def close(self) -> None: ...


def options(folder: Path, **changes: object) -> JudgeOptions:
    return JudgeOptions(folder / "runs" / "judged", data=str(folder / "data"), **changes)  # type: ignore[arg-type]


def judged(folder: Path, judge: Noting, **changes: object) -> JudgedTask:
    (found,) = judge_run(options(folder, **changes), judge, lambda _: None)
    return found


def test_a_program_judges_every_step_of_every_reply(tmp_path: Path) -> None:
    pubmedqa_run(tmp_path)
    (found,) = judge_run(options(tmp_path), start_judge(choice(tmp_path)), lambda _: None)
    assert [one.verdicts for one in found.replies] == [("supported", "contradicted", "not covered")] * 3
    lines = read_judgements(tmp_path / "runs" / "judged" / "judgements" / "pubmedqa.command.jsonl")
    assert len(lines) == 9
    assert {line.step for line in lines} >= {"Drug 0 lowers blood pressure."}


def test_no_step_is_asked_twice_neither_within_a_run_nor_by_judging_it_again(tmp_path: Path) -> None:
    pubmedqa_run(tmp_path, ["<think>It helps. It helps. It helps.</think>yes", "<think>It helps.</think>yes", "yes"])
    judge = Noting()
    first = judged(tmp_path, judge)
    assert judge.asked == ["It helps.", "It helps."]  # once for each abstract
    again = judged(tmp_path, judge)
    assert len(judge.asked) == 2
    assert again.replies == first.replies
    assert (first.asked, again.asked) == (2, 0)


def test_another_fingerprint_is_asked_anew_and_leaves_the_first_ones_verdicts(tmp_path: Path) -> None:
    pubmedqa_run(tmp_path)
    judged(tmp_path, Noting())
    other = Noting(fingerprint="two")
    found = judged(tmp_path, other)
    assert len(other.asked) == 9
    assert {line.judge for line in read_judgements(found.file)} == {"one", "two"}


def test_a_failure_is_counted_is_no_verdict_and_is_asked_again(tmp_path: Path) -> None:
    pubmedqa_run(tmp_path)
    found = judged(tmp_path, Noting(fails=("Aspirin",)))
    assert [one.verdicts for one in found.replies] == [("supported", "supported", None)] * 3
    assert found.faults == ("broken",) * 3
    mended = Noting()
    assert judged(tmp_path, mended).faults == ()
    assert [step.split()[0] for step in mended.asked] == ["Aspirin"] * 3


def test_a_judge_that_fails_on_every_step_is_one_line(tmp_path: Path) -> None:
    pubmedqa_run(tmp_path)
    with pytest.raises(MedbenchError, match=r"^judge noting: no step of pubmedqa got a verdict, first: broken$"):
        judged(tmp_path, Noting(fails=("A", "D")))


def test_a_limit_takes_the_same_questions_each_time(tmp_path: Path) -> None:
    pubmedqa_run(tmp_path, number=8, replies=[thought(at) for at in range(8)])
    few, more = judged(tmp_path, Noting(), limit=2), judged(tmp_path, Noting(), limit=5)
    assert [one.reply for one in few.replies] == [one.reply for one in more.replies][:2]
    assert (len(more.replies), more.asked) == (5, 9)


def test_other_rows_than_the_ones_asked_are_refused(tmp_path: Path) -> None:
    pubmedqa_run(tmp_path)
    file = tmp_path / "data" / "pubmedqa" / "test.jsonl"
    file.write_text(file.read_text().replace("lowers", "raises"))
    with pytest.raises(MedbenchError, match="was asked from other rows"):
        judged(tmp_path, Noting())


def test_sources_from_a_file_replace_the_tasks_own_and_questions_without_one_are_counted(tmp_path: Path) -> None:
    run = pubmedqa_run(tmp_path)
    first = min(sample.id for sample in run.samples("pubmedqa"))
    (tmp_path / "sources.jsonl").write_text(json.dumps({"id": first, "source": "Reference."}) + "\n")
    found = judged(tmp_path, Noting(), sources=tmp_path / "sources.jsonl")
    assert [one.reply.source for one in found.replies] == ["Reference."]
    assert found.without_source == 2


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("", "no lines"),
        ('{"id": 3, "source": "x"}', ":1: each line must be"),
        ('{"id": "a"}', ":1: each line must be"),
        ('{"id": "a", "source": "x"}\n{"id": "a", "source": "y"}', ":2: question 'a' has another source above"),
        ("nonsense", ":1: not JSON"),
        ('{"id": "a", "source": "x"}', "pubmedqa: no question in"),
    ],
)
def test_a_faulty_file_of_sources_is_one_line(tmp_path: Path, lines: str, told: str) -> None:
    pubmedqa_run(tmp_path)
    (tmp_path / "sources.jsonl").write_text(lines)
    with pytest.raises(MedbenchError) as caught:
        judged(tmp_path, Noting(), sources=tmp_path / "sources.jsonl")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_torn_last_line_is_asked_again_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    pubmedqa_run(tmp_path)
    file = judged(tmp_path, Noting()).file
    whole = file.read_bytes()
    file.write_bytes(whole[:-20])
    again = Noting()
    judged(tmp_path, again)
    assert len(again.asked) == 1
    assert sorted(file.read_bytes().splitlines()) == sorted(whole.splitlines())
    file.write_bytes(whole.replace(b'"supported"', b'"fine"', 1))
    with pytest.raises(MedbenchError, match=r"jsonl:1: not a judgement written by medbench"):
        judged(tmp_path, Noting())


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    pubmedqa_run(tmp_path)

    class Nested(Noting):
        def judge(self, items: Sequence[Item]) -> Iterator[Ruling]:
            with pytest.raises(MedbenchError, match="is being written by another process: wait for it"):
                subprocess_judge(tmp_path)
            yield from super().judge(items)

    assert judged(tmp_path, Nested()).faults == ()


def subprocess_judge(folder: Path) -> None:
    from filelock import FileLock, Timeout

    try:
        FileLock(folder / "runs" / "judged" / "judgements" / ".lock").acquire(timeout=0)
    except Timeout:
        raise MedbenchError("is being written by another process: wait for it") from None


def slow_judge(notes: Path) -> str:
    """OVERLAP, which takes its time and notes what it is asked."""
    noting = f"for line in sys.stdin:\n    open({str(notes)!r}, 'a').write(line)"
    slow = OVERLAP.replace("    print(", "    import time; time.sleep(0.02)\n    print(")
    return slow.replace("for line in sys.stdin:", noting)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_verdicts(tmp_path: Path) -> None:
    """Every kill -9 leaves what was judged; no step with a stored verdict is asked again."""
    pubmedqa_run(tmp_path, [thought(at) for at in range(40)], number=40)
    file = tmp_path / "runs" / "judged" / "judgements" / "pubmedqa.command.jsonl"
    script = (
        "import sys\nfrom pathlib import Path\n"
        "from medbench.harness.judges.contracts import JudgeChoice\n"
        "from medbench.harness.judges.judge_run import JudgeOptions, judge_run\n"
        "from medbench.harness.judges.plugins import start_judge\n"
        "judge = start_judge(JudgeChoice('command', command=sys.argv[1]))\n"
        "judge_run(JudgeOptions(Path(sys.argv[2]), data=sys.argv[3]), judge, print)\n"
    )
    command = program(tmp_path, slow_judge(tmp_path / "asked"))
    arguments = [sys.executable, "-c", script, command, str(tmp_path / "runs" / "judged"), str(tmp_path / "data")]
    notes = tmp_path / "asked"
    kills, had, before, noted = 0, 0, set[str](), 0
    while True:
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, start_new_session=True)
        while process.poll() is None:
            now = len(file.read_bytes().splitlines()) if file.exists() else 0
            if kills < 2 and now >= had + 20:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                kills, had = kills + 1, now
            time.sleep(0.01)
        asked = [json.loads(line)["id"] for line in notes.read_text().splitlines()]
        assert not before & set(asked[noted:])
        before, noted = {line.item for line in read_judgements(file)}, len(asked)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
    assert kills == 2
    lines = read_judgements(file)
    assert len(lines) == len(file.read_bytes().splitlines()) == 120
