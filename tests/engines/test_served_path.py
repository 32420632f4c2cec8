"""Checkpoints that differ in their weights only are loaded by one path, for vLLM's compile cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.tiny import build_tiny_model

from medbench.harness.engines.served_path import served_path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def steps(tiny_model: Path, tmp_path: Path) -> list[Path]:
    """Two checkpoints of one training."""
    other = build_tiny_model(tmp_path / "step-200", seed=1)
    return [shutil.copytree(tiny_model, tmp_path / "step-100"), other]


def test_checkpoints_of_a_training_have_one_path(steps: list[Path]) -> None:
    paths = set()
    for step in steps:
        with served_path(step) as path:
            assert Path(path).resolve() == step
            assert (Path(path) / "model.safetensors").read_bytes() == (step / "model.safetensors").read_bytes()
            paths.add(path)
    assert len(paths) == 1


@pytest.mark.parametrize(
    ("name", "change"),
    [("config.json", {"rope_theta": 5000.0}), ("tokenizer_config.json", {"model_max_length": 7})],
    ids=["config", "tokenizer"],
)
def test_others_have_paths_of_their_own(steps: list[Path], name: str, change: dict[str, object]) -> None:
    file = steps[1] / name
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with served_path(steps[0]) as first:
        pass
    with served_path(steps[1]) as second:
        assert second != first


def test_a_path_is_not_turned_while_a_checkpoint_is_loaded_by_it(steps: list[Path]) -> None:
    with served_path(steps[0]) as first, served_path(steps[1]) as second:
        assert second == str(steps[1])
        assert Path(first).resolve() == steps[0]
        with served_path(steps[0]) as third:
            assert third == first


def test_without_a_place_for_links_the_checkpoint_s_own_path_is_used(
    steps: list[Path], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.write_text("a file")
    with served_path(steps[0]) as path:
        assert path == str(steps[0])


@pytest.mark.engine
def test_the_key_of_vllm_s_compile_cache_is_the_same_for_both(steps: list[Path]) -> None:
    from vllm.engine.arg_utils import EngineArgs

    def key(path: Path | str) -> str:
        return EngineArgs(model=str(path), dtype="float32", max_model_len=512).create_engine_config().compute_hash()

    found = set()
    for step in steps:
        with served_path(step) as path:
            found.add(key(path))
    assert len(found) == 1
    assert key(steps[0]) != key(steps[1]), "vLLM has left the path out of the key: served_path is no longer needed"
