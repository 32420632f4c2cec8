"""The commands gate, watch and compare.

medbench gate checkpoints/step-800 --gates gates.yaml --baseline runs/base
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from medbench.harness.cli.duration import as_seconds
from medbench.harness.cli.own_faults import describe
from medbench.harness.cli.replica_options import replica_options
from medbench.harness.cli.streams import clean_stdout, say
from medbench.harness.contracts import MedbenchError

if TYPE_CHECKING:
    from medbench.harness.gates.judge import Gatekeeper
    from medbench.harness.gates.verdict import Judged

EXIT_NOT_SCORED = 3


@click.command("gate")
@click.argument("candidates", nargs=-1)
@click.option("--gates", "gates_file", type=click.Path(path_type=Path), help="Gate file (YAML).")
@click.option("--init", is_flag=True, help="Write a commented gates.yaml here and stop.")
@click.option("--baseline", type=click.Path(path_type=Path), help="A finished run that margins are relative to.")
@click.option("--junit", "junit_file", type=click.Path(path_type=Path), help="Write JUnit XML, one test case per gate.")
@click.option("--summary", type=click.Path(path_type=Path), help="Write Markdown; GITHUB_STEP_SUMMARY gets it too.")
@click.option("--aa", type=click.IntRange(min=1), help="Questions per task to ask twice, to measure noise.")
@click.option("--fresh-ledger", metavar="REASON", help="Count this gate file's checkpoints from 1 again.")
@click.option("--engine", help="As for eval.")
@click.option("--base-url", help="As for eval.")
@click.option("--swap", is_flag=True, default=None, help="As for eval: CANDIDATES one after another in one server.")
@click.option("--patience", metavar="TIME", callback=as_seconds, help="As for eval.")
@click.option("--replies", type=click.Path(path_type=Path), help="As for eval.")
@click.option("--base", metavar="MODEL", help="As for eval.")
@replica_options
@click.option("--data", help="As for eval.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="As for eval.")
@click.option("--seed", type=click.IntRange(min=0), help="As for eval.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="As for eval.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output and nothing else.")
@click.option("--quiet", is_flag=True, help="No progress.")
def gate_command(
    candidates: tuple[str, ...],
    gates_file: Path | None,
    init: bool,
    baseline: Path | None,
    junit_file: Path | None,
    summary: Path | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Judge CANDIDATES by a gate file; the exit status is the verdict.

    Each CANDIDATE is the folder of a finished run, which is judged at once, or a model or checkpoint, which is
    evaluated only as far as the verdict needs. Several candidates share one engine.
    Exit status: 0 all pass, 1 a gate failed, 3 undecided or not gateable; 2, 4 and 70 are no verdicts, see
    medbench --help.
    """
    from medbench.harness.gates import rules

    if init:
        rules.write_example(Path("gates.yaml"))
        say("wrote gates.yaml: edit it, then medbench gate CHECKPOINT --gates gates.yaml --baseline RUN")
        return 0
    if not candidates or gates_file is None:
        raise click.UsageError("name at least one candidate, and --gates FILE (--init writes an example)")
    from medbench.harness import api
    from medbench.harness.cli.options import gate_keywords
    from medbench.harness.cli.verdict_output import (
        exit_status,
        refuse_unwritable,
        verdict_table,
        write_outputs,
        write_without_verdict,
    )

    for file in (junit_file, summary):
        if file is not None:
            refuse_unwritable(file)
    with clean_stdout() as stdout:
        try:
            judged = api.gate_all(candidates, gates_file, baseline=baseline, **gate_keywords(options))
        except BaseException as error:  # a file of an earlier gate would be read as this one's
            with suppress(MedbenchError):  # of the two faults, the first is the one to report
                write_without_verdict(candidates, describe(error), junit_file, summary)
            raise
        if as_json:
            content = {"exit": exit_status(judged), "verdicts": [one.as_json() for one in judged]}
            stdout.write(json.dumps(content, ensure_ascii=False) + "\n")
        else:
            for one in judged:
                stdout.write(verdict_table(one.verdict))
                stdout.write(f"verdict: {one.file}\n" if one.file else "")
        stdout.flush()
        write_outputs(judged, baseline, junit_file, summary)  # last, so that a full disk hides no verdict
    return exit_status(judged)


