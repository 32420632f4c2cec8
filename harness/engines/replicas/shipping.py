"""Weights copied to the nodes that lack them, by Ray's object store, once to each node.

A node keeps them in its cache, under the weights' fingerprint, so that a second evaluation copies nothing. A copy is
used only when its weight files have the same fingerprint as the ones here.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.cache import cache_dir, make_cache_dir
from medbench.harness.checkpoints.fingerprint import fingerprint, tokenizer_files
from medbench.harness.checkpoints.weights import weight_files
from medbench.harness.contracts import Checkpoint, MedbenchError
from medbench.harness.text import one_line

CHUNK = 32 * 2**20
"""Bytes of one message: a few must fit in the object store of every node."""
AT_ONCE = 2
"""Chunks under way to all nodes."""

log = logging.getLogger("medbench")


def ship(ray: Any, actors: Mapping[str, Any], checkpoint: Checkpoint, weights: str) -> dict[str, str]:
    """Node -> the folder from which it can load the checkpoint. `actors`: one on each node."""
    sees = ray.get([one.sees.remote(checkpoint.path, weights) for one in actors.values()])
    found = {node: checkpoint.path for node, there in zip(actors, sees, strict=True) if there}
    lacking = {node: actors[node] for node in actors if node not in found}
    name = f"{weights[:24]}-{checkpoint.tokenizer_sha256[:8]}-{(checkpoint.config_sha256 or '')[:8]}"
    folders = dict(zip(lacking, ray.get([one.copy_begin.remote(name) for one in lacking.values()]), strict=True))
    done = ray.get([lacking[node].sees.remote(folders[node], weights) for node in lacking])
    needing = {node: lacking[node] for node, there in zip(lacking, done, strict=True) if not there}
    if needing:
        started, sent = time.monotonic(), 0
        under_way: list[Any] = []
        for file, offset, chunk in _chunks(Path(checkpoint.path)):
            content = ray.put(chunk)
            under_way.append([one.copy_write.remote(name, file, offset, content) for one in needing.values()])
            sent += len(chunk)
            del content
            if len(under_way) > AT_ONCE:
                ray.get(under_way.pop(0))
        for calls in under_way:
            ray.get(calls)
        ray.get([one.copy_end.remote(name) for one in needing.values()])
        log.info(
            "%s: %.1f GB sent to %d nodes in %.1f s", checkpoint.name, sent / 1e9, len(needing),
            time.monotonic() - started,
        )  # fmt: skip
    return found | folders


# --- on the node -----------------------------------------------------------------------------------------------------


def folder_of(name: str) -> Path:
    return cache_dir() / "shipped" / name


def begin(name: str) -> str:
    """Where the copy will be."""
    make_cache_dir()
    partial = _partial(name)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    except OSError as error:
        raise _cannot(partial, error) from None
    return str(folder_of(name))


def write(name: str, file: str, offset: int, chunk: bytes) -> None:
    try:
        with (_partial(name) / Path(file).name).open("r+b" if offset else "wb") as target:
            target.seek(offset)
            target.write(chunk)
    except OSError as error:
        raise _cannot(_partial(name), error) from None


def end(name: str) -> None:
    """The copy is whole."""
    try:
        shutil.rmtree(folder_of(name), ignore_errors=True)  # one that has been damaged
        _partial(name).rename(folder_of(name))
    except OSError as error:
        raise _cannot(folder_of(name), error) from None
    with suppress(OSError, MedbenchError):
        fingerprint(weight_files(folder_of(name)))


def _chunks(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    """(file, offset, content) of all that an engine reads."""
    others = [*folder.glob("*.json"), *folder.glob("*.jinja"), *tokenizer_files(folder)]
    for path in dict.fromkeys([*others, *weight_files(folder)]):
        with path.open("rb") as file:
            offset = 0
            while (chunk := file.read(CHUNK)) or not offset:
                yield path.name, offset, chunk
                offset += len(chunk)
                if not chunk:
                    break


def _partial(name: str) -> Path:
    return folder_of(name).with_name(f".{name}.{os.getpid()}.tmp")


def _cannot(path: Path, error: OSError) -> MedbenchError:
    return MedbenchError(f"{path}: cannot be written ({one_line(error)}): make room there, or set MEDBENCH_CACHE")
