"""Checkpoints without weights worth the name, and what is left of a Ray, for tests of replicas."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

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


@contextmanager
def own_place() -> Iterator[Path]:
    """A folder for the files of local Rays, so that those of tests in other processes are told apart. Its path must be
    short."""
    folder = Path(tempfile.mkdtemp(prefix="mb", dir="/tmp"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        patch.setattr(tempfile, "tempdir", str(folder))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield folder
    shutil.rmtree(folder, ignore_errors=True)


def ray_processes(place: Path) -> list[int]:
    """Of all local Rays with their files in `place`; without those that are dead already."""
    return [int(entry.name) for entry in _of_ray(place)]


def answering(place: Path) -> list[int]:
    """Replicas of such a Ray that answer questions now."""
    return [
        int(entry.name)
        for entry in _of_ray(place)
        if entry.joinpath("cmdline").read_bytes().startswith(b"ray::Replica.take")
    ]


def _of_ray(place: Path) -> Iterator[Path]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # it has ended meanwhile
            if entry.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z" and _is_of(place, entry):
                yield entry


def _is_of(place: Path, process: Path) -> bool:
    environment = process.joinpath("environ").read_bytes()
    if f"{MARK}=".encode() in environment and f"TMPDIR={place}".encode() in environment:
        return True
    return any(str(one.readlink()).startswith(f"{place}/medbench-ray-") for one in process.joinpath("fd").iterdir())


def wait_until(true: object, seconds: float = 20.0) -> bool:
    """Whether `true()` became true in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if true():  # type: ignore[operator]
            return True
        time.sleep(0.05)
    return False
