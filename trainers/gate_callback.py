"""Gates in the trainers of transformers and TRL: every saved checkpoint is judged, and its verdict is acted on.

    trainer = SFTTrainer(..., callbacks=[medbench.GateCallback("gates.yaml", baseline="runs/base")])

Training waits for each verdict. The checkpoint is judged by a `medbench gate` of its own, or by a running
`medbench watch --serve`; never in the trainer's process, whose memory it would share. OUTPUT_DIR/gates.json holds all
verdicts so far and names the best checkpoint.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import replace_file
from medbench.harness.gates.rules import read_gate_file
from medbench.harness.gates.verdict import Verdict
from medbench.harness.runs.run_folder import read_run
from medbench.harness.secrets import redact
from medbench.harness.text import escaped, message
from medbench.harness.training.process import DISTRIBUTED
from medbench.harness.training.state import worth_of
from medbench.trainers.judging_client import JudgingClient, NoVerdict

if TYPE_CHECKING:
    from transformers import TrainerCallback
else:  # importing theirs takes seconds, and trainers call their callbacks' methods by name
    TrainerCallback = object

FILE = "gates.json"
LAUNCHER = ("TORCHELASTIC_", "ACCELERATE_", "FSDP_", "PMI_", "OMPI_")
"""Of variables that a launcher sets for its workers, in addition to DISTRIBUTED."""
LONGEST_WAIT = timedelta(days=30)
"""Of the other processes for the first one's verdict: torch's own default, 10 minutes with NCCL, would end them."""
CHILD = (
    "import ctypes, os, runpy, sys\n"
    "if sys.platform == 'linux':\n"
    "    ctypes.CDLL(None).prctl(1, 15)\n"  # SIGTERM when the trainer dies, even by kill -9: see prctl(2)
    "if os.getppid() != int(sys.argv.pop(1)):\n"
    "    sys.exit(4)\n"
    "runpy.run_module('medbench.harness.cli', run_name='__main__', alter_sys=True)\n"
)

log = logging.getLogger("medbench")


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is known about one checkpoint, as in gates.json."""

    checkpoint: str
    step: int
    status: str | None
    """pass, fail, undecided or not gateable; None where it could not be judged."""
    why: str
    worth: float | None = None
    """Mean estimate over the gates on accuracy: see training.state.worth_of."""
    run: str | None = None
    """Run folder with every answer."""


