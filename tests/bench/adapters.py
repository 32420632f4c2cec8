"""DoRA and rsLoRA adapters, trained for a few steps by peft, served merged in one warm vLLM engine.

    python tests/bench/adapters.py        # smollm2-135m, then the tiny model; about 12 minutes on 2 cores

Target: at least 95 % of 64 greedy replies equal those of transformers with the unmerged peft adapter, in float32.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from support.tiny import build_tiny_model

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import Message, Request
from medbench.harness.engines.hot_swap import WarmEngine
from medbench.harness.engines.settings import EngineConfig

REPLIES, NEW_TOKENS, STEPS = 64, 16, 4
TEXTS = [
    "The patient has a fever and a stiff neck, so the first step is a lumbar puncture. The answer is (B).",
    "Aspirin inhibits cyclooxygenase, which lowers the production of thromboxane. The answer is (A).",
    "The study found no difference between the groups, so the answer is (no).",
    "A low ferritin with microcytic anemia points to iron deficiency. The answer is (D).",
]


def trained(base: Path, target: Path, *, use_dora: bool, use_rslora: bool) -> Path:
    """An adapter after a few real steps, with a rate high enough that replies change."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = LoraConfig(
        r=8, lora_alpha=16, target_modules="all-linear", use_dora=use_dora, use_rslora=use_rslora, task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model, settings)
    optimizer = torch.optim.AdamW((p for p in adapted.parameters() if p.requires_grad), lr=2e-3)
    for step in range(STEPS):
        batch = tokenizer(TEXTS[step % len(TEXTS)], return_tensors="pt")
        loss = adapted(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    adapted.save_pretrained(target)
    return target


def unmerged_replies(base: Path, adapter: Path, prompts: list[str]) -> list[str]:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter)
    )
    replies = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        out = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)
        replies.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return replies


def compare_adapters(source: Path, root: Path, label: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = root / "base"  # in float32, so that the merged adapter is as well
    AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).save_pretrained(base)
    AutoTokenizer.from_pretrained(source).save_pretrained(base)
    with WarmEngine(resolve(str(base)), EngineConfig(kv_cache_gib=1), print) as warm:
        prompts = [
            warm.engine.render((Message("user", f"What is the first drug for condition {n}?"),), None)
            for n in range(REPLIES)
        ]
        requests = [Request(str(n), (), text, NEW_TOKENS, templated=True) for n, text in enumerate(prompts)]
        plain = {one.id: one.text for one in warm.engine.generate(requests)}
        for name, dora in (("DoRA + rsLoRA", True), ("rsLoRA", False)):
            adapter = trained(base, root / name.split()[0], use_dora=dora, use_rslora=True)
            checkpoint = resolve(str(adapter))
            report = warm.swap(checkpoint)
            served = {one.id: one.text for one in warm.engine.generate(requests)}
            reference = unmerged_replies(base, adapter, prompts)
            # vLLM leaves out a character whose bytes are not complete at the end, transformers shows it as U+FFFD
            same = sum(served[str(n)].rstrip("\ufffd") == text.rstrip("\ufffd") for n, text in enumerate(reference))
            changed = sum(served[id] != text for id, text in plain.items())
            print(f"{label}, {name}: {same} of {REPLIES} replies as peft unmerged (target 61)")
            moved = f"merging moved log-probabilities by at most {checkpoint.merge_deviation:.2g} nats"
            print(f"  {changed} differ from the base's; {moved}; swapped in {report.seconds:.1f} s", flush=True)


def main() -> None:
    smollm2 = Path(resolve("smollm2-135m").path)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["MEDBENCH_CACHE"] = str(root / "cache")
        compare_adapters(build_tiny_model(root / "tiny" / "model"), root / "tiny", "tiny")
        compare_adapters(smollm2, root / "smollm2", "smollm2-135m")


if __name__ == "__main__":
    main()
