"""The rules of a verdict: what a checkpoint must reach, from a gate file (YAML) or made in Python.

rules = read_gate_file(Path("gates.yaml"))
rules = GateFile(gates=[Gate("medqa", margin=0.02), Gate("medqa", metric="unparsed", at_most=0.05)])
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, PlainValidator, PrivateAttr, TypeAdapter, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from medbench.harness.config import Record, check_mapping, read_yaml
from medbench.harness.contracts import MOST_NEW_TOKENS, MedbenchError
from medbench.harness.files import as_text, slug
from medbench.harness.text import did_you_mean, foreign

Metric = Literal[
    "accuracy",
    "unparsed",
    "truncated",
    "errors",
    "tokens_per_answer",
    "seconds_per_question",
    "factuality",
    "effectiveness",
    "completeness",
]
JUDGED = ("factuality", "effectiveness", "completeness")
"""What a judge says of a reply's reasoning, see judges.scores."""
SHARES = ("accuracy", "unparsed", "truncated", "errors", *JUDGED)
"""Metrics that are the mean of one value between 0 and 1 per question."""
Kind = Literal["floor", "ceiling", "margin", "superiority"]
Unit = Literal["share", "difference", "tokens", "seconds"]
"""Of an estimate and its threshold. share: 0 to 1, shown in percent; difference: of two shares, shown in points."""
CONSTANT: Final = "constant"
"""As `at_least`: see gates.constant_answer."""
LEAST_KAPPA = 0.4
"""Of a gate that names none."""
MEAN = "mean"
"""Used as a task: the mean of the accuracies of all tasks that the file names."""


_FLOOR = TypeAdapter(Annotated[float | None, Field(ge=0, allow_inf_nan=False, strict=True)])


def _floor(value: object) -> float | Literal["constant"] | None:
    """A union of pydantic's would report what is wrong with a number and that it is not "constant"."""
    if value == CONSTANT:
        return CONSTANT
    try:
        return _FLOOR.validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        raise PydanticCustomError(fault["type"], fault["msg"]) from None


