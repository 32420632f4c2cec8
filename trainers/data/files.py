"""Files of training data: JSON lines, JSON, Parquet and CSV; one of them, a folder, or a glob.

Faults are MedbenchErrors that name the file and, where it has any, the line or row.
"""

from __future__ import annotations

import codecs
import csv
import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from medbench.harness.benchmarks.rows import read_jsonl
from medbench.harness.contracts import MedbenchError
from medbench.harness.files import expanded, parse_json
from medbench.harness.text import foreign, one_line
from medbench.harness.training.trainer_plugins import DATA_FOLDER

Rows = Iterator[tuple[str, Mapping[str, Any]]]
"""(file and line or row, for messages; column -> value)."""

MAGIC = "*?["
DELIMITERS = ",;\t"
LARGEST_CELL = 16 * 2**20
"""Characters; Python's csv stops at 131,072, which a chat can exceed."""
MOST_PATHS = 10_000
"""In a folder or of a glob; more are a slip, such as the folder /."""
ABOUT_THE_DATA = ("README", "LICENSE", "NOTICE", "CITATION")
"""Beginnings of the names of files that may lie beside data."""


def rows_of(given: str) -> Rows:
    """The rows of all files that `given` names: a file, a folder, or a glob. Every file must have rows."""
    for path in files_of(given):
        empty = True
        for row in READERS.get(path.suffix.lower(), _lines)(path):
            empty = False
            yield row
        if empty:
            raise MedbenchError(f"{path}: no rows")


def files_of(given: str) -> list[Path]:
    """The files, in order of their paths. A single file may have any name."""
    if "\0" in given:
        raise MedbenchError(f"{foreign(given)}: a path cannot contain a null character")
    path = expand(given)
    try:
        if path.is_dir():
            return _in_folder(path, given)
        if not set(MAGIC) & set(given) or path.exists():
            return [path]
        return _matching(given)
    except OSError as error:
        raise MedbenchError(f"{given}: cannot be read ({error.strerror})") from None


def expand(path: str) -> Path:
    """A recipe's path with a leading $MEDBENCH_DATA or ~ expanded. Raises MedbenchError if the variable is not set."""
    first, _, rest = path.partition("/")
    if first not in (f"${DATA_FOLDER}", f"${{{DATA_FOLDER}}}"):
        return expanded(path)
    folder = os.environ.get(DATA_FOLDER)
    if not folder:
        raise MedbenchError(
            f"{path}: {DATA_FOLDER} is not set: export {DATA_FOLDER}=FOLDER, the folder of the data files"
        )
    return expanded(folder) / rest


def _in_folder(folder: Path, given: str) -> list[Path]:
    there = [path for path in _few(folder.rglob("*"), given) if path.is_file() and not _is_hidden(path, folder)]
    found = [path for path in there if path.suffix.lower() in READERS]
    others = [path for path in there if path not in set(found) and not path.name.upper().startswith(ABOUT_THE_DATA)]
    if not found:
        raise MedbenchError(f"{folder}: no files that end in {', '.join(READERS)}")
    if others:
        raise MedbenchError(
            f"{folder}: {foreign(str(others[0].relative_to(folder)))} does not end in {', '.join(READERS)}: name the "
            f"files to read by a glob, such as {given.rstrip('/')}/*{found[0].suffix}"
        )
    return found


def _few(paths: Iterable[Path], given: str) -> list[Path]:
    """Sorted. Raises MedbenchError where there are too many, without looking at the rest of the disk."""
    found = list(islice(paths, MOST_PATHS + 1))
    if len(found) > MOST_PATHS:
        raise MedbenchError(f"{given}: more than {MOST_PATHS:,} files and folders: name fewer, by a narrower glob")
    return sorted(found)


def _is_hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def _matching(given: str) -> list[Path]:
    """Only what the recipe says is a pattern: the folder behind ~ or $MEDBENCH_DATA may have any name."""
    parts = Path(given).parts
    first = next(at for at, part in enumerate(parts) if set(MAGIC) & set(part))
    root = expand(str(Path(*parts[:first]))) if first else Path()
    # unlike Path.glob, it leaves hidden files out and takes any pattern
    names = glob.iglob(str(Path(*parts[first:])), root_dir=root, recursive=True)  # noqa: PTH207
    found = [path for path in dict.fromkeys(_few((root / name for name in names), given)) if path.is_file()]
    if not found:
        raise MedbenchError(f"{given}: matches no file: correct the glob")
    odd = next((path for path in found if path.suffix.lower() not in READERS), None)
    if odd is not None:
        raise MedbenchError(f"{odd}: does not end in {', '.join(READERS)}: narrow the glob {given}")
    return found


