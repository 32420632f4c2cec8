"""One damaged input: which files differ from the category's sound folder, and which command is given them.

As a file (corpus/*.json, and what a failure leaves behind):

    {"category": "runs", "command": ["gate", "runs/candidate", "--gates", "gates.yaml"], "why": "what harm it once did",
     "changes": {"runs/candidate/run.json": {"replace": [["\"n\": 16", "\"n\": -1"]]}}}

A change is one of {"text": ...} (with "times": the text is repeated, {n} in it is the number), {"zlib": base 64},
{"replace": [[old, new], ...]} (each occurs in the sound file), {"append": text}, {"link": target}, {"folder": true},
{"absent": true}, {"mode": 0} (not for root).
"""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_TEXT = 4000
"""A longer file is stored compressed."""

Change = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Case:
    category: str
    command: tuple[str, ...]
    changes: Mapping[str, Change]
    why: str = ""
    """Corpus: what harm it did. Otherwise: what was damaged."""
    environment: Mapping[str, str] = field(default_factory=dict)
    seed: int | None = None
    exit: int | None = None
    """What the exit status has to be, where only one is right."""

    def to_json(self, **more: Any) -> str:
        content = {"category": self.category, "seed": self.seed, "why": self.why, "command": self.command}
        content |= {"environment": self.environment} if self.environment else {}
        content |= {"exit": self.exit} if self.exit is not None else {}
        return json.dumps({**content, "changes": self.changes, **more}, indent=1) + "\n"


def read_case(path: Path) -> Case:
    content = json.loads(path.read_text())
    return Case(
        content["category"],
        tuple(content["command"]),
        content["changes"],
        content.get("why", ""),
        content.get("environment", {}),
        content.get("seed"),
        content.get("exit"),
    )


def written(content: bytes) -> Change:
    """The change that gives a file this content."""
    if len(content) <= MOST_TEXT:
        try:
            return {"text": content.decode()}
        except UnicodeDecodeError:
            pass
    return {"zlib": base64.b64encode(zlib.compress(content, 1)).decode()}


def apply(change: Change, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if change.keys() & {"link", "folder", "absent"}:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    if "text" in change:
        path.write_bytes(_text(change).encode("utf-8", "surrogatepass"))
    elif "zlib" in change:
        path.write_bytes(zlib.decompress(base64.b64decode(change["zlib"])))
    elif "replace" in change:
        text = path.read_text()
        for old, new in change["replace"]:
            if old not in text:
                raise ValueError(f"{path.name} does not hold {old!r}: the sound folder has changed")
            text = text.replace(old, new, 1)
        path.write_text(text)
    elif "append" in change:
        path.write_text(path.read_text() + change["append"])
    elif "link" in change:
        path.symlink_to(change["link"])
    elif "folder" in change:
        path.mkdir()
    elif "mode" in change:
        path.chmod(change["mode"])


def _text(change: Change) -> str:
    text, times = change["text"], change.get("times")
    return text if times is None else "".join(text.replace("{n}", str(number)) for number in range(times))
