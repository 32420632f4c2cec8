"""The run folder: appended samples are kept, whatever happens to the process or the disk."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medbench.harness.contracts import Interrupted, MedbenchError, Sample
from medbench.harness.files import slug, write_atomically
from medbench.harness.runs.comparability import describe_differences
from medbench.harness.runs.records import SCHEMA_VERSION, ModelRecord, RunRecord, TaskRecord, Totals
from medbench.harness.runs.run_folder import (
    Run,
    create_run,
    is_run,
    read_result,
    read_run,
    read_samples,
    reopen_run,
    results_of,
    samples_path,
)
from medbench.harness.scoring.summary import TaskResult

MEDQA = TaskRecord(version="1", split="test", source="local", sha256="a" * 64, official=True, n=1_000_000)
RECORD = RunRecord(
    run_id="run",
    status="running",
    created="2026-01-01T00:00:00+00:00",
    command=["medbench", "eval", "model"],
    model=ModelRecord(name="model", kind="full", path="model", fingerprint="f" * 64, tokenizer_sha256="t" * 64),
    tasks={"medqa": MEDQA},
    protocol={"name": "cot-v2", "stop": ["\nQuestion:"], "decoding": {"temperature": 0.0}},
    seed=0,
    limit=None,
    engine={"name": "fake", "settings": {}},
    packages={"medbench": "0.1.0"},
    git_commit=None,
)
RESULT = TaskResult(
    task="medqa",
    version="1",
    split="test",
    source="local",
    official=True,
    protocol="cot-v2",
    n=3,
    n_error=1,
    n_unparsed=0,
    n_truncated=0,
    outcomes={"answered": 2, "error": 1},
    accuracy=0.5,
    interval=(0.1, 0.9),
    interval_wilson=(0.1, 0.9),
    chance=0.25,
    tokens_per_answer=3.0,
    categories={"meta_info": {"step1": {"n": 2, "accuracy": 0.5, "interval": (0.1, 0.9)}}},
)
# A child that goes on with the run and tells each id when append() has returned for it.
APPENDING = """
    import sys
    from pathlib import Path
    from test_run_folder import RECORD, sample
    from medbench.harness.runs.run_folder import reopen_run
    with reopen_run(Path(sys.argv[1]), RECORD) as run:
        number = len(run.done("medqa"))
        while True:
            run.append("medqa", sample(number, output="x" * (number % 7 * 3000)))
            print(f"q{number}", flush=True)
            number += 1
