"""The options of replicas, which `eval`, `gate` and `watch` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def replica_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option(
            "--replicas", metavar="N", callback=_number_or_all, help="That many engines, placed by Ray; `all`: by the GPUs."
        ),
        click.option("--ray-address", metavar="HOST:PORT", help="Of a running Ray.  [default: RAY_ADDRESS, else a new one]"),
        click.option("--ship-weights", is_flag=True, default=None, help="Send checkpoints to nodes that do not see them."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _number_or_all(_context: click.Context, _option: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "all":
        return value
    if not value.isdecimal() or not 0 < int(value[:9]) or len(value) > 6:
        raise click.BadParameter("a whole number from 1, or all")
    return int(value)
