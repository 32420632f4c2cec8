"""Standard output is for results only; messages go to standard error."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click


@contextmanager
def clean_stdout() -> Iterator[TextIO]:
    """Yield the real standard output; meanwhile descriptor 1, which C libraries also write to, is standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as file:
            yield file
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def say(line: str) -> None:
    """Print a line for people, on standard error."""
    click.echo(line, err=True)


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Show the messages of the logger "medbench", one per line."""
    logger, handler = logging.getLogger("medbench"), _ToStderr()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _ToStderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())
