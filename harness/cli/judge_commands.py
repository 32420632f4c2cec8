"""The commands `medbench judge RUN` and `medbench judge check`; `train` and `labels` are in judge_training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from medbench.harness.cli.gate_commands import EXIT_NOT_SCORED
from medbench.harness.cli.judge_options import judge_options, judged, lack_verdicts, result_of, start_chosen
from medbench.harness.cli.judge_training import labels_command, train_command
from medbench.harness.cli.labels_check import asked_judge_options, check_labels
from medbench.harness.cli.streams import clean_stdout


class _RunOrCommand(click.Group):
    """`medbench judge RUN` is short for `medbench judge run RUN`; a run folder called check is ./check, and so on."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group("judge", cls=_RunOrCommand, subcommand_metavar="RUN [OPTIONS] | check [RUN] LABELS | train | labels")
def judge_command() -> None:
    """Judge the steps of replies against a source text, and compare a judge with people's labels.

    \b
    medbench judge RUN --judge command --command "python my_judge.py"
    medbench judge run RUN ...           the same; its options: medbench judge run --help
    medbench judge check RUN LABELS      how far the judge agrees with people
    medbench judge train --out FOLDER    make a judge of your own: --judge local --model FOLDER
    medbench judge labels pubmedqa       labels by people, for check
    """


@judge_command.command("run")
@click.argument("run", type=click.Path(path_type=Path))
@judge_options()
@click.option("--tasks", help="Comma-separated.  [default: all of the run that have a text to judge by]")
@click.option("--limit", type=click.IntRange(min=1), help="At most N questions per task, the same ones each time.")
@click.option("--data", help="As for eval.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output and nothing else.")
def run_command(run: Path, tasks: str | None, limit: int | None, data: str | None, as_json: bool, **given: Any) -> int:
    """Judge each step of the replies in RUN: is it supported or contradicted by the source, or not covered?

    Steps are the sentences of the thought or, without one, those before the answer; the source is the task's own text
    (PubMedQA's abstract) or that of --sources. Verdicts are kept in RUN/judgements; no step is asked twice, so the same
    command goes on where it was stopped. Exit: 3 where more than 2 % of a task's steps have no verdict.
    """
    from medbench.harness.cli.judge_tables import scores_table

    named = tuple(filter(None, map(str.strip, (tasks or "").split(","))))
    with clean_stdout() as stdout:
        judge = start_chosen(given)
        assert judge is not None, "--judge is required"
        found = judged(run, judge, tasks=named, data=data, sources=given["judge_sources"], limit=limit)
        if as_json:
            stdout.write(json.dumps({"run": str(run), **result_of(judge, found)}, ensure_ascii=False) + "\n")
        else:
            stdout.write(scores_table(judge, found))
    return EXIT_NOT_SCORED if lack_verdicts(found) else 0


@judge_command.command("check")
@click.argument("paths", nargs=-1, required=True, metavar="[RUN] LABELS", type=click.Path(path_type=Path))
@click.option(
    "--judge", metavar="NAME", help="Where several judges have judged the run; without RUN: the judge to ask."
)
@click.option("--task", help="Where several tasks have been judged.")
@click.option("--fingerprint", metavar="DIGITS", help="Where the judge has changed: its first digits.")
@asked_judge_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def check_command(
    paths: tuple[Path, ...], judge: str | None, task: str | None, fingerprint: str | None, as_json: bool, **asked: Any
) -> int:
    """How far a judge agrees with people's LABELS, and its shares corrected for its errors.

    RUN: a judged run, or its file RUN/judgements/TASK.JUDGE.jsonl. LABELS: JSON lines {"id", "step", "label"}; step is
    the step's number in the reply from 1, or its text; label is supported, contradicted or not covered.

    Without RUN the judge is asked about LABELS themselves, JSON lines {"id", "step", "source", "label"}, and again with
    the source's sentences in reverse order. Verdicts are kept beside the file; no step is asked twice.
    """
    from medbench.harness.cli.judge_tables import check_tables
    from medbench.harness.judges.check import CheckOptions, check_judge

    if len(paths) > 2:
        raise click.UsageError("at most two paths: RUN and LABELS")
    if len(paths) == 1:
        if task or fingerprint:
            raise click.UsageError("--task and --fingerprint belong to a RUN: name it before the labels")
        return check_labels(paths[0], judge, asked, as_json)
    if any(value is not None for value in asked.values()):
        raise click.UsageError("a judged RUN is not judged again: leave --out and the judge's options out")
    found = check_judge(CheckOptions(paths[0], paths[1], judge, task, fingerprint))
    click.echo(json.dumps(found.as_json()) if as_json else check_tables(found), nl=as_json)
    return 0


for command in (train_command, labels_command):
    judge_command.add_command(command)
