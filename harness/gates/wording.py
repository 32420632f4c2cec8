"""What a gate's result says in words: the number, on which questions, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from medbench.harness.gates.rules import Gate, Metric, Unit
from medbench.harness.text import foreign

WORDS: dict[Metric, str] = {
    "accuracy": "accuracy",
    "unparsed": "unparsed answers",
    "truncated": "truncated answers",
    "errors": "failed requests",
    "tokens_per_answer": "tokens per answer",
    "seconds_per_question": "seconds per question",
    "factuality": "factuality",
    "effectiveness": "effectiveness",
    "completeness": "completeness",
}


@dataclass(frozen=True, slots=True)
class Sampled:
    """How the replies to a question were drawn."""

    samples: int = 1
    """Of each question, whose mean is judged."""
    noise: float | None = None
    """See GateResult.sampling_noise."""


def on_all(
    gate: Gate,
    status: str,
    estimate: float,
    total: int,
    new_questions: tuple[float, float],
    failed: int = 0,
    sampled: Sampled = Sampled(),
) -> str:
    """A census whose every question has been asked."""
    measured = _measured(gate, estimate, sampled)
    found = f"{measured} on all {total} questions{_failures(failed)}; {_threshold(gate)}: {status}"
    found += " until the failed requests are answered" if status == "undecided" else ""
    return f"{found} ({_new(gate, new_questions)}{_noise(gate, sampled)})"


@dataclass(frozen=True, slots=True)
class Asked:
    """What an early verdict is about."""

    used: int
    """Questions along the order that the decision looked at."""
    total: int
    failed: int
    answered: int
    """Questions along the order that have whole replies: fewer than `used` where long replies are not waited for."""
    observed: float | None
    """The metric on those that got an answer; None where there is none."""
    longer: int
    """Replies that were not waited for, longer than so many tokens: see gates.token_limits."""
    tokens: int
    sampled: Sampled = Sampled()


def on_some(gate: Gate, status: str, estimate: float, asked: Asked, alpha: float, saved: int) -> str:
    """A census decided early, or still open; `alpha` is the level of the side that decided.

    `estimate` is about all questions.
    """
    whole = f"{shown(gate, estimate)} on all {asked.total}"
    part = f"{shown(gate, asked.observed)} on the {asked.answered} asked" if asked.observed is not None else ""
    if status == "undecided":
        baseline = " against the baseline" if gate.paired else ""
        found = f"{_metric(gate, asked.sampled)} about {whole}{baseline}"
        found += f" ({part}{_failures(asked.failed, ', ')})" if part else _failures(asked.failed)
        return f"{found}; {_claim(gate)} not yet shown: undecided"
    claim = _claim(gate) if status == "pass" else _opposite(gate)
    extent = f"after {asked.used} of {asked.total} questions{_longer(asked)}"
    about = (f"{asked.failed} failed; " if asked.failed else "") + f"about {whole}{', ' if part else ''}{part}"
    about += f"; about {saved} questions saved by control variates" if saved > 0 else ""
    about += _noise(gate, asked.sampled)
    return f"{_metric(gate, asked.sampled)} {claim} with {confidence(alpha)} confidence {extent} ({about}): {status}"


def _longer(asked: Asked) -> str:
    if not asked.longer:
        return ""
    which = "with a reply longer" if asked.sampled.samples > 1 else "longer"
    return f", {asked.longer} of them {which} than {asked.tokens} tokens and counted against it"


def of_population(
    gate: Gate,
    status: str,
    estimate: float,
    used: int,
    total: int,
    failed: int,
    alpha: float,
    sampled: Sampled = Sampled(),
) -> str:
    """`alpha` is the level of the side that decided, or of the pass side."""
    extent = f"on all {total} questions" if used == total else f"on {used} of {total} questions"
    claim = _opposite(gate) if status == "fail" else _claim(gate)
    shown_or_not = "not shown " if status == "undecided" else ""
    return (
        f"{_measured(gate, estimate, sampled)} {extent}{_failures(failed)}; "
        f"{claim} on new questions {shown_or_not}with {confidence(alpha)} confidence: {status}"
        f"{_noise(gate, sampled, ' (', ')')}"
    )


def of_mean(
    gate: Gate,
    status: str,
    estimate: float | None,
    observed: float | None,
    interval: tuple[float, float] | None,
    new_questions: tuple[float, float] | None,
    tasks: Sequence[str],
    used: int,
    total: int,
    sampled: Sampled = Sampled(),
) -> str:
    each = f" ({sampled.samples} samples per question)" if sampled.samples > 1 else ""
    mean = f"mean {WORDS[gate.metric]} of {', '.join(tasks)}{each}"
    extent = f"on all {total} questions" if used == total else f"after {used} of {total} questions"
    if estimate is not None and observed is not None and used < total:
        mean += f" about {_against(gate, shown(gate, estimate))} ({shown(gate, observed)} on the {used} asked)"
    elif estimate is not None:
        mean += f" {_against(gate, shown(gate, estimate))}"
    if interval is not None:
        mean += f", between {shown(gate, interval[0])} and {shown(gate, interval[1])}"
    if new_questions is not None:
        more = f" ({_new(gate, new_questions)}{_noise(gate, sampled)})"
    else:
        more = _noise(gate, sampled, " (", ")")
    return f"{mean} {extent}; {_threshold(gate)}: {status}{more}"


def of_pace(gate: Gate, status: str, pace: float | None, used: int) -> str:
    if pace is None:
        return "no question answered yet"
    return f"{pace:.2f} seconds per question over {used} questions; {_threshold(gate)}: {status}"


def shown(gate: Gate, value: float) -> str:
    """The metric, or a paired gate's difference, with its unit."""
    return number(gate.unit, value)


