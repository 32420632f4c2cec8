"""Options that are a time."""

from __future__ import annotations

import click

from medbench.harness.text import seconds_of


def as_seconds(_: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    """Callback of such an option: seconds, from "90", "90s", "10m" or "2h"."""
    try:
        return None if value is None else seconds_of(value)
    except ValueError as fault:
        raise click.BadParameter(str(fault), param=parameter) from None
