"""Damaged checkpoints and adapters of a tiny model, through the transformers engine. Slow: tenths of a second each."""

from __future__ import annotations

import random
from pathlib import Path

from fuzz.case import Case, written
from fuzz.category import Category
from fuzz.damage import damaged
from fuzz.mutators import damaged_bytes, damaged_json
from fuzz.play import Done

MODEL, ADAPTER = "model", "adapter"
ASKED = ("--engine", "hf", "--config", "hf.yaml", "--data", "data", "--quiet", "--json")
GATES = "max_new_tokens: 4\nbudget: 4\ngates:\n  - {task: medqa, at_least: 0.5}\n"


def build(folder: Path) -> None:
    from support.tiny import build_tiny_lora, build_tiny_model

    build_tiny_model(folder / MODEL)
    # relative, so that a copy of both folders is as sound as they are
    build_tiny_lora(folder / MODEL, folder / ADAPTER, use_dora=False, use_rslora=True)
    config = folder / ADAPTER / "adapter_config.json"
    config.write_text(config.read_text().replace(str(folder / MODEL), MODEL))
    (folder / "hf.yaml").write_text("engine: hf\nengine_config: {dtype: float32}\n")
    (folder / "tiny.yaml").write_text(GATES)


def commands(name: str) -> tuple[tuple[str, ...], ...]:
    return (
        ("gate", name, "--gates", "tiny.yaml", *ASKED),
        ("eval", name, "--tasks", "medqa", "--limit", "2", "--max-new-tokens", "4", *ASKED),
    )


def draw_case(draw: random.Random, sound: Path) -> Case:
    name = draw.choice((MODEL, MODEL, MODEL, ADAPTER))
    changes, done = {}, []
    for _ in range(draw.choice((1, 1, 1, 2))):
        below = draw.choice((MODEL, ADAPTER)) if name == ADAPTER else MODEL
        files = sorted(path for path in (sound / below).iterdir() if path.suffix not in (".md",))
        path = draw.choice(files)
        kept = str(path.relative_to(sound))
        if path.suffix == ".safetensors":
            content, what = _weights(path.read_bytes(), draw)
            changes[kept] = written(content)
            done.append(f"{path.name}: {what}")
        else:
            changes[kept], what = damaged(path, draw)
            done.append(what)
    return Case("checkpoints", draw.choice(commands(name)), changes, "; ".join(done))


def _weights(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Half of the time the header, a JSON object after its length in eight bytes."""
    if draw.random() < 0.5:
        return damaged_bytes(content, draw)
    import json

    length = int.from_bytes(content[:8], "little")
    text, done = damaged_json(json.loads(content[8 : 8 + length]), draw)
    header = text.encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + content[8 + length :], f"header: {done}"


def wrong(case: Case, folder: Path, done: Done) -> list[str]:
    if done.status not in (0, 1, 3):
        return []
    try:
        shown = done.json
    except ValueError as error:
        return [f"standard output: {str(error)[:80]}"]
    found = [gate["estimate"] for verdict in shown.get("verdicts", ()) for gate in verdict["gates"]]
    return [f"an accuracy of {estimate}" for estimate in found if estimate is not None and not 0 <= estimate <= 1]


CATEGORY = Category(
    "checkpoints",
    (MODEL, ADAPTER, "hf.yaml", "tiny.yaml", "data"),
    draw_case,
    wrong,
    build=build,
    share=1.5,
    may_leave="^runs(/|$)",  # the run is begun before the engine is; the same command continues it
)
