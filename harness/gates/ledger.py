"""How many checkpoints one gate file has judged, and how much of alpha each may spend on a wrong pass.

    entry = Ledger(Path("runs"), rules, baseline).enter(model)
    entry.number, entry.alpha            # 7, 0.00062

Each checkpoint has an order of its own (evaluation/question_order.py), so each is another chance of a wrong pass: of 20
checkpoints that all fail by one question, 63 % of the families had a wrong pass at 5 % each, in a simulation. Two
promises, by `control` in the gate file:

family  the chance of any wrong pass among all checkpoints is at most alpha: the k-th spends 6 alpha / (pi k)^2, whose
        sum over all k is alpha (Bonferroni).
fdr     of the passes, the expected share of wrong ones is at most alpha: the k-th spends that times 1 + the passes
        before it. This is e-LOND (Xu and Ramdas, "Online multiple testing with e-values", 2024), valid under any
        dependence because a gate's evidence is an e-value; cheaper where most checkpoints pass.

The same checkpoint keeps its number and its alpha: a retry is no new chance, since its order is the same. Sampled
replies change with --seed, which then makes it another checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from medbench.harness.contracts import MedbenchError
from medbench.harness.files import as_text, cannot_write
from medbench.harness.gates.rules import GateFile
from medbench.harness.runs.records import ModelRecord
from medbench.harness.runs.run_folder import read_run
from medbench.harness.stats.spending import spent_alpha

LEDGER = "ledger.jsonl"
"""File in the runs folder: one event a line."""
SCHEMA_VERSION = 1


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    rules: str
    """sha256 over the gate file's rules and the baseline's weights."""
    created: str
    """UTC, ISO 8601."""


class Entered(_Event):
    """A checkpoint is about to be judged."""

    event: Literal["entered"] = "entered"
    checkpoint: str
    """sha256 over weights, tokenizer and config, and the seed of sampled replies."""
    name: str
    number: Annotated[int, Field(ge=1)]
    """Counted from 1, since the last fresh start."""
    alpha: Annotated[float, Field(gt=0, lt=1)]
    """What it may spend on a wrong pass."""

    def described(self, rules: GateFile) -> str:
        """The entry in words, for people."""
        most = f"{100 * self.alpha:.2g} % of the {100 * rules.alpha:g} %"
        return f"checkpoint {self.number} of this gate file; it may pass wrongly with a chance of at most {most}"


class Passed(_Event):
    event: Literal["passed"] = "passed"
    checkpoint: str


class Fresh(_Event):
    """The count starts again at 1, for a reason that a user gave."""

    event: Literal["fresh"] = "fresh"
    reason: str


Event = Entered | Passed | Fresh
_event: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ledger of one runs folder, for one gate file and baseline."""

    runs: Path
    rules: GateFile
    baseline: Path | None

    def enter(self, model: ModelRecord, seed: int | None = None) -> Entered:
        """The checkpoint's entry, new or from an earlier try; `seed` is that of sampled replies.

        Raises MedbenchError for a damaged ledger.
        """
        key, checkpoint = self.key, _checkpoint_of(model, seed)
        with self._locked():
            events = self._events(key)
            entries = [event for event in events if isinstance(event, Entered)]
            known = next((one for one in entries if one.checkpoint == checkpoint), None)
            if known is not None:
                return known
            number = len(entries) + 1
            alpha = spent_alpha(self.rules.alpha, number)
            if self.rules.control == "fdr":
                passes = len({event.checkpoint for event in events if isinstance(event, Passed)})
                alpha = min(self.rules.alpha, alpha * (passes + 1))
            entry = Entered(
                rules=key, created=_now(), checkpoint=checkpoint, name=as_text(model.name), number=number, alpha=alpha
            )
            self._append(entry)
            return entry

    def passed(self, entry: Entered) -> None:
        """Record that the checkpoint of `entry` passed."""
        with self._locked():
            done = [event for event in self._events(entry.rules) if isinstance(event, Passed)]
            if all(event.checkpoint != entry.checkpoint for event in done):
                self._append(Passed(rules=entry.rules, created=_now(), checkpoint=entry.checkpoint))

    def start_afresh(self, reason: str) -> None:
        """Count from 1 again. Only sound where nothing learned from the earlier verdicts."""
        with self._locked():
            self._append(Fresh(rules=self.key, created=_now(), reason=reason))

    @property
    def key(self) -> str:
        """See `GateFile.key`. Raises MedbenchError for a baseline that cannot be read."""
        baseline = read_run(self.baseline).model.fingerprint if self.baseline is not None else None
        return self.rules.key(baseline)

    def _events(self, key: str) -> list[Event]:
        """Those of one gate file since its last fresh start."""
        found: list[Event] = []
        path = self.runs / LEDGER
        try:
            *lines, _ = path.read_bytes().split(b"\n") if path.exists() else [b""]
        except OSError as error:
            raise MedbenchError(f"{path}: cannot be read ({error.strerror}): fix that and run again") from None
        for number, line in enumerate(lines, 1):
            try:
                event = _event.validate_json(line)
            except ValidationError as error:
                fault = error.errors(include_url=False)[0]["msg"].lower()
                raise MedbenchError(
                    f"{path}:{number}: {fault}: the ledger is damaged, or of a newer medbench: correct the line, "
                    f"or move the file away to count checkpoints from 1"
                ) from None
            if event.rules == key:
                found = [] if isinstance(event, Fresh) else [*found, event]
        return found

    def _append(self, event: Event) -> None:
        path = self.runs / LEDGER
        line = json.dumps(event.model_dump(), ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        try:
            with path.open("a+b") as file:
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)  # the torn line of a killed process
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise cannot_write(path, error) from None

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.runs / ".ledger.lock")
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise MedbenchError(f"{self.runs}: cannot be used ({error.strerror}): correct --runs") from None
        try:
            yield
        finally:
            lock.release()


def _checkpoint_of(model: ModelRecord, seed: int | None) -> str:
    parts = [model.fingerprint, model.tokenizer_sha256, model.config_sha256, *([] if seed is None else [seed])]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