"""


def sample(number: int, **changes: Any) -> Sample:
    plain = Sample(
        id=f"q{number}",
        cluster=f"c{number}",
        prompt="Question?",
        output="The answer is (B).",
        finish_reason="stop",
        extracted="B",
        outcome="answered",
        span=(15, 16),
        gold="B",
        score=1.0,
        error=None,
        prompt_tokens=5,
        completion_tokens=7,
        category={"meta_info": "step1"},
    )
    return replace(plain, **changes)


def failed(number: int) -> Sample:
    return sample(
        number,
        output="",
        finish_reason="error",
        extracted=None,
        outcome="error",
        span=None,
        score=None,
        error="timeout",
    )


def stored(folder: Path) -> list[str]:
    return [one.id for one in read_samples(folder, "medqa")]


def child(code: str, *words: str, stdout: Any = subprocess.PIPE) -> subprocess.Popen[str]:
    here = str(Path(__file__).parent)
    script = f"import sys; sys.path.insert(0, {here!r})\n" + textwrap.dedent(code)
    command = [sys.executable, "-c", script, *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, stderr=subprocess.PIPE, text=True)


def visible(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


# round trips


def test_a_run_is_read_back(tmp_path: Path) -> None:
    record = RECORD.model_copy(update={"limit": 2})
    with create_run(tmp_path, record) as run:
        run.append("medqa", sample(0))
        run.append("medqa", sample(1, logprobs={" A": -0.5, " B": float("-inf")}, span=None))
        run.write_result(RESULT)
        run.update(status="complete", totals=Totals(seconds=1.5, prompt_tokens=10, completion_tokens=14))
    folder = tmp_path / "run"
    assert read_run(folder) == record.model_copy(
        update={"status": "complete", "totals": Totals(seconds=1.5, prompt_tokens=10, completion_tokens=14)}
    )
    assert list(read_samples(folder, "medqa")) == [
        sample(0),
        sample(1, logprobs={" A": -0.5, " B": float("-inf")}, span=None),
    ]
    assert read_result(folder, "medqa") == RESULT
    assert results_of(folder, ["medqa"]) == {"medqa": RESULT}


def test_every_file_names_its_schema_version(tmp_path: Path) -> None:
    with create_run(tmp_path, RECORD) as run:
        run.append("medqa", sample(0))
        run.write_result(RESULT)
    for path in ("run.json", "samples/medqa.jsonl", "results/medqa.json"):
        assert json.loads((tmp_path / "run" / path).read_text())["schema_version"] == SCHEMA_VERSION


# Every code point, surrogates too: a stored reply may hold half of a pair.
anything = st.text(alphabet=st.characters(exclude_categories=()), max_size=30)
awkward = st.sampled_from(["\0", "\u2028", "\u2029", "\x85", "\r", "\r\n", "\n", "\ud800", "\udc80a", "\ufeff", '"\\'])
texts = st.one_of(anything, awkward)


@given(
    lines=st.lists(
        st.builds(
            Sample,
            id=texts,
            cluster=texts,
            prompt=texts,
            output=texts,
            finish_reason=st.sampled_from(["stop", "length", "error"]),
            extracted=st.none() | texts,
            outcome=st.sampled_from(["answered", "unparsed", "ambiguous", "truncated", "empty", "refused", "error"]),
            span=st.none() | st.tuples(st.integers(0, 99), st.integers(0, 99)),
            gold=texts,
            score=st.none() | st.floats(0, 1),
            error=st.none() | texts,
            prompt_tokens=st.integers(0, 10**9),
            completion_tokens=st.integers(0, 10**9),
            category=st.dictionaries(texts, texts, max_size=2),
            logprobs=st.none() | st.dictionaries(texts, st.floats(max_value=0, allow_nan=False), max_size=2),
        ),
        max_size=4,
        unique_by=lambda line: visible(line.id),
    )
)
@settings(max_examples=60)
def test_any_text_is_read_back_with_lone_surrogates_replaced(
    tmp_path_factory: pytest.TempPathFactory, lines: list[Sample]
) -> None:
    def seen(value: Any) -> Any:
        if isinstance(value, str):
            return visible(value)
        return {visible(key): seen(each) for key, each in value.items()} if isinstance(value, dict) else value

    with create_run(tmp_path_factory.mktemp("runs"), RECORD) as run:
        run.done("medqa")
        lines = [replace(line, score=None if line.outcome == "error" else line.score or 0.0) for line in lines]
        lines = [replace(line, extracted=line.gold) if line.score == 1 else line for line in lines]
        for line in lines:
            run.append("medqa", line)
        if lines:
            back = [asdict(one) for one in read_samples(run.folder, "medqa")]
            assert back == [{key: seen(value) for key, value in asdict(line).items()} for line in lines]
            assert len(samples_path(run.folder, "medqa").read_bytes().split(b"\n")) == len(lines) + 1


@given(text=st.text(alphabet=st.characters(exclude_categories=())), limit=st.integers(1, 80))
def test_a_slug_is_a_safe_file_name(text: str, limit: int) -> None:
    name = slug(text, limit)
    assert re.fullmatch(r"[A-Za-z0-9._-]+", name)
    assert not name.startswith((".", "-"))
    assert len(name) <= max(limit, len("run"))
    assert slug(name, 80) == name


def test_a_slug_keeps_the_part_that_distinguishes_two_checkpoints() -> None:
    assert slug("Qwen/Qwen3-0.6B") == "Qwen-Qwen3-0.6B"
    assert slug("/runs/" + "long/" * 30 + "checkpoint-1200").endswith("checkpoint-1200")
    assert slug("///") == slug("") == "run"


# torn and failed lines


def test_a_torn_last_line_is_not_read_and_is_cut_by_the_next_writer(tmp_path: Path) -> None:
    """The file is cut at every byte of its last line, as kill -9 or a full disk can do."""
    with create_run(tmp_path, RECORD) as run:
        for number in range(3):
            run.append("medqa", sample(number, output="größer — \u2028 答", category={}))
    folder = tmp_path / "run"
    whole = samples_path(folder, "medqa").read_bytes()
    last = len(whole) - len(whole.splitlines(keepends=True)[-1])
    for size in range(last, len(whole)):
        samples_path(folder, "medqa").write_bytes(whole[:size])
        assert stored(folder) == ["q0", "q1"]
        assert samples_path(folder, "medqa").stat().st_size == size, "a reader must not write"
        with reopen_run(folder, RECORD) as run:
            assert run.done("medqa") == {"q0", "q1"}
            run.append("medqa", sample(3))
        assert stored(folder) == ["q0", "q1", "q3"]


def test_failed_lines_are_asked_again_and_ids_stay_unique(tmp_path: Path) -> None:
    with create_run(tmp_path, RECORD) as run:
        assert run.done("medqa") == set()
        for one in (sample(0), failed(1), sample(2), failed(3)):
            run.append("medqa", one)
    folder = tmp_path / "run"
    assert stored(folder) == ["q0", "q1", "q2", "q3"]
    with reopen_run(folder, RECORD) as run:
        assert run.done("medqa") == {"q0", "q2"}
        assert stored(folder) == ["q0", "q1", "q2", "q3"]  # nothing changes before there is an answer to store
        run.append("medqa", sample(1))
        run.append("medqa", failed(3))
        # a gate works in blocks: it asks the same open run repeatedly what is done
        assert run.done("medqa") == {"q0", "q1", "q2"}
        run.append("medqa", sample(3))
        assert run.done("medqa") == {"q0", "q1", "q2", "q3"}
    assert stored(folder) == ["q0", "q2", "q1", "q3"]


def test_withdrawn_answers_leave_a_run_as_it_was(tmp_path: Path) -> None:
    with create_run(tmp_path, RECORD) as run:
        for one in (sample(0), failed(1), sample(2)):
            run.append("medqa", one)
    folder = tmp_path / "run"
    before = (folder / "run.json").read_bytes()
    with reopen_run(folder, RECORD) as run:
        run.append("medqa", failed(1))
        assert run.done("medqa") == {"q0", "q2"}
        run.append("medqa", sample(3))
        run.update(totals=Totals(seconds=9.0))
        run.withdraw()
        run.withdraw()
        assert run.record == RECORD
    assert stored(folder) == ["q0", "q2"]
    assert (folder / "run.json").read_bytes() == before
    with reopen_run(folder, RECORD) as run:
        run.withdraw()
    assert stored(folder) == ["q0", "q2"]


def test_a_new_run_that_is_withdrawn_is_gone_and_nothing_else_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "run" / "results").mkdir(parents=True)
    (tmp_path / "run" / "results" / "mine.txt").write_text("mine")
    with create_run(tmp_path, RECORD) as run:
        run.append("medqa", sample(0))
        run.withdraw()
    assert not is_run(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"] == [
        "mine.txt"
    ]
    with create_run(tmp_path, RECORD) as run:
        run.append("medqa", sample(1))
    assert stored(tmp_path / "run") == ["q1"]


def test_a_run_without_answers_yet(tmp_path: Path) -> None:
    with create_run(tmp_path, RECORD) as run:
        assert run.done("medqa") == set()
    with pytest.raises(MedbenchError, match=r"medqa\.jsonl: no such file; the run has no samples of medqa"):
        read_samples(tmp_path / "run", "medqa")


# faults


def fault(call: Any, *words: Any) -> str:
    with pytest.raises(MedbenchError) as caught:
        # samples are read lazily
        list(found) if isinstance(found := call(*words), Iterator) else None
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("file", ["run.json", "results/medqa.json", "samples/medqa.jsonl"])
def test_a_newer_schema_says_upgrade(tmp_path: Path, file: str) -> None:
    with create_run(tmp_path, RECORD) as run:
        run.append("medqa", sample(0))
        run.write_result(RESULT)
    path = tmp_path / "run" / file
    content = json.loads(path.read_text()) | {"schema_version": SCHEMA_VERSION + 1, "more": True}
    path.write_text(json.dumps(content) + "\n")
    read = {"run.json": read_run, "results/medqa.json": read_result, "samples/medqa.jsonl": read_samples}[file]
    said = fault(read, tmp_path / "run", *([] if file == "run.json" else ["medqa"]))
    assert said.startswith(str(path))
    assert f"schema version {SCHEMA_VERSION + 1} is newer than {SCHEMA_VERSION}: upgrade medbench" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read (JSONDecodeError): the file is damaged"),
        (b'{"schema_version": 1', "the file is damaged"),
        (b'"\xff"', "the file is damaged"),
        (b"[" * 100_000, "the file is damaged"),
        (b"[]", "expected a JSON object"),
        (b"null", "expected a JSON object"),
        (b"{}", "no schema_version"),
        (b'{"schema_version": "1"}', "no schema_version"),
        (b'{"schema_version": 0}', "no schema_version"),
        (b'{"schema_version": 1}', "run_id: field required: not written by medbench, or damaged"),
    ],
)
def test_a_damaged_run_file_is_reported(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "run.json").write_bytes(content)
    message = fault(read_run, tmp_path)
    assert message.startswith(f"{tmp_path / 'run.json'}: ")
    assert said in message


def test_a_folder_without_a_run_is_reported(tmp_path: Path) -> None:
    assert fault(read_run, tmp_path / "none").startswith(f"{tmp_path / 'none' / 'run.json'}: no such file")
    assert fault(read_result, tmp_path, "medqa").startswith(f"{tmp_path / 'results' / 'medqa.json'}: no such file")


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"[]\n", b"[1]\n", b"null\n", b'"text"\n', b"\0\0\n", b'{"schema_version": 1}\n', b"{\n"]
)
def test_a_damaged_sample_is_reported_with_its_line(tmp_path: Path, line: bytes) -> None:
    with create_run(tmp_path, RECORD) as run:
        run.append("medqa", sample(0))
    path = samples_path(tmp_path / "run", "medqa")
    path.write_bytes(path.read_bytes() + line)
    assert fault(read_samples, tmp_path / "run", "medqa").startswith(f"{path}:2: not a sample written by medbench")


def test_an_existing_run_is_not_created_again(tmp_path: Path) -> None:
    create_run(tmp_path, RECORD).close()
    assert "run already exists: add --resume to continue it, or --name" in fault(create_run, tmp_path, RECORD)


def test_a_runs_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = fault(create_run, tmp_path / "file", RECORD)
    assert said == f"{tmp_path / 'file' / 'run'}: cannot be created (Not a directory): correct --runs"


def with_model(**changes: Any) -> dict[str, Any]:
    return {"model": RECORD.model.model_copy(update=changes)}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (with_model(fingerprint="0" * 64), ["model model ffffffffffff, not 000000000000"]),
        (with_model(tokenizer_sha256="0" * 64), ["another tokenizer or chat template"]),
        ({"protocol": {"name": "direct-v1"}}, ["protocol cot-v2, not direct-v1"]),
        ({"protocol": RECORD.protocol | {"stop": []}}, ["protocol cot-v2, not cot-v2"]),
        ({"seed": 7}, ["seed 0, not 7"]),
        ({"engine": {"name": "hf"}}, ["engine fake, not hf"]),
        ({"tasks": {}}, ["task medqa in only one of them"]),
        ({"tasks": {"medqa": MEDQA, "pubmedqa": MEDQA}}, ["task pubmedqa in only one of them"]),
        ({"tasks": {"medqa": MEDQA.model_copy(update={"version": "2"})}}, ["medqa version 1, not 2"]),
        (
            {"tasks": {"medqa": MEDQA.model_copy(update={"sha256": "b" * 64, "source": "sample"})}},
            ["medqa data local aaaaaaaaaaaa, not sample bbbbbbbbbbbb"],
        ),
        (
            {"seed": 7, **with_model(fingerprint="0" * 64)},
            ["model model ffffffffffff, not 000000000000", "seed 0, not 7"],
        ),
        ({"limit": 3, "status": "complete", "packages": {}, "command": [], "git_commit": "abc"}, []),
        (with_model(name="other", path="elsewhere"), []),
    ],
)
def test_differences_that_make_it_another_run(tmp_path: Path, changes: dict[str, Any], said: list[str]) -> None:
    wanted = RECORD.model_copy(update=changes)
    assert describe_differences(RECORD, wanted) == said
    create_run(tmp_path, RECORD).close()
    if said:
        told = fault(reopen_run, tmp_path / "run", wanted)
        assert told.startswith(f"{tmp_path / 'run'} is another run ({'; '.join(said)}): ")
        assert told.endswith("use another --name")
        assert ("go on with --protocol" in told) == any(one.startswith("protocol ") for one in said)
    # the lock is free again in any case
    reopen_run(tmp_path / "run", RECORD).close()


# atomic writes


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_write_leaves_only_its_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", b"old")
    write_atomically(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"
    (tmp_path / "taken").mkdir()
    assert "taken: cannot be written" in fault(write_atomically, tmp_path / "taken", b"x")
    assert "(No such file or directory): fix the cause" in fault(write_atomically, tmp_path / "none" / "a.json", b"x")
    assert names_in(tmp_path) == ["a.json", "taken"]


def test_a_run_leaves_no_temporary_files(tmp_path: Path) -> None:
    with create_run(tmp_path, RECORD) as run:
        run.append("medqa", failed(0))
        run.done("medqa")
        run.write_result(RESULT)
        run.update(status="complete")
    found = sorted(str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert [name for name in found if name != ".lock"] == ["results/medqa.json", "run.json", "samples/medqa.jsonl"]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    versions = [bytes([letter]) * 200_000 for letter in b"ab"]
    write_atomically(path, versions[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for version in versions:
                write_atomically(path, version)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert {path.read_bytes() for _ in range(300)} <= set(versions)
    finally:
        stop.set()
        writer.join()


# a full disk


def fill(run: Run, start: int = 0) -> int:
    """Append until it fails; the number of samples that were stored."""
    number = start

    def append_on() -> None:
        nonlocal number
        while True:
            run.append("medqa", sample(number, output="x" * 3333))
            number += 1

    with pytest.raises(Interrupted) as full:
        append_on()
    assert full.value.exit_code == 4
    assert str(full.value).endswith("make room, then run again with --resume")
    assert "\n" not in str(full.value)
    return number


def test_a_full_disk_interrupts_and_loses_nothing(small_disk: Path) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * 60_000)
    run = create_run(small_disk, RECORD)
    before = (run.folder / "run.json").read_bytes()
    first = fill(run)
    assert first > 3
    assert stored(run.folder) == [f"q{number}" for number in range(first)]
    assert fill(run, first) == first, "still full"
    with pytest.raises(Interrupted):
        run.update(notes=["x" * 5000])
    assert (run.folder / "run.json").read_bytes() == before
    assert not list(small_disk.rglob("*.tmp"))
    assert stored(run.folder) == [f"q{number}" for number in range(first)]
    # space is freed while the run is open, and again after it was closed
    ballast.write_bytes(b"x" * 30_000)
    second = fill(run, first)
    run.close()
    assert second > first
    ballast.unlink()
    with reopen_run(run.folder, RECORD) as run:
        assert run.done("medqa") == {f"q{number}" for number in range(second)}
        third = fill(run, second)
    assert third > second
    assert stored(run.folder) == [f"q{number}" for number in range(third)]


def test_a_file_size_limit_is_a_full_disk(tmp_path: Path) -> None:
    create_run(tmp_path, RECORD).close()
    code = """
        import resource, signal
        from pathlib import Path
        from test_run_folder import RECORD, fill
        from medbench.harness.runs.run_folder import reopen_run
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
        run = reopen_run(Path(sys.argv[1]), RECORD)
        print(fill(run))
    """
    said, errors = child(code, str(tmp_path / "run")).communicate(timeout=60)
    assert said.strip().isdigit(), errors
    expected = [f"q{number}" for number in range(int(said))]
    assert len(expected) > 3
    assert stored(tmp_path / "run") == expected
    with reopen_run(tmp_path / "run", RECORD) as run:
        assert run.done("medqa") == set(expected)
        run.append("medqa", sample(len(expected)))
    assert len(stored(tmp_path / "run")) == len(expected) + 1


# other processes


def test_two_processes_cannot_write_one_run(tmp_path: Path) -> None:
    create_run(tmp_path, RECORD).close()
    code = """
        from pathlib import Path
        from test_run_folder import RECORD
        from medbench.harness.runs.run_folder import reopen_run
        with reopen_run(Path(sys.argv[1]), RECORD):
            print("open", flush=True)
            sys.stdin.readline()
    """
    holder = child(code, str(tmp_path / "run"))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    said = fault(reopen_run, tmp_path / "run", RECORD)
    assert said == f"{tmp_path / 'run'} is being written by another process: wait for it, or use --name"
    assert read_run(tmp_path / "run") == RECORD, "reading needs no lock"
    holder.communicate("\n", timeout=30)
    reopen_run(tmp_path / "run", RECORD).close()


@pytest.mark.slow
def test_kill_9_loses_no_line_whose_append_returned(tmp_path: Path) -> None:
    """At several moments, some in the middle of a line of 18 kB; every child continues the same run."""
    create_run(tmp_path, RECORD).close()
    folder = tmp_path / "run"
    moments = random.Random(0)
    told: list[str] = []
    for attempt in range(4):
        heard = tmp_path / f"told-{attempt}"
        with heard.open("wb") as stdout:
            appending = child(APPENDING, str(folder), stdout=stdout)
        while not heard.stat().st_size and appending.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.15))
        appending.send_signal(signal.SIGKILL)
        _, errors = appending.communicate(timeout=30)
        assert appending.returncode == -signal.SIGKILL, errors
        told += [line.strip() for line in heard.read_text().splitlines(keepends=True) if line.endswith("\n")]
        kept = stored(folder)
        assert len(kept) == len(set(kept)), "an id stands twice"
        # the last one may have been stored without being reported
        assert kept[: len(told)] == told
        assert len(kept) - len(told) <= 1
        told = kept
    assert len(told) > 50
    with reopen_run(folder, RECORD) as run:
        assert run.done("medqa") == set(told)


# what is damaged is set aside, and what is sound goes on


UNEARNED = json.dumps({**asdict(sample(9)), "extracted": "A", "schema_version": SCHEMA_VERSION}).encode()
"""A full score for a wrong answer."""
NOT_UTF_8 = (
    json.dumps({**asdict(sample(9)), "schema_version": SCHEMA_VERSION, "more": "?"}).encode().replace(b"?", b"\xff")
)
"""In a field that medbench does not know."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "fault", [b"\0" * 4096, b"{}", b"[1]", b'{"id": "q1"}', b"\xff\xfe", b"nonsense", UNEARNED, NOT_UTF_8]
)
@pytest.mark.parametrize("place", [0, 1, 3])
def test_one_damaged_line_is_set_aside_and_the_rest_goes_on(
    tmp_path: Path, fault: bytes, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    with create_run(tmp_path, RECORD) as run:
        for number in range(3):
            run.append("medqa", sample(number))
    path = samples_path(tmp_path / "run", "medqa")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:place], fault + b"\n", *lines[place:]]))
    before = files_of(tmp_path)
    with reopen_run(tmp_path / "run", RECORD) as run:
        assert run.done("medqa") == {"q0", "q1", "q2"}
        assert files_of(tmp_path) == before
        run.append("medqa", sample(3))
    assert stored(tmp_path / "run") == ["q0", "q1", "q2", "q3"]
    assert path.with_name("medqa.jsonl.damaged").read_bytes() == fault + b"\n"
    assert "set aside in medqa.jsonl.damaged and asked again: 1 damaged line\n" in caplog.text


