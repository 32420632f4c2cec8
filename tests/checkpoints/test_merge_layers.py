"""Adapters merged layer by layer: as with the whole base in memory, in shards, and with little memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.tiny import build_tiny_lora, build_tiny_model

from medbench.harness.checkpoints import merge, shards
from medbench.harness.checkpoints.merge import merge_adapter
from medbench.harness.checkpoints.streaming import CannotStream
from medbench.harness.checkpoints.weights import check_safetensors, weight_files
from medbench.harness.contracts import BrokenCheckpoint, MedbenchError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

PEAK = """
import os, re, sys
from pathlib import Path
from medbench.harness.checkpoints.merge import merge_adapter

def peak(kind, adapter, base, target):
    def now(name):
        return int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
    target.mkdir()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before = now("VmRSS")
    merge_adapter(base, adapter, base, target)
    return now("VmHWM") - before

root = Path(sys.argv[1])
peak("first", root / "small-adapter", root / "small", root / "small-merged")  # what libraries need themselves
print(peak("second", root / "large-adapter", root / "large", root / "large-merged"))
"""


def merged(base: Path, adapter: Path, folder: Path) -> dict[str, Any]:
    """The merged tensors by name."""
    from safetensors.torch import load_file

    folder.mkdir()
    merge_adapter(base, adapter, base, folder)
    return {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}


def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge with the whole base in memory."""

    def refuse(*_: object) -> float:
        raise CannotStream("for comparison")

    monkeypatch.setattr(merge, "merge_by_layers", refuse)


def forbid_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "_merge_whole", lambda *_: pytest.fail("the whole base was loaded"))


def in_type(base: Path, dtype: str, folder: Path) -> Path:
    """A copy of the base in another type."""
    import torch
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).save_pretrained(folder)
    for file in base.iterdir():
        if not (folder / file.name).exists():
            shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("use_dora", [False, True], ids=["rslora", "dora + rslora"])
def test_merging_layer_by_layer_changes_no_bit(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, use_dora: bool
) -> None:
    import torch

    base = in_type(tiny_model, dtype, tmp_path / "base")
    adapter = build_tiny_lora(base, tmp_path / "adapter", use_dora=use_dora, use_rslora=True)
    with monkeypatch.context() as only:
        forbid_whole(only)
        found = merged(base, adapter, tmp_path / "by-layers")
    whole(monkeypatch)
    wanted = merged(base, adapter, tmp_path / "whole")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "by-layers" / name).read_text()) == json.loads(
            (tmp_path / "whole" / name).read_text()
        )


def test_a_large_merge_is_written_in_shards(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    forbid_whole(monkeypatch)
    adapter = build_tiny_lora(tiny_model, tmp_path / "adapter", use_dora=True, use_rslora=True)
    one = merged(tiny_model, adapter, tmp_path / "one")
    monkeypatch.setattr(shards.ShardWriter.__init__, "__kwdefaults__", {"largest": 500_000})
    several = merged(tiny_model, adapter, tmp_path / "several")
    files = weight_files(tmp_path / "several")
    assert [file.name for file in files] == [
        f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
    ]
    assert len(files) > 2
    assert all(file.stat().st_size < 510_000 for file in files)
    assert one.keys() == several.keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "several", dtype=torch.float32).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in one.items())