class Gate(Record):
    """One rule. Give exactly one of at_least, at_most, margin and better_by.

    Made from Python (`Gate("medqa", margin=0.02)`) it raises MedbenchError for a faulty rule.
    """

    task: str
    metric: Metric = "accuracy"
    category: dict[str, str] | None = None
    """One breakdown field and its value, e.g. {meta_info: step1}: only those questions count."""
    at_least: Annotated[float | Literal["constant"] | None, PlainValidator(_floor)] = None
    """A floor, in the metric's unit: 0..1 for shares, else tokens or seconds. "constant": the accuracy of the answer
    that is right most often, given to every question."""
    at_most: float | None = Field(None, ge=0, allow_inf_nan=False)
    """A ceiling, in the same unit."""
    margin: float | None = Field(None, ge=0, le=1)
    """Not worse than the baseline by more than this share (0.02 is two points): non-inferiority."""
    better_by: float | None = Field(None, ge=0, le=1)
    """Better than the baseline by more than this share: superiority."""
    judge: str | None = None
    """Of a judged metric: whose scores count, by its name as in `medbench judge RUN --judge NAME`."""
    least_kappa: float | None = Field(None, ge=0, le=1)
    """The lower end of the 95 % interval of the judge's kappa with people must reach this; None is LEAST_KAPPA."""
    _constant: tuple[str, float] | None = PrivateAttr(None)
    """The best constant answer and its accuracy, where `at_least` names it and the questions are known."""

    def __init__(
        self,
        task: str,
        *,
        metric: Metric = "accuracy",
        category: dict[str, str] | None = None,
        at_least: float | Literal["constant"] | None = None,
        at_most: float | None = None,
        margin: float | None = None,
        better_by: float | None = None,
        judge: str | None = None,
        least_kappa: float | None = None,
    ) -> None:
        bounds = {"at_least": at_least, "at_most": at_most, "margin": margin, "better_by": better_by}
        judged = {"judge": judge, "least_kappa": least_kappa}
        fields = {"task": task, "metric": metric, "category": category, **bounds, **judged}
        try:
            super().__init__(**fields)
        except ValidationError:
            raise _faulty(Gate, fields, f"gate on {task}") from None

    # without this mark pydantic would make records of a YAML file by calling __init__ too
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="after")
    def _one_sound_rule(self) -> Gate:
        rules = {key: getattr(self, key) for key in ("at_least", "at_most", "margin", "better_by")}
        given = [key for key, value in rules.items() if value is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(rules)}; found {', '.join(given) or 'none'}")
        (rule,) = given
        if rules[rule] == CONSTANT:
            if self.metric != "accuracy" or self.task == MEAN:
                raise ValueError(f"at_least: {CONSTANT} is an accuracy of one task; give a number")
        elif self.metric in SHARES and rules[rule] > 1:
            raise ValueError(f"{rule}: {self.metric} is a share between 0 and 1; write 0.6 for 60 %")
        if rule in ("margin", "better_by") and self.metric not in SHARES:
            raise ValueError(f"{rule}: {self.metric} has no margin; use at_most")
        if self.task == MEAN and (self.metric != "accuracy" or self.category):
            raise ValueError("a gate on the mean must be on accuracy, without a category")
        if self.category is not None and len(self.category) != 1:
            raise ValueError("category: give one field and its value, e.g. {meta_info: step1}")
        if self.metric == "seconds_per_question" and self.category:
            raise ValueError("category: seconds_per_question is measured over the whole run")
        if self.metric in JUDGED and self.judge is None:
            raise ValueError(f"{self.metric} is a judge's score: add judge: NAME")
        if self.judge is not None and (slug(self.judge) != self.judge or "." in self.judge):
            raise ValueError("judge: a judge's name has letters, digits, dashes and underscores only")
        if self.metric not in JUDGED and (self.judge is not None or self.least_kappa is not None):
            raise ValueError(f"judge and least_kappa belong to {', '.join(JUDGED)}; {self.metric} needs no judge")
        return self

    @property
    def kappa_needed(self) -> float:
        return LEAST_KAPPA if self.least_kappa is None else self.least_kappa

    @property
    def paired(self) -> bool:
        """Whether it compares with a baseline."""
        return self.margin is not None or self.better_by is not None

    @property
    def less_is_better(self) -> bool:
        return self.at_most is not None or (self.paired and self.metric not in ("accuracy", *JUDGED))

    @property
    def strict(self) -> bool:
        """Whether an estimate at the threshold fails."""
        return self.better_by is not None

    @property
    def threshold(self) -> float:
        """Compared with the metric; for a paired gate, with the candidate's value minus the baseline's.

        Raises ValueError for the constant answer of questions that are not known yet: see at_constant.
        """
        if self.at_least == CONSTANT:
            if self._constant is None:
                raise ValueError("the threshold is known only with the questions")
            return self._constant[1]
        for bound in (self.at_least, self.at_most):
            if bound is not None:
                return bound
        least = self.better_by if self.better_by is not None else -(self.margin or 0.0)
        return -least if self.less_is_better else least

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
        """The rule in words, with the numbers as given."""
        category = ", ".join(f"{field} {value}" for field, value in (self.category or {}).items())
        of = f"{self.task} ({category})" if category else self.task
        if self.at_least == CONSTANT:
            return f"{of}: {self.metric} at least that of the best constant answer"
        metric = f"{self.metric} by {self.judge}" if self.judge is not None else self.metric
        if self.at_least is not None:
            return f"{of}: {metric} at least {self.at_least:g}"
        if self.at_most is not None:
            return f"{of}: {metric} at most {self.at_most:g}"
        if self.margin is not None:
            return f"{of}: {metric} not worse than the baseline's by more than {self.margin:g}"
        return f"{of}: {metric} better than the baseline's by more than {self.better_by:g}"

    @property
    def constant(self) -> str | None:
        """The best constant answer, where the threshold is its accuracy and the questions are known."""
        return self._constant[0] if self._constant else None

    def at_constant(self, answer: str, accuracy: float) -> Gate:
        """This gate where `at_least` is the best constant answer and that is `answer`."""
        known = self.model_copy()
        known._constant = (answer, accuracy)
        return known


