"""A model whose weights stay on disk: those of a decoder layer are in memory only while it runs.

    model = without_weights(config, torch.float32)
    units = units_of(model)
    with streamed(model, units, device, load, release):  # load(name, unit) before a unit runs, release(...) after it
        model(input_ids=tokens)

A unit is a decoder layer, or another module with weights of its own, such as an embedding. A weight that is not loaded
is a single NaN that is shown in the weight's shape, so that whatever reads it by another way turns into NaN.
"""

from __future__ import annotations

import ctypes
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.weights import check_safetensors, read_json_file

Unit = Callable[[str, Any], None]


class CannotStream(Exception):
    """The model or the adapter does what this module does not follow: it must be loaded whole."""


def without_weights(config: Any, dtype: Any) -> Any:
    """The model of a transformers config in eval mode, its parameters taking no memory, its buffers computed."""
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)  # type: ignore[no-untyped-call]
    model.tie_weights()
    forget(model)
    if set(model.state_dict()) != {name for name, _ in model.named_parameters(remove_duplicate=False)}:
        raise CannotStream("it has buffers that are saved")
    return model.eval()


def forget(module: Any) -> None:
    """Free the parameters of `module`; tied ones stay tied."""
    import torch

    empty: dict[int, Any] = {}
    for _, part, key, parameter in parameters_of(module):
        if id(parameter) not in empty:
            nothing = torch.full((), float("nan"), dtype=parameter.dtype).expand(parameter.shape)
            empty[id(parameter)] = torch.nn.Parameter(nothing, requires_grad=False)
        part._parameters[key] = empty[id(parameter)]


def is_loaded(parameter: Any) -> bool:
    """False also for a copy of a weight that is not loaded."""
    if parameter.device.type == "meta":
        return False
    if parameter.numel() == 1:
        return not bool(parameter.isnan())
    return bool(parameter.numel() == 0 or parameter.untyped_storage().nbytes() > parameter.element_size())


def units_of(model: Any) -> list[str]:
    """The names of the model's units. Raises CannotStream for weights that belong to none."""
    from torch.nn import ModuleList

    found: list[str] = []

    def walk(prefix: str, module: Any) -> None:
        for key, child in module.named_children():
            if next(child.parameters(), None) is None:
                continue
            if isinstance(child, ModuleList):
                found.extend(f"{prefix}{key}.{number}" for number in range(len(child)))
            elif next(child.parameters(recurse=False), None) is not None:
                found.append(f"{prefix}{key}")
            else:
                walk(f"{prefix}{key}.", child)

    walk("", model)
    starts = tuple(f"{name}." for name in found)
    if alone := [name for name, *_ in parameters_of(model) if not name.startswith(starts)]:
        raise CannotStream(f"{alone[0]} belongs to no layer")
    return found


@contextmanager
def streamed(model: Any, units: Sequence[str], device: Any, load: Unit, release: Unit) -> Iterator[None]:
    """Within, each unit is loaded before it runs and released after; at the end also those that did not run.

    Without gradients, and with the model's buffers on `device`.

    Raises CannotStream for a unit that runs twice.
    """
    import torch

    begun: set[str] = set()
    hooks = []

    def before(name: str) -> Callable[..., None]:
        def hook(unit: Any, *_: Any) -> None:
            if name in begun:
                raise CannotStream(f"{name} runs more than once")
            begun.add(name)
            load(name, unit)

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(unit: Any, *_: Any) -> None:
            release(name, unit)
            _return_memory()

        return hook

    for module in model.modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type != "meta":
                module._buffers[key] = buffer.to(device)
    try:
        for name in units:
            unit = model.get_submodule(name)
            hooks += [unit.register_forward_pre_hook(before(name)), unit.register_forward_hook(after(name))]
        with torch.no_grad():
            yield
            for name in units:
                if name not in begun:
                    unit = model.get_submodule(name)
                    load(name, unit)
                    release(name, unit)
                    _return_memory()
    finally:
        for hook in hooks:
            hook.remove()


class StoredWeights:
    """The weights of a checkpoint's files, for a model of `without_weights`."""

    def __init__(self, folder: Path, model: Any) -> None:
        """Raises CannotStream unless the files hold each weight under its name in transformers."""
        self._file_of: dict[str, Path] = {}
        shapes: dict[str, list[int]] = {}
        for file in _files_that_transformers_reads(folder):
            header = check_safetensors(file)
            self._file_of.update(dict.fromkeys(header, file))
            shapes.update({name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"})
        self._name_of: dict[tuple[int, str], str] = {}
        self._modules: list[Any] = []  # kept alive: they are known by their ids
        self.tied: list[list[tuple[str, Any, str]]] = []
        """Places of each weight that has several: (full name, module, name in the module)."""
        groups: dict[int, list[tuple[str, Any, str, Any]]] = defaultdict(list)
        for entry in parameters_of(model):
            groups[id(entry[3])].append(entry)
        for group in groups.values():
            names = [name for name, *_ in group]
            stored = [name for name in names if name in shapes]
            if len(stored) != 1:
                raise CannotStream(f"{names[0]} is {len(stored)} times in the files")
            for _, module, key, parameter in group:
                self._name_of[id(module), key] = stored[0]
                self._modules.append(module)
                if list(parameter.shape) != shapes[stored[0]]:
                    del self._name_of[id(module), key]
            if len(group) > 1:
                self.tied.append([(name, module, key) for name, module, key, _ in group])

    def has(self, module: Any, key: str) -> bool:
        """Whether the weight `key` of `module` is stored, in its shape."""
        return (id(module), key) in self._name_of

    def load(self, wanted: Sequence[tuple[Any, str]], device: Any, dtype: Any) -> None:
        """Read the weights `wanted`, pairs of (module, name of its parameter), onto `device`."""
        import torch
        from safetensors import safe_open

        files: dict[Path, list[tuple[Any, str, str]]] = defaultdict(list)
        for module, key in wanted:
            name = self._name_of[id(module), key]
            files[self._file_of[name]].append((module, key, name))
        for path, entries in files.items():
            # reopened each time: pages of the file that were read count as this process's memory until it is closed
            with safe_open(path, framework="pt") as file:
                for module, key, name in entries:
                    tensor = file.get_tensor(name).to(device).to(dtype, copy=device.type == "cpu")
                    module._parameters[key] = torch.nn.Parameter(tensor, requires_grad=False)


def _return_memory() -> None:
    """Give freed memory back to the system: glibc keeps what is freed between what is in use, some 80 MB a layer."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def largest_unit(model: Any, units: Sequence[str]) -> int:
    """Bytes of its weights."""
    return max(sum(int(one.nbytes) for one in model.get_submodule(name).parameters()) for name in units)


def _files_that_transformers_reads(folder: Path) -> list[Path]:
    """Others may lie beside, such as Mistral's consolidated.safetensors."""
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        raise CannotStream("no model.safetensors and no index")
    return sorted({folder / str(name) for name in read_json_file(index).get("weight_map", {}).values()})


def parameters_of(module: Any) -> Iterator[tuple[str, Any, str, Any]]:
    """(full name, module, name in the module, parameter) of each parameter, tied ones once for each of their places."""
    for path, part in module.named_modules():
        for key, parameter in part._parameters.items():
            if parameter is not None:
                yield f"{path}.{key}" if path else key, part, key, parameter
