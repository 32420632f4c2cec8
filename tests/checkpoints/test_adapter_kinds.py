"""Each kind of adapter that peft can merge: the merged model replies as peft's unmerged one, in float32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny import build_tiny_model

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.contracts import MedbenchError

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:peft")]

ATTENTION = ["q_proj", "v_proj"]


def kinds() -> dict[str, Any]:
    import peft

    def lora(**given: Any) -> Any:
        return peft.LoraConfig(r=4, lora_alpha=16, **{"target_modules": ATTENTION, "init_lora_weights": False, **given})

    return {
        "rank and alpha patterns": lora(
            target_modules="all-linear", rank_pattern={"q_proj": 8, "0.mlp.up_proj": 2}, alpha_pattern={"q_proj": 3}
        ),
        "bias of all": lora(bias="all"),
        "bias of lora's": lora(bias="lora_only"),
        "modules to save": lora(modules_to_save=["lm_head", "embed_tokens"]),
        "head to save": lora(modules_to_save=["lm_head"]),
        "trainable tokens": lora(trainable_token_indices=[3, 5, 7]),
        "trainable tokens alone": peft.TrainableTokensConfig(token_indices=list(range(0, 700, 7))),
        "embeddings": lora(target_modules=["embed_tokens", "q_proj"]),
        "some layers": lora(layers_to_transform=[1]),
        "dora": lora(use_dora=True),
        "dora + rslora": lora(use_dora=True, use_rslora=True, target_modules="all-linear"),
        "adalora": peft.AdaLoraConfig(
            r=4, init_r=4, target_r=4, total_step=10, target_modules=ATTENTION, init_lora_weights=False
        ),
        "vera": peft.VeraConfig(r=8, target_modules=["q_proj", "o_proj"], init_weights=False, d_initial=0.5),
        "vera, projections not saved": peft.VeraConfig(
            r=8, target_modules=["q_proj"], init_weights=False, d_initial=0.5, save_projection=False
        ),
        "ia3": peft.IA3Config(target_modules=[*ATTENTION, "down_proj"], feedforward_modules=["down_proj"]),
        "loha": peft.LoHaConfig(r=4, alpha=16, target_modules=ATTENTION, init_weights=False),
        "lokr": peft.LoKrConfig(r=4, alpha=16, target_modules=ATTENTION, init_weights=False),
        "oft": peft.OFTConfig(r=0, oft_block_size=8, target_modules=ATTENTION, init_weights=False),
        "boft": peft.BOFTConfig(boft_block_size=8, target_modules=ATTENTION, init_weights=False),
        "layer norms": peft.LNTuningConfig(target_modules=["input_layernorm"]),
    }


KINDS = (
    "rank and alpha patterns",
    "bias of all",
    "bias of lora's",
    "modules to save",
    "head to save",
    "trainable tokens",
    "trainable tokens alone",
    "embeddings",
    "some layers",
    "dora",
    "dora + rslora",
    "adalora",
    "vera",
    "vera, projections not saved",
    "ia3",
    "loha",
    "lokr",
    "oft",
    "boft",
    "layer norms",
)
BASES = ("two embeddings", "one embedding", "two, said to be one")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models with biases, and with one or two matrices for input and output embeddings; the last one's config is
    wrong about that."""
    import torch
    from transformers import AutoModelForCausalLM

    root = tmp_path_factory.mktemp("bases")
    made = {}
    for name in BASES:
        folder = build_tiny_model(root / name.replace(" ", "-"))
        config_file = folder / "config.json"
        config = json.loads(config_file.read_text())
        config |= {"attention_bias": True, "tie_word_embeddings": name != "two embeddings"}
        config_file.write_text(json.dumps(config))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            for key, parameter in model.named_parameters():
                if key.endswith("bias"):
                    torch.nn.init.normal_(parameter, std=0.1)
        if name == "one embedding":
            model.lm_head.weight = model.model.embed_tokens.weight
        model.save_pretrained(folder)
        made[name] = folder
    return made


