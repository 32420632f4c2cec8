"""The command line: words in, words out. What it does is in medbench.harness.api."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medbench.harness.cli import own_faults
from medbench.harness.cli.adapter_option import adapter_option
from medbench.harness.cli.duration import as_seconds
from medbench.harness.cli.gate_commands import EXIT_NOT_SCORED, compare_command, gate_command, watch_command
from medbench.harness.cli.judge_commands import judge_command
from medbench.harness.cli.judge_options import (
    PREFIX,
    judge_options,
    judged,
    lack_verdicts,
    refuse_unjudgeable,
    result_of,
    start_chosen,
    taken,
)
from medbench.harness.cli.quantise_command import quantise_command
from medbench.harness.cli.replica_options import replica_options
from medbench.harness.cli.streams import clean_stdout, forgiving_streams, messages_on_stderr, say
from medbench.harness.cli.synth_command import synth_command
from medbench.harness.contracts import MedbenchError
from medbench.harness.files import as_text
from medbench.harness.secrets import redact
from medbench.harness.text import foreign, message

if TYPE_CHECKING:
    from medbench.harness.runs.stored_run import StoredRun

KEPT = {
    "eval": "; answers so far are kept: rerun the same command with --resume",
    "gate": "; answers so far are kept: rerun the same command",
    "watch": "; answers so far are kept: rerun the same command",
    "judge": "; verdicts so far are kept: rerun the same command",
    "synth": "; replies so far are kept: rerun the same command with --resume",
    "train": "; finished work is kept: rerun the same command with --resume",
}
EXIT_INTERRUPTED = 4


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="medbench", prog_name="medbench")
def cli() -> None:
    """Verdicts on medical language models: evaluate, gate, train until the gates pass, show.

    \b
    Exit status:
    0  done; gate and watch: all pass; train: the gates passed
    1  gate and watch: a gate failed; train: the budget is spent
    2  wrong input: one line says what, where and how to fix it
    3  no verdict: undecided or not gateable; eval: a task has no score, or more than 2 % of its questions are errors
    4  interrupted (Ctrl-C, full disk, no answer from the hub or a server); what is finished is kept
    70 a fault of medbench: one line names the file with the traceback
    """


for command in (gate_command, watch_command, compare_command, judge_command, synth_command, quantise_command):
    cli.add_command(command)


@cli.command("eval")
@click.argument("model")
@click.option("--tasks", help="Comma-separated: medbench's tasks or any of lm-eval's.  [default: the core tasks]")
@adapter_option
@click.option("--protocol", help="Name or YAML file; see `medbench tasks`.  [default: cot-v2]")
@click.option(
    "--engine", help="vllm, hf, openai, fake, ray, or a plugin's.  [default: by the other options, else vllm]"
)
@click.option("--base-url", help="OpenAI-compatible server; MODEL is its model name. Key: OPENAI_API_KEY.")
@click.option(
    "--swap",
    is_flag=True,
    default=None,
    help="Give the vLLM server at --base-url, in development mode, the weights of MODEL, a checkpoint.",
)
@click.option(
    "--patience",
    metavar="TIME",
    callback=as_seconds,
    help="How long to wait for a server that is busy or away: seconds, or 90s, 10m, 2h.  [default: 10m]",
)
@click.option("--replies", type=click.Path(path_type=Path), help='Stored replies, JSON lines {"id", "output"}.')
@click.option("--base", metavar="MODEL", help="Base model of an adapter, instead of the one that it names.")
@replica_options
@click.option("--data", help="Folder of benchmark files, or `sample`, or `hub`.  [default: MEDBENCH_DATA, else hub]")
@click.option(
    "--partition",
    type=click.Choice(["all", "gate", "report"]),
    default="all",
    show_default=True,
    help="Half of the questions: training loops look at `gate`, never at `report`.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Ask at most N questions per task (a seeded draw).")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Override the protocol's limit; stored in the run.")
@click.option(
    "--thinking-tokens",
    type=click.IntRange(min=1),
    help="Cut reasoning off after N of these tokens and cue the answer; stored in the run.",
)
@click.option("--enable-thinking/--no-thinking", "thinking", default=None, help="Passed to the chat template.")
@click.option("--temperature", type=click.FloatRange(0, 10), help="Override the protocol's; stored in the run.")
@click.option(
    "--shots", type=click.IntRange(min=0), help="Few-shot examples, drawn as lm-eval does; stored in the run."
)
@click.option("--samples", type=click.IntRange(min=1), help="Replies per question: mean, maj@K, pass@K, agreement.")
@click.option("--shuffle-options", type=click.IntRange(min=2), help="Ask each question with its options in N orders.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="Runs folder.")
@click.option("--name", help="Name of the run folder.  [default: from model, protocol and a hash]")
@click.option("--seed", type=click.IntRange(min=0), help="For the order of questions and for sampling.  [default: 0]")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="YAML with any of these and more.")
@click.option("--resume", is_flag=True, help="Continue the run if it exists; do nothing if it is complete.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output and nothing else.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
@judge_options(PREFIX)
def eval_command(model: str, as_json: bool, **options: Any) -> int:
    """Evaluate MODEL and keep every answer.

    MODEL: a hub id (org/name or org/name@revision), a checkpoint folder, a PEFT adapter folder, or
    smollm2-135m, which needs no hub.

    With --judge the finished run is judged as by `medbench judge`; one whose exit status is 3 is not, until --resume
    has completed it.
    """
    from medbench.harness import api
    from medbench.harness.cli.options import eval_keywords

    given = taken(options)
    keywords = eval_keywords(options)
    with clean_stdout() as stdout:
        judge = start_chosen(given, PREFIX)  # a judge that cannot start is told before hours of work
        if judge is not None:
            refuse_unjudgeable(keywords, given)
        run = api.evaluate(model, **keywords)
        content = run.as_json()
        if not as_json:
            stdout.write(_run_text(run, as_json=False))
            stdout.flush()
        status = _not_scored(run)
        if judge is not None and not status:
            found = judged(run.folder, judge, data=keywords.get("data"), sources=given["judge_sources"])
            status = EXIT_NOT_SCORED if lack_verdicts(found) else 0
            content["judged"] = result_of(judge, found)
            if not as_json:
                from medbench.harness.cli.judge_tables import scores_table

                stdout.write(scores_table(judge, found))
        if as_json:
            stdout.write(json.dumps(content, ensure_ascii=False) + "\n")
    return status


def _not_scored(run: StoredRun) -> int:
    """The exit status of a run that has too few answers, which is told; else 0."""
    from medbench.harness.scoring.summary import MOST_ERRORS

    unscored = [name for name, result in run.results.items() if result.accuracy is None]
    if unscored:
        say(f"not gateable: no question of {', '.join(unscored)} was scored; see the errors in {run.folder}/samples")
        return EXIT_NOT_SCORED
    lacking = [name for name, result in run.results.items() if result.lacks_answers]
    if lacking:
        say(
            f"more than {100 * MOST_ERRORS:g} % of the questions of {', '.join(lacking)} are errors; see "
            f"{run.folder}/samples, and rerun the same command with --resume, which asks them again"
        )
        return EXIT_NOT_SCORED
    return 0


@cli.command("score")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--task", required=True, help="The task that was answered: medbench's or any of lm-eval's.")
@click.option(
    "--protocol",
    help="Name or YAML file, or `all`: a table of the same replies under every protocol, and no run folder.  "
    "[default: cot-v2]",
)
@click.option("--data", help="As for eval.")
@click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), show_default=True, help="As for eval.")
@click.option("--name", help="Name of the run folder.  [default: from model, protocol and a hash]")
@click.option("--model", help="Name of the model that replied.  [default: the file's name]")
@click.option("--incomplete", is_flag=True, help="Score the replies that are present; the run is marked incomplete.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output and nothing else.")
def score_command(file: Path, task: str, as_json: bool, **options: Any) -> None:
    """Score the stored replies in FILE; no model is needed.

    FILE: JSON lines {"id", "output"}, optionally with "finish_reason" (stop or length) and "sample" (the number of
    the reply where a question has several, from 0). gate, compare and report take the run folder like one of eval.
    """
    from medbench.harness import api

    with clean_stdout() as stdout:
        if options["protocol"] == "all":
            from medbench.harness.cli.diagnostic_tables import band_table
            from medbench.harness.evaluation.protocol_sensitivity import band_of
            from medbench.harness.evaluation.score_replies import ScoreOptions

            band = band_of(ScoreOptions(file, task, **options), say)
            stdout.write(json.dumps(band.as_json()) + "\n" if as_json else band_table(band))
            return
        stdout.write(_run_text(api.score(file, task, **options), as_json))


@cli.command("train")
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default=Path("runs"),
    show_default=True,
    help="The training's folder is RUNS/train-NAME, a sweep's RUNS/sweep-NAME.",
)
@click.option("--data", help="As for eval; recipes may name files below it as $MEDBENCH_DATA/...")
@click.option("--resume", is_flag=True, help="Continue where the training stopped; its budget may have grown.")
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything; print plan, memory, contamination and the first example; train nothing.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output and nothing else.")
@click.option("--quiet", is_flag=True, help="Show no progress.")
def train_command(recipe: Path, dry_run: bool, as_json: bool, **options: Any) -> int:
    """Train by RECIPE (YAML), stage by stage, until the gates pass or the budget is spent.

    Every checkpoint is judged on one half of the questions. One that passes is confirmed once on the other half and
    becomes the start of the next stage. A failed attempt is rerun with an adapted config. Exit: 0 passed, 1 the budget
    is spent.

    With `sweep:` in RECIPE every combination of its values is trained so, in RUNS/sweep-NAME, and all are compared on
    the same questions in one order: cells shown to be worse are dropped. Exit: 0 if the best cell passed, else 1.
    """
    from medbench.harness import api

    with clean_stdout() as stdout:
        if dry_run:
            from medbench.harness.sweeps.sweep import plan_sweep
            from medbench.harness.training.prepare import TrainOptions
            from medbench.harness.training.recipe import read_recipe
            from medbench.harness.training.train import plan

            content = read_recipe(recipe)
            lines = (plan if content.sweep is None else plan_sweep)(content, TrainOptions(recipe, **options), say)
            stdout.write(json.dumps({"plan": lines}) + "\n" if as_json else "\n".join(lines) + "\n")
            return 0
        trained = api.train(recipe, **options)
        stdout.write(json.dumps(trained.as_json()) + "\n" if as_json else trained.in_words())
    return 0 if trained.passed else 1


@cli.command("report")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder to write: new, or written before."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["site", "lm-eval"]),
    default="site",
    show_default=True,
    help="Pages, or results and samples files as lm-eval writes them.",
)
@click.option("--references", type=click.Path(path_type=Path), help="More published scores (YAML), shown apart.")
@click.option("--serve", is_flag=True, help="Serve the pages on 127.0.0.1, and rebuild them when runs change.")
@click.option("--port", type=click.IntRange(0, 65535), default=8765, show_default=True, help="For --serve; 0 is any.")
@click.option("--open", "open_browser", is_flag=True, help="Open the pages in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def report_command(
    runs: tuple[Path, ...],
    output: Path,
    form: str,
    references: Path | None,
    serve: bool,
    port: int,
    open_browser: bool,
    as_json: bool,
) -> None:
    """Make pages of RUNS (run folders, or folders of them): leaderboard, models, every answer, comparisons.

    The pages open from disk, from any web server or as a CI artifact. A run that cannot be read is listed with its
    reason.
    """
    from medbench.reports.write import report

    asked = report.Report(runs, output, form, references, serve, port, open_browser)
    for content in report.make(asked, say):
        click.echo(json.dumps(content, ensure_ascii=False) if as_json else report.in_words(content))


@cli.command("tasks")
@click.argument("name", required=False)
@click.option("--protocol", help="For the rendered prompt.  [default: cot-v2, or open-v1 for a task without options]")
@click.option("--data", help="Folder of benchmark files, or `sample`.  [default: MEDBENCH_DATA, else the sample]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def tasks_command(name: str | None, protocol: str | None, data: str | None, as_json: bool) -> None:
    """List tasks and protocols, or show one task with a rendered prompt."""
    from medbench.harness.benchmarks.catalog import TaskLoader
    from medbench.harness.benchmarks.rows import SAMPLE
    from medbench.harness.cli.tables import task_page, task_table
    from medbench.harness.evaluation.plan import default_protocol
    from medbench.harness.protocols.protocol import built_in_names, load_protocol
    from medbench.harness.text import printable

    loader = TaskLoader(data or os.environ.get("MEDBENCH_DATA") or SAMPLE, say)
    if name is None:
        for line in loader.faults:
            say(f"warning: {line}")
        protocols = [load_protocol(each) for each in built_in_names()]
        content = {
            "tasks": [card.as_json() for card in loader.cards.values()],
            "protocols": {each.name: each.about for each in protocols},
        }
        click.echo(json.dumps(content) if as_json else task_table(list(loader.cards.values()), protocols), nl=as_json)
        return
    task = loader.load(name)
    asked = load_protocol(protocol or default_protocol([task]))
    prompt = task.foreign.text(task.questions[0].id, None) if task.foreign else asked.text(task.questions[0])
    page = task_page(task, loader.cards.get(name), prompt)
    lines = "\n".join(f"{key}: {value}" for key, value in page.items())
    click.echo(json.dumps(page) if as_json else printable(lines))


@cli.command("validate")
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
def validate_command(paths: tuple[Path, ...]) -> int:
    """Check YAML files of any kind; list every fault by key path.

    A file is a task, protocol, eval config, gate file, recipe of train or synth, or file of references; its keys say
    which.
    """
    from medbench.harness.cli.validate import faults_of

    total = 0
    for path in paths:
        kind, faults = faults_of(path)
        total += len(faults)
        for line in faults or [f"{path}: valid {kind}"]:
            click.echo(message(redact(line)))
    return 2 if total else 0


@cli.command("doctor")
@click.option("--data", help="Folder of benchmark files to check.  [default: MEDBENCH_DATA]")
@click.option("--determinism", metavar="MODEL", help="How answers of MODEL depend on batch size and order.")
@click.option("--speed", metavar="MODEL", help="Tokens per second of MODEL here, and what a verdict costs.")
@click.option("--engine", metavar="NAME", help="For MODEL: vllm, hf or a plugin's name.  [default: vllm]")
@click.option("--questions", type=click.IntRange(min=2), help="For --determinism.  [default: 32]")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="For MODEL; as for eval.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
def doctor_command(
    data: str | None,
    determinism: str | None,
    speed: str | None,
    engine: str | None,
    questions: int | None,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Show device, memory, versions and data, what will be slow, and the setting that fixes it.

    --determinism asks MODEL the same questions in batches of several sizes and orders, and shows what changes.
    --speed keeps 1, 8 and as many replies under way as a gate would, and shows tokens per second and how long a whole
    run and a verdict take. Both start an engine.
    """
    if questions and not determinism:
        raise click.UsageError("--questions belongs to --determinism MODEL")
    if determinism and speed:
        raise click.UsageError("--determinism and --speed are two measurements: choose one")
    model = determinism or speed
    if model is None:
        if engine or config_file:
            raise click.UsageError("--engine and --config belong to --determinism MODEL or --speed MODEL")
        from medbench.harness.cli.doctor import examine, report

        findings = examine(data)
        click.echo(json.dumps(findings) if as_json else report(findings), nl=as_json)
        return
    from medbench.harness.cli.diagnostic_tables import determinism_report, speed_report
    from medbench.harness.config import read_yaml
    from medbench.harness.engines.settings import EngineChoice
    from medbench.harness.evaluation.determinism import QUESTIONS, diagnose
    from medbench.harness.evaluation.options import EvalConfig, EvalOptions
    from medbench.harness.gates.speed import measure_speed

    config = read_yaml(config_file, EvalConfig) if config_file else EvalConfig()
    chosen = EngineChoice(engine or config.engine or "vllm", config.engine_config)
    options = EvalOptions(model, engine=chosen, data=data)
    with clean_stdout() as stdout:
        if determinism:
            found = diagnose(options, questions or QUESTIONS, say)
            stdout.write(json.dumps(found.as_json()) + "\n" if as_json else determinism_report(found))
        else:
            pace = measure_speed(options, say)
            stdout.write(json.dumps(pace.as_json()) + "\n" if as_json else speed_report(pace))


