"""synth.json: what `medbench synth` writes beside its rows, and the pages read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medbench.harness.config import faults_in
from medbench.harness.contracts import MedbenchError
from medbench.harness.files import parse_json, write_atomically
from medbench.harness.text import percent

SYNTH = "synth.json"
SCHEMA_VERSION = 1
LARGEST = 16 * 2**20
FILTER_WORDS = {
    "failed": "request failed, or an empty reply",
    "cut_off": "cut off by the token limit",
    "form": "form: no reasoning before one answer, or something hidden in it",
    "repetition": "repetition",
    "answer": "answer not right",
    "judge": "judge: steps not supported",
    "pass_rate": "difficulty: pass rate out of its band",
    "near_duplicate": "near-duplicate of an accepted reasoning",
    "contamination": "overlap with a benchmark question",
}
"""What each filter drops."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class FilterCount(_Record):
    """What one filter dropped."""

    filter: str
    seen: int = Field(ge=0)
    """Replies that came so far."""
    dropped: int = Field(ge=0)
    reasons: dict[str, int]


class KindCount(_Record):
    """One kind of question."""

    kind: str
    sha256: str
    """Of its prompt."""
    questions: int = Field(ge=0)
    replies: int = Field(ge=0)
    right: int = Field(ge=0)
    accepted: int = Field(ge=0)


class StrategyCount(_Record):
    """One strategy; first is the kind's own prompt."""

    strategy: str
    replies: int = Field(ge=0)
    right: int = Field(ge=0)
    accepted: int = Field(ge=0)


class Example(_Record):
    """A reply, cut to a length for reading."""

    key: str
    kind: str
    filter: str | None
    """That dropped it; None for one that passed."""
    reason: str
    question: str
    text: str


class Card(_Record):
    """Counts of a finished selection."""

    questions: int = Field(ge=0)
    replies: int = Field(ge=0)
    accepted: int = Field(ge=0)
    low: float = Field(ge=0, le=1)
    high: float = Field(ge=0, le=1)
    """95 % interval of accepted/replies, clustered by question."""
    answered: int = Field(ge=0)
    """Questions with at least one accepted reply."""
    first_right: float | None = None
    """Share of right answers among first replies; None where nothing is right or wrong."""
    chance: float | None = None
    """The same for guessing."""
    told: int = Field(ge=0)
    """Replies of a model that had been told the answer."""
    told_accepted: int = Field(ge=0)
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    filters: list[FilterCount]
    kinds: list[KindCount]
    strategies: list[StrategyCount]
    files: dict[str, int]
    """Name below the folder -> rows."""
    judge: dict[str, Any] | None = None
    """The judge's name and fingerprint, and steps without a verdict."""
    examples: list[Example]

    @property
    def in_words(self) -> str:
        """ "37 of 800 replies passed: 4.6 % (95 % interval 3.2 to 6.5, clustered by question)"."""
        if not self.replies:
            return "no replies"
        return (
            f"{self.accepted:,} of {self.replies:,} replies passed: {percent(self.accepted / self.replies)} % (95 % "
            f"interval {percent(self.low)} to {percent(self.high)}, clustered by question)"
        )


class GeneratorModel(_Record):
    """What of the model's record is shown; the rest is kept."""

    model_config = ConfigDict(extra="allow")

    name: str
    fingerprint: str
    parameters: int | None = Field(None, ge=0)


class Generator(_Record):
    """Who wrote the replies."""

    model: GeneratorModel
    engine: str
    settings: dict[str, Any] | None = None
    """The engine's, once it has started."""


class SynthRecord(_Record):
    """synth.json."""

    schema_version: int = SCHEMA_VERSION
    name: str
    status: Literal["running", "complete"]
    created: str
    command: str
    identity: str
    """Of everything that replies depend on: another one is another recipe."""
    parts: dict[str, str] = Field(default_factory=dict)
    """What `identity` is made of: part -> hash."""
    recipe: dict[str, Any]
    generator: Generator
    limit: int | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    git_commit: str | None = None
    card: Card | None = None


def write_synth(folder: Path, record: SynthRecord) -> None:
    """Raises Interrupted where it cannot be written."""
    content = record.model_dump_json(indent=1).encode("utf-8", "replace") + b"\n"
    write_atomically(folder / SYNTH, content)


def parse_synth(content: bytes, where: str) -> SynthRecord:
    """Raises MedbenchError for a record that is damaged or too new."""
    try:
        found = parse_json(content)
        version = found.get("schema_version") if isinstance(found, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise MedbenchError(f"{where}: schema version {version} is newer than {SCHEMA_VERSION}: upgrade medbench")
        return SynthRecord.model_validate(found)
    except ValidationError as error:
        fault = faults_in(error, SynthRecord)[0]
        raise MedbenchError(f"{fault.line(where)}: not written by medbench synth, or damaged") from None
    except ValueError:
        raise MedbenchError(f"{where}: not JSON: not written by medbench synth, or damaged") from None


def read_synth(folder: Path) -> SynthRecord:
    """Raises MedbenchError as parse_synth, and for a folder without the file."""
    path = folder / SYNTH
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST)
    except FileNotFoundError:
        raise MedbenchError(f"{folder}: no {SYNTH}: not a folder of medbench synth") from None
    except OSError as error:
        raise MedbenchError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_synth(content, str(path))
