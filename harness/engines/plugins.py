"""Engines of other packages, behind entry points of the group `medbench.engines`.

    [project.entry-points."medbench.engines"]
    mine = "my_package.engine:start"

`start(*, model, checkpoint, config)` returns a contracts.Engine. `model` is the name that the user typed, `checkpoint`
the contracts.Checkpoint where that is a checkpoint folder, else None, and `config` the EngineConfig.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

from medbench.harness.contracts import Checkpoint, Engine, MedbenchError
from medbench.harness.engines.settings import EngineConfig
from medbench.harness.text import one_line

GROUP = "medbench.engines"
MEMBERS = ("name", "render", "chat_template", "generate", "settings", "close")


def plugin_names() -> list[str]:
    return sorted({point.name for point in entry_points(group=GROUP)})


def start_plugin(name: str, model: str, checkpoint: Checkpoint | None, config: EngineConfig) -> Engine:
    """Raises MedbenchError, one line that names the plugin, where it cannot be used."""
    point = _the_one(name)
    where = f"engine {name} ({point.value})"
    try:
        start = point.load()
    except Exception as error:  # a plugin's import can raise anything
        raise MedbenchError(f"{where}: cannot be imported: {type(error).__name__}: {one_line(error)}") from None
    if not callable(start):
        raise MedbenchError(f"{where}: expected a function start(*, model, checkpoint, config)")
    try:
        engine = start(model=model, checkpoint=checkpoint, config=config)
    except MedbenchError:
        raise
    except Exception as error:
        raise MedbenchError(f"{where}: cannot start: {type(error).__name__}: {one_line(error)}") from None
    missing = [member for member in MEMBERS if not hasattr(engine, member)]
    if missing:
        raise MedbenchError(f"{where}: what it starts is not an engine: it lacks {', '.join(missing)}")
    return engine  # type: ignore[no-any-return]


def _the_one(name: str) -> EntryPoint:
    found = {point.value: point for point in entry_points(group=GROUP) if point.name == name}
    if len(found) > 1:
        raise MedbenchError(f"engine {name}: installed twice ({' and '.join(sorted(found))}): uninstall one")
    return next(iter(found.values()))