def _run_text(run: StoredRun, as_json: bool) -> str:
    """What eval and score print of a finished run."""
    if as_json:
        return json.dumps(run.as_json(), ensure_ascii=False) + "\n"
    from medbench.harness.cli.tables import result_table

    return f"{result_table(run.record, run.results)}run: {run.folder}\n"


def run(arguments: list[str]) -> int:
    """The exit status of `medbench ARGUMENTS`. A user error is one line; so is a fault of medbench, with a status of
    its own, so that neither is taken for a verdict."""
    try:
        with messages_on_stderr():
            status = cli.main(arguments, prog_name="medbench", standalone_mode=False)
    except MedbenchError as error:
        first, *more = error.lines
        for line in (f"medbench: {first}", *more):
            say(line)
        return error.exit_code
    except click.ClickException as error:
        where = f"{error.ctx.command_path}: " if isinstance(error, click.UsageError) and error.ctx else ""
        say(f"medbench: {where.removeprefix('medbench ')}{error.format_message()}")
        return 2
    except OSError as error:
        if error.filename is None:
            say(f"medbench: {own_faults.keep(error)}")
            return own_faults.EXIT_FAULT
        # whatever a command was given and cannot use: a name that is too long, a folder that may not be read, ...
        say(f"medbench: {foreign(as_text(error.filename))}: cannot be used ({error.strerror}): correct the path")
        return 2
    except (KeyboardInterrupt, click.Abort):
        say(f"medbench: interrupted{KEPT.get(next(iter(arguments), ''), '')}")
        return EXIT_INTERRUPTED
    except BaseException as error:  # SystemExit of a plugin and panics of Rust libraries are no Exceptions
        say(f"medbench: {own_faults.keep(error)}")
        return own_faults.EXIT_FAULT
    return status if isinstance(status, int) else 0


def main() -> None:
    """Entry point."""
    forgiving_streams()
    signal.signal(signal.SIGTERM, _interrupt)
    # other libraries' bars and warnings would break our lines
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    warnings.filterwarnings("ignore")
    try:
        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # a second one, while the first was being told
        status = EXIT_INTERRUPTED
    sys.stdout.flush()
    sys.stderr.flush()
    # vLLM leaves threads behind that can hang the interpreter at exit; medbench's own files are closed and synced
    os._exit(status)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
