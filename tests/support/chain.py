"""A model that says what it is told to: a fixed next token for each token. Real weights, for real engines.

from support.chain import build_chain_model; build_chain_model(Path("chain"), ["Q", "[THINK]", "A", "[/THINK]", "B"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

END, PAD, UNKNOWN = "</s>", "<pad>", "<unk>"
WIDTH = 64


def build_chain_model(folder: Path, chain: Sequence[str], *, special: Sequence[str] = ()) -> Path:
    """Write a checkpoint to `folder` that continues chain[0] with the rest of the chain, and END; return the folder.

    The tokens are different from each other, and at most 61; those in `special` are special tokens of the tokenizer.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = [UNKNOWN, PAD, END, *chain]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        unk_token=UNKNOWN,
        additional_special_tokens=list(special),
    )
    config = Qwen3Config(
        vocab_size=len(words),
        hidden_size=WIDTH,
        head_dim=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_hidden_layers=1,
        intermediate_size=WIDTH,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=1,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config).to(torch.float32)
    for parameter in model.model.layers.parameters():
        parameter.data.zero_()  # what remains of the network is embedding, norm and head
    model.model.embed_tokens.weight.data = torch.eye(len(words), WIDTH)
    model.lm_head.weight.data.zero_()
    for token, following in zip(words[3:], [*words[4:], END], strict=True):
        model.lm_head.weight.data[words.index(following), words.index(token)] = 10
    model.generation_config = GenerationConfig(eos_token_id=2, pad_token_id=1, do_sample=False)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