def test_a_sample_that_could_not_be_read_back_is_never_written(tmp_path: Path) -> None:
    with create_run(tmp_path, RECORD) as run:
        run.append("medqa", sample(0))
        faults: list[dict[str, Any]] = [
            {"completion_tokens": None},
            {"prompt_tokens": -1},
            {"score": 5.0},
            {"extracted": "A"},  # with the score of a right answer
        ]
        for changes in faults:
            with pytest.raises(MedbenchError, match="'q1' cannot be stored"):
                run.append("medqa", replace(sample(1), **changes))
    assert stored(tmp_path / "run") == ["q0"]


def test_temporary_files_of_killed_writers_are_removed(tmp_path: Path) -> None:
    create_run(tmp_path, RECORD).close()
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    dead, mine = f".run.json.{ended.stdout.strip()}.tmp", f".run.json.{os.getpid()}.tmp"
    for name in (dead, mine):
        (tmp_path / "run" / name).touch()
    reopen_run(tmp_path / "run", RECORD).close()
    assert not (tmp_path / "run" / dead).exists()
    assert (tmp_path / "run" / mine).exists()


def test_folders_that_git_did_not_keep_are_made_again(tmp_path: Path) -> None:
    create_run(tmp_path, RECORD).close()
    for name in ("samples", "results"):
        shutil.rmtree(tmp_path / "run" / name)
    with reopen_run(tmp_path / "run", RECORD) as run:
        assert run.done("medqa") == set()
        run.append("medqa", sample(0))
        run.write_result(RESULT)
    assert stored(tmp_path / "run") == ["q0"]
