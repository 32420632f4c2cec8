"""The functions behind `import medbench`. The command line calls these same functions.

    import medbench

    run = medbench.score("replies.jsonl", "medqa")
    verdict = medbench.gate(run, [medbench.Gate(task="medqa", at_least=0.6)])

Keywords are named as in the YAML files and on the command line. Every function raises MedbenchError, with one line that
says what is wrong, where, and how to fix it. Messages go to the logger "medbench" at level INFO.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel

from medbench.harness.config import check_mapping
from medbench.harness.contracts import Engine, MedbenchError

if TYPE_CHECKING:
    from medbench.harness.engines.settings import EngineChoice
    from medbench.harness.evaluation.options import EvalOptions
    from medbench.harness.gates.rules import Gate, GateFile
    from medbench.harness.gates.verdict import Judged, Verdict
    from medbench.harness.runs.compare import Comparison
    from medbench.harness.runs.stored_run import StoredRun
    from medbench.harness.sweeps.sweep import Swept
    from medbench.harness.training.train import Trained

Partition = Literal["all", "gate", "report"]

R = TypeVar("R", bound=BaseModel)
log = logging.getLogger("medbench")


def evaluate(
    model: str | Path,
    *,
    tasks: Sequence[str] | str | None = None,
    adapters: Mapping[str, str | Path] | None = None,
    protocol: str | None = None,
    engine: str | Engine | None = None,
    engine_config: Mapping[str, Any] | None = None,
    base_url: str | None = None,
    swap: bool = False,
    replies: str | Path | None = None,
    data: str | Path | None = None,
    partition: Partition = "all",
    limit: int | None = None,
    max_new_tokens: int | None = None,
    thinking_tokens: int | None = None,
    thinking: bool | None = None,
    temperature: float | None = None,
    shots: int | None = None,
    samples: int | None = None,
    shuffle_options: int | None = None,
    runs: str | Path = "runs",
    name: str | None = None,
    seed: int = 0,
    resume: bool = True,
    quiet: bool = False,
) -> StoredRun:
    """Ask `model` every question and keep every answer in a run folder below `runs`.

    `model` is a hub id ("org/name" or "org/name@revision"), a checkpoint or adapter folder, "smollm2-135m", or, with an
    Engine object as `engine`, the name that the run is stored under. With `resume`, questions that the run folder
    already answers are not asked again.
    `adapters` maps a task, or "task/field=value" for one category of it, to the PEFT adapter of `model` that answers;
    without `tasks`, only those tasks are asked.
    The other keywords are those of `medbench eval --help`.
    """
    from medbench.harness.benchmarks.task_folders import core_tasks
    from medbench.harness.evaluation.evaluate import evaluate_model
    from medbench.harness.evaluation.experts import tasks_of
    from medbench.harness.evaluation.options import EvalConfig, EvalOptions, refuse_bad_name

    names = _task_names(tasks)
    config = _checked(
        "evaluate",
        EvalConfig,
        tasks=names,
        adapters=None if adapters is None else {target: str(path) for target, path in adapters.items()},
        protocol=protocol,
        max_new_tokens=max_new_tokens,
        thinking_tokens=thinking_tokens,
        thinking=thinking,
        temperature=temperature,
        shots=shots,
        samples=samples,
        shuffle_options=shuffle_options,
        limit=limit,
        seed=seed,
    )
    named = config.adapters or {}
    refuse_bad_name(name)
    if (samples or 1) > 1 and shuffle_options:
        raise MedbenchError("--samples and --shuffle-options are two measurements: make two runs")
    options = EvalOptions(
        model=str(model),
        tasks=tuple(names) if names is not None else tasks_of(named) or core_tasks(),
        adapters=tuple(named.items()),
        protocol=config.protocol,
        engine=engine_choice(engine, engine_config, base_url, replies, swap),
        data=None if data is None else str(data),
        partition=partition,
        limit=config.limit,
        max_new_tokens=config.max_new_tokens,
        thinking_tokens=config.thinking_tokens,
        thinking=config.thinking,
        temperature=config.temperature,
        shots=config.shots,
        samples=config.samples or 1,
        shuffle_options=config.shuffle_options or 0,
        runs=Path(runs),
        name=name,
        seed=config.seed or 0,
        resume=resume,
        quiet=quiet,
    )
    return evaluate_model(options, log.info)


def score(
    file: str | Path,
    task: str,
    *,
    protocol: str | None = None,
    data: str | Path | None = None,
    runs: str | Path = "runs",
    name: str | None = None,
    model: str | None = None,
    incomplete: bool = False,
) -> StoredRun:
    """Score stored replies: `file` is JSON lines {"id", "output"}; see `medbench score --help`."""
    from medbench.harness.evaluation.score_replies import ScoreOptions, score_file

    options = ScoreOptions(
        file=Path(file),
        task=task,
        protocol=protocol,
        data=None if data is None else str(data),
        runs=Path(runs),
        name=name,
        model=model,
        incomplete=incomplete,
    )
    return score_file(options, log.info)


def load_run(folder: str | Path) -> StoredRun:
    """A finished run from its folder."""
    from medbench.harness.runs import stored_run

    return stored_run.load_run(Path(folder))


def gate(
    candidate: str | Path | StoredRun,
    gates: str | Path | GateFile | Sequence[Gate],
    *,
    baseline: str | Path | StoredRun | None = None,
    engine: str | Engine | None = None,
    engine_config: Mapping[str, Any] | None = None,
    base_url: str | None = None,
    swap: bool = False,
    replies: str | Path | None = None,
    data: str | Path | None = None,
    runs: str | Path = "runs",
    seed: int = 0,
    aa: int = 0,
    fresh_ledger: str | None = None,
    quiet: bool = False,
) -> Verdict:
    """The verdict on one candidate; arguments as for `gate_all`."""
    (judged,) = gate_all(
        [candidate],
        gates,
        baseline=baseline,
        engine=engine,
        engine_config=engine_config,
        base_url=base_url,
        swap=swap,
        replies=replies,
        data=data,
        runs=runs,
        seed=seed,
        aa=aa,
        fresh_ledger=fresh_ledger,
        quiet=quiet,
    )
    return judged.verdict


def gate_all(
    candidates: Sequence[str | Path | StoredRun],
    gates: str | Path | GateFile | Sequence[Gate],
    *,
    baseline: str | Path | StoredRun | None = None,
    engine: str | Engine | None = None,
    engine_config: Mapping[str, Any] | None = None,
    base_url: str | None = None,
    swap: bool = False,
    replies: str | Path | None = None,
    data: str | Path | None = None,
    runs: str | Path = "runs",
    seed: int = 0,
    aa: int = 0,
    fresh_ledger: str | None = None,
    quiet: bool = False,
) -> list[Judged]:
    """A verdict on each candidate, and where it was written; candidates that must be asked share one warm engine.

    A candidate is a finished run (judged at once) or a model as for `evaluate`, asked only as far as the verdict needs.
    `gates` is a gate file, its content as an object, or a list of gates with the file's defaults. `aa` questions per
    task are asked twice, to measure what repeats alone change. Each checkpoint that is asked is counted in the ledger
    of the runs folder and spends its part of alpha; `fresh_ledger`, a reason, counts from 1 again.
    """
    from medbench.harness.gates.judge import gate_candidates

    options = gate_options(
        engine=engine,
        engine_config=engine_config,
        base_url=base_url,
        swap=swap,
        replies=replies,
        data=data,
        runs=runs,
        seed=seed,
        quiet=quiet,
    )
    names = [_path_of(candidate) for candidate in candidates]
    base = None if baseline is None else Path(_path_of(baseline))
    return gate_candidates(names, rules_of(gates), base, options, log.info, aa=aa, fresh_ledger=fresh_ledger)


def gate_options(
    *,
    engine: str | Engine | None = None,
    engine_config: Mapping[str, Any] | None = None,
    base_url: str | None = None,
    swap: bool = False,
    replies: str | Path | None = None,
    data: str | Path | None = None,
    runs: str | Path = "runs",
    seed: int = 0,
    quiet: bool = False,
) -> EvalOptions:
    """How candidates of a gate are asked; model, tasks, protocol and partition come from the gate. Always resumes."""
    from medbench.harness.evaluation.options import EvalOptions

    return EvalOptions(
        model="",
        engine=engine_choice(engine, engine_config, base_url, replies, swap),
        data=None if data is None else str(data),
        runs=Path(runs),
        seed=seed,
        resume=True,
        quiet=quiet,
    )


def rules_of(gates: str | Path | GateFile | Sequence[Gate]) -> GateFile:
    """A gate file read, or gates given as objects with the file's defaults."""
    from medbench.harness.gates.rules import GateFile, read_gate_file

    if isinstance(gates, GateFile):
        return gates
    if isinstance(gates, str | Path):
        return read_gate_file(Path(gates))
    return GateFile(gates=list(gates))


