"""Whose fault it is that a checkpoint cannot be loaded: its own, or the machine's.

with blame_checkpoint("transformers cannot load step-800"): ...
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from medbench.harness.contracts import BrokenCheckpoint, MedbenchError

MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
OF_THE_MACHINE = re.compile(
    r"memory|\bCUDA\b|max_model_len|max_num_|core initialization|keyword argument|No space left|\bGPUs?\b|parallel|"
    r"\bNCCL\b|\bnvcc\b|\bninja\b|\bTriton\b",
    re.IGNORECASE,
)
"""In the messages of torch and vLLM, which raise RuntimeError and ValueError for everything."""


def is_machine_fault(error: BaseException) -> bool:
    """Whether `error` says nothing of the files' content: no permission, a full disk, no memory, a missing package."""
    if isinstance(error, OSError):  # transformers raises it without a number for content that it does not like
        return error.errno is not None and not isinstance(error, MISSING)
    if isinstance(error, MemoryError | ImportError):
        return True
    return isinstance(error, RuntimeError | ValueError | TypeError) and bool(OF_THE_MACHINE.search(str(error)))


@contextmanager
def blame_checkpoint(what: str, fix: str = "copy or save the checkpoint again") -> Iterator[None]:
    """For other libraries' code that reads a checkpoint: they raise anything for files that nobody checked.

    Raises BrokenCheckpoint, or MedbenchError where the machine is at fault, with `what` and the reason.
    """
    try:
        yield
    except MedbenchError:
        raise
    except BaseException as error:
        # a panic of the Rust code in tokenizers and safetensors is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        line = f"{what} ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        if is_machine_fault(error):
            raise MedbenchError(f"{line}: the machine or the settings are at fault: fix that and run again") from None
        raise BrokenCheckpoint(f"{line}: {fix}") from None
