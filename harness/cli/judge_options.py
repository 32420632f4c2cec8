"""Which judge, and by which texts: the options that `judge run` and `eval --judge` share.

`eval` has options of the same names for the model that it evaluates, so there each begins with "judge-".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medbench.harness.cli.duration import as_seconds
from medbench.harness.cli.streams import say

if TYPE_CHECKING:
    from medbench.harness.judges.contracts import Judge, JudgeChoice
    from medbench.harness.judges.judge_run import JudgedTask
    from medbench.harness.judges.scores import TaskScores

LONGEST_WAIT = 600.0
PREFIX = "judge-"
"""Of the options of `eval`."""
_OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("command", {"help": "Program of the judge command, with its arguments; no shell reads it."}),
    ("model", {"help": "Model of the judge llm, as for eval, or folder of the judge local."}),
    ("engine", {"help": "For its model, as for eval.  [default: openai with a base URL, else vllm]"}),
    ("base-url", {"help": "For its model, as for eval."}),
    ("config", {"type": click.Path(path_type=Path), "help": "For its model: YAML with engine_config."}),
    ("timeout", {"metavar": "TIME", "callback": as_seconds, "help": "Longest wait for a verdict.  [default: 10m]"}),
    ("sources", {"type": click.Path(path_type=Path), "help": 'Texts to judge by, JSON lines {"id", "source"}.'}),
)


def asking_options(prefix: str = "", without: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """All but --judge. The command gets them as keywords "judge_...", whatever they are called."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for name, settings in reversed(_OPTIONS):
            if name not in without:
                command = click.option(f"--{prefix}{name}", _key(name), **settings)(command)
        return command

    return decorate


def judge_options(prefix: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The same with --judge, as "judge_name"."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        command = asking_options(prefix)(command)
        shown = "command, llm, local, or a plugin's name."
        about = f"Then judge the steps of the replies: {shown}" if prefix else shown
        return click.option("--judge", "judge_name", metavar="NAME", help=about, required=not prefix)(command)

    return decorate


def taken(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the judge's from a command's options, and return them."""
    return {name: options.pop(name) for name in [name for name in options if name.startswith("judge_")]}


def start_chosen(given: Mapping[str, Any], prefix: str = "") -> Judge | None:
    """The judge that `taken` holds, checked; None where none is named."""
    from medbench.harness.judges.plugins import start_judge

    if given["judge_name"] is None:
        named = [name for name, _ in _OPTIONS if given[_key(name)] is not None]
        if named:
            raise click.UsageError(f"--{prefix}{named[0]} belongs to --judge NAME")
        return None
    return start_judge(choice_of(given, prefix), prefix=prefix)


def refuse_unjudgeable(keywords: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises MedbenchError where no task of an evaluation has a text to judge by. `keywords`: of api.evaluate."""
    from medbench.harness.benchmarks.task_folders import core_tasks
    from medbench.harness.judges.sources import refuse_without_sources

    named = keywords.get("tasks")
    names = [one.strip() for one in named.split(",") if one.strip()] if isinstance(named, str) else named
    refuse_without_sources(core_tasks() if names is None else names, keywords.get("data"), given["judge_sources"], say)


def judged(run: Path, judge: Judge, **more: Any) -> list[tuple[JudgedTask, TaskScores]]:
    """Judge the run; `more` are fields of JudgeOptions. Closes the judge."""
    from medbench.harness.judges.judge_run import JudgeOptions
    from medbench.harness.judges.scored import judge_and_score

    try:
        return judge_and_score(JudgeOptions(run, **more), judge, say)
    finally:
        judge.close()


def result_of(judge: Judge, found: list[tuple[JudgedTask, TaskScores]]) -> dict[str, Any]:
    tasks = {score.task: score.as_json() | {"file": str(one.file)} for one, score in found}
    return {"judge": judge.name, "fingerprint": judge.fingerprint, "tasks": tasks}


def lack_verdicts(found: list[tuple[JudgedTask, TaskScores]]) -> bool:
    """Whether too many steps of a task have no verdict, which is told."""
    lacking = [score.task for _, score in found if score.lacks_verdicts]
    if lacking:
        say(f"more than 2 % of the steps of {', '.join(lacking)} have no verdict: the same command asks them again")
    return bool(lacking)


def choice_of(given: Mapping[str, Any], prefix: str = "") -> JudgeChoice:
    """What `taken` holds, where a judge is named. Raises UsageError for options that do not go together."""
    from medbench.harness.config import read_yaml
    from medbench.harness.engines.settings import EngineChoice, EngineConfig
    from medbench.harness.evaluation.options import EvalConfig
    from medbench.harness.judges.contracts import JudgeChoice

    engine, base_url, config_file = given["judge_engine"], given["judge_base_url"], given["judge_config"]
    if given["judge_model"] is None and (engine or base_url or config_file):
        names = ", ".join(f"--{prefix}{name}" for name in ("engine", "base-url"))
        raise click.UsageError(f"{names} and --{prefix}config belong to --{prefix}model")
    config = read_yaml(config_file, EvalConfig).engine_config if config_file else EngineConfig()
    return JudgeChoice(
        given["judge_name"],
        command=given["judge_command"],
        model=given["judge_model"],
        engine=EngineChoice(engine or ("openai" if base_url else "vllm"), config, base_url),
        timeout=LONGEST_WAIT if given["judge_timeout"] is None else given["judge_timeout"],
        say=say,
    )


def _key(name: str) -> str:
    return f"judge_{name.replace('-', '_')}"
