"""`medbench judge check LABELS` without a run: a judge is asked about the labelled steps themselves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from medbench.harness.cli.duration import as_seconds
from medbench.harness.cli.gate_commands import EXIT_NOT_SCORED
from medbench.harness.cli.streams import clean_stdout, say

_OPTIONS = (
    click.option("--command", help="Without RUN: program of the judge command."),
    click.option("--model", help="Without RUN: model of the judge llm, or folder of the judge local."),
    click.option("--engine", help="For --model, as for eval."),
    click.option("--base-url", help="For --model, as for eval."),
    click.option("--config", type=click.Path(path_type=Path), help="For --model: YAML with engine_config."),
    click.option("--timeout", metavar="TIME", callback=as_seconds, help="Longest wait for a verdict.  [default: 10m]"),
    click.option("--out", type=click.Path(path_type=Path), help="Folder for verdicts.  [default: beside LABELS]"),
)


def asked_judge_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options by which a judge is asked; keywords of the same names."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_labels(labels: Path, name: str | None, given: Mapping[str, Any], as_json: bool) -> int:
    """Exit status 3 where more than 2 % of the steps have no verdict, as for runs."""
    from medbench.harness.cli.judge_tables import check_tables
    from medbench.harness.config import read_yaml
    from medbench.harness.engines.settings import EngineChoice, EngineConfig
    from medbench.harness.evaluation.options import EvalConfig
    from medbench.harness.judges.contracts import JudgeChoice
    from medbench.harness.judges.direct_check import check_directly, read_labelled
    from medbench.harness.judges.plugins import start_judge
    from medbench.harness.judges.scores import MOST_FAILED

    if name is None:
        raise click.UsageError("labels without a RUN need --judge NAME, the judge to ask about them")
    model, base_url, config = given["model"], given["base_url"], given["config"]
    if model is None and (given["engine"] or base_url or config):
        raise click.UsageError("--engine, --base-url and --config belong to --model")
    engine = EngineChoice(
        given["engine"] or ("openai" if base_url else "vllm"),
        read_yaml(config, EvalConfig).engine_config if config else EngineConfig(),
        base_url,
    )
    timeout = 600.0 if given["timeout"] is None else given["timeout"]
    read_labelled(labels)  # before a model is loaded
    with clean_stdout() as stdout:
        judge = start_judge(JudgeChoice(name, given["command"], model, engine, timeout, say))
        try:
            found = check_directly(labels, given["out"], judge, say)
        finally:
            judge.close()
        stdout.write(json.dumps(found.as_json()) + "\n" if as_json else check_tables(found))
    if found.without_verdict > MOST_FAILED * (found.judged + found.without_verdict):
        say("more than 2 % of the labelled steps have no verdict: the same command asks them again")
        return EXIT_NOT_SCORED
    return 0