class GateCallback(TrainerCallback):
    """Judge every checkpoint that a trainer of transformers or TRL saves, and stop it or mark the best one.

    on_pass, on_fail    "stop" ends the training after the first checkpoint that passes (fails), "continue" goes on
    on_error            where there is no verdict (full disk, server gone): "continue" logs it and goes on, "raise" ends
                        the training with an error
    server              address of a `medbench watch --serve`, which judges by its own gate file and baseline; without
                        it `medbench gate` runs as a child process, with `engine`, `config`, `data` and `runs` as there
    device              CUDA_VISIBLE_DEVICES of that process, "" for none. By default it shares the trainer's devices:
                        cached memory is freed first, but the model and the optimizer stay, so limit the engine by
                        `config` (engine_config: {gpu_memory_utilization: 0.3})

    The best checkpoint passes before others, then has the highest mean estimate; trainers keep it under
    `save_total_limit`, unless `metric_for_best_model` says what is best. Raises MedbenchError for a faulty gate file,
    baseline or option at once, and for a server that is not there, or may not judge the output folder, when training
    begins.
    """

    def __init__(
        self,
        gates: str | Path | None = None,
        *,
        baseline: str | Path | None = None,
        on_pass: Literal["stop", "continue"] = "stop",
        on_fail: Literal["stop", "continue"] = "continue",
        on_error: Literal["continue", "raise"] = "continue",
        server: str | None = None,
        device: str | None = None,
        engine: str | None = None,
        config: str | Path | None = None,
        data: str | Path | None = None,
        runs: str | Path = "runs",
    ) -> None:
        _refuse_other("on_pass", on_pass, ("stop", "continue"))
        _refuse_other("on_fail", on_fail, ("stop", "continue"))
        _refuse_other("on_error", on_error, ("continue", "raise"))
        if (gates is None) == (server is None):
            raise MedbenchError(
                "GateCallback needs a gate file, or the address of a server, which has its own: give one of them"
            )
        of_child = {"baseline": baseline, "device": device, "engine": engine, "config": config, "data": data}
        given = [name for name, value in of_child.items() if value is not None]
        if server is not None and given:
            raise MedbenchError(f"GateCallback: the server decides about {', '.join(given)}: leave it out")
        if gates is not None:
            read_gate_file(Path(gates))
            if baseline is not None:
                read_run(Path(baseline))
        self._stops = {"pass": on_pass == "stop", "fail": on_fail == "stop"}
        self._raises = on_error == "raise"
        self._client = JudgingClient(server) if server is not None else None
        options = {"--gates": gates, "--baseline": baseline, "--engine": engine, "--config": config, "--data": data}
        self._options = {name: str(value) for name, value in (options | {"--runs": runs}).items() if value is not None}
        self._device = device
        self._judged: list[Judgement] = []
        self._ranks = _Ranks()

    @property
    def judged(self) -> Sequence[Judgement]:
        """All of this training, in order."""
        return tuple(self._judged)

    @property
    def best(self) -> Judgement | None:
        """The best checkpoint so far; None where none has a verdict."""
        known = [one for one in self._judged if one.status is not None]
        return max(known, key=lambda one: (one.status == "pass", one.worth or 0.0, one.step), default=None)

    def __getattr__(self, name: str) -> Any:
        """The events that do not matter here, also those of later versions of transformers."""
        if name.startswith("on_"):
            return _nothing
        raise AttributeError(f"GateCallback has no attribute {name!r}")

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._ranks = _Ranks.joined()
        self._judged = [one for one in _read(Path(args.output_dir) / FILE) if one.step <= state.global_step]
        if self._client is not None and state.is_world_process_zero:
            self._client.refuse_outside(Path(args.output_dir))

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        checkpoint = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        _free_memory()
        self._ranks.meet()  # every process has written its part, and freed its memory
        judgement = self._judge(checkpoint, state.global_step) if state.is_world_process_zero else None
        judgement = self._ranks.told(judgement)
        self._judged.append(judgement)
        if judgement.status is None and self._raises:
            raise MedbenchError(f"{judgement.checkpoint}: no verdict: {judgement.why}")
        best = self.best
        if best is not None and args.metric_for_best_model is None:
            state.best_model_checkpoint, state.best_global_step = best.checkpoint, best.step
        if self._stops.get(judgement.status or "", False):
            control.should_training_stop = True
        if state.is_world_process_zero:
            self._tell(judgement, control, Path(args.output_dir) / FILE)

    def _judge(self, checkpoint: Path, step: int) -> Judgement:
        try:
            found = self._ask_child(checkpoint) if self._client is None else self._client.judge(checkpoint)
            run = found.pop("run", None)
            found.pop("seconds", None)
            verdict = Verdict.model_validate(found)
        except Exception as error:  # whatever it is: the other processes wait for an answer
            why = str(error) if isinstance(error, NoVerdict) else f"{type(error).__name__}: {error}"
            return Judgement(str(checkpoint), step, None, message(redact(" ".join(why.split()))))
        return Judgement(str(checkpoint), step, verdict.overall, verdict.why, worth_of(verdict), run)

    def _ask_child(self, checkpoint: Path) -> dict[str, Any]:
        """The verdict of `medbench gate` as JSON. Raises NoVerdict."""
        options = [word for pair in self._options.items() for word in pair]
        words = ["gate", os.path.abspath(checkpoint), *options, "--json", "--quiet"]  # noqa: PTH100 - links stay
        try:
            done = subprocess.run(
                [sys.executable, "-c", CHILD, str(os.getpid()), *words],
                env=_environment(os.environ, self._device),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="backslashreplace",
                check=False,
            )
        except OSError as error:
            raise NoVerdict(f"medbench gate cannot be started ({error.strerror})") from None
        try:
            (found,) = json.loads(done.stdout)["verdicts"]
        except (ValueError, KeyError, TypeError):
            last = done.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
            raise NoVerdict(f"medbench gate ended with status {done.returncode}: {escaped(last[0])}") from None
        return dict(found)

    def _tell(self, judgement: Judgement, control: Any, file: Path) -> None:
        ends = "; training stops" if control.should_training_stop else ""
        level = logging.WARNING if ends or judgement.status is None else logging.INFO
        log.log(level, "%s: %s: %s%s", judgement.checkpoint, judgement.status or "no verdict", judgement.why, ends)
        best = self.best
        content = {
            "schema_version": 1,
            "best": None if best is None else {**asdict(best), "because": self._because(best)},
            "judged": [asdict(one) for one in self._judged],
        }
        try:
            replace_file(file, json.dumps(content, indent=1, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        except OSError as error:
            log.warning("%s: cannot be written (%s)", file, error.strerror)

    def _because(self, best: Judgement) -> str:
        known = [one for one in self._judged if one.status is not None]
        alike = [one for one in known if (one.status == "pass") == (best.status == "pass")]
        kind = "that pass" if best.status == "pass" else "of which none passes"
        return f"the highest estimate ({best.worth:.4g}) of {len(alike)} judged {kind}"


def _nothing(*_: Any, **__: Any) -> None: ...


@dataclass(frozen=True, slots=True)
class _Ranks:
    """The processes of a training, which wait for the first one; a single process has no group."""

    group: Any = None

    @classmethod
    def joined(cls) -> _Ranks:
        """To be called by all of them at the same time."""
        distributed = sys.modules.get("torch.distributed")
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            return cls()
        if distributed.get_world_size() == 1:
            return cls()
        return cls(distributed.new_group(backend="gloo", timeout=LONGEST_WAIT))

    def meet(self) -> None:
        if self.group is not None:
            sys.modules["torch.distributed"].barrier(group=self.group)

    def told(self, judgement: Judgement | None) -> Judgement:
        """The first process's judgement, in every process."""
        held = [judgement]
        if self.group is not None:
            sys.modules["torch.distributed"].broadcast_object_list(held, src=0, group=self.group)
        assert held[0] is not None
        return held[0]


def _environment(own: Mapping[str, str], device: str | None) -> dict[str, str]:
    """What a child needs that is no worker of the training."""
    kept = {name: value for name, value in own.items() if name not in DISTRIBUTED and not name.startswith(LAUNCHER)}
    return kept if device is None else kept | {"CUDA_VISIBLE_DEVICES": device}


def _free_memory() -> None:
    """Give what the trainer has cached on its device back, for the engine."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _read(file: Path) -> list[Judgement]:
    """What an earlier process of this training found; nothing where that cannot be read."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return [Judgement(**one) for one in json.loads(file.read_bytes())["judged"]]
    return []


def _refuse_other(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise MedbenchError(f"GateCallback: {name} is {value!r}: it must be {' or '.join(map(repr, known))}")
