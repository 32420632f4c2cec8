"""Tasks asked of adapters of their own: which adapter answers what, what is refused, and what one engine replies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file
from support.tiny import build_tiny_lora, build_tiny_model

import medbench
from medbench.harness.api import compare, evaluate
from medbench.harness.benchmarks.catalog import TaskLoader
from medbench.harness.checkpoints.resolve import resolve, resolve_adapter
from medbench.harness.cli.main import run
from medbench.harness.contracts import MedbenchError
from medbench.harness.engines.settings import EngineChoice, EngineConfig
from medbench.harness.evaluation.experts import find_experts, refuse_unknown_targets, tasks_of, turns
from medbench.harness.evaluation.requests import Instance
from medbench.harness.runs.experts import target_of
from medbench.harness.runs.run_folder import read_run, read_samples
from medbench.harness.runs.stored_run import StoredRun

SETTINGS: dict[str, Any] = {"kv_cache_gib": 1, "dtype": "float32"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny base and adapters for it. Shared: do not write to them."""
    root = tmp_path_factory.mktemp("experts")
    base = build_tiny_model(root / "base", seed=3)
    return {
        "base": base,
        "lora": build_tiny_lora(base, root / "lora", use_dora=False, use_rslora=False, seed=1),
        "rslora": build_tiny_lora(base, root / "rslora", use_dora=False, use_rslora=True, r=4, seed=2),
        "dora": build_tiny_lora(base, root / "dora", use_dora=True, use_rslora=True, seed=4),
        "other": build_tiny_model(root / "other", seed=9),
    }


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def adapter(made: dict[str, Path], tmp_path: Path) -> Path:
    """An adapter that a test may damage."""
    return Path(shutil.copytree(made["lora"], tmp_path / "adapter"))


def changed(adapter: Path, **keys: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def ask(model: Path, runs: Path, adapters: Mapping[str, Path] | None = None, **given: Any) -> StoredRun:
    """Adapters are asked beside their base, on a CPU too."""
    config = SETTINGS | ({"vllm_args": {"enable_lora": True}} if adapters else {})
    return evaluate(
        model,
        **{"tasks": "medqa,pubmedqa", "data": "sample", "limit": 16, "max_new_tokens": 16, "engine_config": config}
        | given,
        adapters=adapters,
        runs=runs,
        quiet=True,
    )


def replies(run: StoredRun, task: str) -> dict[str, str]:
    return {one.id: one.output for one in read_samples(run.folder, task)}


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ({"medqa"}, "medqa"),
        ({"medqa", "medqa/meta_info=step1"}, "medqa/meta_info=step1"),
        ({"medqa", "medqa/meta_info=step2"}, "medqa"),
        ({"medqa/meta_info=step2"}, None),
        ({"pubmedqa"}, None),
    ],
)
def test_a_category_s_own_adapter_comes_before_the_task_s(targets: set[str], expected: str | None) -> None:
    assert target_of(targets, "medqa", {"meta_info": "step1"}) == expected


def test_without_tasks_those_with_an_adapter_are_asked() -> None:
    assert tasks_of({"pubmedqa": "a", "medqa/meta_info=step1": "b", "medqa": "c"}) == ("medqa", "pubmedqa")


@pytest.mark.parametrize("kind", ["lora", "rslora"])
def test_plain_lora_and_rslora_are_served_as_they_are(made: dict[str, Path], kind: str) -> None:
    found = resolve_adapter(str(made[kind]), resolve(str(made["base"])))
    assert found.why_merged is None
    assert found.fingerprint == resolve(str(made[kind])).fingerprint


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"use_dora": True}, "it is a DoRA adapter"),
        ({"peft_type": "LOHA"}, "it is a LOHA adapter"),
        ({"init_lora_weights": "pissa"}, "its init_lora_weights is pissa"),
        ({"alpha_pattern": {"q_proj": 1}}, "its config sets alpha_pattern"),
        ({"modules_to_save": ["lm_head"]}, "its config sets modules_to_save"),
        ({"trainable_token_indices": [1]}, "its config sets trainable_token_indices"),
        ({"use_a_later_idea": True}, "its config sets use_a_later_idea"),
        ({"bias": "all"}, "its config sets bias"),
        ({"r": 9}, "its rank is 9 by its config and 8 by its weights"),
        ({"r": [8]}, "its rank is [8] by its config and 8 by its weights"),
    ],
)
def test_an_adapter_that_vllm_would_misread_is_merged(
    adapter: Path, made: dict[str, Path], keys: dict[str, Any], reason: str
) -> None:
    changed(adapter, **keys)
    assert resolve_adapter(str(adapter), resolve(str(made["base"]))).why_merged == reason


