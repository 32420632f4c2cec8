"""The option `--adapter TARGET=PATH` of `eval`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from medbench.harness.text import foreign


def adapter_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--adapter",
        "adapters",
        metavar="TARGET=PATH",
        multiple=True,
        callback=_by_target,
        help="Ask this task, or category TASK/FIELD=VALUE, of a PEFT adapter of MODEL; repeat for others. Without "
        "--tasks, only these tasks are asked.",
    )(command)


def _by_target(_context: click.Context, _option: click.Parameter, values: Sequence[str]) -> dict[str, str] | None:
    """Target -> path; None where there is none."""
    found: dict[str, str] = {}
    for value in values:
        target, _, path = value.partition("=")
        if "/" in target:  # of a category, which has a "=" of its own
            category, _, path = path.partition("=")
            target = f"{target}={category}"
        if not target or not path:
            raise click.BadParameter(f"{foreign(value, 80)!r}: write TASK=PATH, or TASK/FIELD=VALUE=PATH")
        if target in found:
            raise click.BadParameter(f"{foreign(target, 80)} has two adapters: name one")
        found[target] = path
    return found or None
