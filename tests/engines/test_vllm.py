"""The vLLM engine on the tiny model: the same answers as transformers, and edge cases."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from medbench.harness.contracts import Completion, MedbenchError, Message, Passed, Request
from medbench.harness.engines import vllm
from medbench.harness.engines.hf import HFEngine
from medbench.harness.engines.settings import EngineConfig

only_cpu = pytest.mark.skipif(not vllm.runs_on_cpu(), reason="the patch is for vLLM on a CPU")


def ask(engine: Any, text: str, *, new: int = 24, **given: Any) -> Request:
    messages = (Message("user", text),)
    return Request(text, messages, engine.render(messages, None), new, templated=True, **given)


def answers(engine: Any, requests: list[Request]) -> dict[str, Completion]:
    return {completion.id: completion for completion in engine.generate(requests)}


@pytest.fixture(scope="module")
def hf(tiny_model: Path) -> HFEngine:
    return HFEngine(str(tiny_model), device="cpu")


@pytest.mark.engine
def test_greedy_replies_are_those_of_transformers(tiny_engine: Any, hf: HFEngine) -> None:
    requests = [ask(tiny_engine, f"Which drug is number {n}?") for n in range(16)]
    ours, theirs = answers(tiny_engine, requests), answers(hf, requests)
    # vLLM omits a character whose bytes are incomplete at the end, transformers shows it as U+FFFD
    assert {id: one.text for id, one in ours.items()} == {id: one.text.rstrip("\ufffd") for id, one in theirs.items()}
    assert {id: one.finish_reason for id, one in ours.items()} == {id: one.finish_reason for id, one in theirs.items()}
    assert {one.finish_reason for one in ours.values()} <= {"stop", "length"}


@pytest.mark.engine
def test_a_short_reply_finishes_before_a_long_one_submitted_first(tiny_engine: Any) -> None:
    long, short = ask(tiny_engine, "zinc?", new=200), ask(tiny_engine, "iron?", new=1)
    long = replace(long, prompt=long.prompt + "x" * 3)
    order = [completion.id for completion in tiny_engine.generate([long, short])]
    assert order == ["iron?", "zinc?"]


@pytest.mark.engine
@pytest.mark.parametrize("choices", [(" A", " B", " C"), (" yes indeed", " no", " maybe so")], ids=["token", "tokens"])
def test_log_likelihoods_are_those_of_transformers(tiny_engine: Any, hf: HFEngine, choices: tuple[str, ...]) -> None:
    requests = [Request(str(n), (), f"Question {n}: iron?\nAnswer:", 1, choices=choices) for n in range(4)]
    ours, theirs = answers(tiny_engine, requests), answers(hf, requests)
    for id, completion in ours.items():
        assert completion.logprobs is not None
        assert dict(completion.logprobs) == pytest.approx(dict(theirs[id].logprobs or {}), abs=1e-3)
        assert list(completion.logprobs) == list(choices)


@pytest.mark.engine
def test_running_replies_report_their_milestones_and_read_the_same(tiny_engine: Any) -> None:
    plain = [
        replace(ask(tiny_engine, f"Which drug is number {n}?", new=60), temperature=1.0, seed=n) for n in range(16)
    ]
    whole = answers(tiny_engine, plain)
    told: dict[str, list[int]] = {}
    found = {}
    for one in tiny_engine.generate([replace(request, milestones=(16, 32, 500)) for request in plain]):
        if isinstance(one, Passed):
            assert one.id not in found
            told.setdefault(one.id, []).append(one.tokens)
        else:
            found[one.id] = one
    assert found == whole
    # a reply that ends with the token that passes a milestone may say so or not: it is over
    for id, one in whole.items():
        passed = [m for m in (16, 32) if one.completion_tokens > m]
        assert told.get(id, []) in (passed, [m for m in passed if one.completion_tokens > m + 1])
    assert told


@pytest.mark.engine
def test_milestones_count_over_a_stop_inside_the_reasoning(tiny_engine: Any) -> None:
    prompt = tiny_engine.render((Message("user", "zinc?"),), None) + "<think>"
    (whole,) = tiny_engine.generate([Request("q", (), prompt, 60, templated=True)])
    stop = whole.text[len(whole.text) // 4 :][:2]
    request = Request("q", (), prompt, 60, templated=True, stop=(stop,))
    (silent,) = tiny_engine.generate([request])
    *told, found = tiny_engine.generate([replace(request, milestones=(2, 4))])
    assert found == silent
    assert [one.tokens for one in told] in ([], [2], [4], [2, 4])
    assert all(one.tokens < silent.completion_tokens for one in told)


@pytest.mark.engine
def test_a_prompt_that_is_too_long_is_an_error_of_its_own_question(tiny_engine: Any) -> None:
    requests = [ask(tiny_engine, "iron " * 3000), ask(tiny_engine, "iron?")]
    found = answers(tiny_engine, requests)
    assert "2048" in (found[requests[0].id].error or "")
    assert found["iron?"].error is None


@pytest.mark.engine
def test_a_reply_that_fills_the_context_is_truncated(tiny_engine: Any) -> None:
    prompt = tiny_engine._tokenizer.decode(tiny_engine._tokenizer.encode("iron " * 2100)[:2040])
    (completion,) = tiny_engine.generate([Request("1", (), prompt, max_new_tokens=500)])
    assert completion.error is None
    assert completion.prompt_tokens + completion.completion_tokens <= 2048


def a_stop_string_of(engine: Any, prompt: str) -> tuple[str, str]:
    """(a string from the middle of the greedy reply to `prompt`, the whole reply)."""
    (whole,) = engine.generate([Request("whole", (), prompt, 40, templated=True)])
    middle = len(whole.text) // 2
    return whole.text[middle : middle + 3], whole.text


@pytest.mark.engine
def test_a_stop_string_ends_a_reply(tiny_engine: Any) -> None:
    prompt = next(p for n in range(50) if len(a_stop_string_of(tiny_engine, p := f"iron {n}")[1]) > 20)
    stop, whole = a_stop_string_of(tiny_engine, prompt)
    (cut,) = tiny_engine.generate([Request("cut", (), prompt, 40, templated=True, stop=(stop,))])
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


@pytest.mark.engine
def test_a_stop_string_never_fires_inside_reasoning(tiny_engine: Any) -> None:
    prompt = next(p for n in range(50) if len(a_stop_string_of(tiny_engine, p := f"iron {n} <think>\n")[1]) > 20)
    stop, whole = a_stop_string_of(tiny_engine, prompt)
    (kept,) = tiny_engine.generate([Request("kept", (), prompt, 40, templated=True, stop=(stop,))])
    assert kept.text == whole
    assert kept.completion_tokens <= 40


@pytest.mark.engine
def test_closing_the_iterator_aborts_all_requests(tiny_engine: Any) -> None:
    pulled = []

    def requests() -> Any:
        for n in range(10_000):
            pulled.append(n)
            yield ask(tiny_engine, f"iron {n}?", new=8)

    stream = tiny_engine.generate(requests())
    next(stream)
    stream.close()
    assert len(pulled) < 2_000  # requests are pulled only as they are needed
    assert not tiny_engine.llm.llm_engine.has_unfinished_requests()
    assert len(answers(tiny_engine, [ask(tiny_engine, "iron?")])) == 1


@pytest.mark.engine
def test_no_requests_no_completions(tiny_engine: Any) -> None:
    assert list(tiny_engine.generate([])) == []


@pytest.mark.engine
def test_sampling_is_repeatable_under_its_seed(tiny_engine: Any) -> None:
    def sampled(seed: int) -> str:
        request = replace(ask(tiny_engine, "iron?"), temperature=1.0, top_p=0.9, top_k=50, seed=seed)
        return next(iter(tiny_engine.generate([request]))).text

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(5)}) > 1


@pytest.mark.engine
def test_sampling_does_not_depend_on_how_prompts_are_chunked(tiny_engine: Any) -> None:
    # 12 prompts of 500 tokens with a batch of 1,024 tokens: most are prefilled in two chunks
    requests = [
        replace(ask(tiny_engine, f"Patient {n}: " + "iron or zinc? " * 120, new=4), temperature=1.0, seed=n)
        for n in range(12)
    ]
    together = {one.id: one.text for one in tiny_engine.generate(requests)}
    alone = {one.id: next(iter(tiny_engine.generate([one]))).text for one in requests}
    assert sum(together[id] == text for id, text in alone.items()) >= 11  # another order of a sum may change one draw


@pytest.mark.engine
def test_settings_are_json(tiny_engine: Any) -> None:
    settings = json.loads(json.dumps(dict(tiny_engine.settings())))
    assert settings["max_model_len"] == 2048
    assert settings["dtype"] == "float32"
    assert settings["enable_prefix_caching"]


@only_cpu
@pytest.mark.engine
def test_vllm_still_needs_the_patch_of_cpu_generators(tiny_engine: Any) -> None:
    """When this fails, upstream has changed: see whether _let_cpu_generators_rewind can go."""
    import torch
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert CPUModelRunner._bookkeeping_sync.rewinds
    assert "gen.set_offset(gen.get_offset() - 4)" in inspect.getsource(GPUModelRunner._bookkeeping_sync)
    with pytest.raises(RuntimeError, match="does not use offset"):
        torch.Generator().get_offset()


@only_cpu
@pytest.mark.engine
def test_a_vllm_without_that_fault_is_left_alone(tiny_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    def its_own(self: Any) -> None: ...

    monkeypatch.setattr(CPUModelRunner, "_bookkeeping_sync", its_own)
    monkeypatch.setattr(vllm, "REWINDS", "generator.rewind()")
    vllm._let_cpu_generators_rewind()
    assert CPUModelRunner._bookkeeping_sync is its_own


@pytest.mark.parametrize(
    ("seats", "chosen", "cpu", "places"),
    [(1024, False, False, 1024), (1024, True, True, 1024), (16, True, False, 16), (256, False, True, 32)],
)
def test_a_gate_fills_all_seats_but_not_all_of_a_cpu(seats: int, chosen: bool, cpu: bool, places: int) -> None:
    assert vllm._places(seats, chosen=chosen, cpu=cpu) == places


@pytest.mark.engine
def test_places_are_assumed_where_max_num_seqs_is_not_set(tiny_engine: Any) -> None:
    seats = tiny_engine.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
    assert tiny_engine.places == min(seats, vllm.CPU_PLACES if vllm.runs_on_cpu() else seats)


def test_several_copies_of_a_model_are_refused_with_the_way_to_run_them(tmp_path: Path) -> None:
    with pytest.raises(MedbenchError, match=r"engine_config.data_parallel_size: .*vllm serve.*--base-url"):
        vllm.VLLMEngine(str(tmp_path), EngineConfig(data_parallel_size=2))


@pytest.mark.parametrize("given", [{"tensor_parallel_size": 4}, {"vllm_args": {"pipeline_parallel_size": 4}}], ids=str)
def test_more_gpus_than_can_be_seen_are_refused(monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,3")
    with pytest.raises(MedbenchError) as caught:
        vllm.refuse_parallel(EngineConfig(**given), lambda: 2)
    assert str(caught.value) == (
        "engine_config.tensor_parallel_size: 4 GPUs are asked for and 2 can be seen (CUDA_VISIBLE_DEVICES=0,3): lower "
        "it or make more of them visible"
    )


@pytest.mark.parametrize(
    ("given", "gpus"),
    [
        ({}, 0),
        ({"tensor_parallel_size": 2}, 2),
        ({"tensor_parallel_size": 16, "vllm_args": {"distributed_executor_backend": "ray"}}, 2),
    ],
    ids=["one", "enough", "other machines"],
)
def test_gpus_that_are_there_or_on_other_machines_are_left_to_vllm(given: dict[str, Any], gpus: int) -> None:
    vllm.refuse_parallel(EngineConfig(**given), lambda: gpus)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes by /proc")
def test_a_killed_engine_process_ends_the_run_and_leaves_it_resumable(tiny_model: Path, tmp_path: Path) -> None:
    """As the kernel kills it when memory runs out; vLLM itself would wait for its replies for ever."""
    config = tmp_path / "eval.yaml"
    config.write_text("engine_config: {max_num_seqs: 2, kv_cache_gib: 1}\nmax_new_tokens: 1500\n")  # long enough
    command = [
        sys.executable,
        "-m",
        "medbench.harness.cli",
        "eval",
        str(tiny_model),
        "--data",
        "sample",
        "--name",
        "run",
    ]
    environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "MEDBENCH_CACHE": str(tmp_path / "cache")}
    environment.pop("VLLM_LOGGING_LEVEL", None)
    with subprocess.Popen(
        [*command, "--name", "run", "--config", str(config)],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        samples = tmp_path / "runs" / "run" / "samples"
        while run.poll() is None and not list(samples.glob("*.jsonl")):
            time.sleep(0.05)
        started = psutil.Process(run.pid).children(recursive=True)
        engine = next(one for one in started if "EngineCore" in " ".join(one.cmdline()))
        engine.kill()
        said = run.communicate(timeout=120)[1]
    assert run.returncode == 4
    last = said.strip().splitlines()[-1]
    assert last.startswith(
        "medbench: vLLM's engine process ended (it was killed, perhaps for lack of memory): go on by"
    )
    assert psutil.wait_procs(started, timeout=60)[1] == []
