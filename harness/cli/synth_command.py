"""The command `medbench synth`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from medbench.harness.cli.streams import clean_stdout, say


@click.command("synth")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write: new, or with --resume written before.")
@click.option("--resume", is_flag=True, help="Go on where it stopped, or with other filters or a larger --limit.")
@click.option("--dry-run", is_flag=True, help="Check everything; print the plan and the first prompt; ask nothing.")
@click.option("--limit", type=click.IntRange(min=1), help="At most N questions, taken from the sources in turn.")
@click.option("--data", help="As for eval; recipes may name files below it as $MEDBENCH_DATA/...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output and nothing else.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def synth_command(
    recipe: Path,
    out: Path | None,
    resume: bool,
    dry_run: bool,
    limit: int | None,
    data: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write training data by RECIPE (YAML): a model answers questions, filters keep what is sound.

    Every reply is kept with the reason why it did not pass, and every row with where it came from. A data card in
    Markdown has the counts. The rows are read by sft and grpo as they are. After Ctrl-C or kill -9, --resume goes on;
    nothing is asked twice.
    """
    from medbench.harness.synth.synth import SynthOptions, plan, synthesize

    if out is None and not dry_run:
        raise click.UsageError("--out FOLDER is missing: name the folder to write")
    options = SynthOptions(recipe, out, resume, limit, data)
    tell = (lambda _: None) if quiet else say
    with clean_stdout() as stdout:
        if dry_run:
            lines = plan(options, tell)
            stdout.write(json.dumps({"plan": lines}) + "\n" if as_json else "\n".join(lines) + "\n")
            return
        found = synthesize(options, tell)
        stdout.write(json.dumps(found.as_json(), ensure_ascii=False) + "\n" if as_json else found.in_words())
