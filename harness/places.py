"""Where the package's own files lie.

python -c "from medbench.harness.places import tasks_folder; print(tasks_folder())"
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def tasks_folder() -> Path:
    """Our tasks, one folder a benchmark; named, not imported, since harness imports no benchmark."""
    return Path(str(files("medbench.tasks").joinpath("_medbench_yaml"))).parent
