"""The tiny model with the chat templates of real models, which TRL contains.

from support.chat_templates import with_real_template; with_real_template(tiny_model, tmp_path / "qwen3", "qwen3")
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

END = {
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_instruct_2507": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "phi3": "<|end|>",
    "deepseek_r1_distill": "<｜end▁of▁sentence｜>",
}
"""Template -> the token that ends a turn."""
MORE = {
    "llama3": ("<|start_header_id|>", "<|end_header_id|>"),
    "gemma": ("<start_of_turn>",),
    "gemma3": ("<start_of_turn>",),
    "phi3": ("<|user|>", "<|assistant|>", "<|system|>"),
    "deepseek_r1_distill": ("<｜User｜>", "<｜Assistant｜>"),
}


def with_real_template(base: Path, folder: Path, name: str) -> Path:
    """A copy of the tiny model in `base`; its tokenizer has a BOS if the template writes one."""
    from transformers import AutoTokenizer

    shutil.copytree(base, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [END[name], *MORE.get(name, ()), "<bos>"]})
    tokenizer.eos_token, tokenizer.bos_token = END[name], "<bos>"
    trl = find_spec("trl")
    assert trl is not None
    assert trl.origin is not None
    template = Path(trl.origin).parent / "chat_templates" / f"{name}.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    tokenizer.save_pretrained(folder)
    generation = json.loads((folder / "generation_config.json").read_text())
    ends = [tokenizer.convert_tokens_to_ids(END[name])]
    (folder / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": ends}))
    return folder
