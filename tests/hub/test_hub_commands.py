"""The command line as a user of the Hub meets it, in processes of their own: their Hub is one on this machine."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.hub_server import TOKEN, Files, HubServer, files_of
from support.tiny import build_tiny_lora

from medbench.harness.benchmarks.task_folders import tasks_folder

pytestmark = pytest.mark.slow

MEDQA, PUBMEDQA, MMLU_PRO = "GBaker/MedQA-USMLE-4-options", "qiaojin/PubMedQA", "TIGER-Lab/MMLU-Pro"
COMMANDS = """
import json, os, sys
from medbench.harness.cli.main import run
statuses = {}
for name, (arguments, environment) in json.load(sys.stdin).items():
    os.environ.update(environment)
    print(f"--- {name}", file=sys.stderr, flush=True)
    statuses[name] = run(arguments)
    for variable in environment:
        del os.environ[variable]
print("--- statuses", json.dumps(statuses), file=sys.stderr, flush=True)
os._exit(0)
"""
"""Several commands in one process: each process takes seconds to import what an evaluation needs."""
LOADED = """
import json, sys
from medbench.harness.benchmarks.catalog import TaskLoader
loader = TaskLoader("hub")
for name, split in json.loads(sys.argv[1]):
    data = loader.load(name, split).data
    print("\\n=", json.dumps([name, split, data.source, data.official, data.commit]))
"""


@dataclass(frozen=True)
class Done:
    status: int
    err: str

    @property
    def line(self) -> str:
        """medbench's one line."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("medbench: ")]
        return line.removeprefix("medbench: ")


