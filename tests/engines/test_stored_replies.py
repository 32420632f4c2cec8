"""Stored replies: what is accepted, what is refused with which message, and that the fake engine reads the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medbench.harness.contracts import MedbenchError, Request
from medbench.harness.engines import stored_replies as module
from medbench.harness.engines.fake import FakeEngine, read_replies
from medbench.harness.engines.stored_replies import FAULTS_SHOWN, MOST_SAMPLES, Reply, check_replies

SOUND = b'{"id": "a", "output": "B"}'
FAULTY = {
    "not JSON": (b'{"id": "q", "output":', "not JSON"),
    "two objects": (SOUND + SOUND, "not JSON"),
    "deep": (b"[" * 100_000, "not JSON"),
    "a number too long": (b'{"id": ' + b"1" * 5000 + b', "output": ""}', "not JSON"),
    "a key twice": (b'{"id": "q", "output": "A", "output": "B"}', 'the key "output" is given twice'),
    "a key twice, deeper": (b'{"id": "q", "output": "A", "x": [{"a": 1, "a": 2}]}', 'the key "a" is given twice'),
    "a long key twice": (b'{"%b": 1, "%b": 2}' % (b"k" * 9000, b"k" * 9000), "is given twice"),
    "deep id": (b'{"id": %b, "output": ""}' % (b"[" * 900 + b"]" * 900), 'no "id" (found [[[[...]]]])'),
    "large output": (b'{"id": "q", "output": %b}' % json.dumps([["x" * 9000] * 99] * 9).encode(), '"output" must be'),
    "a list": (b"[1]", "expected a JSON object, found list"),
    "null": (b"null", "expected a JSON object, found null"),
    "blank": (b"  ", "a blank line"),
    "not UTF-8": (b'{"id": "q", "output": "\xff"}', "not UTF-8"),
    "UTF-16": ('{"id": "q", "output": "x"}'.encode("utf-16"), "not UTF-8"),
    "no id": (b'{"output": "x"}', 'no "id"'),
    "id null": (b'{"id": null, "output": "x"}', 'no "id" (found None)'),
    "id true": (b'{"id": true, "output": "x"}', 'no "id" (found True)'),
    "id 1.5": (b'{"id": 1.5, "output": "x"}', 'no "id" (found 1.5)'),
    "id empty": (b'{"id": "", "output": "x"}', "no \"id\" (found '')"),
    "no output": (b'{"id": "q"}', '"output" must be text'),
    "output null": (b'{"id": "q", "output": null}', '"output" must be text (found None)'),
    "output a list": (b'{"id": "q", "output": ["x"]}', '"output" must be text'),
    "finish_reason": (b'{"id": "q", "output": "", "finish_reason": "error"}', '"finish_reason" must be "stop" or'),
    "finish_reason a list": (b'{"id": "q", "output": "", "finish_reason": []}', '"finish_reason" must be'),
    "sample negative": (b'{"id": "q", "output": "", "sample": -1}', '"sample" must be a whole number'),
    "sample 1.0": (b'{"id": "q", "output": "", "sample": 1.0}', '"sample" must be a whole number'),
    "sample true": (b'{"id": "q", "output": "", "sample": true}', '"sample" must be a whole number'),
    "sample null": (b'{"id": "q", "output": "", "sample": null}', '"sample" must be a whole number'),
    "sample too high": (b'{"id": "q", "output": "", "sample": %d}' % MOST_SAMPLES, '"sample" must be a whole number'),
    "id twice": (b'{"question_id": "a", "output": "C"}', "duplicate id 'a', also on an earlier line"),
    "sample twice": (
        b'{"id": "a", "output": "C", "sample": 0}',
        "duplicate id 'a' for sample 0, also",
    ),
}


def written(folder: Path, *lines: bytes) -> Path:
    path = folder / "replies.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def fault(path: Path, known: Sequence[str] | None = None) -> str:
    with pytest.raises(MedbenchError) as raised:
        check_replies(path, known, "toy")
    return str(raised.value)


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_line_is_named_and_the_fake_engine_refuses_it_too(name: str, tmp_path: Path) -> None:
    line, says = FAULTY[name]
    path = written(tmp_path, SOUND, line)
    message = fault(path)
    assert message.startswith(f"{path}:2: ")
    assert says in message
    assert "\n" not in message
    with pytest.raises(MedbenchError) as raised:
        read_replies(path)
    assert str(raised.value) == message


def test_all_faults_are_reported_at_once(tmp_path: Path) -> None:
    lines = [line for line, _ in FAULTY.values()]
    path = written(tmp_path, SOUND, *lines)
    first, *told, last = fault(path).splitlines()
    assert first == f"{path}: {len(lines)} faulty lines of {len(lines) + 1}"
    assert [line.split(": ")[0] for line in told] == [f"{path}:{number}" for number in range(2, 2 + FAULTS_SHOWN)]
    assert last == f"and {len(lines) - FAULTS_SHOWN} more"


@given(st.lists(st.one_of(st.none(), st.sampled_from(sorted(FAULTY))), min_size=1, max_size=40))
def test_exactly_the_faulty_lines_are_reported(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[str | None]
) -> None:
    lines = [FAULTY[kind][0] if kind else b'{"id": %d, "output": ""}' % at for at, kind in enumerate(kinds)]
    path = written(tmp_path_factory.mktemp("mixed"), SOUND, *lines)
    faulty = [number for number, kind in enumerate(kinds, 2) if kind]
    if not faulty:
        assert check_replies(path).n == len(lines) + 1
        return
    told = [line.removeprefix(f"{path}:").split(":")[0] for line in fault(path).splitlines() if f"{path}:" in line]
    assert [int(number) for number in told if number.strip().isdigit()] == faulty[:FAULTS_SHOWN]


def test_an_unknown_id_is_reported_with_a_similar_one(tmp_path: Path) -> None:
    path = written(tmp_path, SOUND, b'{"id": "question-12", "output": ""}', b'{"id": "zzz", "output": ""}')
    said = fault(path, ["a", "question-112", "b"]).splitlines()
    assert said[1] == f"{path}:2: id 'question-12' is not a question of toy; did you mean question-112?"
    assert said[2] == f"{path}:3: id 'zzz' is not a question of toy"
    assert check_replies(path).n == 3


def test_empty_missing_and_unreadable(tmp_path: Path) -> None:
    assert fault(written(tmp_path)).endswith("the file is empty")
    assert fault(tmp_path / "none").endswith("no such file")
    assert "not a file" in fault(tmp_path)
    assert "not a file" in fault(Path("/dev/null"))


def test_an_overlong_line_is_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_LINE", 100)
    path = written(tmp_path, SOUND, b'{"id": "q", "output": "' + b"x" * 1000 + b'"}', b"nothing", SOUND)
    told = fault(path).splitlines()
    assert told[0] == f"{path}: 3 faulty lines of 4"
    assert "longer than" in told[1]
    assert told[2].startswith(f"{path}:3: not JSON")
    assert told[3].startswith(f"{path}:4: duplicate id 'a'")


def test_what_is_accepted(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        b'\xef\xbb\xbf{"id": "a", "output": "\\ud83d half", "other": [1]}\r',
        b'{"question_id": 6001, "output": "", "finish_reason": "length"}',
        b' {"id": "a", "question_id": 3, "output": "x", "sample": 2} ',
    )
    path.write_bytes(path.read_bytes().rstrip(b"\n"))  # no newline at the end
    found = check_replies(path)
    assert list(found.read()) == [
        Reply("a", "\ud83d half", "stop", None),
        Reply("6001", "", "length", None),
        Reply("a", "x", "stop", 2),
    ]
    assert (found.n, found.samples) == (3, 3)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.lacking(["a", "6001", "b"]) == 3
    assert found.lacking([]) == 0


@given(st.dictionaries(st.text(min_size=1, max_size=3), st.sets(st.integers(0, 20), max_size=6), min_size=1))
def test_lacking_counts_the_questions_without_all_samples(
    tmp_path_factory: pytest.TempPathFactory, samples: dict[str, set[int]]
) -> None:
    lines = [{"id": id, "output": "", "sample": each} for id, some in samples.items() for each in some]
    if not lines:
        return
    path = written(tmp_path_factory.mktemp("some"), *(json.dumps(line).encode() for line in lines))
    found = check_replies(path)
    wanted = 1 + max(each for some in samples.values() for each in some)
    assert found.samples == wanted
    assert found.lacking(list(samples)) == sum(len(some) < wanted for some in samples.values())


@pytest.mark.parametrize("change", [b'{"id": "b", "output": "more"}\n', b"{"])
def test_a_file_that_changes_between_the_two_passes_is_refused(change: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, SOUND)
    found = check_replies(path)
    path.write_bytes(path.read_bytes() + change)
    with pytest.raises(MedbenchError, match="changed while it was being read"):
        list(found.read())


def asked(repeat: int) -> Request:
    return Request(f"toy/a#{repeat}" if repeat else "toy/a", (), "", 1, repeat=repeat)


def test_the_fake_engine_answers_each_repeat_with_its_sample(tmp_path: Path) -> None:
    lines = [{"id": "a", "output": f"reply {n}", "sample": n} for n in (2, 0)]
    engine = FakeEngine(read_replies(written(tmp_path, *(json.dumps(line).encode() for line in lines)))[0])
    zero, one, two = engine.generate([asked(repeat) for repeat in range(3)])
    assert (zero.text, two.text) == ("reply 0", "reply 2")
    assert one.error is not None


def test_a_reply_without_a_sample_number_answers_every_repeat(tmp_path: Path) -> None:
    engine = FakeEngine(read_replies(written(tmp_path, SOUND))[0])
    assert [one.text for one in engine.generate([asked(0), asked(3)])] == ["B", "B"]
