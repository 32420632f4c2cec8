"""A tiny random Qwen3 with its own tokenizer and chat template, and LoRA adapters for it: a real model in a second.

    from support.tiny import build_tiny_model; build_tiny_model(Path("tiny"))

Two layers, about 0.5 M parameters; loads in transformers, peft, TRL and vLLM. Its output is noise, but the same for the
same seed. Some greedy replies end by themselves and some run into the token limit.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

TEXT = """
A 45-year-old man comes to the physician because of chest pain for 3 days. He has hypertension and diabetes.
A 23-year-old woman is brought to the emergency department because of fever, headache and a stiff neck since yesterday.
Her temperature is 38.5 C, pulse is 110/min, respirations are 20/min, and blood pressure is 130/85 mm Hg.
Laboratory studies show an elevated white blood cell count. Which of the following is the most likely diagnosis?
Which of the following is the best next step in management? What is the most appropriate treatment for this patient?
Examination shows swelling of the left leg. An X-ray of the chest shows no abnormalities. He takes no medication.
Answer the following multiple choice question about medicine. Think step by step, then finish your answer with
"the answer is (X)" where X is the correct letter choice. The answer is yes. The answer is no. The answer is maybe.
Question: Does treatment with antibiotics reduce the risk of infection after surgery? Abstract: Conclusion: Options:
A. Administer intravenous fluids B. Order a computed tomography scan C. Begin therapy with aspirin D. Perform a biopsy
Deficiency of the enzyme causes accumulation of the substrate in the liver, kidney, heart, lung and brain tissue.
You are a helpful assistant. Let me think about this. The correct answer is B, because the other options are wrong.
system user assistant
"""

CHAT_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Ordinary added tokens, as in Qwen3: decoding without special tokens must keep the reasoning's tags.
THOUGHT = ("<think>", "</think>")


def build_tiny_model(folder: Path, *, seed: int = 0, vocab_from: list[str] | None = None) -> Path:
    """Write the checkpoint to `folder` and return it; the same bytes for the same arguments.

    `vocab_from`: texts to train the tokenizer on instead of TEXT, which makes prompts like them shorter.
    """
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    tokenizer = _tokenizer([TEXT] if vocab_from is None else vocab_from)
    eos, pad = (tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>"))
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        head_dim=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_hidden_layers=2,
        intermediate_size=256,
        max_position_embeddings=2048,
        # Larger than the usual 0.02, whose logits are so flat that rounding decides the output.
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config).to(torch.float32)
    # An end token as likely as any other would hardly ever be generated; tests need both finish reasons.
    model.lm_head.weight.data[eos] *= 2.5
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=pad, do_sample=False)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def build_tiny_lora(base: Path, folder: Path, *, use_dora: bool, use_rslora: bool, r: int = 8, seed: int = 0) -> Path:
    """Write a PEFT adapter for `base` to `folder` and return it. A and B are random, so it changes every reply."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(
        r=r,
        lora_alpha=2 * r,
        target_modules="all-linear",
        use_dora=use_dora,
        use_rslora=use_rslora,
        # peft initialises B to 0, an adapter without effect.
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        adapted = get_peft_model(model, config)
    shutil.rmtree(folder, ignore_errors=True)
    adapted.save_pretrained(folder)
    # peft writes this set in an order that varies between processes.
    config_file = folder / "adapter_config.json"
    written = json.loads(config_file.read_text())
    config_file.write_text(json.dumps(written | {"target_modules": sorted(written["target_modules"])}, indent=2))
    return folder


def _tokenizer(texts: list[str]):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet, show_progress=False))
    core.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    core.add_tokens([AddedToken(token, normalized=False) for token in THOUGHT])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=2048
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