def loaded(folder: Path | str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def trained(base: Path, config: Any, folder: Path, *, before: Callable[[Any], object] = lambda model: None) -> Any:
    """The adapted model whose adapter is saved in `folder`: every weight of it is moved, as training moves it."""
    import peft
    import torch

    model = loaded(base)
    before(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config.task_type = "CAUSAL_LM"
        adapted = peft.get_peft_model(model, config)
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn_like(parameter)
    adapted.save_pretrained(folder)
    return adapted.eval()


def replies(model: Any, size: int) -> tuple[Any, Any]:
    """(logits of three prompts of tokens below `size`, their greedy replies)."""
    import torch

    ids = torch.randint(0, size, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        return model(input_ids=ids).logits, model.generate(input_ids=ids, **settings)


def same(adapted: Any, merged: Path | str, size: int) -> None:
    import torch

    (wanted, said), (found, repeated) = replies(adapted, size), replies(loaded(merged), size)
    assert (wanted - found).abs().max() < 1e-3
    assert torch.equal(said, repeated)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_replies_as_the_unmerged_one(
    bases: dict[str, Path], tmp_path: Path, kind: str, base: str
) -> None:
    adapted = trained(bases[base], kinds()[kind], tmp_path / "adapter")
    checkpoint = resolve(str(tmp_path / "adapter"))
    size = adapted.config.vocab_size
    same(adapted, checkpoint.path, size)
    moved = (replies(adapted, size)[0] - replies(loaded(bases[base]), size)[0]).abs().max()
    assert moved > 0.05, "the adapter must do something"
    assert checkpoint.merge_deviation is not None
    assert checkpoint.merge_deviation < 1e-3


def test_the_list_of_kinds_is_whole() -> None:
    assert set(kinds()) == set(KINDS)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("more", [3, -2])
@pytest.mark.parametrize("how", ["saved whole", "saved by peft", "trainable tokens"])
def test_a_resized_vocabulary_is_merged(bases: dict[str, Path], tmp_path: Path, base: str, more: int, how: str) -> None:
    import peft

    size = loaded(bases[base]).config.vocab_size + more
    extra: dict[str, Any] = {"saved whole": {"modules_to_save": ["embed_tokens", "lm_head"]}}.get(how, {})
    if how == "trainable tokens":
        extra = {"trainable_token_indices": [size - 1]}
    config = peft.LoraConfig(r=4, target_modules=ATTENTION, init_lora_weights=False, **extra)
    adapted = trained(
        bases[base], config, tmp_path / "adapter", before=lambda model: model.resize_token_embeddings(size)
    )
    checkpoint = resolve(str(tmp_path / "adapter"))
    assert loaded(checkpoint.path).config.vocab_size == size
    same(adapted, checkpoint.path, size)


def test_a_vocabulary_of_which_half_was_saved_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    import peft
    from safetensors.torch import load_file, save_file

    config = peft.LoraConfig(r=4, target_modules=ATTENTION, modules_to_save=["embed_tokens", "lm_head"])
    base = bases["two embeddings"]
    size = loaded(base).config.vocab_size
    trained(base, config, tmp_path / "adapter", before=lambda model: model.resize_token_embeddings(size + 3))
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: one for key, one in load_file(weights).items() if "embed_tokens" not in key}, weights)
    settings = tmp_path / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"modules_to_save": ["lm_head"]}))
    with pytest.raises(
        MedbenchError, match=f"it has {size + 3} tokens and its base {size}, and only lm_head was saved"
    ):
        resolve(str(tmp_path / "adapter"))


@pytest.mark.parametrize("kind", ["prompt tuning", "prefix tuning"])
def test_an_adapter_that_changes_the_prompt_cannot_be_merged(bases: dict[str, Path], tmp_path: Path, kind: str) -> None:
    import peft

    configs = {"prompt tuning": peft.PromptTuningConfig, "prefix tuning": peft.PrefixTuningConfig}
    trained(bases["two embeddings"], configs[kind](num_virtual_tokens=4), tmp_path / "adapter")
    with pytest.raises(MedbenchError, match="changes the prompt and cannot be merged into weights"):
        resolve(str(tmp_path / "adapter"))


# a base named by the user


def test_a_base_that_has_moved_is_named_by_the_user(bases: dict[str, Path], tmp_path: Path) -> None:
    base = shutil.copytree(bases["two embeddings"], tmp_path / "moved")
    adapted = trained(base, kinds()["dora"], tmp_path / "adapter")
    first = resolve(str(tmp_path / "adapter"))
    elsewhere = base.rename(tmp_path / "elsewhere")
    with pytest.raises(MedbenchError, match=r"cannot be used: .*; or name another copy of it by --base$"):
        resolve(str(tmp_path / "adapter"))
    found = resolve(str(tmp_path / "adapter"), base=str(elsewhere))
    assert (found.base, found.fingerprint) == (str(elsewhere), first.fingerprint)
    same(adapted, found.path, adapted.config.vocab_size)


def test_a_base_that_does_not_fit_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    config = kinds()["dora"]
    trained(bases["two embeddings"], config, tmp_path / "adapter")
    other = build_tiny_model(tmp_path / "other")
    settings = json.loads((other / "config.json").read_text()) | {"num_hidden_layers": 1}
    (other / "config.json").write_text(json.dumps(settings))
    with pytest.raises(MedbenchError, match="does not fit its base"):
        resolve(str(tmp_path / "adapter"), base=str(other))


@pytest.mark.parametrize("name", ["smollm2-135m", "the model itself"])
def test_a_base_for_what_is_no_adapter_is_refused(bases: dict[str, Path], name: str) -> None:
    model = str(bases["two embeddings"]) if name == "the model itself" else name
    with pytest.raises(MedbenchError, match="is no adapter"):
        resolve(model, base="smollm2-135m")
