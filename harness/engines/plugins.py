"""Engines as plugins: what one must have, and how it is found.

    [project.entry-points."medbench.engines"]          # in the plugin's pyproject.toml; then
    echo = "medbench_echo_engine"                      # medbench eval MODEL --engine echo

An engine plugin is a module, or any other object, behind an entry point of the group `medbench.engines`. It has

    start(name, checkpoint, choice)   returns a contracts.Engine; heavy imports belong in here. `name` is the model as
                                      the user gave it, `checkpoint` a contracts.Checkpoint or None, `choice` a
                                      settings.EngineChoice. Raises MedbenchError for a fault that the user can fix
    NEEDS                             optional: which of "checkpoint", "base_url" and "replies" it needs; the default is
                                      ("checkpoint",). With "checkpoint", medbench resolves the model's name to a
                                      folder, checks it and fingerprints the weights; without, the name is enough

The built-in engines have the same form. They are listed here and not in pyproject.toml, so that they are found without
reading the metadata of every installed package, and no plugin can replace one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol, cast

from medbench.harness.contracts import Checkpoint, Engine, MedbenchError
from medbench.harness.engines.settings import EngineChoice
from medbench.harness.text import did_you_mean, foreign, one_line

GROUP = "medbench.engines"
BUILT_IN = {
    name: EntryPoint(name, f"medbench.harness.engines.{name}", GROUP)
    for name in ("vllm", "hf", "openai", "fake", "ray")
}
FLAGS = {"base_url": "--base-url", "replies": "--replies"}
"""Field of EngineChoice -> its option on the command line."""
MEMBERS = ("name", "render", "chat_template", "generate", "settings", "close")
"""Of contracts.Engine."""


class EnginePlugin(Protocol):
    """See the module."""

    def start(self, name: str, checkpoint: Checkpoint | None, choice: EngineChoice) -> Engine: ...


def known_engines() -> list[str]:
    """Names of the built-in and the installed engines."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def find_engine(name: str, points: Sequence[EntryPoint] | None = None) -> EnginePlugin:
    """The engine called `name`. Raises MedbenchError for an unknown or ambiguous name and for a broken plugin."""
    plugin, _ = loaded_plugin(
        "engine", name, BUILT_IN, list(entry_points(group=GROUP)) if points is None else points, _faults
    )
    return cast(EnginePlugin, plugin)


def needs_of(plugin: EnginePlugin) -> Collection[str]:
    """Which of "checkpoint", "base_url" and "replies" the engine needs."""
    return cast(Collection[str], getattr(plugin, "NEEDS", ("checkpoint",)))


def takes_checkpoint(choice: EngineChoice) -> bool:
    """Whether the engine runs weights on disk that medbench has checked. Raises MedbenchError as find_engine."""
    return choice.instance is None and (choice.swap or "checkpoint" in needs_of(find_engine(choice.name)))


def check_choice(choice: EngineChoice) -> None:
    """Raises MedbenchError for an unknown or broken engine, and for settings that do not go with it."""
    if choice.instance is not None:
        if choice.config.replicas is not None:
            raise MedbenchError("replicas are made of an engine by its name, not of an engine object: leave one out")
        return
    _check_replicas(choice)
    if choice.config.batch_invariant and choice.name != "vllm":
        raise MedbenchError(
            f"engine_config.batch_invariant is a mode of vLLM: leave it out with --engine {choice.name}"
        )
    if choice.swap and (choice.name != "openai" or choice.base_url is None):
        raise MedbenchError("--swap is for a running vLLM server: add --base-url URL, or leave --swap out")
    needs = needs_of(find_engine(choice.name))
    for field, flag in FLAGS.items():
        given = getattr(choice, field) is not None
        if field in needs and not given:
            raise MedbenchError(f"--engine {choice.name} needs {flag}: add it, or choose another engine")
        if given and field not in needs:
            raise MedbenchError(f"--engine {choice.name} does not take {flag}: leave one of them out")


def _check_replicas(choice: EngineChoice) -> None:
    config = choice.config
    if config.replicas is None:
        for field in ("ray_address", "ship_weights"):
            if getattr(config, field):
                raise MedbenchError(
                    f"--{field.replace('_', '-')} is for replicas: add --replicas N, or --engine ray for as many as fit"
                )
    elif choice.name == "openai":
        raise MedbenchError("--replicas: a server has replicas of its own: leave it out with --engine openai")


def checked_engine(engine: Any, where: str) -> Engine:
    """`engine`, if it has everything that contracts.Engine asks for. Raises MedbenchError naming what it lacks."""
    missing = [member for member in MEMBERS if not hasattr(engine, member)]
    if missing:
        raise MedbenchError(
            f"{where}: a {type(engine).__name__} without {', '.join(missing)}: implement "
            f"medbench.harness.contracts.Engine"
        )
    return cast(Engine, engine)


def loaded_plugin(
    kind: str,
    name: str,
    built_in: Mapping[str, EntryPoint],
    points: Sequence[EntryPoint],
    faults_of: Callable[[Any], Iterable[str]],
) -> tuple[Any, str]:
    """(the plugin called `name`, what messages call it). `kind` is "engine", or what else such plugins are.

    Raises MedbenchError for an unknown or ambiguous name, and for a plugin that cannot be imported or has faults.
    """
    point = built_in.get(name) or _find_point(kind, name, built_in, points)
    where = f"{kind} {name!r} ({point.value})"
    try:
        plugin = point.load()
    except (Exception, SystemExit) as error:  # importing a plugin may fail in any way
        raise MedbenchError(
            f"{where} cannot be imported ({type(error).__name__}: {one_line(error)[:200]}): fix or uninstall it"
        ) from None
    faults = list(faults_of(plugin))
    if faults:
        raise MedbenchError(f"{where}: {'; '.join(faults)}: fix or uninstall it")
    return plugin, where


def _find_point(kind: str, name: str, built_in: Mapping[str, EntryPoint], points: Sequence[EntryPoint]) -> EntryPoint:
    found = {point.value: point for point in points if point.name == name}
    if not found:
        hint = did_you_mean(name, [*built_in, *(point.name for point in points)])
        raise MedbenchError(f"{kind} {foreign(name, 60)!r}: no such {kind}; {hint}")
    if len(found) > 1:
        raise MedbenchError(f"{kind} {name!r}: {' and '.join(sorted(found))} both have this name: uninstall one")
    (point,) = found.values()
    return point


def _faults(plugin: Any) -> list[str]:
    faults = []
    start = getattr(plugin, "start", None)
    if not callable(start):
        faults.append("start(name, checkpoint, choice) is missing")
    elif not _takes_three(start):
        faults.append(f"start must take (name, checkpoint, choice), found {_signature(start)}")
    needs = getattr(plugin, "NEEDS", ())
    known = {"checkpoint", *FLAGS}
    if isinstance(needs, str) or not isinstance(needs, Collection) or not known.issuperset(needs):
        faults.append(f"NEEDS must hold some of {', '.join(sorted(known))}, found {needs!r}")
    return faults


def _takes_three(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind("name", None, None)
    except (TypeError, ValueError):  # ValueError: a built-in function without a signature
        return False
    return True


def _signature(function: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return repr(function)
