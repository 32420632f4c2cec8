"""Safetensors files written one tensor at a time, so that a model can be saved that does not fit into memory.

    with ShardWriter(folder, names) as shards:
        shards.add("lm_head.weight", tensor)

The format: eight bytes with the header's length, the header in JSON, then the tensors. The header has the length that
it would have if all tensors were in one file, padded with blanks as the format allows, and is written last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from medbench.harness.contracts import MedbenchError

LARGEST = 5_000_000_000
"""Bytes of the tensors in one file, unless a single tensor has more."""
OF_TORCH = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""The types that can be written, by their names in torch."""
ENTRY = len('"":{"dtype":"BF16","shape":[],"data_offsets":[,]},') + 2 * 16 + 8 * 12
"""Characters of one tensor's entry in the header, its name left out, at most (8 dimensions)."""


class NotWritten(MedbenchError):
    """A file could not be written, for `reason`: no fault of what was read meanwhile."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


@contextmanager
def writing() -> Iterator[None]:
    """Raises NotWritten for an OSError or SafetensorError."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise NotWritten(error) from None


class ShardWriter:
    """Writes `model.safetensors`, or several files of at most `largest` bytes of tensors and their index.

    `names`: of all tensors that may be added. Raises NotWritten. After an error of any kind the folder is not to be
    used.
    """

    def __init__(self, folder: Path, names: Iterable[str], *, largest: int = LARGEST) -> None:
        self._folder = folder
        self._largest = largest
        room = len('{"__metadata__":{"format":"pt"}}') + sum(len(json.dumps(name)) + ENTRY for name in names)
        self._header = -(-room // 8) * 8
        self._file: BinaryIO | None = None
        self._entries: dict[str, Any] = {}
        self._end = 0
        self._of_shard: dict[str, int] = {}
        self._shards = 0
        self._bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            with writing():
                self._finish_shard()
                self._name_shards()
        elif self._file is not None:
            self._file.close()

    def add(self, name: str, tensor: Any) -> None:
        """`tensor`: on any device, of a type in OF_TORCH."""
        with writing():
            self._add(name, tensor)

    def _add(self, name: str, tensor: Any) -> None:
        import torch

        if self._file is not None and self._end + tensor.nbytes > self._largest:
            self._finish_shard()
        if self._file is None:
            self._shards += 1
            self._file = self._unnamed(self._shards).open("wb")
            self._file.seek(8 + self._header)
        on_cpu = tensor.detach().cpu().contiguous()
        self._file.write(on_cpu.reshape(-1).view(torch.uint8).numpy().data)
        end = self._end + tensor.nbytes
        dtype = OF_TORCH[str(tensor.dtype).removeprefix("torch.")]
        self._entries[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [self._end, end]}
        self._of_shard[name] = self._shards
        self._end = end
        self._bytes += tensor.nbytes

    def _unnamed(self, shard: int) -> Path:
        """Where a shard is written while it is not known of how many."""
        return self._folder / f"model-{shard:05d}.safetensors"

    def _finish_shard(self) -> None:
        if self._file is None:
            return
        header = json.dumps({"__metadata__": {"format": "pt"}, **self._entries}, separators=(",", ":")).encode()
        with self._file as file:
            file.seek(0)
            file.write(self._header.to_bytes(8, "little") + header.ljust(self._header))
        self._file, self._entries, self._end = None, {}, 0

    def _name_shards(self) -> None:
        if self._shards == 1:
            self._unnamed(1).rename(self._folder / "model.safetensors")
            return
        names = {number: f"model-{number:05d}-of-{self._shards:05d}.safetensors" for number in self._of_shard.values()}
        for number, name in names.items():
            self._unnamed(number).rename(self._folder / name)
        index = {
            "metadata": {"total_size": self._bytes},
            "weight_map": {name: names[number] for name, number in sorted(self._of_shard.items())},
        }
        (self._folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def remove_shards(folder: Path) -> None:
    """Remove what a ShardWriter has written to `folder`."""
    for path in folder.iterdir():
        if re.fullmatch(r"model(-\d{5}(-of-\d{5})?)?\.safetensors|model\.safetensors\.index\.json", path.name):
            path.unlink()