def commands(environment: Mapping[str, str], cwd: Path, given: Mapping[str, Sequence[str]]) -> dict[str, Done]:
    """A word HF_TOKEN=VALUE before a command is for that command alone."""
    parts = {}
    for name, words in given.items():
        variables = [word for word in words if word.startswith("HF_TOKEN=")]
        parts[name] = [word for word in words if word not in variables], dict(one.split("=") for one in variables)
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        input=json.dumps(parts),  # run.json stores the words of a command line
        env={**environment, "TQDM_DISABLE": "1"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "--- statuses" in done.stderr, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stderr + done.stdout
    before, statuses = done.stderr.split("--- statuses ")
    said = dict(section.split("\n", 1) for section in before.split("--- ")[1:])
    return {name: Done(status, said[name]) for name, status in json.loads(statuses).items()}


def evaluate(model: str, name: str, *more: str, data: str = "sample") -> list[str]:
    options = ["--engine", "hf", "--data", data, "--tasks", "medqa", "--limit", "1", "--max-new-tokens", "2"]
    return [*more, "eval", model, *options, "--name", name, "--quiet"]


def record(cwd: Path, name: str) -> Any:
    return json.loads((cwd / "runs" / name / "run.json").read_text())


def sample(path: str) -> list[dict[str, Any]]:
    return [*map(json.loads, (tasks_folder() / path).open())]


def as_jsonl(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def as_parquet(rows: Sequence[Mapping[str, Any]]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file.getvalue()


# files and columns as on the real Hub


def medqa(test: Sequence[Mapping[str, Any]], train: Sequence[Mapping[str, Any]]) -> Files:
    def full(rows: Sequence[Mapping[str, Any]]) -> bytes:
        return as_jsonl([{**row, "metamap_phrases": []} for row in rows])

    card = b"---\nlicense: cc-by-4.0\nlanguage:\n- en\n---\n# MedQA\n"
    return {
        "README.md": card, "phrases_no_exclude_test.jsonl": full(test), "phrases_no_exclude_train.jsonl": full(train),
    }  # fmt: skip


def pubmedqa(rows: Sequence[Mapping[str, Any]]) -> Files:
    empty: dict[str, list[str]] = {"reasoning_required_pred": [], "reasoning_free_pred": []}
    full = [{**row, "context": {**row["context"], **empty}} for row in rows]
    card = "---\nconfigs:\n"
    for name in ("pqa_artificial", "pqa_labeled", "pqa_unlabeled"):
        card += f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n"
    unlabelled = [{key: value for key, value in row.items() if key != "final_decision"} for row in full[:3]]
    return {
        "README.md": f"{card}---\n".encode(),
        "pqa_artificial/train-00000-of-00001.parquet": as_parquet(full[:2]),
        "pqa_labeled/train-00000-of-00001.parquet": as_parquet(full),
        "pqa_unlabeled/train-00000-of-00001.parquet": as_parquet(unlabelled),
    }


def mmlu_pro(test: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> Files:
    law = {**test[0], "category": "law", "question_id": 1}
    full = [[{**row, "cot_content": ""} for row in [law, *rows]] for rows in (test, validation)]
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n"
    card += "".join(f"  - split: {split}\n    path: data/{split}-*\n" for split in ("test", "validation"))
    return {
        "README.md": f"{card}---\n".encode(),
        "data/test-00000-of-00001.parquet": as_parquet(full[0]),
        "data/validation-00000-of-00001.parquet": as_parquet(full[1]),
    }


@pytest.fixture
def hub(tiny_model: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        server.add("model", "org/tiny", files_of(tiny_model))
        rows = sample("medqa/sample/test.jsonl")
        server.add("dataset", MEDQA, medqa(rows[5:], rows[:5]))
        yield server


def test_online_offline_and_without_a_hub(hub: HubServer, tiny_model: Path, tmp_path: Path) -> None:
    main = hub.repos["model", "org/tiny"].refs["main"]
    tagged = hub.add("model", "org/tiny", files_of(tiny_model) | {"README.md": b"the first"}, revision="v1")
    hub.add("model", "org/gated", files_of(tiny_model), gated=True)
    hub.add("dataset", "org/gated-rows", {"train.jsonl": b"{}\n"}, gated=True)
    hub.add("model", "org/busy", files_of(tiny_model))
    hub.too_many["org/busy"], hub.limit = 10**6, {"Retry-After": "900"}
    adapter = build_tiny_lora(tiny_model, tmp_path / "lora", use_dora=False, use_rslora=False)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "org/tiny"}))
    environment = hub.environment(tmp_path)

    online = commands(environment, tmp_path, {
        "by id": evaluate("org/tiny", "by-id", data="hub"),
        "by tag": evaluate("org/tiny@v1", "by-tag", f"HF_TOKEN={TOKEN}"),
        "adapter": evaluate(str(adapter), "adapter"),
        "gated": evaluate("org/gated", "gated"),
        "gated with a token": evaluate("org/gated", "gated-token", f"HF_TOKEN={TOKEN}"),
        "absent": evaluate("org/none", "absent"),
        "no such revision": evaluate("org/tiny@v9", "revision"),
        "busy": evaluate("org/busy", "busy"),
    })  # fmt: skip
    assert {name: done.status for name, done in online.items()} == {
        "by id": 0, "by tag": 0, "adapter": 0, "gated": 2, "gated with a token": 0, "absent": 2, "no such revision": 2,
        "busy": 4,
    }, {name: done.err for name, done in online.items() if done.status}  # fmt: skip
    assert f"accept its licence at {hub.url}/org/gated, then log in with `hf auth login`" in online["gated"].line
    assert "no such model on the hub, or a private one: correct the id" in online["absent"].line
    assert "no revision 'v9' of it on the hub" in online["no such revision"].line
    assert "the hub's rate limit is reached: run again in 901 s" in online["busy"].line
    by_id = record(tmp_path, "by-id")
    assert (by_id["model"]["revision"], by_id["model"]["commit"]) == ("main", main)
    rows = by_id["tasks"]["medqa"]
    assert (rows["source"], rows["official"]) == (f"hub:{MEDQA}@main", False)
    assert rows["commit"] == hub.repos["dataset", MEDQA].refs["main"]
    assert "unofficial" in online["by id"].err
    by_tag = record(tmp_path, "by-tag")
    assert (by_tag["model"]["name"], by_tag["model"]["revision"]) == ("org/tiny@v1", "v1")
    assert (by_tag["model"]["commit"], by_tag["tasks"]["medqa"]["commit"]) == (tagged, None)
    of_adapter = record(tmp_path, "adapter")["model"]
    assert (of_adapter["base"], of_adapter["base_commit"], of_adapter["commit"]) == ("org/tiny", main, None)
    stored = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert stored
    assert not [path for path in stored if TOKEN.encode() in path.read_bytes()]
    assert {path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()} == {
        "by-id", "by-tag", "adapter", "gated-token",
    }  # fmt: skip

    hub.asked.clear()
    offline = commands({**environment, "HF_HUB_OFFLINE": "1"}, tmp_path, {
        "by id": evaluate("org/tiny", "by-id-offline", data="hub"),
        "not there": evaluate("org/other", "other"),
        "rows not there": [*evaluate("org/tiny", "rows", data="hub"), "--tasks", "pubmedqa"],
    })  # fmt: skip
    assert hub.asked == []
    assert [done.status for done in offline.values()] == [0, 2, 2], offline["by id"].err
    assert "HF_HUB_OFFLINE is set: unset it once to download" in offline["not there"].line
    assert f"data set {PUBMEDQA}: not in the hub's cache" in offline["rows not there"].line
    again = record(tmp_path, "by-id-offline")
    assert again["model"] == by_id["model"]
    assert again["tasks"] == by_id["tasks"]

    hub.close()
    down = commands(environment, tmp_path, {
        "cached": evaluate("org/tiny", "down"),
        "not there": evaluate("org/other", "other"),
        "rows": evaluate("org/tiny", "rows", data="hub"),
    })  # fmt: skip
    assert [done.status for done in down.values()] == [0, 4, 4], down["cached"].err
    assert f"{hub.url} does not answer (Connection refused): org/tiny is read from the cache" in down["cached"].err
    assert "check the network and HF_ENDPOINT" in down["not there"].line
    assert "set HF_HUB_OFFLINE=1 to use what was downloaded before" in down["rows"].line


def load(hub: HubServer, home: Path, *splits: tuple[str, str], **changes: str) -> dict[tuple[str, str], list[Any]]:
    """(task, split) -> source, whether official, commit."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, json.dumps(splits)],
        env=hub.environment(home, **changes),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line.removeprefix("= ")) for line in done.stdout.splitlines() if line.startswith("= ")]
    return {(task, split): rest for task, split, *rest in lines}


@pytest.mark.data
def test_each_benchmark_on_the_hub_is_official(hub: HubServer, data_dir: Path, tmp_path: Path) -> None:
    def rows(path: str) -> list[dict[str, Any]]:
        return [*map(json.loads, (data_dir / path).open())]

    few = sample("medqa/sample/test.jsonl")
    of_pubmedqa = [*rows("pubmedqa/train.jsonl"), *rows("pubmedqa/test.jsonl")]
    of_mmlu_pro = [*rows("mmlu_pro_medical/health.jsonl"), *rows("mmlu_pro_medical/biology.jsonl")]
    shown = [*sample("mmlu_pro_medical/sample/health.jsonl"), *sample("mmlu_pro_medical/sample/biology.jsonl")]
    commits = {
        MEDQA: hub.add("dataset", MEDQA, medqa(rows("medqa/test.jsonl"), few)),
        PUBMEDQA: hub.add("dataset", PUBMEDQA, pubmedqa(of_pubmedqa)),
        MMLU_PRO: hub.add("dataset", MMLU_PRO, mmlu_pro(of_mmlu_pro, shown)),
    }
    of = {
        ("medqa", "test"): MEDQA,
        ("pubmedqa", "test"): PUBMEDQA,
        ("pubmedqa", "train"): PUBMEDQA,
        ("pubmedqa_1k", "test"): PUBMEDQA,
        ("mmlu_pro_medical", "test"): MMLU_PRO,
        ("mmlu_pro_health", "test"): MMLU_PRO,
    }
    expected = {key: [f"hub:{name}@main", True, commits[name]] for key, name in of.items()}
    assert load(hub, tmp_path, *of) == expected
    hub.asked.clear()
    assert load(hub, tmp_path, *of, HF_HUB_OFFLINE="1") == expected
    assert hub.asked == []
