"""Files of training data: each kind is read as it was written, and each fault is one line with file and place.

pytest tests/trainers/test_data_files.py
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from medbench.harness.contracts import MedbenchError
from medbench.trainers.data.files import files_of, rows_of
from medbench.trainers.data.rows import Source, load_rows

ROWS = [
    {"question": "Which drug; if any, lowers fever?", "answer": 'Aspirin, or "ASA"\nby mouth'},
    {"question": "Welches Organ?", "answer": "Müller-Zelle\tÄ"},
]


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("\ufeff" + json.dumps(rows, indent=1), encoding="utf-8")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_csv(path: Path, rows: list[dict[str, Any]], *, delimiter: str = ",", encoding: str = "utf-8") -> None:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    "rows.jsonl": write_jsonl,
    "lines.json": write_jsonl,
    "list.json": write_json,
    "ROWS.PARQUET": write_parquet,
    "comma.csv": write_csv,
    "tab.tsv": lambda path, rows: write_csv(path, rows, delimiter="\t"),
    "excel_in_europe.csv": lambda path, rows: write_csv(path, rows, delimiter=";", encoding="utf-8-sig"),
    "excel.csv": lambda path, rows: write_csv(path, rows, encoding="utf-8-sig"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_each_kind_of_file_gives_the_rows_that_were_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    WRITERS[name](path, ROWS)
    found = list(rows_of(str(path)))
    assert [raw for _, raw in found] == ROWS
    by_row = path.suffix.lower() == ".parquet" or name == "list.json"
    ends = [" row 1", " row 2"] if by_row else [":2", ":4"] if path.suffix in (".csv", ".tsv") else [":1", ":2"]
    assert [where for where, _ in found] == [f"{path}{end}" for end in ends]


def test_a_folder_and_a_glob_are_read_in_order_of_their_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "b").mkdir(parents=True)
    (tmp_path / "data" / ".cache").mkdir()
    write_jsonl(tmp_path / "data" / "c.jsonl", ROWS)
    write_parquet(tmp_path / "data" / "b" / "a.parquet", ROWS)
    write_csv(tmp_path / "data" / "a.csv", ROWS)
    for name in ("README.md", "LICENSE", ".gitattributes", ".cache/x.bin"):
        (tmp_path / "data" / name).write_text("About.")
    names = ["a.csv", "b/a.parquet", "c.jsonl"]
    assert files_of(str(tmp_path / "data")) == [tmp_path / "data" / name for name in names]
    assert len(list(rows_of(str(tmp_path / "data")))) == 6
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDBENCH_DATA", str(tmp_path / "data"))
    assert files_of("data/*.jsonl") == [Path("data/c.jsonl")]
    assert files_of("data/**/*.parquet") == [Path("data/b/a.parquet")]
    assert files_of("$MEDBENCH_DATA/[ac].*") == [tmp_path / "data" / name for name in ("a.csv", "c.jsonl")]


def test_only_what_the_recipe_writes_is_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data [v2]*"
    folder.mkdir()
    write_jsonl(folder / "a[1].jsonl", ROWS)
    monkeypatch.setenv("MEDBENCH_DATA", str(folder))
    assert files_of("$MEDBENCH_DATA/*.jsonl") == [folder / "a[1].jsonl"]
    assert files_of(str(folder / "a[1].jsonl")) == [folder / "a[1].jsonl"]


def faulty(path: str | Path) -> str:
    with pytest.raises(MedbenchError) as caught:
        list(rows_of(str(path)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b'\xef\xbb\xbf{"a": 1}\n', "a.jsonl:1: begins with a byte order mark: save it as UTF-8 without"),
        ("a.jsonl", b"\n\n", "a.jsonl: no rows"),
        ("a.json", b"[]", "a.json: no rows"),
        ("a.json", b'[{"a": 1},\n{"a": 2},\n]', "a.json:3: not JSON"),
        ("a.json", b'[{"a": 1}, 7]', "a.json row 2: expected a JSON object, found int"),
        ("a.json", b'[{"a": 1, "a": 2}]', 'the key "a" is given twice'),
        ("a.json", b'{\n "data": []\n}', "a.json:1: not JSON; each line must be one JSON object"),
        ("a.json", b"[" * 100_000, "too deep"),
        ("a.json", b'[{"a": "\xff"}]', "a.json: not UTF-8"),
        ("a.csv", b"", "a.csv: no rows"),
        ("a.csv", b"question,answer\n", "a.csv: no rows"),
        ("a.csv", b"question,answer\na,b\nc,d,e\n", "a.csv:3: 3 cells, but the first line names 2 columns"),
        ("a.csv", b'question,answer\n"a\nb",c\nd\n', "a.csv:4: 1 cells, but the first line names 2 columns"),
        ("a.csv", b'question,answer\na,"b\nc,d\n', "a.csv:2: not CSV (unexpected end of data)"),
        ("a.csv", b'question,answer\na,"b"c\n', "a.csv:2: not CSV"),
        ("a.csv", b"question,question\na,b\n", "a.csv:1: two columns are named question"),
        ("a.csv", "question,answer\nä,b\n".encode("latin-1"), "a.csv: not UTF-8: save it as UTF-8 (in Excel"),
        ("a.csv", "question,answer\na,b\n".encode("utf-16"), "a.csv: not UTF-8"),
        ("a.parquet", b"PAR1 but not really", "a.parquet: cannot be read as Parquet after row 0"),
        ("a.parquet", b"", "a.parquet: cannot be read as Parquet"),
    ],
)
def test_a_faulty_file_is_named_with_the_place(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert says in faulty(tmp_path / name)


def test_a_torn_parquet_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_parquet(path, [{"question": os.urandom(40).hex(), "answer": "x" * n} for n in range(3000)])
    whole = path.read_bytes()
    middle = len(whole) // 3
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    assert f"{path}: cannot be read as Parquet after row" in faulty(path)


def test_missing_files_folders_and_globs(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet"):
        assert faulty(tmp_path / name) == f"{tmp_path / name}: no such file"
    assert faulty(tmp_path / "*.jsonl") == f"{tmp_path}/*.jsonl: matches no file: correct the glob"
    assert f"{tmp_path}: no files that end in .jsonl, .json, .parquet, .csv, .tsv" in faulty(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "b.xlsx").write_text("x")
    assert f"{tmp_path}: b.xlsx does not end in .jsonl" in faulty(tmp_path)
    assert f"such as {tmp_path}/*.jsonl" in faulty(f"{tmp_path}/")
    assert f"{tmp_path / 'b.xlsx'}: does not end in" in faulty(f"{tmp_path}/*")
    assert "null character" in faulty("a\0b")
    assert faulty("/") == "/: more than 10,000 files and folders: name fewer, by a narrower glob"
    assert faulty("/**") == "/**: more than 10,000 files and folders: name fewer, by a narrower glob"
    assert "cannot be read" in faulty("a" * 5000)


def test_missing_values_and_columns_without_a_name(tmp_path: Path) -> None:
    """As pandas writes them: NaN and null, empty cells, and an index without a name."""
    path = tmp_path / "rows.parquet"
    table = pyarrow.table(
        {
            "question": ["Which?", "Which?"],
            "options": [["a", "b"], ["a", "b"]],
            "answer": ["a", "b"],
            "explanation": pyarrow.array([float("nan"), None], pyarrow.float64()),
        }
    )
    parquet.write_table(table, path)
    assert [row.reasoning for row in load_rows([Source(path=str(path))])] == ["", ""]
    broken = tmp_path / "broken.parquet"
    parquet.write_table(pyarrow.table({"question": ["Which?"], "answer": [float("nan")]}), broken)
    with pytest.raises(MedbenchError, match=r"broken.parquet row 1: answer: expected text, found NoneType"):
        load_rows([Source(path=str(broken))])
    (tmp_path / "index.csv").write_text(",question,answer\n0,Which?,\n")
    assert list(rows_of(str(tmp_path / "index.csv"))) == [
        (f"{tmp_path / 'index.csv'}:2", {"question": "Which?", "answer": None})
    ]


cells = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=5), st.sampled_from(sorted(WRITERS)))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]], name: str) -> None:
    path = tmp_path_factory.getbasetemp() / name
    rows = [{"question": question, "answer": answer} for question, answer in pairs]
    WRITERS[name](path, rows)
    assert [raw for _, raw in rows_of(str(path))] == rows
