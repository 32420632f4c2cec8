"""The files of a PEFT adapter: what they say, whether they fit a base, and whether vLLM can serve them as they are.

folder = AdapterFolder.read(Path("adapters/medqa")); print(folder.why_merged(Path("qwen3-8b")))
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.fingerprint import fingerprint, tokenizer_files
from medbench.harness.checkpoints.quantization import is_quantized
from medbench.harness.checkpoints.weights import check_safetensors, read_json_file, refuse_sharded, weight_files
from medbench.harness.contracts import BrokenCheckpoint, MedbenchError
from medbench.harness.text import foreign

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
VOCABULARY = ("tokenizer.json", "tokenizer.model", "vocab")
"""An adapter folder with one of these files has its own tokenizer; otherwise the base's is used."""

SERVED = frozenset(
    (
        "auto_mapping",
        "base_model_name_or_path",
        "eva_config",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "megatron_config",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "revision",
        "runtime_config",
        "target_modules",
        "task_type",
        "use_rslora",
    )
)
"""Keys of adapter_config.json that vLLM honours, or that say nothing of the finished weights. Any other that is set, of
today's peft or a later one, is a kind of LoRA that vLLM would serve as if it were plain."""
PLAIN_INIT = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base's weights as they are."""
FACTOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
MERGED_ONLY = ("embed_tokens", "wte", "lm_head", "embed_out", "output")
"""Last parts of names of embeddings and output layers, of which vLLM takes adapters for some models only."""


@dataclass(frozen=True, slots=True)
class AdapterFolder:
    """An adapter on disk, its files sound as far as they can be without a base."""

    path: Path
    config: Mapping[str, Any]
    """adapter_config.json."""
    tensors: Mapping[str, Any]
    """Header of the weights: name -> {"dtype", "shape", "data_offsets"}."""

    @staticmethod
    def read(path: Path) -> AdapterFolder:
        """Raises BrokenCheckpoint for files that are missing or damaged."""
        config = read_json_file(path / ADAPTER_CONFIG)
        refuse_sharded(path)
        if not (path / ADAPTER_WEIGHTS).exists():
            raise BrokenCheckpoint(f"{path}: an adapter without {ADAPTER_WEIGHTS}: save it with save_pretrained()")
        tensors = check_safetensors(path / ADAPTER_WEIGHTS)
        return AdapterFolder(path, config, {name: one for name, one in tensors.items() if name != "__metadata__"})

    @property
    def base_name(self) -> str | None:
        """The base model as the adapter names it."""
        named = self.config.get("base_model_name_or_path")
        return named if isinstance(named, str) and named else None

    @property
    def revision(self) -> str | None:
        """Of its base on the Hub, as peft means it."""
        pinned = self.config.get("revision")
        return pinned if isinstance(pinned, str) and pinned else None

    @property
    def rank(self) -> int:
        """The largest of its factors; 0 where there are none."""
        found = (FACTOR.fullmatch(name) for name in self.tensors)
        sides = (self.tensors[match[0]]["shape"] for match in found if match and match["side"] == "A")
        return max((shape[0] for shape in sides if shape), default=0)

    @property
    def weight_bytes(self) -> int:
        return (self.path / ADAPTER_WEIGHTS).stat().st_size

    @property
    def own_tokenizer(self) -> bool:
        return any(path.name.startswith(VOCABULARY) for path in tokenizer_files(self.path))

    def identity(self, base_fingerprint: str) -> str:
        """sha256 over adapter and base, wherever they are; of the merged model too."""
        own = json.dumps({**self.config, "base_model_name_or_path": base_fingerprint}, sort_keys=True)
        weights = fingerprint([self.path / ADAPTER_WEIGHTS])
        return hashlib.sha256(f"{weights} {own}".encode()).hexdigest()

    def why_merged(self, base: Path) -> str | None:
        """Why vLLM cannot serve the adapter beside `base`, so that it has to be merged; None for plain LoRA and rsLoRA.

        Raises BrokenCheckpoint for factors that do not fit the base's matrices; merging refuses other misfits.
        """
        return self._why_not_plain() or (None if is_quantized(base) else self._why_unlike(base))

    def _why_not_plain(self) -> str | None:
        if self.config.get("peft_type") != "LORA":
            return f"it is a {foreign(self.config.get('peft_type'), 40)} adapter"
        if self.config.get("use_dora"):
            return "it is a DoRA adapter"
        if self.config.get("init_lora_weights", True) not in PLAIN_INIT:
            return f"its init_lora_weights is {foreign(self.config['init_lora_weights'], 40)}"
        for key, value in self.config.items():
            if key not in SERVED and key != "init_lora_weights" and value and (key, value) != ("bias", "none"):
                return f"its config sets {foreign(key, 40)}"
        for name in self.tensors:
            factor = FACTOR.fullmatch(name)
            if factor is None:
                return f"it holds {foreign(name, 80)}"
            if (part := factor["module"].rpartition(".")[2]) in MERGED_ONLY:
                return f"it adapts {part}"
        rank = self.config.get("r")
        if isinstance(rank, bool) or rank != self.rank:
            return f"its rank is {foreign(rank, 20)} by its config and {self.rank} by its weights"
        return None

    def _why_unlike(self, base: Path) -> str | None:
        headers = (check_safetensors(file) for file in weight_files(base))
        shapes = {name: one["shape"] for header in headers for name, one in header.items() if name != "__metadata__"}
        factors = [match for name in self.tensors if (match := FACTOR.fullmatch(name))]
        if not any(f"{one['module']}.weight" in shapes for one in factors):
            return "its layers have other names than the base's"
        for one in factors:
            mine, matrix = self.tensors[one[0]]["shape"], shapes.get(f"{one['module']}.weight")
            at = -1 if one["side"] == "A" else 0
            if not matrix or len(mine) != 2 or mine[at] != matrix[at]:
                has = f"a matrix of {_by(matrix)}" if matrix else "no such layer"
                raise BrokenCheckpoint(
                    f"adapter {self.path} does not fit its base {base}: {foreign(one[0], 120)} is {_by(mine)}, and the "
                    f"base has {has}: name its own base"
                )
        return None


def _by(shape: Sequence[int]) -> str:
    return " by ".join(map(str, shape)) or "one number"


def refuse_no_adapter(name: str, path: Path) -> None:
    """Raises MedbenchError for a folder that holds no adapter."""
    if (path / ADAPTER_CONFIG).exists():
        return
    if not path.is_dir():
        raise MedbenchError(f"adapter {name}: not a folder: name a folder with {ADAPTER_CONFIG}")
    what = "a full checkpoint, which is no adapter" if (path / "config.json").exists() else f"no {ADAPTER_CONFIG} in it"
    raise MedbenchError(f"adapter {name}: {what}: name a folder that peft's save_pretrained() wrote")
