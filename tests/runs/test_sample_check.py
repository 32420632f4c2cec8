"""Samples and run.json are refused wherever a run is read, unless they can be true: scores, counts, right answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.gate_runs import answer, answers, stored_run, write_gates

from medbench import compare, load_run
from medbench.harness.cli.main import run
from medbench.harness.contracts import MedbenchError, Sample
from medbench.harness.runs.run_folder import read_run, read_samples
from medbench.reports.read.collect import collect

IMPOSSIBLE: dict[str, Any] = {
    "a score above 1": {"score": 5.0},
    "a huge score": {"score": 1e308},
    "a negative score": {"score": -0.1},
    "an infinite score": {"score": float("inf")},
    "a score that is no number": {"score": float("nan")},
    "a boolean score": {"score": True},
    "a score in words": {"score": "1"},
    "an answer without a score": {"score": None},
    "a failed request with a score": {"outcome": "error"},
    "negative tokens": {"completion_tokens": -1},
    "tokens beyond counting": {"prompt_tokens": 10**400},
    "boolean tokens": {"completion_tokens": True},
    "fractional tokens": {"completion_tokens": 4.5},
    "a negative repeat": {"repeat": -1},
    "a repeat that the run has not": {"repeat": 1},
    "a boolean version": {"schema_version": True},
    "version 0": {"schema_version": 0},
}


def change_line(folder: Path, number: int, **changes: Any) -> None:
    path = folder / "samples" / "toy.jsonl"
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | changes)
    path.write_text("\n".join(lines) + "\n")


def add_line(folder: Path, **changes: Any) -> None:
    path = folder / "samples" / "toy.jsonl"
    first = path.read_text().splitlines()[0]
    with path.open("a") as file:
        file.write(json.dumps(json.loads(first) | changes) + "\n")


def change_record(folder: Path, *keys: str, to: Any) -> None:
    path = folder / "run.json"
    content = json.loads(path.read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    path.write_text(json.dumps(content))


def one_line(capfd: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """What the command is refused with."""
    capfd.readouterr()
    assert run([*map(str, words)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return stored_run(tmp_path, "run", {"toy": answers(6, 2)})


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_a_sample_that_cannot_be_true_is_refused_by_every_command(
    name: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = stored_run(tmp_path, "other", {"toy": answers(5, 3)})
    gates = write_gates(tmp_path / "gates.yaml", "{task: toy, at_least: 0.1}")
    paired = write_gates(tmp_path / "paired.yaml", "{task: toy, margin: 0.5}")
    change_line(folder, 3, **IMPOSSIBLE[name])
    where = f"{folder}/samples/toy.jsonl:4: "
    assert where in one_line(capfd, "gate", folder, "--gates", gates)
    assert where in one_line(capfd, "gate", other, "--gates", paired, "--baseline", folder)
    assert where in one_line(capfd, "compare", folder, other)
    assert where in one_line(capfd, "compare", other, folder, "--json")
    with pytest.raises(MedbenchError, match=r"toy\.jsonl:4: "):
        list(load_run(folder).samples("toy"))
    assert not (folder / "verdict.json").exists()


@pytest.mark.parametrize("key", ["id", "extracted", "gold", "score", "outcome"])
def test_a_key_that_is_given_twice_is_refused(folder: Path, key: str) -> None:
    """Of two values one is lost, and not every reader loses the same one."""
    path = folder / "samples" / "toy.jsonl"
    lines = path.read_text().splitlines()
    value = json.loads(lines[2])[key]
    lines[2] = lines[2].replace(f'"{key}": ', f'"{key}": "(A).", "{key}": ', 1)
    assert json.loads(lines[2])[key] == value
    path.write_text("\n".join(lines) + "\n")
    assert "toy.jsonl:3: " in refusal(folder)


def refusal(folder: Path) -> str:
    with pytest.raises(MedbenchError) as caught:
        list(read_samples(folder, "toy"))
    return str(caught.value)


def test_two_different_answers_to_one_question_are_refused(folder: Path) -> None:
    add_line(folder, score=0.0, output="The answer is (B).")
    assert "toy.jsonl:9: question 'q" in refusal(folder)
    assert "two different answers" in refusal(folder)


def test_the_same_answer_twice_counts_once(folder: Path) -> None:
    before = list(read_samples(folder, "toy"))
    add_line(folder)
    assert list(read_samples(folder, "toy")) == before


def test_more_answers_than_questions_are_refused(folder: Path) -> None:
    add_line(folder, id="another", cluster="another")
    assert "more questions are answered than the 8 of run.json" in refusal(folder)


def repeated(gold: Sequence[str], orders: Sequence[tuple[int, ...] | None]) -> list[Sample]:
    return [
        answer("q0", gold=one, order=order, repeat=n) for n, (one, order) in enumerate(zip(gold, orders, strict=True))
    ]


@pytest.mark.parametrize(
    ("gold", "orders", "sound"),
    [
        ("AA", (None, None), True),
        ("AB", (None, None), False),
        ("AB", ((0, 1), (1, 0)), True),
        ("AA", ((0, 1), (1, 0)), False),
    ],
)
def test_a_question_has_one_right_answer_in_all_repeats(
    gold: str, orders: tuple[Any, ...], sound: bool, tmp_path: Path
) -> None:
    folder = stored_run(tmp_path, "run", {"toy": [answer("q0")]})
    change_record(folder, "samples", to=2)
    lines = [json.dumps({**vars_of(one), "extracted": one.gold, "schema_version": 1}) for one in repeated(gold, orders)]
    (folder / "samples" / "toy.jsonl").write_text("\n".join(lines) + "\n")
    if sound:
        assert len(list(read_samples(folder, "toy"))) == 2
    else:
        assert "another right answer" in refusal(folder)


def vars_of(sample: Sample) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in Sample.__dataclass_fields__}


def test_another_right_answer_than_in_the_other_run_is_refused(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = stored_run(tmp_path, "other", {"toy": answers(5, 3)})
    paired = write_gates(tmp_path / "gates.yaml", "{task: toy, margin: 0.5}")
    change_line(other, 2, gold="B")
    assert "toy: the right answer of question 'q" in one_line(capfd, "compare", folder, other)
    assert "toy: the right answer of question 'q" in one_line(
        capfd, "gate", folder, "--gates", paired, "--baseline", other
    )
    with pytest.raises(MedbenchError, match="right answer"):
        compare(folder, other)


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("limit",), -1),
        (("limit",), 0),
        (("limit",), True),
        (("samples",), 0),
        (("samples",), True),
        (("shuffle_options",), -1),
        (("incomplete",), -1),
        (("schema_version",), True),
        (("schema_version",), "1"),
        (("schema_version",), 1.0),
        (("tasks", "toy", "n"), -1),
        (("tasks", "toy", "n"), "8"),
        (("tasks", "toy", "n"), 300_000_000),
        (("tasks", "toy", "official"), 1),
        (("totals", "prompt_tokens"), 10**400),
        (("totals", "completion_tokens"), -1),
        (("totals", "seconds"), -1),
        (("totals", "seconds"), float("inf")),
        (("totals", "seconds"), float("nan")),
        (("model", "parameters"), -1),
        (("protocol",), {}),
        (("protocol",), {"name": None}),
        (("protocol",), {"name": "x", "about": ["y"]}),
        (("protocol",), {"name": "x", "shots": [1]}),
        (("protocol",), {"name": "x", "decoding": None}),
        (("protocol",), {"name": "x", "decoding": {"max_new_tokens": "many"}}),
        (("protocol",), {"name": "x", "decoding": {"max_new_tokens": 10**400}}),
        (("engine",), {"name": "x", "settings": [1]}),
        (("engine",), {"name": 7}),
    ],
)
def test_a_record_that_cannot_be_true_is_refused(
    keys: tuple[str, ...], value: Any, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gates = write_gates(tmp_path / "gates.yaml", "{task: toy, at_least: 0.1}")
    change_record(folder, *keys, to=value)
    assert f"{folder}/run.json: " in one_line(capfd, "gate", folder, "--gates", gates)
    assert f"{folder}/run.json: " in one_line(capfd, "compare", folder, folder)
    with pytest.raises(MedbenchError):
        read_run(folder)
    (broken,) = collect([tmp_path]).broken
    assert broken.name == "run"
    assert "\n" not in broken.reason


@pytest.mark.parametrize("bad", ["samples are a folder", "samples are not readable"])
def test_samples_that_cannot_be_opened_are_one_line(
    bad: str, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = folder / "samples" / "toy.jsonl"
    path.unlink()
    if bad == "samples are a folder":
        path.mkdir()
    else:
        path.symlink_to(path)
    assert "toy.jsonl" in one_line(capfd, "compare", folder, folder)


RESULTS: list[dict[str, Any]] = [
    {"accuracy": 2.458},
    {"accuracy": float("nan")},
    {"accuracy": True},
    {"accuracy": "0.5"},
    {"interval": [0.1, float("inf")]},
    {"interval": [0.9, 0.1]},
    {"n": -1},
    {"n": 9000},
    {"n": 9000, "outcomes": {"answered": 9000}},
    {"n_error": -1},
    {"n_error": 9},
    {"n_unparsed": 9},
    {"n_truncated": 9},
    {"outcomes": {"answered": -8}},
    {"outcomes": {"answered": 7}},
    {"chance": 2.0},
    {"tokens_per_answer": -1.0},
    {"categories": {"step": {"1": {"n": 4, "accuracy": 1.5, "interval": [0, 1]}}}},
    {"schema_version": True},
]


@pytest.mark.parametrize("changes", RESULTS)
def test_a_result_that_cannot_be_true_is_refused(changes: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    path = folder / "results" / "toy.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(MedbenchError, match=r"results/toy\.json"):
        load_run(folder)
    found = collect([tmp_path])
    assert dict(found.runs[0].results) == {}
    assert [one.name for one in found.broken] == ["run: results/toy.json"]


def test_samples_in_another_encoding_are_refused(folder: Path) -> None:
    path = folder / "samples" / "toy.jsonl"
    path.write_bytes(path.read_text().encode("utf-32-be"))
    assert "toy.jsonl:1: " in refusal(folder)
