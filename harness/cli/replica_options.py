"""The options of replicas, which `eval`, `gate` and `watch` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def replica_options(command: Callable[..., Any]) -> Callable[..., Any]:
    options = (
        click.option(
            "--replicas",
            metavar="N",
            callback=_number_or_all,
            help="That many engines, placed by Ray, or `all`.",
        ),
        click.option(
            "--ray-address", metavar="HOST:PORT", help="A running Ray.  [default: RAY_ADDRESS, else a new one]"
        ),
        click.option("--ship-weights", is_flag=True, default=None, help="Send checkpoints to nodes that lack them."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _number_or_all(_context: click.Context, _option: click.Parameter, value: str | None) -> int | str | None:
    if value is None or value == "all":
        return value
    if not value.isdecimal() or not int(value[:9]) > 0 or len(value) > 6:
        raise click.BadParameter("a whole number from 1, or all")
    return int(value)
