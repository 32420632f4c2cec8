"""The commands `medbench judge train` and `medbench judge labels`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click

from medbench.harness.cli.streams import clean_stdout, say


@click.command("train")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder for the judge.")
@click.option("--data", help="Folder of benchmark files, or hub, whose PubMedQA is used.  [default: MEDBENCH_DATA]")
@click.option("--model", help="Model whose first layers are trained, as for eval.  [default: smollm2-135m]")
@click.option("--layers", type=click.IntRange(1, 200), help="How many of them.  [default: 20]")
@click.option("--passes", type=click.IntRange(0, 100), help="Over the abstracts, with new pairs each.  [default: 1]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--limit", type=click.IntRange(min=1), help="At most N abstracts per split, for a trial.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output and nothing else.")
def train_command(out: Path, data: str | None, model: str | None, as_json: bool, **options: int | None) -> None:
    """Train the judge `local` on pairs of step and source made from PubMedQA's abstracts, and say how good it is.

    The folder OUT is for `medbench judge RUN --judge local --model OUT`; OUT/judge.html is the report as a page.
    """
    from medbench.harness.benchmarks.rows import HUB
    from medbench.harness.cli.judge_tables import training_table
    from medbench.harness.judges.local.train import TrainOptions, train_judge
    from medbench.reports.write.pages import trained_judge_page

    given = {name: value for name, value in {"base": model, **options}.items() if value is not None}
    where = data or os.environ.get("MEDBENCH_DATA") or HUB
    with clean_stdout() as stdout:
        report = train_judge(TrainOptions(out, where, **given), trained_judge_page, say)  # type: ignore[arg-type]
        stdout.write(f"{json.dumps(report.model_dump())}\n" if as_json else training_table(report, out))


@click.group("labels")
def labels_command() -> None:
    """Labels by people, in the form that `medbench judge check LABELS` reads."""


@labels_command.command("pubmedqa")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write, JSON lines.")
@click.option("--data", help="Folder of benchmark files, or hub.  [default: MEDBENCH_DATA]")
@click.option("--with-conclusion", is_flag=True, help="The source is the abstract and its conclusion.")
def pubmedqa_command(out: Path, data: str | None, with_conclusion: bool) -> None:
    """PubMedQA's 500 test questions as claims, labelled by the answer that people gave.

    Yes is supported, no contradicted, maybe not covered. The source is the abstract as the task gives it.
    """
    from medbench.harness.benchmarks.rows import HUB
    from medbench.harness.judges.question_labels import write_labels

    written = write_labels(out, data or os.environ.get("MEDBENCH_DATA") or HUB, with_conclusion=with_conclusion)
    say(f"{written} labelled claims in {out}")
