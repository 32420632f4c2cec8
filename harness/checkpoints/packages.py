"""Which packages are installed; one line about one that is not, instead of a traceback.

with needed("--engine hf cannot start", "torch"): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module, metadata

from medbench.harness.contracts import MedbenchError

STACKS = "'medbench[vllm]' (GPU) or 'medbench[cpu]'"


def installed(names: Iterable[str]) -> dict[str, str]:
    """name -> version of those that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def needed(what: str, *packages: str, extra: str = STACKS) -> Iterator[None]:
    """For code that imports `packages` and more. Raises MedbenchError with `what` and the reason if an import fails."""
    try:
        for name in packages:
            import_module(name)
        yield
    except ImportError as error:
        reason = " ".join(str(error).split())[:200]
        raise MedbenchError(f"{what} ({reason}): pip install {extra}") from None
