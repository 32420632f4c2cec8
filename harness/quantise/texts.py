"""Rows that GPTQ calibrates with, as the model would see them: prompt and reply, by its own chat template."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from medbench.harness.contracts import MedbenchError
from medbench.harness.protocols.protocol import load_protocol
from medbench.trainers.data.conversations import Conversation
from medbench.trainers.data.questions import Row
from medbench.trainers.data.rendering import Renderer
from medbench.trainers.data.rows import Source, rows_in


def write_texts(sources: Sequence[str], checkpoint: Path, protocol: str, most: int, file: Path) -> int:
    """Write at most `most` texts to `file`, one JSON string a line, the sources in turn. Returns how many.

    Raises MedbenchError naming file and line of the first row that cannot be read.
    """
    renderer = Renderer(checkpoint, load_protocol(protocol))
    texts = (f"{one.prompt}{one.reply}" for row in _in_turn(sources) for one in renderer.sequences(row))
    written = 0
    with file.open("w", encoding="utf-8") as out:
        for text in islice(texts, most):
            out.write(json.dumps(text) + "\n")
            written += 1
    if not written:
        raise MedbenchError(f"--rows {', '.join(sources)}: no rows")
    return written


def _in_turn(sources: Sequence[str]) -> Iterator[Row | Conversation]:
    streams = [rows_in(Source(path=one)) for one in sources]
    while streams:
        for stream in list(streams):
            row = next(stream, None)
            if row is None:
                streams.remove(stream)
            else:
                yield row
