"""Faults of medbench's own: one line for the user, the traceback in a file, exit status 70."""

from __future__ import annotations

import tempfile
import traceback
from importlib.metadata import version

from medbench.harness.contracts import MedbenchError
from medbench.harness.secrets import redact
from medbench.harness.text import one_line

EXIT_FAULT = 70
"""EX_SOFTWARE of sysexits.h: no verdict, and nobody's mistake but ours. Python's own 1 would be "a gate failed"."""


def describe(error: BaseException) -> str:
    """The fault in a few words."""
    if isinstance(error, MedbenchError):
        return str(error)
    said = one_line(error)[:200]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def keep(error: BaseException) -> str:
    """One line for the user: what, which version, and the file in the temporary folder that has the traceback."""
    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", errors="backslashreplace", prefix="medbench-fault-", suffix=".txt", delete=False
        ) as file:
            file.write(redact(text))
        where = f"the traceback is in {file.name}"
    except OSError as unwritable:
        where = f"no traceback could be written ({unwritable.strerror})"
    return f"a fault of medbench {version('medbench')}, not of yours ({describe(error)}): please report it; {where}"