def _lines(path: Path) -> Rows:
    try:
        with path.open("rb") as file:
            is_marked = file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8
    except OSError as error:
        raise _unreadable(path, error) from None
    if is_marked:
        raise MedbenchError(f"{path}:1: begins with a byte order mark: save it as UTF-8 without one")
    for number, raw in read_jsonl(path):
        yield f"{path}:{number}", raw


def _json(path: Path) -> Rows:
    """A list of objects, or JSON lines, which many files of this name hold."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise _unreadable(path, error) from None
    except UnicodeDecodeError:
        raise MedbenchError(f"{path}: not UTF-8: save it as UTF-8") from None
    if not text.lstrip().startswith("["):
        yield from _lines(path)
        return
    try:
        content = parse_json(text)
    except ValueError as fault:
        raise MedbenchError(f"{path}{_place(text) or f': {fault}'}") from None
    for number, raw in enumerate(content, 1):
        if not isinstance(raw, dict):
            raise MedbenchError(f"{path} row {number}: expected a JSON object, found {type(raw).__name__}")
        yield f"{path} row {number}", raw


def _place(text: str) -> str:
    """ ":LINE: what is wrong" of text that is not JSON; "" if something else is."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return f":{error.lineno}: not JSON ({error.msg}): expected a list of objects"
    except RecursionError:
        return ": lists and objects too deep in one another: expected a list of objects"
    return ""


def _parquet(path: Path) -> Rows:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if twice := _repeated(names):
                raise MedbenchError(f"{path}: two columns are named {foreign(twice, 80)}: rename one")
            for batch in file.iter_batches(batch_size=1024):
                for raw in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", raw
    except FileNotFoundError as error:
        raise _unreadable(path, error) from None
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise MedbenchError(
            f"{path}: cannot be read as Parquet after row {number} ({one_line(error)[:200]}): write it again"
        ) from None


def _csv(path: Path) -> Rows:
    """The first line has the columns' names; it also tells commas, semicolons and tabs apart."""
    csv.field_size_limit(LARGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(file.readline())
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            yield from _cells(path, reader)
    except UnicodeDecodeError:
        raise MedbenchError(f"{path}: not UTF-8: save it as UTF-8 (in Excel: CSV UTF-8)") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _delimiter(line: str) -> str:
    return max(DELIMITERS, key=lambda one: len(next(csv.reader([line], delimiter=one), [])))


def _cells(path: Path, reader: Any) -> Rows:
    line = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        if twice := _repeated([name for name in header if name]):
            raise MedbenchError(f"{path}:1: two columns are named {foreign(twice, 80)}: rename one")
        line = reader.line_num + 1  # a quoted cell may have several lines
        for cells in reader:
            if cells and len(cells) != len(header):
                raise MedbenchError(
                    f"{path}:{line}: {len(cells)} cells, but the first line names {len(header)} columns: put cells "
                    f"that contain {reader.dialect.delimiter!r}, quotes or line breaks in double quotes"
                )
            if cells:  # a column without a name is an index that pandas wrote
                yield f"{path}:{line}", {name: cell or None for name, cell in zip(header, cells, strict=True) if name}
            line = reader.line_num + 1
    except csv.Error as error:
        raise MedbenchError(
            f"{path}:{line}: not CSV ({error}): put cells that contain {reader.dialect.delimiter!r}, quotes "
            f"or line breaks in double quotes"
        ) from None


def _repeated(names: list[str]) -> str | None:
    return next((name for at, name in enumerate(names) if name in names[:at]), None)


def _unreadable(path: Path, error: OSError) -> MedbenchError:
    missing = isinstance(error, FileNotFoundError)
    return MedbenchError(f"{path}: no such file" if missing else f"{path}: cannot be read ({error.strerror})")


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _lines,
    ".json": _json,
    ".parquet": _parquet,
    ".csv": _csv,
    ".tsv": _csv,
}
