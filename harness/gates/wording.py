"""What a gate's result says in words: the number, on which questions, and the verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence

from medbench.harness.gates.rules import Gate, Metric

WORDS: dict[Metric, str] = {
    "accuracy": "accuracy",
    "unparsed": "unparsed answers",
    "truncated": "truncated answers",
    "errors": "failed requests",
    "tokens_per_answer": "tokens per answer",
    "seconds_per_question": "seconds per question",
}


def on_all(gate: Gate, status: str, estimate: float, total: int, failed: int = 0) -> str:
    """A census whose every question has been asked."""
    found = f"{_measured(gate, estimate)} on all {total} questions{_failures(failed)}; {_threshold(gate)}: {status}"
    return found + (" until the failed requests are answered" if status == "undecided" else "")


def on_some(
    gate: Gate,
    status: str,
    estimate: float,
    used: int,
    total: int,
    failed: int,
    alpha: float,
    saved: int,
    longer: str = "",
) -> str:
    """A census decided early, or still open; `alpha` is the level of the side that decided, `longer` from longer()."""
    extent = f"after {used} of {total} questions{_failures(failed)}{longer}"
    if status == "undecided":
        return f"{_measured(gate, estimate)} {extent}; {_claim(gate)} not yet shown: undecided"
    claim = _claim(gate) if status == "pass" else _opposite(gate)
    about = f"estimate {shown(gate, estimate)}" + (
        f", about {saved} questions saved by control variates" if saved > 0 else ""
    )
    return f"{WORDS[gate.metric]} {claim} with {confidence(alpha)} confidence {extent} ({about}): {status}"


def longer(replies: int, tokens: int) -> str:
    """Replies that a decision did not wait for."""
    return f", {replies} of them longer than {tokens} tokens and counted against it" if replies else ""


def of_population(gate: Gate, status: str, estimate: float, used: int, total: int, failed: int, alpha: float) -> str:
    """`alpha` is the level of the side that decided, or of the pass side."""
    extent = f"on all {total} questions" if used == total else f"on {used} of {total} questions"
    claim = _opposite(gate) if status == "fail" else _claim(gate)
    shown_or_not = "not shown " if status == "undecided" else ""
    return (
        f"{_measured(gate, estimate)} {extent}{_failures(failed)}; "
        f"{claim} on new questions {shown_or_not}with {confidence(alpha)} confidence: {status}"
    )


def of_mean(
    gate: Gate,
    status: str,
    estimate: float | None,
    interval: tuple[float, float] | None,
    tasks: Sequence[str],
    used: int,
    total: int,
) -> str:
    mean = f"mean {WORDS[gate.metric]} of {', '.join(tasks)}"
    if estimate is not None:
        mean += f" {_against(gate, shown(gate, estimate))}"
    if interval is not None:
        mean += f", between {shown(gate, interval[0])} and {shown(gate, interval[1])}"
    extent = f"on all {total} questions" if used == total else f"after {used} of {total} questions"
    return f"{mean} {extent}; {_threshold(gate)}: {status}"


def of_pace(gate: Gate, status: str, pace: float | None, used: int) -> str:
    if pace is None:
        return "no question answered yet"
    return f"{pace:.2f} seconds per question over {used} questions; {_threshold(gate)}: {status}"


def shown(gate: Gate, value: float) -> str:
    """The metric, or a paired gate's difference, with its unit."""
    if gate.unit == "seconds":
        return f"{value:.2f}"
    if gate.unit == "tokens":
        return f"{value:.1f}"
    return f"{100 * value:+.1f} points" if gate.paired else f"{100 * value:.1f} %"


def confidence(alpha: float) -> str:
    """1 - alpha in percent, rounded down to as many digits as tell it from 100 %: 0.05 -> "95 %"."""
    digits = max(0, math.ceil(-math.log10(alpha)) - 1)
    percent = math.floor(100 * (1 - alpha) * 10**digits + 1e-6) / 10**digits
    return f"{percent:.{digits}f}".rstrip("0").rstrip(".") + " %" if digits else f"{percent:.0f} %"


def _measured(gate: Gate, estimate: float) -> str:
    return f"{WORDS[gate.metric]} {_against(gate, shown(gate, estimate))}"


def _against(gate: Gate, number: str) -> str:
    return f"{number} against the baseline" if gate.paired else number


def _failures(failed: int) -> str:
    return f" ({failed} failed)" if failed else ""


def _threshold(gate: Gate) -> str:
    number = shown(gate, gate.threshold)
    if gate.strict:
        return f"must be {'below' if gate.less_is_better else 'above'} {number}"
    return f"{'limit' if gate.less_is_better else 'threshold'} {number}"


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
