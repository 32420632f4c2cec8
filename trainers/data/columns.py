"""The columns of one row of training data: renamed by a recipe's `columns:`, and read as text, lists and reasoning.

Functions that read a row raise ValueError with one line; the caller puts file and row before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medbench.harness.extraction.thinking import REASONING_TAGS
from medbench.harness.files import parse_json
from medbench.harness.text import foreign

TAGS = REASONING_TAGS[0]
SOURCE_WORDS = 8
"""A shorter text in a column `source` is a name."""
Columns = Mapping[str, str | list[str]]
"""medbench's name -> the data's column, or the columns that make a list."""
Raw = Mapping[str, Any]


def renamed(raw: Raw, columns: Columns) -> Raw:
    """The row with medbench's names; missing values (null, NaN) are None."""
    known = {name: None if value != value else value for name, value in raw.items()}
    found = {}
    for ours, theirs in columns.items():
        names = [theirs] if isinstance(theirs, str) else theirs
        if missing := [name for name in names if name not in known]:
            raise ValueError(f"columns.{ours}: no column {foreign(missing[0], 80)}{there(raw)}")
        found[ours] = known[theirs] if isinstance(theirs, str) else _without_blanks(known[name] for name in names)
    taken = {name for theirs in columns.values() for name in ([theirs] if isinstance(theirs, str) else theirs)}
    return {name: value for name, value in known.items() if name not in taken} | found


def _without_blanks(values: Any) -> list[Any]:
    """A table has as many columns as the row with most options; those that a row does not use are blank."""
    found = list(values)
    while found and (found[-1] is None or found[-1] == ""):
        found.pop()
    return found


def text(raw: Raw, column: str) -> str:
    """The column's text, without white space at its ends."""
    if column not in raw:
        raise ValueError(f"no column {column}{there(raw)}")
    value = raw[column]
    if value is None:
        raise ValueError(f"{column}: expected text, found NoneType (the value is missing)")
    if not isinstance(value, str):
        raise ValueError(f"{column}: expected text, found {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{column} is empty")
    return value.strip()


def optional_text(raw: Raw, *columns: str) -> str:
    """The text of the first of the columns that has any; "" if none has."""
    for name in columns:
        value = raw.get(name)
        if value is not None and not (isinstance(value, str) and not value.strip()):
            return text(raw, name)
    return ""


LONGEST_CATEGORY = 100


def category(raw: Raw, column: str) -> str:
    """The column's value as a short name: text, or a whole number."""
    value = raw.get(column)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    name = text(raw, column)
    if len(name) > LONGEST_CATEGORY:
        raise ValueError(
            f"{column}: {len(name)} characters, and a category has at most {LONGEST_CATEGORY}: use another column"
        )
    return name


def source(raw: Raw) -> str:
    """The text of the column source or reference that a judge reads; "" without one.

    Many data sets have a column `source` that names where a row comes from: anything but a sentence is none.
    """
    for name in ("source", "reference"):
        value = raw.get(name)
        if isinstance(value, str) and len(value.split()) >= SOURCE_WORDS:
            return value.strip()
    return ""


def listed(raw: Raw, column: str) -> Any:
    """The column's value; text that is JSON, as in a cell of a CSV file, is parsed."""
    value = raw.get(column)
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(value)
        except ValueError:
            raise ValueError(f"{column}: the text is not JSON: write it with json.dumps") from None
    return value


def reply(raw: Raw, column: str) -> tuple[str, str]:
    """(reasoning, answer) of a column that may begin with a <think> block, unless the reasoning has its own column."""
    given = optional_text(raw, "reasoning", "explanation")
    inside, answer = split_thought(text(raw, column), column)
    if given and inside:
        raise ValueError(f"{column} begins with a <think> block, and there is a column with reasoning: keep one")
    return (thought(given) if given else inside), answer


def thought(text: str) -> str:
    """The reasoning without the tags that some data sets put around it; any other tag would end it too early."""
    inner = text.strip()
    if inner.startswith(TAGS[0]) and inner.endswith(TAGS[1]):
        inner = inner[len(TAGS[0]) : -len(TAGS[1])].strip()
    if any(tag in inner for tag in TAGS):
        raise ValueError("a <think> tag inside the reasoning: remove it")
    if not inner:
        raise ValueError("the reasoning is empty")
    return inner


def split_thought(text: str, name: str) -> tuple[str, str]:
    """(reasoning, answer) of a reply; the reasoning is "" without a <think> block or with an empty one.

    A reply whose prompt opened the block has a closing tag only.
    """
    if not any(tag in text for tag in TAGS):
        return "", text.strip()
    before, closed, answer = text.partition(TAGS[1])
    inner = before.strip().removeprefix(TAGS[0]).strip()
    if not closed or TAGS[0] in inner or any(tag in answer for tag in TAGS):
        raise ValueError(f"{name}: its <think> tags are not one block at the start: correct or remove them")
    if not answer.strip():
        raise ValueError(f"{name}: nothing follows its <think> block: add the answer")
    return inner, answer.strip()


def there(raw: Raw) -> str:
    return f" (there are: {names(raw)})"


def names(of: Sequence[str] | Mapping[str, Any]) -> str:
    return foreign(" ".join(", ".join(map(str, of)).split())) or "none"
