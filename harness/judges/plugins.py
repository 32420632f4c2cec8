"""Judges as plugins: what one must have, and how it is found.

    [project.entry-points."medbench.judges"]           # in the plugin's pyproject.toml; then
    overlap = "medbench_overlap_judge"                 # medbench judge RUN --judge overlap

A judge plugin is a module, or any other object, behind an entry point of the group `medbench.judges`. It has

    start(choice)   returns a judges.contracts.Judge; heavy imports belong in here. `choice` is a JudgeChoice. Raises
                    MedbenchError for a fault that the user can fix
    NEEDS           optional: which of "command" and "model" it needs; the default is none

The built-in judges have the same form and are listed here, so that no plugin can replace one.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from medbench.harness.contracts import MedbenchError
from medbench.harness.engines.plugins import loaded_plugin
from medbench.harness.files import slug
from medbench.harness.judges.contracts import Judge, JudgeChoice
from medbench.harness.text import foreign

GROUP = "medbench.judges"
BUILT_IN = {name: EntryPoint(name, f"medbench.harness.judges.{name}", GROUP) for name in ("command", "llm", "local")}
FLAGS = {"command": "--command", "model": "--model"}
"""Field of JudgeChoice -> its option on the command line."""
MEMBERS = ("name", "fingerprint", "judge", "close")
"""Of contracts.Judge."""


def known_judges() -> list[str]:
    """Names of the built-in and the installed judges."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def needs_of(name: str) -> Collection[str]:
    """Which of "command" and "model" the judge needs. Raises MedbenchError for an unknown or broken one."""
    plugin, _ = loaded_plugin("judge", name, BUILT_IN, list(entry_points(group=GROUP)), _faults)
    return cast(Collection[str], getattr(plugin, "NEEDS", ()))


def start_judge(choice: JudgeChoice, points: Sequence[EntryPoint] | None = None, *, prefix: str = "") -> Judge:
    """Raises MedbenchError for an unknown, ambiguous or broken judge, and for options that do not go with it.

    `prefix`: what the names of the options begin with, after the dashes.
    """
    plugin, where = loaded_plugin(
        "judge", choice.name, BUILT_IN, list(entry_points(group=GROUP)) if points is None else points, _faults
    )
    needs = getattr(plugin, "NEEDS", ())
    for field, flag in FLAGS.items():
        flag, given = f"--{prefix}{flag[2:]}", getattr(choice, field) is not None
        if field in needs and not given:
            raise MedbenchError(f"--judge {choice.name} needs {flag}: add it, or choose another judge")
        if given and field not in needs:
            raise MedbenchError(f"--judge {choice.name} does not take {flag}: leave one of them out")
    return _checked(plugin.start(choice), where, choice.name)


def _checked(judge: Any, where: str, name: str) -> Judge:
    missing = [member for member in MEMBERS if not hasattr(judge, member)]
    if missing:
        raise MedbenchError(
            f"{where}: a {type(judge).__name__} without {', '.join(missing)}: implement "
            f"medbench.harness.judges.contracts.Judge"
        )
    if not isinstance(judge.fingerprint, str) or not judge.fingerprint:
        raise MedbenchError(f"{where}: fingerprint must be text, found {foreign(judge.fingerprint, 40)}: fix it")
    if judge.name != name or slug(name) != name or "." in name:
        raise MedbenchError(
            f"{where}: the judge calls itself {foreign(judge.name, 40)!r}: its name must be that of the entry point, "
            f"of letters, digits, dashes and underscores"
        )
    return cast(Judge, judge)


def _faults(plugin: Any) -> list[str]:
    faults = []
    start = getattr(plugin, "start", None)
    if not callable(start):
        faults.append("start(choice) is missing")
    else:
        try:
            inspect.signature(start).bind(None)
        except TypeError:
            faults.append(f"start must take (choice), found {inspect.signature(start)}")
        except ValueError:  # a built-in function without a signature
            faults.append("start must take (choice)")
    needs = getattr(plugin, "NEEDS", ())
    if isinstance(needs, str) or not isinstance(needs, Collection) or not set(FLAGS).issuperset(needs):
        faults.append(f"NEEDS must hold some of {', '.join(sorted(FLAGS))}, found {needs!r}")
    return faults