@click.command("watch")
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@click.option("--gates", "gates_file", type=click.Path(path_type=Path), required=True, help="Gate file (YAML).")
@click.option("--baseline", type=click.Path(path_type=Path), help="A finished run that margins are relative to.")
@click.option("--idle", type=click.FloatRange(min=0), help="Stop after this many seconds without a new checkpoint.")
@click.option(
    "--settled",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    help="Seconds without a change after which a checkpoint counts as complete.",
)
@click.option(
    "--serve",
    "port",
    metavar="PORT",
    type=click.IntRange(0, 65535),
    help="Also judge checkpoints that other programs name, by HTTP on 127.0.0.1; 0 is any free port.",
)
@click.option(
    "--allow",
    "allowed",
    metavar="DIR",
    multiple=True,
    type=click.Path(path_type=Path),
    help="With --serve, a folder whose checkpoints may be named, besides FOLDER; may be repeated.",
)
@click.option("--fresh-ledger", metavar="REASON", help="As for gate.")
@click.option("--engine", metavar="NAME", help="As for eval.")
@replica_options
@click.option("--base-url", help="As for eval, with --swap.")
@click.option("--swap", is_flag=True, default=None, help="As for eval: one checkpoint after another in one server.")
@click.option("--patience", metavar="TIME", callback=as_seconds, help="As for eval.")
@click.option("--data", help="As for eval.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="As for eval.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="As for eval.")
@click.option("--json", "as_json", is_flag=True, help="One line of JSON per checkpoint.")
@click.option("--quiet", is_flag=True, help="No progress.")
def watch_command(
    folder: Path | None,
    gates_file: Path,
    baseline: Path | None,
    idle: float | None,
    settled: float,
    port: int | None,
    allowed: tuple[Path, ...],
    fresh_ledger: str | None,
    as_json: bool,
    **options: Any,
) -> int:
    """Judge every checkpoint that appears in FOLDER, in one engine. A broken checkpoint fails; the watch continues.

    Whatever program writes it: a checkpoint that lacks a file is given 10 minutes without a change before it counts as
    broken.

    With --serve PORT it also takes checkpoints by HTTP: POST /judge {"checkpoint": PATH} answers with an id, or with
    ?wait=1 with the verdict; GET /verdicts/ID, GET /queue; a browser shows http://127.0.0.1:PORT/. What was accepted is
    judged even after a kill.

    Exit status with --idle: 1 if any failed, else 3 if any is undecided or none appeared, else 0. Without --idle the
    watch runs until Ctrl-C (exit status 4).
    """
    if port is None and (folder is None or allowed):
        raise click.UsageError("name a folder to watch; --allow belongs to --serve PORT")
    if port is not None and idle is not None:
        raise click.UsageError("--serve answers until Ctrl-C: leave out --idle")
    if port is not None and folder is None and not allowed:
        raise click.UsageError("name a folder to watch, or with --allow one whose checkpoints may be judged")
    from medbench.harness import api
    from medbench.harness.checkpoints.watch_folder import checkpoints_in
    from medbench.harness.cli.options import gate_keywords
    from medbench.harness.cli.verdict_output import exit_status, verdict_table
    from medbench.harness.gates.judge import Gatekeeper

    judged = []
    rules, asked = api.rules_of(gates_file), api.gate_options(**gate_keywords(options))
    if port is not None:
        with Gatekeeper(rules, baseline, asked, say, fresh_ledger=fresh_ledger) as keeper:
            _serve(keeper, asked.runs, folder, allowed, port, settled, as_json=as_json)
    assert folder is not None
    with clean_stdout() as stdout, Gatekeeper(rules, baseline, asked, say, fresh_ledger=fresh_ledger) as keeper:
        for checkpoint in checkpoints_in(folder, idle_seconds=idle, settled_seconds=settled, say=say):
            one = _judged_if_there(keeper, checkpoint)
            if one is None:
                say(f"{checkpoint}: removed while it was judged: no verdict")
                continue
            judged.append(one)
            line = json.dumps(one.as_json(), ensure_ascii=False) + "\n"
            stdout.write(line if as_json else verdict_table(one.verdict))
            stdout.flush()
    if not judged:
        say(f"not gateable: no checkpoint appeared in {folder}")
        return EXIT_NOT_SCORED
    return exit_status(judged)


def _serve(
    keeper: Gatekeeper,
    runs: Path,
    folder: Path | None,
    allowed: Sequence[Path],
    port: int,
    settled: float,
    *,
    as_json: bool,
) -> NoReturn:
    """Judge what other programs name, and what appears in `folder`, until Ctrl-C."""
    from medbench.harness.cli.own_faults import keep
    from medbench.harness.cli.verdict_output import verdict_table
    from medbench.harness.verdict_server.judge import accept_found, judged_items
    from medbench.harness.verdict_server.queue import JudgingQueue
    from medbench.harness.verdict_server.server import Desk, allowed_folders, answering

    places = allowed_folders([*([folder] if folder is not None else []), *allowed])
    with (
        clean_stdout() as stdout,
        JudgingQueue(runs, keeper.key) as queue,
        answering(Desk(queue, places, keeper.about, keep), port) as address,
    ):
        say(f"medbench: judging what is named at {address}, until Ctrl-C")
        if folder is not None:
            accept_found(folder, queue, settled, say)
        for item, judged in judged_items(keeper, queue, keep):
            if item.error is not None:
                say(f"medbench: {item.error}")
            line = json.dumps(item.as_json(), ensure_ascii=False) + "\n"
            stdout.write(line if as_json else verdict_table(judged.verdict) if judged is not None else "")
            stdout.flush()
    raise AssertionError("judging ends only by an exception")


def _judged_if_there(keeper: Gatekeeper, checkpoint: Path) -> Judged | None:
    """None for a checkpoint that a trainer, which keeps only its last ones, removed before the verdict."""
    try:
        one = keeper.judge(str(checkpoint))
    except (MedbenchError, OSError):
        if checkpoint.exists():
            raise
        return None
    return one if one.folder is not None or checkpoint.exists() else None


@click.command("compare")
@click.argument("run_a", type=click.Path(path_type=Path))
@click.argument("run_b", type=click.Path(path_type=Path))
@click.option(
    "--incomplete", is_flag=True, help="Accept runs with missing replies: compare the questions that both answered."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def compare_command(run_a: Path, run_b: Path, incomplete: bool, as_json: bool) -> None:
    """Compare two runs on the same questions: RUN_B minus RUN_A, with interval, McNemar's test and flips.

    Where one judge has judged both by the same texts, its scores of the reasoning are compared too.
    """
    from medbench.harness import api
    from medbench.harness.cli.judge_tables import judged_differences
    from medbench.harness.cli.verdict_output import comparison_table
    from medbench.harness.judges.compare import compare_judged

    found = api.compare(run_a, run_b, incomplete=incomplete)
    judged = compare_judged(run_a, run_b, found.tasks)
    if as_json:
        click.echo(json.dumps(found.as_json() | {"judged": [one.as_json() for one in judged]}))
    else:
        table = comparison_table(found.a.run_id, found.b.run_id, list(found.tasks.values()), found.warnings)
        click.echo(table + judged_differences(judged), nl=False)
