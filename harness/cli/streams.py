"""Standard output is for results only; messages go to standard error. Neither can change an exit status."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click

from medbench.harness.secrets import redact


class Forgiving(io.TextIOWrapper):
    """Text to a descriptor, as UTF-8; what is not Unicode is escaped, as JSON escapes it.

    When nobody reads any more, or the disk is full, the rest is dropped and nothing is raised: the verdict has been
    reached and stored, and the exit status must not say otherwise. `descriptor` itself is then the null device.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        """`name` is for the line that says on standard error why something is missing; empty: no line."""
        raw = io.FileIO(descriptor, "wb", closefd=False)
        super().__init__(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
        self._said_as = name

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        _null(self.fileno())
        if self._said_as and error.errno != errno.EPIPE:
            say(f"medbench: {self._said_as} cannot be written ({error.strerror}): the exit status is right")


def forgiving_streams() -> None:
    """Make this process's standard output and error Forgiving, and open what was closed when it started.

    Without that, a file of ours could become descriptor 1, which other libraries print to.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            _null(descriptor)
    sys.stderr = Forgiving(2, "")
    sys.stdout = Forgiving(1, "standard output")


def _null(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    if null != descriptor:
        os.dup2(null, descriptor)
        os.close(null)


@contextmanager
def clean_stdout() -> Iterator[TextIO]:
    """Yield the real standard output; meanwhile descriptor 1, which C libraries also write to, is standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with Forgiving(kept, "standard output") as file:
            yield file
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def say(line: str) -> None:
    """Print a line for people, on standard error; secrets in it are replaced."""
    click.echo(redact(line), err=True)


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