class GateFile(Record):
    """All rules of a verdict, which passes when every gate passes.

    Made from Python (`GateFile(gates=[...])`) it raises MedbenchError for faulty rules.
    """

    alpha: float = Field(0.05, gt=0, lt=0.5)
    """Chance of a wrong pass, and of a wrong fail, of the whole verdict."""
    decide: Literal["census", "population"] = "census"
    """census: about this benchmark's questions; population: about new questions of the same kind."""
    decide_after: Literal["evidence", "all"] = "evidence"
    """evidence: as soon as alpha allows a verdict; all: only when every question is asked, so that it is exact."""
    control: Literal["family", "fdr"] = "family"
    """What alpha is promised for, over all checkpoints that this file judges (see gates.ledger): that none passes
    wrongly (family), or the share of wrong passes among the passes (fdr)."""
    partition: Literal["all", "gate", "report"] = "all"
    """Which half of the questions: the one for training loops (gate), the other (report), or both."""
    budget: int | None = Field(None, ge=1)
    """Most questions asked, over all tasks; gates that are still open then are undecided."""
    protocol: str | None = None
    """Protocol for the candidates; None is the baseline's, or cot-v2 without a baseline."""
    max_new_tokens: int | None = Field(None, ge=1, le=MOST_NEW_TOKENS)
    """Instead of the protocol's own limit."""
    thinking_tokens: int | None = Field(None, ge=1, le=MOST_NEW_TOKENS)
    """Most tokens of a reply's reasoning, see protocols.protocol."""
    temperature: float | None = Field(None, ge=0, le=10)
    """Instead of the protocol's own."""
    samples: int | None = Field(None, ge=1)
    """Replies to each question, of which the mean is judged; None is a finished run's own number, the baseline's where
    the protocol is the baseline's, else 1."""
    gates: list[Gate] = Field(min_length=1)
    _path: Path | None = PrivateAttr(None)

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError:
            raise _faulty(GateFile, fields, "gates") from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @model_validator(mode="after")
    def _fdr_has_evidence(self) -> GateFile:
        if self.control == "fdr" and self.decide == "population":
            raise ValueError("control: fdr needs decide: census, whose evidence is an e-value; use control: family")
        return self

    @model_validator(mode="after")
    def _constant_of_these_questions(self) -> GateFile:
        if self.decide == "population" and any(gate.at_least == CONSTANT for gate in self.gates):
            raise ValueError(
                f"at_least: {CONSTANT} is about this benchmark's questions; decide: population needs a number"
            )
        return self

    @model_validator(mode="after")
    def _mean_has_tasks(self) -> GateFile:
        if any(gate.task == MEAN for gate in self.gates) and not self.tasks:
            raise ValueError("gates: a gate on the mean needs gates that name the tasks")
        return self

    @property
    def names_protocol(self) -> bool:
        """Whether the file says how questions are asked; otherwise that is the baseline's affair."""
        return any(
            one is not None for one in (self.protocol, self.max_new_tokens, self.thinking_tokens, self.temperature)
        )

    @property
    def tasks(self) -> list[str]:
        """The tasks to ask, each once, in the order of the gates."""
        return list(dict.fromkeys(gate.task for gate in self.gates if gate.task != MEAN))

    @property
    def asks_everything(self) -> bool:
        """Whether no verdict comes before the last answer: a population's test allows a single look."""
        return self.decide == "population" or self.decide_after == "all"

    @property
    def file_name(self) -> str | None:
        """Without its folder; None for rules made in Python or part of a recipe."""
        return as_text(self._path.name) if self._path is not None else None

    def key(self, baseline: str | None) -> str:
        """sha256 over the rules and `baseline`, the fingerprint of the baseline's weights. Verdicts and the ledger's
        lines with the same key answer the same question."""
        # without defaults, so that a later medbench with more options gives the same key
        content = [self.model_dump(mode="json", exclude_defaults=True), baseline]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _faulty(model: type[Record], fields: dict[str, Any], where: str) -> MedbenchError:
    """All faults of `fields` in one line."""
    return MedbenchError("; ".join(check_mapping(fields, model, where)[1]))


