"""`medbench judge check LABELS` without a run: a judge is asked about the labelled steps themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from medbench.harness.cli.gate_commands import EXIT_NOT_SCORED
from medbench.harness.cli.judge_options import asking_options, choice_of
from medbench.harness.cli.streams import clean_stdout, say


def asked_judge_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which a judge is asked, without RUN; keywords as judge_options has them, and "out"."""
    out = click.option("--out", type=click.Path(path_type=Path), help="Folder for verdicts.  [default: beside LABELS]")
    return asking_options(without=("sources",))(out(command))


def check_labels(labels: Path, name: str | None, given: Mapping[str, Any], as_json: bool) -> int:
    """Exit status 3 where more than 2 % of the steps have no verdict, as for runs."""
    from medbench.harness.cli.judge_tables import check_tables
    from medbench.harness.judges.direct_check import check_directly, read_labelled
    from medbench.harness.judges.plugins import start_judge
    from medbench.harness.judges.scores import MOST_FAILED

    if name is None:
        raise click.UsageError("labels without a RUN need --judge NAME, the judge to ask about them")
    choice = choice_of({"judge_name": name, **given})
    read_labelled(labels)  # before a model is loaded
    with clean_stdout() as stdout:
        judge = start_judge(choice)
        try:
            found = check_directly(labels, given["out"], judge, say)
        finally:
            judge.close()
        stdout.write(json.dumps(found.as_json()) + "\n" if as_json else check_tables(found))
    if found.without_verdict > MOST_FAILED * (found.judged + found.without_verdict):
        say("more than 2 % of the labelled steps have no verdict: the same command asks them again")
        return EXIT_NOT_SCORED
    return 0
