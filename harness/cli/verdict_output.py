"""Verdicts for machines and for people: JUnit XML, a Markdown summary, a table.

medbench gate runs/CANDIDATE --gates gates.yaml --junit verdict.xml --summary verdict.md
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from xml.etree import ElementTree

from rich.table import Table

from medbench.harness.cli.tables import rendered, shown
from medbench.harness.contracts import Interrupted, MedbenchError
from medbench.harness.files import as_text, replace_file
from medbench.harness.gates.costs import rows_of
from medbench.harness.gates.verdict import GateResult, Judged, Verdict
from medbench.harness.gates.wording import between, number
from medbench.harness.runs.compare import MULTIPLICITY, TaskComparison, compare_task
from medbench.harness.runs.run_folder import read_samples, samples_path
from medbench.harness.secrets import redact
from medbench.harness.text import foreign, markdown_cell, percent, printable

MARKS = {"pass": "pass", "fail": "FAIL", "undecided": "undecided", "not gateable": "NOT GATEABLE"}
ELEMENTS = {"fail": "failure", "not gateable": "error", "undecided": "skipped"}
"""Of JUnit; a passed gate has none."""
FLIPS_SHOWN = 20


def junit(verdicts: Sequence[Verdict], seconds: Sequence[float]) -> bytes:
    """One test suite a candidate, one test case a gate; undecided is skipped, not gateable an error.

    `seconds` of each candidate; its gates share them, because they share its answers.
    """
    root = ElementTree.Element("testsuites")
    for verdict, took in zip(verdicts, seconds, strict=True):
        counts = {status: sum(gate.status == status for gate in verdict.gates) for status in MARKS}
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_xml(f"medbench gate {verdict.candidate}"),
            tests=str(len(verdict.gates)),
            failures=str(counts["fail"]),
            errors=str(counts["not gateable"]),
            skipped=str(counts["undecided"]),
            time=f"{took:.3f}",
        )
        properties = ElementTree.SubElement(suite, "properties")
        for name, value in _how_decided(verdict).items():
            ElementTree.SubElement(properties, "property", name=name, value=_xml(value))
        for gate in verdict.gates:
            case = ElementTree.SubElement(suite, "testcase", classname=_xml(verdict.candidate), name=_xml(gate.rule))
            case.set("time", f"{took / len(verdict.gates):.3f}")
            details = _details(gate)
            if gate.status in ELEMENTS:
                message = f"{gate.status}: no estimate"
                if gate.estimate is not None:
                    estimate, threshold = (number(gate.unit, value) for value in (gate.estimate, gate.threshold))
                    message = f"{gate.status}: {estimate}, threshold {threshold}"
                element = ElementTree.SubElement(case, ELEMENTS[gate.status], message=_xml(message), type="gate")
                element.text = _xml(gate.why)
            else:
                details = [gate.why, *details]
            ElementTree.SubElement(case, "system-out").text = _xml("\n".join(details))
    return _document(root)


def _how_decided(verdict: Verdict) -> dict[str, str]:
    """What a verdict rests on besides its gates."""
    return {
        "alpha": f"{verdict.alpha:g}",
        "decide": verdict.decide,
        "correction": verdict.correction,
        "partition": verdict.partition,
        "protocol": verdict.protocol,
        "baseline": verdict.baseline or "none",
        "controls": ", ".join(_controls(verdict)) or "none",
        **({"gate file": verdict.gate_file} if verdict.gate_file is not None else {}),
        **({"checkpoint": str(verdict.number)} if verdict.number is not None else {}),
        **({"order seed": verdict.order_seed} if verdict.order_seed is not None else {}),
    }


def _controls(verdict: Verdict) -> list[str]:
    """Names of the stored runs that any gate used as control variates."""
    return list(dict.fromkeys(name for gate in verdict.gates for name in gate.controls))


def _details(gate: GateResult) -> list[str]:
    """The numbers of a gate's result, one a line."""
    estimate, observed = ("" if value is None else number(gate.unit, value) for value in (gate.estimate, gate.observed))
    found = {
        "questions": f"{gate.used} of {gate.total}",
        "estimate": estimate,
        "on the questions asked": observed if observed != estimate else "",
        "interval": _interval(gate),
        "controls": ", ".join(gate.controls),
    }
    return [f"{name}: {value}" for name, value in found.items() if value]


