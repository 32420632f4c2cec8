"""`medbench report`: which of the formats, once or again and again.

medbench report runs -o site --serve
"""

from __future__ import annotations

import gc
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.harness.contracts import MedbenchError, Say
from medbench.harness.text import printable
from medbench.reports.read.collect import collect
from medbench.reports.read.folders import signature
from medbench.reports.read.records import Collection
from medbench.reports.write.site import build

BROKEN_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Report:
    """What was asked for."""

    runs: tuple[Path, ...]
    output: Path
    form: str
    """"site" or "lm-eval"."""
    references: Path | None
    serve: bool
    port: int
    open_browser: bool


def make(asked: Report, say: Say) -> Iterator[dict[str, Any]]:
    """What was done, once it is; with --serve it then goes on until Ctrl-C."""
    if asked.form == "lm-eval":
        if asked.serve or asked.open_browser or asked.references:
            raise MedbenchError("--format lm-eval writes only files: leave out --serve, --open and --references")
        yield _exported(asked, say)
    elif asked.serve:
        yield from _served(asked, say)
    else:
        yield _built(asked, say)
        if asked.open_browser:
            webbrowser.open((asked.output / "index.html").resolve().as_uri())


def _served(asked: Report, say: Say) -> Iterator[dict[str, Any]]:
    from medbench.reports.write.serve import keep_building, serving

    content = _built(asked, say)
    with serving(asked.output, asked.port) as address:
        yield {**content, "address": address}
        if asked.open_browser:
            webbrowser.open(address)
        try:
            keep_building(lambda: say(in_words(_built(asked, say))), lambda: signature(asked.runs), say)
        except KeyboardInterrupt:
            say("medbench: stopped serving")


def in_words(content: dict[str, Any]) -> str:
    """One line for people."""
    broken = f", {content['broken']} that cannot be shown" if content["broken"] else ""
    runs = f"{content['runs']} run{'s' * (content['runs'] != 1)}"
    if trainings := content.get("trainings"):
        runs += f", {trainings} training{'s' * (trainings != 1)}"
    if synths := content.get("synths"):
        runs += f", {synths} folder{'s' * (synths != 1)} of synthetic data"
    if sweeps := content.get("sweeps"):
        runs += f", {sweeps} sweep{'s' * (sweeps != 1)}"
    line = f"{content['output']}: {runs}{broken}, {content['written']} files written"
    if "skipped" in content:
        line += f", {content['skipped']} up to date, {content['removed']} removed"
    line += f" in {content['seconds']:.1f} s" if "seconds" in content else ""
    return line + (f"; at {content['address']}, Ctrl-C ends it" if "address" in content else "")


def _built(asked: Report, say: Say) -> dict[str, Any]:
    with _few_collections():
        done = build(_collected(asked, say), asked.output, references=asked.references)
    return {"output": str(asked.output), "format": "site", **done.as_json()}


@contextmanager
def _few_collections() -> Iterator[None]:
    """Records without cycles come and go by the thousand: searching them for cycles takes a third of a build."""
    before = gc.get_threshold()
    gc.set_threshold(100_000)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _exported(asked: Report, say: Say) -> dict[str, Any]:
    from medbench.reports.write.lm_eval_format import export

    collection = _collected(asked, say)
    written, left_out = export(collection, asked.output)
    for line in left_out[:BROKEN_SHOWN]:
        say(f"medbench: left out: {printable(line)}")
    return {
        "output": str(asked.output),
        "format": "lm-eval",
        "runs": len(collection.runs),
        "broken": len(collection.broken),
        "written": written,
    }


def _collected(asked: Report, say: Say) -> Collection:
    collection = collect(asked.runs)
    for one in collection.broken[:BROKEN_SHOWN]:
        say(f"medbench: {printable(one.name)}: {printable(one.reason)}")
    if len(collection.broken) > BROKEN_SHOWN:
        say(f"medbench: {len(collection.broken) - BROKEN_SHOWN} more cannot be shown; the pages list them")
    shown = (collection.runs, collection.trainings, collection.synths, collection.sweeps, collection.broken)
    if not (any(shown) or asked.serve):
        raise MedbenchError(f"{', '.join(map(str, asked.runs))}: no run in it: medbench eval makes one")
    return collection
