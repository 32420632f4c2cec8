"""Has the installed vLLM load a tiny model with random weights, quantised as its argument says, and answer once.

    python -m medbench.harness.engines.vllm_probe '{"quant_method": "compressed-tensors", ...}'

The last line of standard output is JSON: {"served": bool, "said": text}. A process of its own, because kernels that a
machine lacks may end it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from medbench.harness.engines.settings import EngineConfig
from medbench.harness.engines.vllm import runs_on_cpu, set_cpu_environment
from medbench.harness.text import one_line

SHAPE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 512,
    "vocab_size": 512,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}
"""Widths that all kernels take."""


def probe(quantization: dict[str, Any]) -> dict[str, Any]:
    """{"served": whether it answers, "said": the kernels' names, or vLLM's reason}."""
    if runs_on_cpu():
        set_cpu_environment(EngineConfig(kv_cache_gib=1))
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    with tempfile.TemporaryDirectory(prefix="medbench-probe-") as folder:
        content = {**SHAPE, "quantization_config": quantization}
        (Path(folder) / "config.json").write_text(json.dumps(content))
        try:
            from vllm import LLM, SamplingParams

            llm = LLM(
                model=folder,
                load_format="dummy",
                trust_remote_code=False,
                skip_tokenizer_init=True,
                enforce_eager=True,
                max_model_len=64,
                max_num_seqs=2,
                gpu_memory_utilization=0.2,
                disable_log_stats=True,
            )
            sampling = SamplingParams(max_tokens=2, temperature=0.0, detokenize=False)
            prompts: Any = [{"prompt_token_ids": list(range(1, 17))}]
            llm.generate(prompts, sampling, use_tqdm=False)
        except Exception as error:  # vLLM and its kernels can raise anything
            return {"served": False, "said": f"{type(error).__name__}: {one_line(error)[:400]}"}
        return {"served": True, "said": ", ".join(_kernels(llm)) or "it answers"}


def _kernels(llm: Any) -> list[str]:
    """Names of the classes that compute its quantised layers, as far as vLLM tells."""
    try:
        (found,) = llm.apply_model(_named)
    except Exception:  # another version
        return []
    return sorted(found)


def _named(model: Any) -> set[str]:
    names = set()
    for module in model.modules():
        scheme = getattr(module, "scheme", None)
        kernel = getattr(scheme, "kernel", None) or getattr(scheme, "fp8_linear", None)
        if scheme is not None:
            names.add(type(kernel if kernel is not None else scheme).__name__)
    return names


if __name__ == "__main__":
    found = probe(json.loads(sys.argv[1]))
    print(f"\n{json.dumps(found)}", flush=True)
    os._exit(0)  # vLLM leaves threads behind