def _interval(gate: GateResult) -> str:
    """With its level and what it is about; also that of new questions where all questions of the gate were asked."""
    found = []
    if gate.interval is not None:
        about = f" ({gate.interval_about})" if gate.interval_about else ""
        found.append(between(gate.unit, gate.interval) + about)
    if gate.new_questions is not None:
        found.append(f"{between(gate.unit, gate.new_questions)} (95 %, new questions)")
    return "; ".join(found)


def _document(root: ElementTree.Element) -> bytes:
    ElementTree.indent(root)
    body: bytes = ElementTree.tostring(root, encoding="utf-8")
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + body + b"\n"


def markdown(verdict: Verdict, comparisons: Sequence[TaskComparison] = ()) -> str:
    """A table of the gates, and the questions whose answer flipped against the baseline."""
    lines = [
        f"### medbench gate: {MARKS[verdict.overall]}",
        "",
        f"`{_code(verdict.candidate)}`"
        + (f" under `{_code(verdict.protocol)}`" if verdict.protocol else "")
        + (f" against `{_code(verdict.baseline)}`" if verdict.baseline else ""),
        "",
        "| gate | verdict | estimate | interval | questions | why |",
        "|---|---|---|---|---|---|",
        *(_row(gate) for gate in verdict.gates),
    ]
    controls = ", ".join(f"`{_code(name)}`" for name in _controls(verdict)) or "none"
    correction = _cell(verdict.correction)
    number = f"checkpoint {verdict.number} of this gate file; " if verdict.number is not None else ""
    file = f"gate file `{_code(verdict.gate_file)}`; " if verdict.gate_file is not None else ""
    order = f"; order seed: `{_code(verdict.order_seed)}`" if verdict.order_seed is not None else ""
    decided = f"decide: {verdict.decide}; correction: {correction}; controls: {controls}"
    lines += ["", f"{file}{number}alpha {verdict.alpha:.3g}; {decided}{order}"]
    lines += ["", *(f"> {_cell(warning)}" for warning in verdict.warnings)] if verdict.warnings else []
    lines += _costs(verdict)
    for one in comparisons:
        lines += [
            "",
            f"**{_cell(one.task)}**: {one.overall.lost} lost, {one.overall.gained} gained of {one.overall.n}",
        ]
        flips = ("lost", one.overall.lost, one.lost_ids), ("gained", one.overall.gained, one.gained_ids)
        for name, count, ids in flips:
            if ids:
                more = f" and {count - FLIPS_SHOWN} more" if count > FLIPS_SHOWN else ""
                lines.append(f"- {name}: {', '.join(f'`{_code(id)}`' for id in ids[:FLIPS_SHOWN])}{more}")
    return "\n".join(lines) + "\n"


def _costs(verdict: Verdict) -> list[str]:
    rows = [f"| {one.name} | {one.baseline} | {one.candidate} | {one.change} |" for one in rows_of(verdict.costs)]
    return ["", "| cost | baseline | candidate | change |", "|---|---|---|---|", *rows] if rows else []


def verdict_table(verdict: Verdict) -> str:
    """What a person sees on the terminal."""
    against = f" against {verdict.baseline}" if verdict.baseline else ""
    title = shown(f"{verdict.candidate}{against} · {verdict.protocol}: {MARKS[verdict.overall]}")
    table = Table(title=title, title_justify="left", show_edge=False)
    for heading in ("gate", "verdict", "interval", "questions", "why"):
        table.add_column(heading, justify="right" if heading == "questions" else "left")
    for gate in verdict.gates:
        asked = f"{gate.used} of {gate.total}"
        table.add_row(shown(gate.rule), shown(MARKS[gate.status]), _interval(gate), asked, shown(gate.why))
    costs = [
        shown(f"{one.name}: {one.candidate}, baseline {one.baseline} ({one.change})") for one in rows_of(verdict.costs)
    ]
    return rendered(table, *costs, *(shown(f"warning: {warning}") for warning in verdict.warnings))


def comparison_table(a: str, b: str, comparisons: Sequence[TaskComparison], warnings: Sequence[str] = ()) -> str:
    """What `medbench compare` prints."""
    table = Table(title=shown(f"{b} minus {a}"), title_justify="left", show_edge=False)
    table.add_column("task")
    for heading in ("questions", "A %", "B %", "difference", "95 % interval", "McNemar p", "Holm p", "lost", "gained"):
        table.add_column(heading, justify="right")
    for one in comparisons:
        rows = [(one.task, one.overall)]
        rows += [(f"  {field} {value}", d) for field, values in one.categories.items() for value, d in values.items()]
        for name, d in rows:
            interval = f"{100 * d.interval[0]:+.1f} to {100 * d.interval[1]:+.1f}"
            table.add_row(
                shown(name),
                str(d.n),
                percent(d.a),
                percent(d.b),
                f"{100 * d.difference:+.1f}",
                interval,
                f"{d.p_value:.4f}",
                "" if d.p_holm is None else f"{d.p_holm:.4f}",
                str(d.lost),
                str(d.gained),
            )
    notes = [shown(MULTIPLICITY)] if any(one.categories for one in comparisons) else []
    return rendered(table, *notes, *(shown(f"warning: {warning}") for warning in warnings))


