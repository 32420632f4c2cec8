"""The judge `command`: any program that reads JSON lines {"id", "step", "source"} and writes {"id", "verdict"}.

medbench judge RUN --judge command --command "python my_judge.py --threshold 0.8"

The program is started once, without a shell, in the current folder. It may answer line by line or when its input has
ended, in any order; in a training (JudgeChoice.kept) it is asked again and again and must answer line by line.
`verdict` is "supported", "contradicted" or "not covered". What it writes to standard error is shown only where it
fails. A file named in the command is part of the judge's fingerprint, so it must not be one that the program writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import shlex
import shutil
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import parse_json
from medbench.harness.judges.contracts import VERDICTS, Item, JudgeChoice, Ruling
from medbench.harness.text import foreign

NEEDS = ("command",)
LONGEST_LINE = 2**20
"""Bytes; a program that writes a longer line is stopped."""
GRACE = 5.0
"""Seconds that the program has to end after its last verdict."""
POLL = 0.2


def start(choice: JudgeChoice) -> CommandJudge:
    """Raises MedbenchError for a command that cannot be read or found."""
    assert choice.command is not None
    try:
        words = shlex.split(choice.command)
    except ValueError as error:
        raise MedbenchError(
            f"judge command {foreign(choice.command)}: {str(error).lower()}: quote as in a shell"
        ) from None
    if not words or "\0" in choice.command:
        raise MedbenchError("judge command: names no program: write it with its arguments")
    if shutil.which(words[0]) is None:
        raise MedbenchError(
            f"judge command {foreign(words[0])}: no such program, or it may not be run: correct the name"
        )
    return CommandJudge(words, choice.timeout, kept=choice.kept)


class CommandJudge:
    """See the module."""

    name = "command"

    def __init__(self, words: Sequence[str], timeout: float, *, kept: bool = False) -> None:
        self._words, self._timeout, self._kept = list(words), timeout, kept
        self._program: _Program | None = None
        self.fingerprint = _fingerprint(self._words)

    def judge(self, items: Sequence[Item]) -> Iterator[Ruling]:
        """Raises MedbenchError where the program cannot be started."""
        waiting = {item.id for item in items}
        given: dict[str, str] = {}
        strays, stray = 0, ""
        program, self._program = self._program or _Program(self._words), None
        program.feed(items, last=not self._kept)
        try:
            for line in program.lines(self._timeout, waiting, kept=self._kept):
                ruling = _read(line, waiting, given)
                if isinstance(ruling, str):
                    strays, stray = strays + 1, stray or ruling
                    continue
                waiting.discard(ruling.id)
                yield ruling
        finally:
            if self._kept and not waiting:
                self._program = program
            else:
                program.stop()
        why = program.why_ended
        if strays:
            why = f"{why}; lines that were no verdicts: {strays}, the first {stray}"
        for item in items:
            if item.id in waiting:
                yield Ruling(item.id, None, why)

    def close(self) -> None:
        if self._program is not None:
            self._program.stop()
        self._program = None


def _read(line: bytes, waiting: set[str], given: dict[str, str]) -> Ruling | str:
    """The ruling in a line, or what is wrong with a line that belongs to no item."""
    try:
        content = parse_json(line)
    except ValueError as fault:
        return f"{str(fault).partition(';')[0]}: {foreign(line.decode(errors='replace').strip(), 60)!r}"
    if not isinstance(content, dict) or not isinstance(content.get("id"), str):
        return f"without an id: {foreign(line.decode(errors='replace').strip(), 60)!r}"
    id, verdict = content["id"], content.get("verdict")
    if id not in waiting and id not in given:
        return f"with an unknown id: {foreign(id, 60)!r}"
    before, said = given.get(id), verdict if verdict in VERDICTS else ""
    given.setdefault(id, said)
    if before is not None and before != said:
        given[id] = ""
        return Ruling(id, None, "two different verdicts")
    if not said:
        why = f"the verdict {foreign(verdict, 60)!r} is none of {', '.join(VERDICTS)}"
        return Ruling(id, None, why if "verdict" in content else "a line without a verdict")
    return Ruling(id, verdict)


class _Program:
    """The running program: its input is fed and its errors are read in threads of their own."""

    def __init__(self, words: list[str]) -> None:
        try:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
        except OSError as error:
            raise MedbenchError(f"judge command {foreign(words[0])}: cannot be started ({error.strerror})") from None
        self.why_ended = "no verdict"
        self._errors: deque[bytes] = deque(maxlen=8)
        self._rest = b""
        assert self._process.stdin is not None
        assert self._process.stderr is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        Thread(target=_keep_last, args=(self._process.stderr, self._errors), daemon=True).start()

    def feed(self, items: Sequence[Item], *, last: bool) -> None:
        """`last`: its input ends with them."""
        Thread(target=_feed, args=(self._in, items, last), daemon=True).start()

    def lines(self, timeout: float, waiting: set[str], *, kept: bool) -> Iterator[bytes]:
        """Until the program has ended or is of no more use; `why_ended` then says why what is missing is missing. With
        `kept` until nothing is waited for.

        `timeout`: seconds without a line that shortens `waiting`, which the caller does.
        """
        left = len(waiting)
        deadline = time.monotonic() + timeout
        with selectors.DefaultSelector() as selector:
            selector.register(self._out, selectors.EVENT_READ)
            while waiting or not kept:
                if len(waiting) < left:
                    left = len(waiting)
                    deadline = time.monotonic() + (timeout if waiting else GRACE)
                if time.monotonic() > deadline:
                    hint = ", which must answer each line as it comes, was stopped" if kept else " was stopped"
                    self.why_ended = f"no verdict within {timeout:g} s (--timeout): the program{hint}"
                    return
                if not selector.select(POLL):
                    if self._process.poll() is None:
                        continue
                    # a program that it left behind may hold the pipe open: what was written before is read
                    if not selector.select(0):
                        break
                chunk = os.read(self._out.fileno(), 65536)
                if not chunk:
                    break
                *whole, self._rest = (self._rest + chunk).split(b"\n")
                yield from whole
                if len(self._rest) > LONGEST_LINE:
                    self.why_ended = f"a line of more than {LONGEST_LINE} bytes: the program was stopped"
                    return
            else:
                return
        if self._rest.strip():
            yield self._rest
        self.why_ended = self._how_it_ended()

    def _how_it_ended(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        code = self._process.returncode
        how = "was closed" if code is None else f"status {code}" if code >= 0 else f"signal {-code}"
        time.sleep(0.01)  # for the thread that reads its last words
        words = b"".join(self._errors).decode(errors="replace").strip().splitlines()
        last = f": {foreign(words[-1].strip(), 200)}" if words else ""
        return f"no verdict before the program ended ({how}{last})"

    def stop(self) -> None:
        """End it and whatever it has started in its session."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE)
        self._out.close()


def _feed(file: IO[bytes], items: Sequence[Item], last: bool) -> None:
    with suppress(OSError, ValueError):  # a program that has ended, or does not read to the end
        for item in items:
            content = {"id": item.id, "step": item.step, "source": item.source}
            file.write(json.dumps(content).encode() + b"\n")
            file.flush()
    if last:
        with suppress(OSError, ValueError):
            file.close()


def _keep_last(file: IO[bytes], last: deque[bytes]) -> None:
    with suppress(OSError, ValueError):
        while chunk := os.read(file.fileno(), 4096):
            last.append(chunk)
    with suppress(OSError, ValueError):
        file.close()


def _fingerprint(words: Sequence[str]) -> str:
    """sha256 over the words and the content of every file that they name, the program itself included."""
    found = hashlib.sha256(b"command 1\0")
    for at, word in enumerate(words):
        found.update(word.encode("utf-8", "surrogateescape") + b"\0")
        path = Path(shutil.which(word) or word) if at == 0 else Path(word)
        with suppress(OSError, ValueError):
            if path.is_file():
                with path.open("rb") as file:
                    found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
