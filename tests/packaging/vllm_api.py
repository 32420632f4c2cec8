"""What harness/engines/vllm.py uses of vLLM, and whether given Python sources of vLLM have it. Nothing is imported.

    python tests/packaging/vllm_api.py FOLDER      # a folder with vllm/ in it, such as an unzipped wheel

tests/packaging/vllm_versions.py asks this of the wheels of every minor version, and keeps the answers in
vllm_versions.json. test_vllm_api.py compares both with the engine, the installed vLLM and pyproject.toml.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ARGUMENTS = "()"
"""Ends a name whose parameters are meant."""

USED: dict[str, tuple[str, ...]] = {
    # what SamplingParams(...) is given; msgspec and, since 0.32, a generated __init__ both take the fields
    "SamplingParams": (
        "detokenize", "logprob_token_ids", "max_tokens", "output_kind", "prompt_logprobs", "seed",
        "skip_reading_prefix_cache", "skip_special_tokens", "stop", "temperature", "top_k", "top_p",
    ),
    "RequestOutputKind": ("DELTA", "FINAL_ONLY"),
    # what LLM(...) is given: parameters of its own, and through **kwargs fields of EngineArgs
    "EngineArgs": (
        "data_parallel_size", "disable_log_stats", "dtype", "enable_lora", "enable_prefix_caching", "enable_sleep_mode",
        "enforce_eager", "gpu_memory_utilization", "load_format", "max_lora_rank", "max_loras", "max_model_len",
        "max_num_batched_tokens", "max_num_seqs", "model", "seed", "tensor_parallel_size", "trust_remote_code",
        "use_tqdm_on_load",
    ),
    "LLM.__init__()": ("model", "trust_remote_code", "**"),
    "LLM": ("collective_rpc", "generate", "llm_engine", "reset_prefix_cache", "sleep", "wake_up"),
    "LLM.collective_rpc()": ("method", "kwargs"),
    "LLM.generate()": ("prompts", "sampling_params", "use_tqdm"),
    "LLM.sleep()": ("level",),
    "LLMEngine": ("abort_request", "add_lora", "add_request", "engine_core", "step", "vllm_config"),
    "LLMEngine.add_request()": ("request_id", "prompt", "params", "lora_request"),
    "LLMEngine.add_lora()": ("lora_request",),
    "LoRARequest": ("lora_name", "lora_int_id", "lora_path"),
    "LLMEngine.abort_request()": ("request_ids",),
    "EngineCoreClient": ("shutdown",),
    "InprocClient": ("shutdown",),
    "SyncMPClient": ("shutdown",),
    # reached by collective_rpc("reload_weights", kwargs={"weights_path": ...})
    "Worker": ("reload_weights",),
    "GPUModelRunner.reload_weights()": ("weights_path",),
    "RequestOutput": ("finished", "num_cached_tokens", "outputs", "prompt_logprobs", "prompt_token_ids", "request_id"),
    "CompletionOutput": ("finish_reason", "logprobs", "stop_reason", "text", "token_ids"),
    "Logprob": ("logprob",),
    "VllmConfig": ("model_config", "scheduler_config"),
    "ModelConfig": ("dtype", "get_vocab_size", "max_model_len"),
    "SchedulerConfig": ("max_num_seqs",),
    "Platform": ("get_device_capability", "has_device_capability", "is_cuda"),
    "DeviceCapability": ("as_version_str",),
    # _let_cpu_generators_rewind
    "CPUModelRunner": ("_bookkeeping_sync", "discard_request_mask", "input_batch"),
    "InputBatch": ("generators", "num_reqs"),
}  # fmt: skip

WHERE_THERE = {
    "SamplingParams": ("stream_interval",),
    "SyncMPClient": ("outputs_queue", "resources", "utility_results"),
    "BackgroundResources": ("engine_manager",),
    "CoreEngineProcManager": ("processes",),
}
"""What the engine uses only where it is there: vLLM 0.26 has no stream_interval, and reports on a running reply at each
token. The others are for EngineProcess.watch, checked in 0.31: without them a killed engine process is not noticed."""

PLACES = {
    "LLMEngine": "vllm/v1/",
    "Worker": "vllm/v1/worker/gpu_worker.py",
    "GPUModelRunner": "vllm/v1/worker/gpu_model_runner.py",
    "CPUModelRunner": "vllm/v1/worker/cpu_model_runner.py",
    "InputBatch": "vllm/v1/worker/gpu_input_batch.py",
}
"""Where a class is looked for, if another has the same name."""

TEXTS = {
    "vllm/__init__.py": ("LLM", "SamplingParams"),
    "vllm/platforms/__init__.py": ("current_platform",),
    "vllm/v1/worker/cpu_model_runner.py": ("class CPUModelRunner",),
    "vllm/v1/worker/gpu_model_runner.py": ("gen.set_offset(gen.get_offset() - 4)",),
    "vllm/config/lora.py": ("MaxLoRARanks = Literal[",),
    "vllm/v1/engine/utils.py": ("ore initialization failed",),
    "vllm/envs.py": (
        "VLLM_BATCH_INVARIANT", "VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_LOGGING_LEVEL",
    ),
}  # fmt: skip


class Sources:
    """The classes of a folder's vllm/, with their bases."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, list[Path]] = {}
        for path in sorted((folder / "vllm").rglob("*.py")):
            for name in re.findall(r"^class (\w+)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
                self._places.setdefault(name, []).append(path)

    def missing(self) -> list[str]:
        """What is used and not there, as names."""
        found = []
        for name, members in USED.items():
            there = self.arguments(name) if name.endswith(ARGUMENTS) else self.members(name)
            found += [f"{name}: {member}" for member in members if member not in there]
        for file, texts in TEXTS.items():
            path = self.folder / file
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            found += [f"{file}: {one}" for one in texts if one not in text]
        return found

    def members(self, name: str) -> set[str]:
        """Fields, methods and attributes of a class and its bases; empty for one that is not there."""
        return {member for one in self._lineage(name) for member in _members(one)}

    def arguments(self, name: str) -> set[str]:
        """Parameters of "Class.method()", of the first class in the lineage that has it; "**" for any others."""
        class_name, method = name.removesuffix(ARGUMENTS).split(".")
        for one in self._lineage(class_name):
            for node in one.body:
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == method:
                    given = node.args
                    names = {arg.arg for arg in (*given.posonlyargs, *given.args, *given.kwonlyargs)}
                    return names | ({"**"} if given.kwarg else set())
        return set()

    def _lineage(self, name: str, seen: frozenset[str] = frozenset()) -> Iterator[ast.ClassDef]:
        place = PLACES.get(name, "vllm/")
        for path in self._places.get(name, []):
            if name in seen or not path.relative_to(self.folder).as_posix().startswith(place):
                continue
            for node in _tree(path).body:
                if isinstance(node, ast.ClassDef) and node.name == name:
                    yield node
                    for base in node.bases:
                        yield from self._lineage(ast.unparse(base).rpartition(".")[2], seen | {name})
            return


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _members(one: ast.ClassDef) -> Iterator[str]:
    for node in one.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
            for inner in ast.walk(node):
                for target in _targets(inner):
                    if isinstance(target, ast.Attribute) and ast.unparse(target.value) == "self":
                        yield target.attr
        for target in _targets(node):
            if isinstance(target, ast.Name):
                yield target.id


def _targets(node: ast.AST) -> list[ast.expr]:
    if isinstance(node, ast.AnnAssign):
        return [node.target]
    if isinstance(node, ast.Assign):
        return [one for target in node.targets for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return []


if __name__ == "__main__":
    lacking = Sources(Path(sys.argv[1])).missing()
    print("\n".join(lacking) or "all there")
    sys.exit(bool(lacking))
