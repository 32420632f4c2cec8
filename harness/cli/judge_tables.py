"""Tables of judged steps for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from medbench.harness.cli.tables import rendered, shown
from medbench.harness.judges.agreement import Calibration, calibration_of
from medbench.harness.judges.check import Checked
from medbench.harness.judges.compare import JudgedComparison
from medbench.harness.judges.contracts import VERDICTS, Judge
from medbench.harness.judges.judge_run import JudgedTask
from medbench.harness.judges.local.report import PAGE, UNCHECKED, Figures, Report
from medbench.harness.judges.scores import Figure, ReplyScores, TaskScores
from medbench.harness.stats.agreement import Estimate
from medbench.harness.stats.corrected_share import Share
from medbench.harness.text import percent

MOST_FAULTS = 3
COLUMNS = ("sensitivity", "specificity", "judged", "by error rates", "prediction-powered")


def scores_table(judge: Judge, found: Sequence[tuple[JudgedTask, TaskScores]]) -> str:
    """What `medbench judge RUN` prints; ends with a newline."""
    table = Table(title=shown(f"judge {judge.name} · {judge.fingerprint[:12]}"), title_justify="left", show_edge=False)
    table.add_column("task", no_wrap=True)
    for heading in ("replies", "steps", "failed", *(f"{verdict} %" for verdict in VERDICTS), *ReplyScores.__slots__):
        table.add_column(heading, justify="right")
    for _, one in found:
        cells = [one.shares.get(verdict) for verdict in VERDICTS]
        cells += [one.scores.get(name) for name in ReplyScores.__slots__]
        counts = (one.replies, one.steps, one.failed)
        table.add_row(shown(one.task), *map(str, counts), *map(_with_interval, cells))
    lines = [line for _, one in found for line in _details(one)]
    for each, _ in found:
        run = each.file.parent.parent
        lines += [f"{each.task}: {_calibration(calibration_of(run, each.task, judge.name, judge.fingerprint))}"]
        lines += [f"verdicts: {each.file}"]
    return rendered(table, *map(shown, lines))


def judged_differences(found: Sequence[JudgedComparison]) -> str:
    """What `medbench compare` prints of judged runs; "" where neither is."""
    if not found:
        return ""
    table = Table(title="reasoning as judged, B minus A", title_justify="left", show_edge=False)
    table.add_column("task, judge")
    for heading in ("questions", "A %", "B %", "difference", "95 % interval", "p", "lower", "higher"):
        table.add_column(heading, justify="right")
    lines = []
    for one in found:
        if one.scores is None:
            lines.append(f"{one.task}: judge {one.judge} is not compared: {one.fault}")
            continue
        table.add_row(shown(f"{one.task}, {one.judge} {one.fingerprint[:12]}"))
        for name, d in one.scores.items():
            interval = f"{100 * d.interval[0]:+.1f} to {100 * d.interval[1]:+.1f}"
            numbers = (str(d.n), percent(d.a), percent(d.b), f"{100 * d.difference:+.1f}", interval)
            table.add_row(f"  {name}", *numbers, f"{d.p_value:.4f}", str(d.lost), str(d.gained))
    parts: list[RenderableType] = [Text(), table] if len(lines) < len(found) else []
    return rendered(*parts, *map(shown, lines))


def check_tables(found: Checked) -> str:
    """What `medbench judge check` prints; ends with a newline."""
    agreement = found.agreement
    lines = [
        f"judge {found.judge} · {found.fingerprint[:12]} · {found.task}",
        f"{agreement.items} labelled steps of {agreement.clusters} questions",
        f"same label: {_share(agreement.share)} %",
        f"Cohen's kappa: {_decimal(agreement.kappa)}; Krippendorff's alpha: {_decimal(agreement.alpha)}",
    ]
    if found.without_verdict:
        lines.append(f"{found.without_verdict} labelled steps have no verdict and are left out")
    by_label = Table(show_edge=False)
    by_label.add_column("verdict", no_wrap=True)
    for heading in ("labelled", *(f"{name} %" for name in COLUMNS)):
        by_label.add_column(heading, justify="right")
    for verdict, one in found.labels.items():
        shares = (one.sensitivity, one.specificity, one.raw, one.by_error_rates, one.prediction_powered)
        by_label.add_row(verdict, str(one.labelled), *map(_share, shares))
    parts: list[RenderableType] = [*map(shown, lines), Text(), by_label]
    if found.lengths:
        by_length = Table(show_edge=False)
        for heading in ("characters", "labelled", "same label %"):
            by_length.add_column(heading, justify="right")
        for part in found.lengths:
            by_length.add_row(f"{part.shortest} to {part.longest}", str(part.steps), _share(part.share))
        parts += [Text(), by_length]
    if found.order is not None:
        changed = f"{found.order.steps} steps judged again with the source's sentences in reverse order"
        parts += [Text(), shown(f"{changed}: {_share(found.order.changed)} % of the verdicts change")]
    return rendered(
        *parts,
        Text(),
        shown("by error rates: right where the judge errs in all steps as it does in the labelled ones"),
        shown("prediction-powered: right where the labelled questions are a random part of the judged ones"),
    )


def training_table(report: Report, folder: Path) -> str:
    """What `medbench judge train` prints; ends with a newline."""
    by_kind = Table(title=shown(f"judge local · {folder}"), title_justify="left", show_edge=False)
    by_kind.add_column("fault", no_wrap=True)
    for heading in ("steps with it", "supported", "AUROC", "of the lexical baseline", "ECE %", "of the baseline %"):
        by_kind.add_column(heading, justify="right")
    for one in report.kinds:
        counts = (one.faulty, one.supported)
        figures = (_auroc(one.judge), _auroc(one.baseline), percent(one.judge.ece), percent(one.baseline.ece))
        by_kind.add_row(shown(one.kind), *map(str, counts), *figures)
    verdicts = Table(show_edge=False)
    verdicts.add_column("verdicts", no_wrap=True)
    for heading in ("same %", "kappa", *(f"{verdict} found %" for verdict in VERDICTS)):
        verdicts.add_column(heading, justify="right")
    for name, found in (("judge", report.judge), ("lexical baseline", report.baseline)):
        same, kappa = found.same, found.kappa
        shares = f"{percent(same.value)} ({percent(same.low)} to {percent(same.high)})"
        agreed = "-" if kappa is None else f"{kappa.value:.2f} ({kappa.low:.2f} to {kappa.high:.2f})"
        verdicts.add_row(name, shares, agreed, *(percent(found.sensitivity[verdict]) for verdict in VERDICTS))
    lines = [f"not found by this judge (AUROC below {UNCHECKED}): {', '.join(report.unchecked) or 'nothing'}"]
    tested, learnt = report.abstracts["tested"], report.pairs["trained"]
    lines.append(f"{tested} abstracts that it has not seen; {learnt} pairs to learn from; {report.seconds:.0f} s")
    lines.append(f"use it: medbench judge RUN --judge local --model {folder}; the report as a page: {folder / PAGE}")
    return rendered(by_kind, Text(), verdicts, Text(), *map(shown, lines))


def _auroc(figures: Figures) -> str:
    found = figures.auroc
    return "not defined" if found is None else f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"


def _calibration(found: Calibration | None) -> str:
    if found is None:
        return "uncalibrated: how far this judge agrees with people is not known: medbench judge check RUN LABELS"
    return f"agreement with people: {found.in_words}"


def _share(share: Estimate | Share | None) -> str:
    """ "unknown" where the labels do not tell."""
    if share is None or share.value is None:
        return "unknown"
    return f"{percent(share.value)} ({percent(share.low)} to {percent(share.high)})"


def _decimal(estimate: Estimate | None) -> str:
    if estimate is None:
        return "not defined, there is only one label"
    return f"{estimate.value:.2f} ({estimate.low:.2f} to {estimate.high:.2f})"


def _with_interval(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{percent(figure.value)}\n{percent(figure.low)} to {percent(figure.high)}"


def _details(one: TaskScores) -> list[str]:
    counts = {
        "replies have no steps before their answer": one.without_steps,
        "replies are to questions without a source and are left out": one.without_source,
        "requests failed and have no reply": one.unanswered,
    }
    lines = [f"{one.task}: {count} {what}" for what, count in counts.items() if count]
    for fault, count in list(one.faults.items())[:MOST_FAULTS]:
        lines.append(f"{one.task}: {count} steps without a verdict: {fault}")
    return lines
