"""Gate files: what a checkpoint must reach, as YAML.

medbench validate gates.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from medbench.harness.config import Record, read_yaml
from medbench.harness.contracts import MedbenchError
from medbench.harness.text import did_you_mean

Metric = Literal["accuracy", "unparsed", "truncated", "errors", "tokens_per_answer", "seconds_per_question"]
SHARES = ("accuracy", "unparsed", "truncated", "errors")
"""Metrics that are a mean of values between 0 and 1, one a question."""
Kind = Literal["floor", "ceiling", "margin", "superiority"]
Unit = Literal["share", "difference", "tokens", "seconds"]
"""Of an estimate and its threshold. share: 0 to 1, shown in percent; difference: of two shares, shown in points."""
MEAN = "mean"
"""In place of a task: the mean of the accuracies of all tasks that the file names."""


class Gate(Record):
    """One rule. Exactly one of at_least, at_most, margin, better_by."""

    task: str
    metric: Metric = "accuracy"
    category: dict[str, str] | None = None
    """One breakdown field and its value, e.g. {meta_info: step1}: only those questions count."""
    at_least: float | None = Field(None, ge=0, allow_inf_nan=False)
    """A floor."""
    at_most: float | None = Field(None, ge=0, allow_inf_nan=False)
    """A ceiling."""
    margin: float | None = Field(None, ge=0, le=1)
    """Not worse than the baseline by more than this share (0.02 is two points): non-inferiority."""
    better_by: float | None = Field(None, ge=0, le=1)
    """Better than the baseline by more than this share: superiority."""

    @model_validator(mode="after")
    def _one_sound_rule(self) -> Gate:
        rules = {key: getattr(self, key) for key in ("at_least", "at_most", "margin", "better_by")}
        given = [key for key, value in rules.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(rules)}; found {', '.join(given) or 'none'}")
        (rule,) = given
        if self.metric in SHARES and rules[rule] > 1:
            raise ValueError(f"{rule}: {self.metric} is a share between 0 and 1; write 0.6 for 60 %")
        if rule in ("margin", "better_by") and self.metric not in SHARES:
            raise ValueError(f"{rule}: {self.metric} has no margin; use at_most")
        if self.task == MEAN and (self.metric != "accuracy" or self.category):
            raise ValueError("task mean takes accuracy alone, without a category")
        if self.category is not None and len(self.category) != 1:
            raise ValueError("category: one field and its value, e.g. {meta_info: step1}")
        if self.metric == "seconds_per_question" and self.category:
            raise ValueError("category: seconds_per_question is measured over the whole run")
        return self

    @property
    def paired(self) -> bool:
        """Whether it needs a baseline."""
        return self.margin is not None or self.better_by is not None

    @property
    def kind(self) -> Kind:
        if self.at_least is not None:
            return "floor"
        if self.at_most is not None:
            return "ceiling"
        return "margin" if self.margin is not None else "superiority"

    @property
    def unit(self) -> Unit:
        if self.metric == "seconds_per_question":
            return "seconds"
        if self.metric == "tokens_per_answer":
            return "tokens"
        return "difference" if self.paired else "share"

    @property
    def rule(self) -> str:
        """In words, with the numbers as the file gives them."""
        category = ", ".join(f"{field} {value}" for field, value in (self.category or {}).items())
        of = f"{self.task} ({category})" if category else self.task
        if self.at_least is not None:
            return f"{of}: {self.metric} at least {self.at_least:g}"
        if self.at_most is not None:
            return f"{of}: {self.metric} at most {self.at_most:g}"
        if self.margin is not None:
            return f"{of}: {self.metric} not worse than the baseline's by more than {self.margin:g}"
        return f"{of}: {self.metric} better than the baseline's by more than {self.better_by:g}"


class GateFile(Record):
    """A verdict passes when every gate passes."""

    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Chance of a wrong pass, and of a wrong fail, of the whole verdict."""
    decide: Literal["census", "population"] = "census"
    """census: what the whole benchmark would say of this checkpoint; population: what new questions would say."""
    partition: Literal["all", "gate", "report"] = "all"
    budget: int | None = Field(None, ge=1)
    """Most questions in all, over the tasks; then what is open stays undecided."""
    protocol: str | None = None
    """How to ask a checkpoint; None is the baseline's own, else cot-v1."""
    max_new_tokens: int | None = Field(None, ge=1)
    gates: list[Gate] = Field(min_length=1)

    @model_validator(mode="after")
    def _mean_has_tasks(self) -> GateFile:
        if any(gate.task == MEAN for gate in self.gates) and not self.tasks:
            raise ValueError("gates: a gate on the mean needs gates that name the tasks")
        return self

    @property
    def tasks(self) -> list[str]:
        """The tasks that must be asked, in the file's order."""
        return list(dict.fromkeys(gate.task for gate in self.gates if gate.task != MEAN))


def read_gate_file(path: Path) -> GateFile:
    """Raises MedbenchError for a faulty file."""
    return read_yaml(path, GateFile)


def refuse_unknown_tasks(gates: GateFile, where: str, known_tasks: list[str]) -> None:
    """Raises MedbenchError for a task that is not known, naming near ones; `where` is the file."""
    for index, gate in enumerate(gates.gates):
        if gate.task not in (*known_tasks, MEAN):
            raise MedbenchError(f"{where}: gates.{index}.task: unknown task {gate.task!r}; "
                                f"{did_you_mean(gate.task, [*known_tasks, MEAN])}")  # fmt: skip


def write_example(path: Path) -> None:
    """Raises MedbenchError rather than write over a file."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except FileExistsError:
        raise MedbenchError(f"{path} exists already: edit it, or move it away") from None
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be written ({error.strerror})") from None


EXAMPLE = """\
# What a checkpoint must reach before it goes on. Run: medbench gate CHECKPOINT --gates gates.yaml --baseline runs/LAST
# The verdict passes when every gate passes.

alpha: 0.05           # chance of a wrong pass, and of a wrong fail, of the whole verdict
decide: census        # about this benchmark's questions; population: about new questions of the same kind
partition: all        # gate: only the half that loops look at; report: only the other half
# budget: 2000        # most questions in all; what is open then is undecided (exit 3)
# protocol: cot-v1    # how to ask; without it the baseline's own

gates:
  - {task: medqa, metric: accuracy, at_least: 0.60}                  # a floor
  - {task: pubmedqa, metric: accuracy, margin: 0.02}                 # not worse than --baseline by more than 2 points
  - {task: medqa, category: {meta_info: step1}, margin: 0.04}        # the same, for one category
  - {task: mmlu_pro_medical, metric: unparsed, at_most: 0.05}        # a ceiling
  # - {task: mean, better_by: 0.01}                                  # better than --baseline by more than 1 point
"""