def _row(gate: GateResult) -> str:
    estimate = "-" if gate.estimate is None else number(gate.unit, gate.estimate)
    interval = _interval(gate) or "-"
    asked = f"{gate.used} of {gate.total}"
    return f"| {_cell(gate.rule)} | {MARKS[gate.status]} | {estimate} | {interval} | {asked} | {_cell(gate.why)} |"


def _cell(text: str) -> str:
    return markdown_cell(redact(text))


def _code(text: str) -> str:
    """Text that stays inside its backticks; for use outside tables."""
    return printable(redact(text)).replace("`", "'").replace("\n", " ")


def _xml(text: str) -> str:
    """Only characters that XML 1.0 allows."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", redact(text))


def exit_status(judged: Sequence[Judged]) -> int:
    """1 when any failed, else 3 when any is undecided or not gateable, else 0."""
    found = {one.verdict.overall for one in judged}
    return 1 if "fail" in found else 0 if found <= {"pass"} else 3


def write_outputs(
    judged: Sequence[Judged], baseline: Path | None, junit_file: Path | None, summary: Path | None
) -> None:
    """JUnit and Markdown files, and the step summary of a GitHub workflow where one runs."""
    if junit_file is not None:
        _write(junit_file, junit([one.verdict for one in judged], [one.seconds for one in judged]))
    step = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary is None and not step:
        return
    text = "\n".join(markdown(one.verdict, _comparisons(one, baseline)) for one in judged)
    if summary is not None:
        _write(summary, text.encode("utf-8", "replace"))
    if step:
        try:
            with Path(step).open("a", encoding="utf-8", errors="replace") as file:
                file.write(text)
        except OSError as error:
            raise MedbenchError(f"GITHUB_STEP_SUMMARY {step}: cannot be written ({error.strerror})") from None


def refuse_unwritable(path: Path) -> None:
    """Raises MedbenchError for a file that could not be written after hours of work."""
    try:
        path.exists()  # raises where the name is too long
        there = next(parent for parent in path.absolute().parents if parent.exists())
        fault = "is a folder" if path.is_dir() else "" if there.is_dir() else f"{there} is not a folder"
        fault = fault or ("" if os.access(there, os.W_OK | os.X_OK) else f"{there} may not be written")
    except OSError as error:
        fault = str(error.strerror)
    if fault:
        raise MedbenchError(f"{foreign(as_text(path))}: cannot be written ({fault}): name another file")


def write_without_verdict(candidates: Sequence[str], why: str, junit_file: Path | None, summary: Path | None) -> None:
    """The same files where there is no verdict, whoever is at fault: an error, which is not a failure."""
    if junit_file is not None:
        root = ElementTree.Element("testsuites")
        for name in map(_xml, candidates):
            suite = ElementTree.SubElement(
                root, "testsuite", name=f"medbench gate {name}", tests="1", failures="0", errors="1", skipped="0"
            )
            case = ElementTree.SubElement(suite, "testcase", classname=name, name="medbench", time="0")
            ElementTree.SubElement(case, "error", message=_xml(why), type="fault").text = _xml(why)
        _write(junit_file, _document(root))
    if summary is not None:
        names = ", ".join(f"`{_code(name)}`" for name in candidates)
        text = f"### medbench gate: NO VERDICT\n\n{names}\n\n{_cell(why)}\n"
        _write(summary, text.encode("utf-8", "replace"))


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedbenchError(f"{path.parent}: cannot be made ({error.strerror})") from None
    try:
        replace_file(path, content)
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise Interrupted(f"{path}: {reason}: the verdict above stands; run the same command again") from None


def _comparisons(one: Judged, baseline: Path | None) -> list[TaskComparison]:
    if baseline is None or one.folder is None:
        return []
    found = []
    for task in dict.fromkeys(gate.task for gate in one.verdict.gates):
        if samples_path(one.folder, task).exists():  # not for the mean, nor for a task that was not asked
            with suppress(MedbenchError):  # no question that both answered
                found.append(compare_task(task, read_samples(baseline, task), read_samples(one.folder, task)))
    return found