def test_a_base_in_shards_is_merged_as_one_in_a_file(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    forbid_whole(monkeypatch)
    adapter = build_tiny_lora(tiny_model, tmp_path / "adapter", use_dora=True, use_rslora=False)
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).save_pretrained(base, max_shard_size="500KB")
    shutil.copy(tiny_model / "tokenizer.json", base)
    assert len(weight_files(base)) > 2
    wanted = merged(tiny_model, adapter, tmp_path / "wanted")
    found = merged(base, adapter, tmp_path / "found")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_model_whose_files_name_its_weights_otherwise_is_merged_whole(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in mixtures of experts, whose weights transformers joins when it loads them."""
    import torch
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(tiny_model, tmp_path / "base")
    adapter = build_tiny_lora(tiny_model, tmp_path / "adapter", use_dora=True, use_rslora=True)
    wanted = merged(base, adapter, tmp_path / "wanted")
    weights = load_file(base / "model.safetensors")
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    save_file(bare, base / "model.safetensors", metadata={"format": "pt"})
    found = merged(base, adapter, tmp_path / "found")
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_weight_that_is_used_outside_of_its_layer_is_noticed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of a layer that is not running are NaN: nothing is computed with them unnoticed."""
    from transformers import Qwen3ForCausalLM

    adapter = build_tiny_lora(tiny_model, tmp_path / "adapter", use_dora=False, use_rslora=False)
    wanted = merged(tiny_model, adapter, tmp_path / "wanted")
    forward = Qwen3ForCausalLM.forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = forward(self, *args, **kwargs)
        result.logits = result.logits * (1 + 0 * self.model.norm.weight.sum())
        return result

    loaded: list[bool] = []
    inner = merge._merge_whole
    monkeypatch.setattr(merge, "_merge_whole", lambda *given: loaded.append(True) or inner(*given))
    monkeypatch.setattr(Qwen3ForCausalLM, "forward", scaled)
    found = merged(tiny_model, adapter, tmp_path / "found")
    assert loaded
    assert found.keys() == wanted.keys()


@pytest.mark.parametrize("what", ["adapter", "base"])
def test_the_deviation_is_that_of_the_files_written(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A merge that went wrong is seen in its figure."""
    from medbench.harness.checkpoints.shards import ShardWriter

    adapter = build_tiny_lora(tiny_model, tmp_path / "adapter", use_dora=True, use_rslora=True)
    add = ShardWriter.add
    spoiled = "v_proj" if what == "adapter" else "model.norm"
    monkeypatch.setattr(
        ShardWriter, "add", lambda self, name, tensor: add(self, name, tensor * 1.5 if spoiled in name else tensor)
    )
    merged(tiny_model, adapter, tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / merge.MERGE_FILE).read_text())["deviation"] > 0.1


def test_a_header_written_last_has_room_for_every_tensor(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    made = {f"{'layer' * number}.é": torch.full((number, 1, 2), 1.0 * number) for number in range(1, 20)}
    with shards.ShardWriter(tmp_path, made) as writer:
        for name, tensor in made.items():
            writer.add(name, tensor)
    assert check_safetensors(tmp_path / "model.safetensors").keys() == made.keys() | {"__metadata__"}
    found = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(found[name], tensor) for name, tensor in made.items())


def test_an_error_leaves_no_model(tmp_path: Path) -> None:
    import torch

    with suppress(ZeroDivisionError), shards.ShardWriter(tmp_path, ["a", "b"]) as writer:
        writer.add("a", torch.zeros(3))
        1 / 0  # noqa: B018
    assert not (tmp_path / "model.safetensors").exists()


def test_a_disk_that_is_full_at_the_end_is_said_to_be_full(tiny_model: Path, tmp_path: Path, small_disk: Path) -> None:
    adapter = build_tiny_lora(tiny_model, tmp_path / "adapter", use_dora=False, use_rslora=False)
    (small_disk / "merged").mkdir()
    with pytest.raises(OSError, match="No space left"):
        merge_adapter(tiny_model, adapter, tiny_model, small_disk / "merged")


def test_a_damaged_base_is_blamed(tiny_model: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    adapter = build_tiny_lora(tiny_model, tmp_path / "adapter", use_dora=False, use_rslora=False)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"hidden_size": 256}))
    (tmp_path / "merged").mkdir()
    with pytest.raises(MedbenchError, match="does not fit its base"):
        merge_adapter(base, adapter, base, tmp_path / "merged")


@pytest.mark.parametrize("whole_base", [False, True])
def test_a_merge_without_memory_says_what_it_needs(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_base: bool
) -> None:
    def fail(*_: object) -> float:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
            "allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
        )

    if whole_base:
        whole(monkeypatch)
    monkeypatch.setattr(merge, "_merge_whole" if whole_base else "merge_by_layers", fail)
    adapter = build_tiny_lora(tiny_model, tmp_path / "adapter", use_dora=False, use_rslora=False)
    with pytest.raises(MedbenchError) as caught:
        merged(tiny_model, adapter, tmp_path / "merged")
    assert not isinstance(caught.value, BrokenCheckpoint)
    line = str(caught.value)
    assert line.startswith(f"adapter {adapter} cannot be merged into {tiny_model}: out of memory ([enforce fail")
    assert ("four bytes a weight" in line) is whole_base
    assert ("four times its largest layer" in line) is not whole_base


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peak memory from /proc")
def test_memory_does_not_grow_with_the_number_of_layers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(build_tiny_model(tmp_path / "small"))
    build_tiny_lora(tmp_path / "small", tmp_path / "small-adapter", use_dora=True, use_rslora=True)
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_key_value_heads": 8}
    config = Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=24, head_dim=64, dtype="bfloat16", **sizes)
    model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    size = 4 * sum(one.numel() for one in model.parameters())
    layer = 4 * sum(one.numel() for one in model.model.layers[0].parameters())
    model.save_pretrained(tmp_path / "large")
    tokenizer.save_pretrained(tmp_path / "large")
    del model
    build_tiny_lora(tmp_path / "large", tmp_path / "large-adapter", use_dora=True, use_rslora=True)
    found = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    peak = int(found.stdout.split()[-1])
    assert layer * 20 < size, "the model must be large beside a layer"
    assert peak < size / 2, f"{peak / 1e6:.0f} MB for a model of {size / 1e6:.0f} MB in float32"
