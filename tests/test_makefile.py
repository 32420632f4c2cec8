"""The Makefile's two stacks and its help, and the lock file. Nothing is installed.

pytest tests/test_makefile.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
MAKE = shutil.which("make")

needs_make = pytest.mark.skipif(MAKE is None, reason="make is not installed")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that the Makefile reads, without an environment, and an empty folder `bin` at the head of PATH."""
    for name in ("Makefile", "requirements-cpu.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    return tmp_path


def script(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def make(checkout: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    assert MAKE is not None
    path = f"{checkout / 'bin'}{os.pathsep}{os.environ['PATH']}" if path is None else path
    environment = {"PATH": path, "HOME": str(checkout)}
    return subprocess.run([MAKE, *arguments], cwd=checkout, env=environment, capture_output=True, text=True, timeout=60)


def installs(output: str) -> list[str]:
    return [line for line in output.splitlines() if "pip install" in line]


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements-cpu.lock").read_text().split("\n")
    pinned = [re.fullmatch(r"([A-Za-z0-9._-]+)==(\S+)", line) for line in lines if line.strip()]
    assert all(pinned), [line for line, match in zip(lines, pinned, strict=False) if match is None]
    return {canonicalize_name(match[1]): Version(match[2]) for match in pinned if match}


@needs_make
def test_the_cpu_stack_is_picked_without_nvidia_smi(checkout: Path) -> None:
    for tool in ("sh", "grep", "echo"):
        (checkout / "bin" / tool).symlink_to(str(shutil.which(tool)))
    done = make(checkout, "-n", "env", path=str(checkout / "bin"))
    assert done.returncode == 0, done.stderr
    assert ".venv/installed-cpu" in done.stdout
    assert "installed-gpu" not in done.stdout


@needs_make
def test_the_cpu_stack_is_picked_if_nvidia_smi_finds_no_gpu(checkout: Path) -> None:
    script(checkout / "bin" / "nvidia-smi", "exit 9")
    assert ".venv/installed-cpu" in make(checkout, "-n", "env").stdout


@needs_make
def test_the_gpu_stack_is_picked_if_nvidia_smi_finds_a_gpu_and_installs_the_vllm_extra(checkout: Path) -> None:
    script(checkout / "bin" / "nvidia-smi", 'echo "GPU 0: NVIDIA H100"')
    done = make(checkout, "-n", "env")
    assert ".venv/installed-gpu" in done.stdout
    assert any(re.search(r"\[[a-z,]*\bvllm\b[a-z,]*\]", line) for line in installs(done.stdout))
    assert "requirements-cpu.lock" not in done.stdout
    assert CPU_INDEX not in done.stdout


@needs_make
def test_the_stack_can_be_named(checkout: Path) -> None:
    script(checkout / "bin" / "nvidia-smi", 'echo "GPU 0: NVIDIA H100"')
    assert ".venv/installed-cpu" in make(checkout, "-n", "env", "STACK=cpu").stdout


@needs_make
def test_torch_is_installed_as_pip_is_configured_and_otherwise_from_the_cpu_index(checkout: Path) -> None:
    lines = installs(make(checkout, "-n", "env", "STACK=cpu").stdout)
    (torch,) = [line for line in lines if "'torch==" in line]
    first, second = torch.split("||")
    pinned = f"'torch=={locked()['torch']}'"
    assert pinned in first
    assert pinned in second
    assert "index" not in first
    assert f"--index-url {CPU_INDEX}" in second
    (lock,) = [line for line in lines if "-r requirements-cpu.lock" in line]
    assert "--no-deps" in lock
    assert lines.index(torch) < lines.index(lock)


@needs_make
def test_a_failed_install_leaves_no_stamp_and_a_finished_one_is_not_repeated(checkout: Path) -> None:
    script(checkout / ".venv" / "bin" / "python", "exit 0")
    log = checkout / "pip.log"
    # torch is available from the CPU index only, and installing the lock fails the first time
    script(
        checkout / ".venv" / "bin" / "pip",
        f'echo "$@" >> {log}\ncase "$*" in *index-url*) exit 0;; *torch==*) exit 1;; *.lock*) test -e ready;; esac',
    )
    arguments = ("env", "STACK=cpu", f"PYTHON={sys.executable}")
    assert make(checkout, *arguments).returncode != 0
    assert not (checkout / ".venv" / "installed-cpu").exists()
    (checkout / "ready").touch()
    done = make(checkout, *arguments)
    assert done.returncode == 0, done.stderr
    calls = log.read_text().splitlines()
    assert [CPU_INDEX in call for call in calls if "torch==" in call] == [False, True] * 2
    assert any(call.endswith("-e .") for call in calls)
    assert make(checkout, *arguments).returncode == 0
    assert log.read_text().splitlines() == calls


@needs_make
def test_a_python_that_is_too_old_gives_one_line(checkout: Path) -> None:
    script(checkout / "bin" / "python3", "exit 1")
    done = make(checkout, "env", "STACK=cpu")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer: make PYTHON=" in done.stdout + done.stderr
    assert not (checkout / ".venv").exists()


@needs_make
def test_help_is_the_default_and_lists_the_targets(checkout: Path) -> None:
    done = make(checkout, "help")
    for target in ("demo", "test", "test-fast", "lint", "bench", "env", "lock"):
        assert f"make {target} " in done.stdout
    assert make(checkout).stdout == done.stdout


@needs_make
def test_the_fast_lane_leaves_out_what_takes_long_and_the_whole_suite_nothing(checkout: Path) -> None:
    fast, whole = (make(checkout, "-n", target, "STACK=cpu").stdout.splitlines() for target in ("test-fast", "test"))
    assert '-m "not engine and not browser and not slow"' in fast[-1]
    tests = "\n".join(whole)
    trainings = re.search(r"-m pytest -m engine ((?:tests/\S+ )+)", tests)
    assert trainings is not None
    assert f"-m pytest -m engine {' '.join(f'--ignore={one}' for one in trainings[1].split())} " in tests
    assert all((ROOT / one).is_dir() for one in trainings[1].split())
    assert '-m "not engine" ' in tests


def test_every_package_in_the_lock_is_pinned() -> None:
    assert len(locked()) > 50


def test_the_lock_has_no_package_that_breaks_transformers_with_a_cpu_torch() -> None:
    assert not {"torchvision", "torchaudio", "torchcodec"} & locked().keys()


def test_the_lock_satisfies_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [
        Requirement(line) for line in (*project["dependencies"], *extras["cpu"], *extras["train"], *extras["test"])
    ]
    have = locked()
    unmet = [
        str(one)
        for one in asked
        if canonicalize_name(one.name) not in have
        or not one.specifier.contains(have[canonicalize_name(one.name)], prereleases=True)
    ]
    assert unmet == []