def read_gate_file(path: Path) -> GateFile:
    """Raises MedbenchError for a file that cannot be read or has faults, with all of them in one line."""
    rules = read_yaml(path, GateFile)
    rules._path = path
    return rules


def refuse_unknown_tasks(rules: GateFile, known_tasks: list[str], path: Path | None = None) -> None:
    """Raises MedbenchError for a task that is not known; suggests similar names.

    `path` is the file that the rules are part of, where read_gate_file did not read them.
    """
    file = path or rules._path
    for index, gate in enumerate(rules.gates):
        if gate.task not in (*known_tasks, MEAN):
            where = f"{file}: gates.{index}.task" if file else "gates"
            hint = did_you_mean(gate.task, [*known_tasks, MEAN])
            raise MedbenchError(f"{where}: unknown task {gate.task!r}; {hint}")


def refuse_judged(rules: GateFile, path: Path | None = None) -> None:
    """Raises MedbenchError for a gate on a judge's scores, where checkpoints are judged while they answer."""
    for index, gate in enumerate(rules.gates):
        if gate.judge is not None:
            file = path or rules._path
            where = f"{file}: gates.{index}" if file else f"gate '{gate.rule}'"
            raise MedbenchError(
                f"{where}: {gate.metric} is decided on finished, judged runs only: medbench eval CHECKPOINT "
                f"--judge {foreign(gate.judge, 40)}, then medbench gate RUN"
            )


def write_example(path: Path) -> None:
    """Write the commented example. Raises MedbenchError if the file exists or cannot be written."""
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except FileExistsError:
        raise MedbenchError(f"{path} already exists: edit it, or move it away") from None
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be written ({error.strerror})") from None


EXAMPLE = """\
# What a checkpoint must reach. The verdict passes when every gate passes.
# medbench gate CHECKPOINT --gates gates.yaml --baseline runs/LAST

alpha: 0.05           # chance of a wrong pass, and of a wrong fail, of the whole verdict
control: family       # alpha is for all checkpoints that this file judges; fdr: for the share of wrong passes
decide: census        # judge on this benchmark's questions; population: on new questions of the same kind
decide_after: evidence   # as soon as alpha allows; all: only when every question is asked
partition: all        # gate: only the half that training loops use; report: only the other half
# budget: 2000        # most questions in total; gates still open then are undecided (exit 3)
# protocol: cot-v2    # default: the baseline's protocol
# temperature: 0.7    # sample, instead of the protocol's own temperature
# samples: 4          # replies to each question, of which the mean is judged

gates:
  - {task: medqa, metric: accuracy, at_least: 0.60}                  # floor
  - {task: pubmedqa, metric: accuracy, margin: 0.02}                 # at most 2 points worse than the baseline
  - {task: medqa, category: {meta_info: step1}, margin: 0.04}        # at most 4 points worse in one category
  - {task: mmlu_pro_medical, metric: unparsed, at_most: 0.05}        # ceiling
  # - {task: medqa, at_least: constant}                              # as good as always giving the commonest answer
  # - {task: mean, better_by: 0.01}                                  # more than 1 point better than the baseline
  # - {task: pubmedqa, metric: factuality, judge: llm, at_least: 0.8, least_kappa: 0.4}   # finished, judged runs only
"""
