"""Checkpoints without weights worth the name, and what is left of a Ray, for tests of replicas."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from medbench.harness.checkpoints.fingerprint import fingerprint
from medbench.harness.checkpoints.weights import weight_files
from medbench.harness.contracts import Checkpoint, Completion, Engine, Passed, Request
from medbench.harness.engines.replicas.cluster import MARK


def made_checkpoint(folder: Path, content: float = 0.0) -> Checkpoint:
    """A folder with everything that a checkpoint has, and one number for weights."""
    import numpy as np
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    save_file({"w": np.array([content], dtype=np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text(f'{{"content": {content}}}')
    (folder / "tokenizer.json").write_text("{}")
    sha = hashlib.sha256(b"{}").hexdigest()
    return Checkpoint(folder.name, str(folder), "full", fingerprint(weight_files(folder)), sha)


def requests(count: int, **words: list[int]) -> list[Request]:
    """`words`: what some of the prompts say, such as poison=[3]."""
    said = {number: word for word, numbers in words.items() for number in numbers}
    return [Request(f"toy/q{number}", (), f"Q {said.get(number, '')}", 8) for number in range(count)]


def answered(engine: Engine, asked: list[Request]) -> dict[str, Completion]:
    """By id; each must come once."""
    found: dict[str, Completion] = {}
    for one in engine.generate(asked):
        if not isinstance(one, Passed):
            assert one.id not in found, f"{one.id} is answered twice"
            found[one.id] = one
    assert set(found) == {request.id for request in asked}
    return found


def ray_processes() -> list[int]:
    """Of all local Rays that medbench started on this machine; without those that are dead already."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and _is_of_ray(entry):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _is_of_ray(process: Path) -> bool:
    if process.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "Z" or int(process.name) == os.getpid():
        return False
    if f"{MARK}=".encode() in process.joinpath("environ").read_bytes():
        return True
    return any("/medbench-ray-" in str(one.readlink()) for one in process.joinpath("fd").iterdir())


def wait_until(true: object, seconds: float = 20.0) -> bool:
    """Whether `true()` became true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False
