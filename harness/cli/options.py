"""Command-line options and YAML to evaluation options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medbench.harness.config import read_yaml
from medbench.harness.contracts import MedbenchError
from medbench.harness.engines.plugins import check_choice
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.evaluation.options import DEFAULT_TASKS, EvalConfig, EvalOptions, refuse_bad_name

EVAL_ONLY = (
    "tasks",
    "protocol",
    "partition",
    "limit",
    "max_new_tokens",
    "thinking",
    "temperature",
    "shots",
    "samples",
    "shuffle_options",
    "name",
)
"""Options of `eval` that `gate` takes from its gate file."""


def options_of(given: Mapping[str, Any]) -> EvalOptions:
    """Options from the command line, then the config file, then the defaults."""
    config = read_yaml(given["config_file"], EvalConfig) if given["config_file"] else EvalConfig()

    def chosen(key: str) -> Any:
        return given[key] if given[key] is not None else getattr(config, key, None)

    tasks = given["tasks"].split(",") if given["tasks"] is not None else config.tasks
    names = tuple(dict.fromkeys(task.strip() for task in tasks if task.strip())) if tasks is not None else DEFAULT_TASKS
    if not names:
        raise MedbenchError("--tasks is empty: name one or more tasks, separated by commas")
    refuse_bad_name(given["name"])
    base_url, replies = chosen("base_url"), given["replies"]
    name = chosen("engine") or ("openai" if base_url else "fake" if replies else "vllm")
    engine = EngineChoice(name, config.engine_config, base_url, replies)
    check_choice(engine)
    samples, shuffles = chosen("samples") or 1, chosen("shuffle_options") or 0
    if samples > 1 and shuffles:
        raise MedbenchError("--samples and --shuffle-options cannot be combined: make two runs")
    return EvalOptions(
        model=given["model"],
        tasks=names,
        protocol=chosen("protocol"),
        engine=engine,
        data=given["data"],
        partition=given["partition"],
        limit=chosen("limit"),
        max_new_tokens=chosen("max_new_tokens"),
        thinking=chosen("thinking"),
        temperature=chosen("temperature"),
        shots=chosen("shots"),
        samples=samples,
        shuffle_options=shuffles,
        runs=given["runs"],
        name=given["name"],
        seed=chosen("seed") or 0,
        resume=given["resume"],
        quiet=given["quiet"],
    )


def gate_options_of(given: Mapping[str, Any]) -> EvalOptions:
    """The same for `gate`, which takes model, tasks, protocol and partition from elsewhere and always resumes."""
    return options_of({**dict.fromkeys(EVAL_ONLY), "model": "", "resume": True, **given})
