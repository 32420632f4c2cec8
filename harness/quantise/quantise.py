"""A checkpoint quantised by llm-compressor into a folder that vLLM serves, complete or not there at all.

quantise(QuantiseOptions("qwen3-8b", "w8a8", python="/opt/llmcompressor/bin/python"), print)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from medbench.harness.checkpoints.fingerprint import fingerprint, tokenizer_files
from medbench.harness.checkpoints.quantization import size_of
from medbench.harness.checkpoints.resolve import resolve
from medbench.harness.checkpoints.weights import refuse_nan, weight_files
from medbench.harness.contracts import Checkpoint, MedbenchError, Say
from medbench.harness.files import slug
from medbench.harness.quantise.interpreter import Interpreter, find_interpreter
from medbench.harness.quantise.record import RECORD, Calibration, Parent, Quantised
from medbench.harness.quantise.schemes import NOT_QUANTISED, config_groups, group_size_for
from medbench.harness.quantise.texts import write_texts
from medbench.harness.text import escaped

PROGRAM = Path(__file__).with_name("compress.py")
TEXTS = "calibration.jsonl"
MOST_OF_A_LOG = 2_000_000
STEPS = {
    "loaded": "loaded on {device}",
    "calibrating": "calibrating with {rows} rows",
    "saving": "saving",
}


@dataclass(frozen=True, slots=True)
class QuantiseOptions:
    """The options of `medbench quantise`."""

    model: str
    scheme: str
    out: Path | None = None
    """Folder to write; None: the model's name and the scheme's, here."""
    python: str | None = None
    """See interpreter.find_interpreter."""
    rows: tuple[str, ...] = ()
    """Files of training rows for GPTQ; without, weights are rounded to nearest."""
    samples: int = 256
    max_length: int = 1024
    group_size: int | None = None
    protocol: str = "cot-v2"
    """As which rows with options are asked."""


def quantise(options: QuantiseOptions, say: Say) -> tuple[Path, Quantised]:
    """(the folder, what is recorded of it). Raises MedbenchError; then there is no folder."""
    interpreter = find_interpreter(options.python)
    parent = resolve(options.model, say)
    if parent.quantization is not None:
        raise MedbenchError(
            f"{options.model} is quantised already ({parent.quantization}): name the checkpoint that it was made from"
        )
    out = options.out or Path(f"{slug(Path(options.model).name)}-{options.scheme}")
    if out.exists():
        raise MedbenchError(f"{out} already exists: name another folder by -o, or remove it")
    size = group_size_for(options.scheme, Path(parent.path), options.group_size)
    started = time.monotonic()
    with _new_folder(out) as folder:
        calibration = _calibration(options, Path(parent.path), folder, say)
        made = folder / "checkpoint"
        job = {
            "model": str(Path(parent.path).resolve()),
            "out": str(made.resolve()),
            "groups": config_groups(options.scheme, size),
            "ignore": list(NOT_QUANTISED),
            "texts": None if calibration is None else str((folder / TEXTS).resolve()),
            "max_length": options.max_length,
        }
        versions = _run(interpreter, job, folder, out, say)
        _complete(made, parent)
        record = _recorded(options, parent, made, calibration, size, versions, time.monotonic() - started)
        (made / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
        made.rename(out)
    return out, record


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` for what is not finished yet; removed at the end, and so are those of killed processes."""
    import psutil

    for path in out.parent.glob(f".{out.name}.*.tmp"):
        number = path.name.removesuffix(".tmp").rpartition(".")[2]
        if number.isdecimal() and not psutil.pid_exists(int(number[:9])):
            shutil.rmtree(path, ignore_errors=True)
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        reason = error.strerror or error
        raise MedbenchError(f"{out}: cannot be written ({reason}): make room, or name another folder by -o") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _calibration(options: QuantiseOptions, checkpoint: Path, folder: Path, say: Say) -> Calibration | None:
    if not options.rows:
        say("no --rows to calibrate with: weights are rounded to nearest")
        return None
    file = folder / TEXTS
    written = write_texts(options.rows, checkpoint, options.protocol, options.samples, file)
    return Calibration(
        sources=list(options.rows),
        rows=written,
        max_length=options.max_length,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
    )


def _run(interpreter: Interpreter, job: dict[str, Any], folder: Path, out: Path, say: Say) -> dict[str, str]:
    """Run compress.py; returns the versions that it tells. Raises MedbenchError with its fault, its output kept."""
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    log = folder / "log.txt"
    command = [interpreter.path, "-I", str(PROGRAM), str(folder / "job.json")]
    # models come as folders: nothing is to be downloaded
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    versions, fault = dict(interpreter.versions), None
    say(f"llm-compressor {versions.get('llmcompressor')} by {interpreter.path}")
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # it ends when this closes, as when medbench is killed
            stdout=subprocess.PIPE,
            stderr=errors,
            env=env,
            encoding="utf-8",
            errors="replace",
        ) as process,
    ):
        try:
            assert process.stdout is not None
            for line in process.stdout:
                told = _told(line)
                if told.get("event") == "fault":
                    fault = escaped(str(told.get("line")))[:600]
                elif told.get("event") == "started" and isinstance(told.get("versions"), dict):
                    versions |= {str(name): str(one) for name, one in told["versions"].items()}
                elif (step := STEPS.get(str(told.get("event")))) is not None:
                    say(step.format_map({"device": "?", "rows": "?"} | told))
            code = process.wait()
        finally:
            process.kill()
    if code:
        kept = out.with_name(f"{out.name}.log")
        shutil.copy(log, kept)
        how = fault or (f"signal {-code}, as for lack of memory" if code < 0 else f"exit status {code}")
        raise MedbenchError(f"{job['model']}: llm-compressor failed ({how}): see {kept}")
    return versions


def _told(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _complete(made: Path, parent: Checkpoint) -> None:
    """Give it the parent's tokenizer files, byte by byte, and refuse one that could not be served.

    Raises MedbenchError.
    """
    if not made.is_dir():
        raise MedbenchError(f"{parent.name}: llm-compressor wrote nothing")
    try:
        refuse_nan(made)
    except MedbenchError as error:
        raise MedbenchError(f"{parent.name}: what llm-compressor wrote cannot be served: {error}") from None
    for path in tokenizer_files(made):
        path.unlink()
    kept = [*tokenizer_files(Path(parent.path)), Path(parent.path) / "generation_config.json"]
    for path in kept:
        if path.exists():
            shutil.copy(path, made / path.name)
    for path in weight_files(made):
        path.chmod(0o666 & ~_umask())  # some writers leave them readable for their owner only
    if size_of(made).quantization is None:
        raise MedbenchError(f"{parent.name}: llm-compressor quantised nothing: it has no linear layer that it knows")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _recorded(
    options: QuantiseOptions,
    parent: Checkpoint,
    made: Path,
    calibration: Calibration | None,
    group_size: int | None,
    versions: dict[str, str],
    seconds: float,
) -> Quantised:
    return Quantised(
        parent=Parent(
            name=parent.name,
            fingerprint=parent.fingerprint,
            tokenizer_sha256=parent.tokenizer_sha256,
            commit=parent.commit,
            weight_bytes=parent.weight_bytes or 0,
        ),
        scheme=options.scheme,
        method="round to nearest" if calibration is None else "gptq",
        group_size=group_size,
        not_quantised=list(NOT_QUANTISED),
        calibration=calibration,
        fingerprint=fingerprint(weight_files(made)),
        weight_bytes=size_of(made).weight_bytes,
        seconds=round(seconds, 1),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions=versions,
    )
