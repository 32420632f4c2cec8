"""How fast large weights are fingerprinted, and adapters merged into them, and with how much memory.

    python tests/bench/weights.py                 # 10 GB fingerprinted, 4 GB merged: 18 GB of disk, removed afterwards
    python tests/bench/weights.py --fingerprint-gb 1 --merge-gb 1 --folder /mnt/scratch

Each is done by a process of its own, from files that are not in the page cache. Peak memory is the process's own (RSS)
beyond what Python and its libraries take after the same work on a tiny checkpoint. Target: at most twice a shard of
the base, and no more for a base with more layers.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from support.tiny import build_tiny_lora, build_tiny_model

from medbench.harness.checkpoints.fingerprint import fingerprint
from medbench.harness.checkpoints.merge import MERGE_FILE, merge_adapter
from medbench.harness.checkpoints.shards import ShardWriter
from medbench.harness.checkpoints.streaming import parameters_of, without_weights
from medbench.harness.checkpoints.weights import read_json_file, weight_files

SHARD = 2_000_000_000
RANK = 16


def write_model(folder: Path, gigabytes: float, tiny: Path) -> None:
    """A Qwen3 of 1.7B's layers with random bfloat16 weights, as many layers as make `gigabytes`."""
    import torch
    from transformers import Qwen3Config

    torch.manual_seed(0)
    sizes = {"hidden_size": 2048, "intermediate_size": 6144, "num_attention_heads": 16, "num_key_value_heads": 8}
    embedding, layer = 151_936 * 2048, 50_336_000
    layers = max(1, round((gigabytes * 1e9 / 2 - embedding) / layer))
    config = Qwen3Config(
        vocab_size=151_936, head_dim=128, num_hidden_layers=layers, tie_word_embeddings=True, dtype="bfloat16", **sizes
    )
    model = without_weights(config, torch.bfloat16)
    shapes = {name: one.shape for name, _, _, one in parameters_of(model) if name != "lm_head.weight"}
    folder.mkdir()
    with ShardWriter(folder, shapes, largest=SHARD) as shards:
        for name, shape in shapes.items():
            weights = torch.ones(shape) if len(shape) == 1 else torch.empty(shape).normal_(std=0.02)
            shards.add(name, weights.to(torch.bfloat16))
    model.config.architectures = ["Qwen3ForCausalLM"]
    model.config.save_pretrained(folder)
    for file in tiny.glob("tokenizer*"):
        shutil.copy(file, folder)


def write_adapter(folder: Path, base: Path) -> None:
    """DoRA with rsLoRA on all linear layers, its tensors random."""
    import peft
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig

    torch.manual_seed(1)
    config = peft.LoraConfig(r=RANK, target_modules="all-linear", use_dora=True, use_rslora=True, task_type="CAUSAL_LM")
    config.base_model_name_or_path = str(base)
    model = without_weights(AutoConfig.from_pretrained(base), torch.float32)
    adapted: Any = peft.get_peft_model(model, config, low_cpu_mem_usage=True)
    weights = {}
    for name, one in peft.get_peft_model_state_dict(adapted).items():
        width = model.get_submodule(name.split("base_model.model.")[1].rsplit(".lora_", 1)[0]).in_features
        weights[name] = torch.full(one.shape, 0.02 * width**0.5) if one.dim() == 1 else torch.randn(one.shape) * 0.01
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(folder)


def drop_from_cache(folder: Path) -> None:
    """So that it is read from the disk."""
    os.sync()
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def measure(work: Any, small: Any) -> tuple[float, int]:
    """(seconds, peak bytes beyond those that are held after the `small` work) of `work`."""
    small()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    before, start = memory("VmRSS"), time.perf_counter()
    work()
    return time.perf_counter() - start, memory("VmHWM") - before


def size_of(folder: Path) -> float:
    return sum(file.stat().st_size for file in weight_files(folder)) / 1e9


def measure_fingerprint(root: Path) -> None:
    large, tiny = root / "large", root / "tiny"
    drop_from_cache(large)
    seconds, peak = measure(lambda: fingerprint(weight_files(large)), lambda: fingerprint(weight_files(tiny)))
    size = size_of(large)
    files = len(weight_files(large))
    print(f"fingerprint of {size:.1f} GB in {files} files: {seconds:.1f} s, {size / seconds:.2f} GB/s, ", end="")
    print(f"{peak / 1e6:.0f} MB at peak", flush=True)


def merged(base: Path, adapter: Path, target: Path) -> Path:
    target.mkdir()
    merge_adapter(base, adapter, base, target)
    return target


def measure_merge(root: Path) -> None:
    base, target = root / "base", root / "merged"
    drop_from_cache(base)
    seconds, peak = measure(
        lambda: merged(base, root / "adapter", target),
        lambda: merged(root / "tiny", root / "tiny-adapter", root / "tiny-merged"),
    )
    size, shard = size_of(base), max(file.stat().st_size for file in weight_files(base)) / 1e9
    deviation = read_json_file(target / MERGE_FILE)["deviation"]
    print(
        f"merge of DoRA + rsLoRA (rank {RANK}) into {size:.1f} GB: {seconds:.0f} s, {seconds / size:.1f} s/GB, ", end=""
    )
    print(f"{peak / 1e9:.2f} GB at peak beside shards of {shard:.2f} GB, deviation {deviation:.2g} nats", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fingerprint-gb", type=float, default=10)
    parser.add_argument("--merge-gb", type=float, default=4)
    parser.add_argument("--folder", type=Path, help="where there is room for them; default: the temporary folder")
    parser.add_argument("--measure", choices=["fingerprint", "merge"], help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        {"fingerprint": measure_fingerprint, "merge": measure_merge}[given.measure](given.folder)
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        root = Path(folder)
        tiny = build_tiny_model(root / "tiny")
        build_tiny_lora(tiny, root / "tiny-adapter", use_dora=True, use_rslora=True)
        command = [sys.executable, __file__, "--folder", folder, "--measure"]
        environment = {**os.environ, "MEDBENCH_CACHE": str(root / "cache")}
        if given.fingerprint_gb:
            write_model(root / "large", given.fingerprint_gb, tiny)
            subprocess.run([*command, "fingerprint"], check=True, env=environment)
            shutil.rmtree(root / "large")
        if given.merge_gb:
            write_model(root / "base", given.merge_gb, tiny)
            write_adapter(root / "adapter", root / "base")
            subprocess.run([*command, "merge"], check=True, env=environment)


if __name__ == "__main__":
    main()