def test_an_adapter_of_an_output_layer_is_merged(adapter: Path, made: dict[str, Path]) -> None:
    weights = load_file(adapter / "adapter_model.safetensors")
    side = next(name for name in weights if name.endswith("q_proj.lora_A.weight"))
    save_file(
        {**weights, "base_model.model.lm_head.lora_A.weight": weights[side]}, adapter / "adapter_model.safetensors"
    )
    assert resolve_adapter(str(adapter), resolve(str(made["base"]))).why_merged == "it adapts lm_head"


Fault = Callable[[Path, dict[str, Path]], Mapping[str, Path]]


def _of_another_base(adapter: Path, made: dict[str, Path]) -> Mapping[str, Path]:
    changed(adapter, base_model_name_or_path=str(made["other"]))
    return {"medqa": adapter}


def _deeper(adapter: Path, made: dict[str, Path]) -> Mapping[str, Path]:
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    save_file({name.replace("layers.1.", "layers.7."): one for name, one in weights.items()}, path)
    return {"medqa": adapter}


def _wider(adapter: Path, made: dict[str, Path]) -> Mapping[str, Path]:
    path = adapter / "adapter_model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("q_proj.lora_A.weight"))
    save_file({**weights, name: weights[name].repeat(2, 1)}, path)
    return {"medqa": adapter}


