"""Command line options and the YAML behind `--config`, joined into the keywords of `medbench.harness.api`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from medbench.harness.config import read_yaml
from medbench.harness.engines.settings import WHERE
from medbench.harness.evaluation.options import EvalConfig

GATE_OPTIONS = ("engine", "base_url", "swap", "seed", "engine_config")
"""Keys of the config file that a gate takes; what is asked, and how, comes from its gate file."""
ENGINE_OPTIONS = ("patience", "base", *WHERE)
"""Options that are keys of engine_config."""


def eval_keywords(given: Mapping[str, Any]) -> dict[str, Any]:
    """Keywords of `api.evaluate`: the command line's options over the config file's. Values left out are defaults."""
    return _with_options(_from_config(given), given)


def gate_keywords(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same for `api.gate_options` and `api.gate_all`."""
    return _with_options({key: value for key, value in _from_config(given).items() if key in GATE_OPTIONS}, given)


def _with_options(config: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`config` and, over it, the options given; those of ENGINE_OPTIONS are settings of the engine."""
    options = {key: value for key, value in given.items() if value is not None and key != "config_file"}
    of_engine = {key: options.pop(key) for key in ENGINE_OPTIONS if key in options}
    if of_engine:
        options["engine_config"] = config.get("engine_config", {}) | of_engine
    return config | options


def _from_config(given: Mapping[str, Any]) -> dict[str, Any]:
    if not given["config_file"]:
        return {}
    config = read_yaml(given["config_file"], EvalConfig)
    return config.model_dump(exclude_none=True, exclude_unset=True)