def compare(run_a: str | Path | StoredRun, run_b: str | Path | StoredRun, *, incomplete: bool = False) -> Comparison:
    """`run_b` minus `run_a` on the same questions: paired difference, interval, score test, flipped questions."""
    from medbench.harness.runs.compare import compare_runs

    return compare_runs(Path(_path_of(run_a)), Path(_path_of(run_b)), incomplete=incomplete)


def train(
    recipe: str | Path,
    *,
    runs: str | Path = "runs",
    data: str | Path | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> Trained | Swept:
    """Train by a recipe file, stage by stage, until the gates pass or the budget is spent; or every cell of its sweep,
    which are then compared."""
    from medbench.harness.sweeps.sweep import sweep
    from medbench.harness.training.prepare import TrainOptions
    from medbench.harness.training.recipe import read_recipe
    from medbench.harness.training.train import train as train_recipe

    options = TrainOptions(Path(recipe), Path(runs), None if data is None else str(data), resume, quiet)
    content = read_recipe(Path(recipe))
    return (train_recipe if content.sweep is None else sweep)(content, options, log.info)


def report(
    runs: str | Path | StoredRun | Sequence[str | Path | StoredRun],
    output: str | Path,
    *,
    form: Literal["site", "lm-eval"] = "site",
    references: str | Path | None = None,
) -> Path:
    """Write the pages of runs (run folders, or folders of them) to `output`; the path of what was written."""
    from medbench.reports.write.report import Report, make

    named = runs if isinstance(runs, Sequence) and not isinstance(runs, str) else [runs]
    asked = Report(
        runs=tuple(Path(_path_of(run)) for run in named),
        output=Path(output),
        form=form,
        references=None if references is None else Path(references),
        serve=False,
        port=0,
        open_browser=False,
    )
    for _ in make(asked, log.info):
        pass
    return asked.output / "index.html" if form == "site" else asked.output


def engine_choice(
    engine: str | Engine | None,
    engine_config: Mapping[str, Any] | None = None,
    base_url: str | None = None,
    replies: str | Path | None = None,
    swap: bool = False,
) -> EngineChoice:
    """An engine by name or as an object; a server or stored replies name their engine themselves."""
    from medbench.harness.engines.plugins import check_choice
    from medbench.harness.engines.settings import EngineChoice, EngineConfig

    config = _checked("engine_config", EngineConfig, **(engine_config or {}))
    if engine is not None and not isinstance(engine, str):
        if base_url is not None or replies is not None or swap:
            raise MedbenchError("an engine object answers by itself: leave out base_url, swap and replies")
        return EngineChoice(engine.name, config, instance=engine)
    name = engine or ("openai" if base_url else "fake" if replies else "vllm")
    choice = EngineChoice(name, config, base_url, swap, None if replies is None else Path(replies))
    check_choice(choice)
    return choice


def _checked(where: str, model: type[R], **given: Any) -> R:
    """`given` as a record. Raises MedbenchError with all faults in one line."""
    record, faults = check_mapping({key: value for key, value in given.items() if value is not None}, model, where)
    if record is None:
        raise MedbenchError("; ".join(faults))
    return record


def _task_names(tasks: Sequence[str] | str | None) -> list[str] | None:
    """Names without repeats; one string may hold several, separated by commas."""
    if tasks is None:
        return None
    names = [name.strip() for name in (tasks.split(",") if isinstance(tasks, str) else tasks) if name.strip()]
    if not names:
        raise MedbenchError("--tasks names no task: give one or more, separated by commas")
    return list(dict.fromkeys(names))


def _path_of(run: str | Path | StoredRun) -> str:
    return str(run) if isinstance(run, str | Path) else str(run.folder)
