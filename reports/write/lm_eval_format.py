"""Runs as lm-evaluation-harness writes them: results_<date>.json and samples_<task>_<date>.jsonl, a folder a run.

    medbench report runs --format lm-eval -o exported

Follows lm_eval/result_schema.py and loggers/evaluation_tracker.py of lm-eval 0.4.13, so that its tables, its Weights &
Biases logger and scripts/zeno_visualize.py read the files. lm-eval knows no failed request: those are left out, and
"n-samples" counts the rest. Task names are those of the site's folders.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from medbench.harness.contracts import MedbenchError
from medbench.harness.runs.sample_line import Line
from medbench.reports.read.folders import without_path
from medbench.reports.read.ordered import OrderedSamples
from medbench.reports.read.records import Collection, RunView
from medbench.reports.write.manifest import Manifest, Writer

FILTER = "extracted"
"""lm-eval's word for what makes an answer out of a reply; `filtered_resps` holds that answer."""
METRICS = ("accuracy", "unparsed")
"""The names that medbench's own lm-eval tasks report under; "unparsed" is better when lower."""


def export(collection: Collection, folder: Path) -> tuple[int, list[str]]:
    """Write all runs under `folder`: (files written, what of their samples was left out).

    Raises MedbenchError for a folder that holds other files.
    """
    left_out: list[str] = []
    with Manifest(folder, "lm-eval") as manifest:
        writer = Writer(folder)
        for run in collection.runs:
            files = []
            for name, content in _files(run, left_out):
                writer.put(f"{run.id}/{name}", content)
                files.append(f"{run.id}/{name}")
            manifest.record(run.id, run.stamp, files)
    return manifest.written, left_out


def _files(run: RunView, left_out: list[str]) -> Iterator[tuple[str, bytes]]:
    started = _created(run)
    date = started.strftime("%Y-%m-%dT%H-%M-%S.%f")
    tasks: dict[str, dict[str, Any]] = {}
    for task in run.results:
        slug = run.slugs[task]
        try:
            with OrderedSamples(run.folder, task, run.record) as samples:
                rows = list(_rows(run, task, samples))
                left_out += (f"{run.id}: {task}: {fault}" for fault in samples.faults)
        except MedbenchError as error:
            left_out.append(f"{run.id}: {task}: {without_path(str(error), run.folder)}")
            continue
        if rows:
            tasks[slug] = _task(run, task, rows)
            yield f"samples_{slug}_{date}.jsonl", b"".join(_dumped(row) + b"\n" for row in rows)
    if tasks:
        yield f"results_{date}.json", _dumped(_results(run, tasks, started.timestamp()), indent=2)


def _rows(run: RunView, task: str, samples: OrderedSamples) -> Iterator[dict[str, Any]]:
    """One a question that has a score, repeats together; see lm_eval.result_schema.SampleResult."""
    lines = chain.from_iterable(samples.batches())
    for doc_id, (id, repeats) in enumerate(groupby(lines, key=lambda line: line.id)):
        scored = [line for line in repeats if line.score is not None]
        if scored:
            yield _row(doc_id, id, scored)


def _row(doc_id: int, id: str, scored: list[Line]) -> dict[str, Any]:
    first = scored[0]
    doc = {"id": id, "cluster": first.cluster, "category": first.category}
    if first.logprobs is not None:
        arguments = {
            f"gen_args_{n}": {"arg_0": first.prompt, "arg_1": choice} for n, choice in enumerate(first.logprobs)
        }
        best = max(first.logprobs.values(), default=0.0)
        filtered: list[Any] = [[str(value), str(value == best)] for value in first.logprobs.values()]
        responses: list[Any] = [[each] for each in filtered]
    else:
        arguments = {"gen_args_0": {"arg_0": first.prompt, "arg_1": "{}"}}
        responses, filtered = [[line.output for line in scored]], [first.extracted or ""]
    return {
        "doc_id": doc_id,
        "doc": doc,
        "target": first.gold,
        "arguments": arguments,
        "resps": responses,
        "filtered_resps": filtered,
        "filter": FILTER,
        "metrics": list(METRICS),
        "doc_hash": _sha(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _sha(first.prompt),
        "target_hash": _sha(first.gold),
        "accuracy": math.fsum(line.score or 0.0 for line in scored) / len(scored),
        "unparsed": sum(line.outcome != "answered" for line in scored) / len(scored),
    }


def _task(run: RunView, task: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """What goes into each section of the results file for one task."""
    record = run.record.tasks[task]
    slug = run.slugs[task]
    metrics: dict[str, Any] = {"name": slug, "alias": slug, "sample_len": len(rows)}
    for metric in METRICS:
        values = [row[metric] for row in rows]
        mean = math.fsum(values) / len(values)
        spread = math.fsum((value - mean) ** 2 for value in values)
        error = math.sqrt(spread / (len(values) - 1) / len(values)) if len(values) > 1 else "N/A"
        metrics |= {f"{metric},{FILTER}": mean, f"{metric}_stderr,{FILTER}": error}
    foreseen = run.record.protocol.get("method") == "loglikelihood"
    return {
        "results": metrics,
        "group_subtasks": [],
        "configs": {
            "task": slug,
            "test_split": record.split,
            "output_type": "multiple_choice" if foreseen else "generate_until",
            "repeats": run.record.samples,
            "metric_list": [
                {"metric": metric, "aggregation": "mean", "higher_is_better": metric == "accuracy"}
                for metric in METRICS
            ],
            "metadata": {
                "version": record.version,
                "protocol": run.protocol,
                "source": record.source,
                "sha256": record.sha256,
            },
        },
        "versions": record.version,
        "n-shot": int(run.record.protocol.get("shots") or 0),
        "higher_is_better": {metric: metric == "accuracy" for metric in METRICS},
        "n-samples": {"original": record.n, "effective": len(rows)},
        "task_hashes": _sha("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows)),
    }


def _results(run: RunView, tasks: dict[str, dict[str, Any]], date: float) -> dict[str, Any]:
    """See lm_eval.result_schema.EvalResults."""
    record = run.record
    sections = {key: {slug: task[key] for slug, task in tasks.items()} for key in next(iter(tasks.values()))}
    return {
        **sections,
        "config": {
            "model": str(record.engine.get("name")),
            "model_args": f"pretrained={record.model.name}",
            "batch_size": None,
            "device": None,
            "limit": record.limit,
            "random_seed": record.seed,
        },
        "git_hash": record.git_commit,
        "date": date,
        "transformers_version": record.packages.get("transformers", ""),
        "lm_eval_version": record.packages.get("lm-eval", ""),
        "model_source": str(record.engine.get("name")),
        "model_name": record.model.name,
        "model_name_sanitized": re.sub(r'["<>:/|\\?*\[\]]+', "__", record.model.name),
        "total_evaluation_time_seconds": str(record.totals.seconds),
    }


def _created(run: RunView) -> datetime:
    try:
        return datetime.fromisoformat(run.record.created).astimezone(UTC)
    except (ValueError, OverflowError):
        return datetime.fromtimestamp(0, UTC)


def _dumped(content: Any, indent: int | None = None) -> bytes:
    return json.dumps(content, indent=indent, ensure_ascii=False).encode("utf-8", "replace")


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
