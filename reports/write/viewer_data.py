r"""A run's samples -> files that a page opened from disk can load, where fetch() is blocked: scripts with JSON in them.

Everything lies in runs/<run id>/data/<task slug>/. Each file is one call with JSON arguments alone, no markup as to
HTML ("<" is escaped, U+2028 and U+2029 too), and loaded with <script src>. Define the two functions on
`window` before adding scripts.

index.js         medbenchIndex(RUN, TASK, 0, PART)        the first 20,000 rows, and what holds for all of them
index-<p>.js     medbenchIndex(RUN, TASK, p, PART)        rows p * 20,000 on; only there if index.js says parts > 1
<c>.js           medbenchChunk(RUN, TASK, c, SAMPLES)     the samples of chunk c, whole

RUN is the run id, TASK the task's slug, as in the path: two runs' data can be loaded beside each other. Rows are the
samples in natural order of (id, repeat): row numbers are 0-based and run on through the parts, and a shared link names
a question by its id (and repeat). A PART:

    n          rows in this part
    ids        [str]
    flags      [int], the sum of: 1 right (score 1)  2 wrong (any other score)  4 unparsed (no answer was read; not for
               errors)  8 truncated  16 error (request failed: neither right nor wrong)  32 refused  64 ambiguous
               128 empty
    extracted  [str or null]
    gold       [str]
    heads      [str], the first words of the question, at most 80 characters, on one line
    repeat     [int]; only where some question was asked more than once, else absent
    scores     [number or null]; only where some score is neither 0 nor 1, else absent
    category   {field: [int]}: place of the row's value in `values`, -1 for none

and in part 0 (index.js) besides:

    name       the task's own name, as in run.json (hostile: show as text only)
    total      rows in all
    parts      number of parts
    values     {field: [str]}: the values of each category field, in natural order
    chunks     [int]: first row of each chunk, so row r is in the last chunk c with chunks[c] <= r, at place
               r - chunks[c] of its SAMPLES
    sizes      [int]: bytes of each chunk's file, for a progress bar while searching
    counts     {"right", "wrong", "unparsed", "truncated", "error", "refused", "ambiguous", "empty": rows in all}
    fault      null, or one line on why rows are missing (no samples file, damaged lines: the sound ones are shown)

SAMPLES is a list of arrays, one a row:

    [id, repeat, prompt, output, finish_reason, extracted, outcome, span, gold, score, error,
     prompt_tokens, completion_tokens, category, logprobs, order, judged]

as in contracts.Sample, but `span` ([start, end) of the answer in `output`, or null) counts UTF-16 units, as slice() of
JavaScript does. `prompt` is all that the model saw, chat template and options included. A reply is never cut: a chunk
ends at 1 MB or 1,000 rows, and a longer sample has a chunk to itself. Half a surrogate pair becomes "?"; NUL and other
control characters are in the strings as they were. `judged` is null, or what each judge says of the reply's steps:

    [[judge, [[start, end, verdict], ...], unplaced, source], ...]

`start` and `end` as in `span`, in order and never overlapping; verdict is "s" supported, "c" contradicted, "n" not
covered or "-" none; `unplaced` counts steps that were not found in the reply. `source` is the text that it was judged
by, or null where that is the task's own, which stands in the prompt; of a long one the first SOURCE_SHOWN characters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medbench.harness.contracts import Interrupted, MedbenchError
from medbench.harness.judges.scored import ScoredReply, ScoredTask
from medbench.harness.runs.records import RunRecord
from medbench.harness.runs.sample_line import Line
from medbench.reports.read.folders import without_path
from medbench.reports.read.judged import scored_of
from medbench.reports.read.lines import head_of
from medbench.reports.read.ordered import OrderedSamples
from medbench.reports.read.scores import Scores
from medbench.reports.write.viewer_index import Chunks, Columns, Put, script, write_index

SOURCE_SHOWN = 2_000
"""Characters: with the most rows of a chunk, two megabytes."""


def write_task(
    folder: Path,
    task: str,
    run_id: str,
    slug: str,
    put: Put,
    record: RunRecord | None = None,
    judges: Sequence[str] = (),
) -> Scores:
    """Write the data of one task of the run in `folder`; what is wrong with its samples goes into the index."""
    judged = [found for judge in judges if (found := _Judge.read(folder, task, judge)) is not None]
    columns = Columns()
    chunks = Chunks()
    try:
        with OrderedSamples(folder, task, record) as samples:
            for lines in samples.batches():
                columns.add(lines, [head_of(line.prompt, samples.prefix) for line in lines])
                content = script(
                    "medbenchChunk", run_id, slug, len(chunks.starts), [_row(line, judged) for line in lines]
                )
                put(f"{len(chunks.starts)}.js", content)
                chunks.add(len(lines), len(content))
        faults = samples.faults
        fault = f"{len(faults)} damaged line{'s' * (len(faults) > 1)} left out: {faults[0]}" if faults else ""
    except Interrupted:  # not the samples' fault: the site cannot be written
        raise
    except MedbenchError as error:
        fault = without_path(str(error), folder)
    write_index(columns, chunks, fault, task, (run_id, slug), put)
    return Scores.of(columns.ids, columns.clusters, columns.scores, columns.tokens)


@dataclass(frozen=True, slots=True)
class _Judge:
    """One judge's scores of a task, by reply."""

    scored: ScoredTask
    replies: Mapping[tuple[str, int], ScoredReply]

    @staticmethod
    def read(folder: Path, task: str, judge: str) -> _Judge | None:
        try:
            scored = scored_of(folder, task, judge)
        except MedbenchError:  # told on the first page
            return None
        return _Judge(scored, {(one.id, one.repeat): one for one in scored.replies}) if scored is not None else None

    def of(self, line: Line) -> list[Any] | None:
        reply = self.replies.get((line.id, line.repeat))
        if reply is None:
            return None
        known = [(place, letter) for place, letter in zip(reply.places, reply.verdicts, strict=True) if place]
        # damage aside, they are in order and within the reply
        ends = [0, *(end for (_, end), _ in known), len(line.output)]
        if any(start < before or end > ends[-1] for ((start, end), _), before in zip(known, ends, strict=False)):
            known = []
        spans = utf16_spans(line.output, [place for place, _ in known])
        marks = [[start, end, letter] for (start, end), (_, letter) in zip(spans, known, strict=True)]
        source = self.scored.sources.get(reply.source)
        shown = source[:SOURCE_SHOWN] if source is not None else None
        return [self.scored.judge, marks, len(reply.verdicts) - len(marks), shown]


def _row(line: Line, judged: Sequence[_Judge]) -> list[Any]:
    said = [found for judge in judged if (found := judge.of(line)) is not None]
    return [
        line.id,
        line.repeat,
        line.prompt,
        line.output,
        line.finish_reason,
        line.extracted,
        line.outcome,
        utf16_span(line.output, line.span),
        line.gold,
        line.score,
        line.error,
        line.prompt_tokens,
        line.completion_tokens,
        line.category,
        line.logprobs,
        line.order,
        said or None,
    ]


def utf16_span(text: str, span: tuple[int, int] | None) -> tuple[int, int] | None:
    """`span` counted as JavaScript counts."""
    return None if span is None else utf16_spans(text, [span])[0]


def utf16_spans(text: str, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """`spans`, in order and never overlapping, counted as JavaScript counts."""
    if text.isascii():
        return list(spans)
    found, at, units = [], 0, 0
    for span in spans:
        ends = []
        for place in span:
            units += len(text[at:place].encode("utf-16-le", "surrogatepass")) // 2
            at = place
            ends.append(units)
        found.append((ends[0], ends[1]))
    return found
