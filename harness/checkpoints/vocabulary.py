"""Whether the ids in a tokenizer's files can be those of a vocabulary.

The library tokenizers reserves memory for every id up to the largest one, 12 GB for an id of 3 billion, and aborts the
process where there is not so much.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from medbench.harness.contracts import BrokenCheckpoint
from medbench.harness.text import foreign

MOST_ID = 2**24
"""The largest vocabularies have a million tokens."""
FILES = ("tokenizer.json", "vocab.json", "added_tokens.json")


class _Model(msgspec.Struct):
    vocab: Any = None


class _Tokenizer(msgspec.Struct):
    """The parts of tokenizer.json that hold ids."""

    model: _Model | None = None
    added_tokens: list[Any] | None = None


def refuse_huge_ids(folder: Path) -> None:
    """Raises BrokenCheckpoint naming a token whose id no vocabulary reaches. Files that are damaged in other ways are
    left to the library."""
    for path in (folder / name for name in FILES):
        for token, id in _ids(path):
            if isinstance(id, int | float) and not abs(id) <= MOST_ID:
                raise BrokenCheckpoint(
                    f"{path}: token {foreign(token, 40)} has the id {foreign(id, 40)}; the largest possible one is "
                    f"{MOST_ID}: copy the base model's file"
                )


def _ids(path: Path) -> Iterator[tuple[Any, Any]]:
    """(token, id) of a file of the tokenizer."""
    try:
        if path.name == "tokenizer.json":
            found = msgspec.json.decode(path.read_bytes(), type=_Tokenizer)
            if found.model is not None and isinstance(found.model.vocab, dict):
                yield from found.model.vocab.items()
            added = [one for one in found.added_tokens or () if isinstance(one, dict)]
            yield from ((one.get("content"), one.get("id")) for one in added)
        else:
            found = msgspec.json.decode(path.read_bytes())
            yield from found.items() if isinstance(found, dict) else ()
    except (OSError, msgspec.DecodeError, RecursionError):
        return
