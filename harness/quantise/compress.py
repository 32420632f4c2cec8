"""Compresses a checkpoint by llm-compressor; run as a file, by the interpreter that has it, never imported.

    /path/to/its/python -I compress.py JOB.json     # facts and faults as JSON lines on standard output

llm-compressor and vLLM each pin a version of compressed-tensors, and not the same one: both cannot be installed in one
environment. So nothing of medbench is imported here, and everything comes in JOB.json:
{"model": folder, "out": folder, "groups": config_groups, "ignore": [names], "texts": file or null, "max_length": int}
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("llmcompressor", "compressed-tensors", "transformers", "torch")


def main(job: dict[str, Any], tell: Callable[..., None]) -> None:
    tell(event="started", versions={name: metadata.version(name) for name in PACKAGES})
    import torch
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(
        job["model"], dtype="auto", trust_remote_code=False, use_safetensors=True, local_files_only=True
    )
    if torch.cuda.is_available():
        model = model.to("cuda")
    tell(event="loaded", device=str(model.device))
    given: dict[str, Any] = {"model": model, "recipe": modifier(job)}
    if job["texts"]:
        tokenizer = AutoTokenizer.from_pretrained(job["model"], trust_remote_code=False, local_files_only=True)
        rows = calibration(job["texts"], tokenizer, job["max_length"])
        tell(event="calibrating", rows=len(rows))
        given |= {"tokenizer": tokenizer, "dataset": rows, "num_calibration_samples": len(rows)}
        given |= {"max_seq_length": job["max_length"], "shuffle_calibration_samples": False}
    oneshot(**given)
    tell(event="saving")
    model.save_pretrained(job["out"], save_compressed=True)
    tell(event="done")


def modifier(job: dict[str, Any]) -> Any:
    """GPTQ where there is text to calibrate with, otherwise rounding to nearest."""
    settings = {"config_groups": job["groups"], "ignore": job["ignore"]}
    if job["texts"]:
        from llmcompressor.modifiers.gptq import GPTQModifier

        return GPTQModifier(**settings)
    from llmcompressor.modifiers.quantization import QuantizationModifier

    return QuantizationModifier(**settings)


def calibration(path: str, tokenizer: Any, max_length: int) -> Any:
    """The texts of a file of JSON lines, as the model sees them: a chat template has put in the special tokens."""
    from datasets import Dataset

    texts = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    encoded = [tokenizer(text, add_special_tokens=False, truncation=True, max_length=max_length) for text in texts]
    return Dataset.from_list([{key: one[key] for key in ("input_ids", "attention_mask")} for one in encoded])


if __name__ == "__main__":
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not stand between the lines

    def tell(**fields: Any) -> None:
        channel.write(json.dumps(fields) + "\n")
        channel.flush()

    def end_with_parent() -> None:
        while os.read(0, 1):  # sys.stdin's own lock would stop the interpreter from ending
            pass
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), tell)
    except BaseException as error:
        tell(event="fault", line=f"{type(error).__name__}: {' '.join(str(error).split())[:600]}")
        raise
