"""The Python interpreter that has llm-compressor.

interpreter = find_interpreter("/opt/llmcompressor/bin/python")
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from medbench.harness.contracts import MedbenchError
from medbench.harness.text import escaped

VARIABLE = "MEDBENCH_QUANTISE_PYTHON"
TESTED = "0.14.0.1"
INSTALL = (
    f"python -m venv DIR && DIR/bin/pip install llmcompressor=={TESTED}, then name DIR/bin/python by --python or "
    f"{VARIABLE}"
)
ASK = (
    "import json; from importlib.metadata import version; "
    "print(json.dumps({name: version(name) for name in ('llmcompressor', 'compressed-tensors')}))"
)
SECONDS = 60


@dataclass(frozen=True, slots=True)
class Interpreter:
    """One that has llm-compressor."""

    path: str
    versions: dict[str, str]


def find_interpreter(named: str | None) -> Interpreter:
    """The one called `named`, or by the environment, or this one.

    Raises MedbenchError where there is none, or it lacks llm-compressor, with how to install it.
    """
    path = named or os.environ.get(VARIABLE) or None
    if path is None:
        if find_spec("llmcompressor") is None:
            raise MedbenchError(
                f"llm-compressor needs an environment of its own, since it and vLLM pin different versions of "
                f"compressed-tensors: {INSTALL}"
            )
        path = sys.executable
    where = "--python" if named else VARIABLE if os.environ.get(VARIABLE) else "this environment"
    if Path(path).is_dir():
        path = str(Path(path) / "bin" / "python")
    try:
        told = subprocess.run(
            [path, "-I", "-c", ASK], capture_output=True, text=True, timeout=SECONDS, errors="replace"
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise MedbenchError(f"{where}: {escaped(path)} cannot be run ({reason}): name a Python interpreter") from None
    if told.returncode:
        last = escaped((told.stderr.strip().splitlines() or ["no reason given"])[-1])[:200]
        raise MedbenchError(f"{where}: {escaped(path)} has no llm-compressor ({last}): {INSTALL}")
    try:
        versions = json.loads(told.stdout)
        return Interpreter(path, {str(name): str(one) for name, one in versions.items()})
    except (ValueError, AttributeError):
        raise MedbenchError(f"{where}: {escaped(path)} is no Python interpreter: name one") from None