def number(unit: Unit, value: float) -> str:
    """A value with its unit: 0.62 -> "62.0 %"."""
    if unit == "seconds":
        return f"{value:.2f}"
    if unit == "tokens":
        return f"{value:.1f}"
    return f"{100 * value:+.1f} points" if unit == "difference" else f"{100 * value:.1f} %"


def between(unit: Unit, interval: tuple[float, float]) -> str:
    """Both ends with their unit, once: "57.9 to 65.2 %"."""
    low, high = (number(unit, end) for end in interval)
    return f"{low.removesuffix(' %').removesuffix(' points')} to {high}"


def level(*alphas: float) -> float:
    """The level of an interval that misses with these chances."""
    return round(1 - math.fsum(alphas), 12)


def confidence(alpha: float) -> str:
    """1 - alpha in percent, rounded down to as many digits as tell it from 100 %: 0.05 -> "95 %".

    Chances below what level() keeps are 0, and give "100 %".
    """
    if alpha <= 0:
        return "100 %"
    digits = max(0, math.ceil(-math.log10(alpha)) - 1)
    percent = math.floor(100 * (1 - alpha) * 10**digits + 1e-6) / 10**digits
    return f"{percent:.{digits}f}".rstrip("0").rstrip(".") + " %" if digits else f"{percent:.0f} %"


def _metric(gate: Gate, sampled: Sampled) -> str:
    if sampled.samples == 1:
        return WORDS[gate.metric]
    return f"mean {WORDS[gate.metric]} of {sampled.samples} samples per question"


def _measured(gate: Gate, estimate: float, sampled: Sampled) -> str:
    return f"{_metric(gate, sampled)} {_against(gate, shown(gate, estimate))}"


def _noise(gate: Gate, sampled: Sampled, before: str = "; ", after: str = "") -> str:
    """How far sampling alone moves the number; nothing where that is not known."""
    if sampled.noise is None:
        return ""
    return f"{before}sampling noise {apart(gate.unit, sampled.noise)}{after}"


def apart(unit: Unit, difference: float) -> str:
    """How far two values of this unit are apart: 0.012 of a share -> "1.2 points"."""
    return number("difference" if unit == "share" else unit, abs(difference)).removeprefix("+")


def _against(gate: Gate, number: str) -> str:
    return f"{number} against the baseline" if gate.paired else number


def _failures(failed: int, within: str = "") -> str:
    """In parentheses of its own, or after `within` in those of others."""
    if not failed:
        return ""
    return f"{within}{failed} failed" if within else f" ({failed} failed)"


def _new(gate: Gate, interval: tuple[float, float]) -> str:
    return f"new questions of this kind: {between(gate.unit, interval)}"


def _threshold(gate: Gate) -> str:
    number = shown(gate, gate.threshold)
    if gate.strict:
        return f"must be {'below' if gate.less_is_better else 'above'} {number}"
    constant = f", the accuracy of always answering {foreign(gate.constant, 40)}" if gate.constant is not None else ""
    return f"{'limit' if gate.less_is_better else 'threshold'} {number}{constant}"


def _claim(gate: Gate) -> str:
    """What a pass shows."""
    if not gate.paired:
        return f"{'at most' if gate.less_is_better else 'at least'} {shown(gate, gate.threshold)}"
    points = f"{100 * abs(gate.threshold):.1f} points"
    if gate.strict:
        return f"more than {points} better than the baseline"
    return f"at most {points} worse than the baseline"


def _opposite(gate: Gate) -> str:
    """What a fail shows."""
    if not gate.paired:
        return f"{'above' if gate.less_is_better else 'below'} {shown(gate, gate.threshold)}"
    points = f"{100 * abs(gate.threshold):.1f} points"
    if gate.strict:
        return f"at most {points} better than the baseline"
    return f"more than {points} worse than the baseline"