def _cut_off(adapter: Path, made: dict[str, Path]) -> Mapping[str, Path]:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return {"medqa": adapter}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (_of_another_base, "whose weights are others than those of"),
        (_deeper, "the base has no such layer: name its own base"),
        (_wider, "the base has a matrix of 128 by 128: name its own base"),
        (_cut_off, "the file is truncated"),
        (lambda adapter, made: {"medqa": adapter / "missing"}, "no such folder"),
        (lambda adapter, made: {"medqa": made["other"]}, "a full checkpoint, which is no adapter"),
        (lambda adapter, made: {"medqa": adapter.parent}, "no adapter_config.json in it"),
        (lambda adapter, made: {"medq": adapter}, "did you mean medqa"),
        (lambda adapter, made: {"medqa/step=one": adapter}, "no question of medqa is of that category"),
    ],
)
def test_an_adapter_that_cannot_answer_is_refused_in_one_line_before_anything_is_asked(
    adapter: Path, made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Fault, said: str
) -> None:
    adapters = [f"--adapter={target}={path}" for target, path in fault(adapter, made).items()]
    asked = ["eval", str(made["base"]), "--tasks", "medqa,pubmedqa", "--data", "sample", *adapters]
    assert run([*asked, "--runs", str(tmp_path / "runs"), "--quiet"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medbench: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "--adapter med" in lines[0]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--adapter", "medqa"], "write TASK=PATH"),
        (["--adapter", "=x"], "write TASK=PATH"),
        (["--adapter", "medqa/meta_info=step1"], "write TASK=PATH, or TASK/FIELD=VALUE=PATH"),
        (["--adapter", "medqa=x", "--adapter", "medqa=y"], "medqa has two adapters"),
        (["--adapter", "medqa=x", "--base-url", "http://127.0.0.1:9/v1"], "engine openai loads no adapter"),
        (["--adapter", "medqa=x", "--base", "y"], "MODEL is the base"),
    ],
)
def test_an_option_that_names_no_adapter_is_refused_in_one_line(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    asked = ["eval", str(made["base"]), "--data", "sample", "--runs", str(tmp_path / "runs")]
    assert run([*asked, *given]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medbench: ")]
    assert said in line


def test_two_categories_may_not_claim_one_question() -> None:
    task = TaskLoader("sample", lambda _: None).load("medqa")
    one = replace(task.questions[0], id="q1", category={"step": "one", "organ": "lung"})
    adapters = {"medqa/step=one": "a", "medqa/organ=lung": "b"}
    with pytest.raises(MedbenchError, match="question q1 is of medqa/step=one and of medqa/organ=lung: name one"):
        refuse_unknown_targets(adapters, [replace(task, questions=(one,))])


def test_an_engine_that_the_caller_made_takes_no_adapters(made: dict[str, Path], tmp_path: Path) -> None:
    class Given:
        name = "given"

    with pytest.raises(MedbenchError, match="the given engine answers by itself"):
        ask(made["base"], tmp_path / "runs", {"medqa": made["lora"]}, engine=Given(), engine_config=None)


@pytest.mark.parametrize(
    ("on_cpu", "asked", "merged"),
    [(True, None, True), (True, True, False), (False, None, False), (False, False, True)],
)
def test_adapters_are_merged_on_a_cpu_or_where_the_user_says_so(
    on_cpu: bool, asked: bool | None, merged: bool, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medbench.harness.evaluation.experts.runs_on_cpu", lambda: on_cpu)
    given = {} if asked is None else {"vllm_args": {"enable_lora": asked}}
    choice = EngineChoice("vllm", EngineConfig(**given))
    found = find_experts({"medqa": str(made["lora"])}, resolve(str(made["base"])), choice, print)
    assert (found.merged is not None) == merged
    assert ["enable_lora" in note for note in found.notes] == [True] * merged
    served = found.choice(choice)
    assert (len(served.adapters), "enable_lora" in served.config.vllm_args) == (0 if merged else 1, asked is True)


def test_what_takes_turns_is_asked_adapter_by_adapter_in_its_order() -> None:
    task = TaskLoader("sample", lambda _: None).load("medqa")
    asked = [Instance(task, question, adapter=name) for question, name in zip(task.questions, "abab", strict=False)]
    found = [(name, [one.question.id for one in some]) for name, some in turns(asked)]
    ids = [question.id for question in task.questions]
    assert found == [("a", [ids[0], ids[2]]), ("b", [ids[1], ids[3]])]


@pytest.mark.slow
def test_merged_adapters_take_turns_and_the_run_says_who_answered(made: dict[str, Path], tmp_path: Path) -> None:
    """With transformers, which serves one checkpoint at a time."""
    runs = tmp_path / "runs"
    given: dict[str, Any] = {"engine": "hf", "limit": 4, "engine_config": None}
    mixed = ask(made["base"], runs, {"medqa": made["lora"], "pubmedqa": made["dora"]}, **given)
    for task, kind in (("medqa", "lora"), ("pubmedqa", "dora")):
        alone = ask(made[kind], runs, tasks=task, **given)
        assert replies(mixed, task) == replies(alone, task)
        assert mixed.record.model.experts is not None
        adapter = mixed.record.model.experts.adapters[task]
        assert adapter.fingerprint == alone.record.model.fingerprint
        assert adapter.merge_deviation is not None
    assert mixed.record.model.name == f"{made['base']} + lora, dora"
    assert mixed.record.model.experts.served == "merged"
    swapped = ask(made["base"], runs, {"medqa": made["dora"], "pubmedqa": made["lora"]}, **given)
    assert swapped.folder != mixed.folder
    difference = compare(mixed, swapped)
    assert set(difference.tasks) == {"medqa", "pubmedqa"}


@pytest.mark.slow
def test_a_run_is_resumed_with_its_own_adapters_only(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["eval", str(made["base"]), "--data", "sample", "--engine", "hf", "--max-new-tokens", "4", "--quiet"]
    asked += ["--runs", str(tmp_path / "runs"), "--name", "mine", "--resume"]
    mine = ["--adapter", f"medqa={made['lora']}"]
    assert run([*asked, *mine, "--limit", "2"]) == 0
    assert run([*asked, *mine, "--limit", "3"]) == 0
    assert len(list(read_samples(tmp_path / "runs" / "mine", "medqa"))) == 3
    capsys.readouterr()
    assert run([*asked, "--adapter", f"medqa={made['rslora']}", "--limit", "4"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("medbench: ")]
    assert "is another run (adapter of medqa: " in line
    assert len(list(read_samples(tmp_path / "runs" / "mine", "medqa"))) == 3


@pytest.mark.engine
def test_two_adapters_in_one_engine_reply_as_each_alone(made: dict[str, Path], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    experts = {"medqa": made["lora"], "pubmedqa": made["rslora"]}
    both = ask(made["base"], runs, experts)
    described = both.record.model.experts
    assert described is not None
    assert described.served == "lora"
    assert both.record.engine["settings"]["max_lora_rank"] == 8
    plain = ask(made["base"], runs)
    for task, path in experts.items():
        alone = ask(made["base"], runs, {task: path}, tasks=task)
        assert replies(both, task) == replies(alone, task)
        merged = ask(path, runs, tasks=task)
        assert described.adapters[task].fingerprint == merged.record.model.fingerprint
        # the same function in another order of sums: near ties may fall the other way
        ours, theirs = replies(both, task), replies(merged, task)
        different = sum(ours[id] != theirs[id] for id in ours)
        print(f"{task}: {different} of {len(ours)} replies differ between beside the base and merged")
        assert different <= len(ours) // 8
        assert sum(ours[id] != one for id, one in replies(plain, task).items()) > len(ours) // 2


@pytest.mark.engine
def test_one_category_has_an_adapter_and_the_base_answers_the_rest(made: dict[str, Path], tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    given: dict[str, Any] = {"tasks": "medqa", "limit": 24}
    mixed = ask(made["base"], runs, {"medqa/meta_info=step1": made["lora"]}, **given)
    plain = replies(ask(made["base"], runs, **given), "medqa")
    adapted = replies(ask(made["base"], runs, {"medqa": made["lora"]}, **given), "medqa")
    of_step_1 = {one.id for one in read_samples(mixed.folder, "medqa") if one.category["meta_info"] == "step1"}
    assert 0 < len(of_step_1) < len(plain)
    for id, output in replies(mixed, "medqa").items():
        assert output == (adapted if id in of_step_1 else plain)[id]


@pytest.mark.engine
def test_one_adapter_that_vllm_does_not_serve_has_all_merged_and_swapped(
    made: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    config = tmp_path / "eval.yaml"
    config.write_text(json.dumps({"engine_config": SETTINGS, "limit": 8, "max_new_tokens": 16}))
    adapters = [f"--adapter=medqa={made['dora']}", f"--adapter=pubmedqa={made['lora']}"]
    asked = ["eval", str(made["base"]), "--data", "sample", *adapters, "--config", str(config), "--runs", str(runs)]
    assert run([*asked, "--name", "mixed", "--quiet"]) == 0
    said = capfd.readouterr().err
    assert "(it is a DoRA adapter): all adapters are merged, and take turns in the engine" in said
    assert "swapped in" in said
    record = read_run(runs / "mixed")
    assert any("all adapters are merged" in note for note in record.notes)
    experts = record.model.experts
    assert experts is not None
    assert experts.served == "merged"
    for task, kind in (("medqa", "dora"), ("pubmedqa", "lora")):
        alone = ask(made[kind], runs, tasks=task, limit=8)
        mixed = {one.id: one.output for one in read_samples(runs / "mixed", task)}
        assert mixed == replies(alone, task)


@pytest.mark.engine
def test_a_rank_that_vllm_does_not_know_is_merged(
    made: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    large = build_tiny_lora(made["base"], tmp_path / "large", use_dora=False, use_rslora=True, r=520)
    with caplog.at_level("INFO", logger="medbench"):
        found = ask(made["base"], tmp_path / "runs", {"medqa": large}, tasks="medqa", limit=2)
    assert "an adapter has rank 520" in caplog.text
    assert found.record.model.experts is not None
    assert found.record.model.experts.served == "merged"


def test_adapters_are_a_keyword_of_evaluate() -> None:
    assert medbench.evaluate is evaluate
