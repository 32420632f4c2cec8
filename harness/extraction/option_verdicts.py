"""The one option that a reply calls right where it judges them one by one: "A? No. B? Yes.", tables, check marks."""

from __future__ import annotations

import re
from dataclasses import dataclass

LENGTH = 600
"""Only this much of what is said about an option is read, in characters."""

_JUDGED = re.compile(
    r"(?:(?<=^)|(?<=[\n.;|?!]\s)|(?<=[\n.;|]))[\s*_#>|•-]{0,10}(?i:(?:option|choice|answer)\s+)?[*_(\[]{0,4}([A-Z])(?![^\W_]|['’-]\w)[*_]{0,3}[)\].:?|–—-]?"
)
_GOOD = re.compile(
    r"[\s*_|:.()–—✅✓✔☑-]*(?:this\s+(?:option\s+|choice\s+)?is\s+(?:the\s+)?|is\s+|it\s+is\s+|the\s+)?(?:correct|right|true|yes|fits|best|matches|answer|supported)\b(?!\s+(?:in|that|but|for|about|only)\b)",
    re.IGNORECASE,
)
_BAD = re.compile(
    r"\b(?:incorrect|wrong|false|no|not|contraindicated|unlikely|excluded|ruled\s+out|eliminated|inappropriate|less\s+likely|doesn['’]t|isn['’]t|rejected)\b|[❌✗✘✖✕×🚫]",
    re.IGNORECASE,
)
_TICKED, _CROSSED = re.compile("[✅✓✔☑]"), re.compile("[❌✗✘✖✕🚫]")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The option that is called right, and where its letter is."""

    label: str
    start: int
    end: int


def chosen_option(text: str, labels: tuple[str, ...], start: int = 0) -> Verdict | None:
    """None unless at least two options are judged, one of them as right, and one as wrong."""
    judged = [match for match in _JUDGED.finditer(text, start) if match.group(1) in labels]
    good: dict[str, Verdict] = {}
    bad: set[str] = set()
    for number, match in enumerate(judged):
        stop = judged[number + 1].start() if number + 1 < len(judged) else len(text)
        said = text[match.end() : min(stop, match.end() + LENGTH)]
        verdict = _judge(said)
        if verdict:
            good[match.group(1)] = Verdict(match.group(1), match.start(1), match.end(1))
        elif verdict is False:
            bad.add(match.group(1))
    if len(good) != 1 or not bad or next(iter(good)) in bad:
        return None
    return next(iter(good.values()))


def _judge(said: str) -> bool | None:
    """True for right, False for wrong, None if neither is said."""
    line = said.strip().split("\n", 1)[0]
    ticked, crossed = bool(_TICKED.search(line)), bool(_CROSSED.search(line))
    if ticked != crossed:
        return ticked
    for part in re.split(r"[|:–—]|\s-\s|\?\s|[.]\s|\)\s", line):
        if _GOOD.match(part) and not re.match(r"\W*(?:not|no)\b", part, re.IGNORECASE):
            return True
        if re.match(
            r"[\s*_(✗❌]*(?:(?:this\s+(?:option\s+)?|it\s+)?is\s+)?(?:not\b|incorrect|wrong|false|no\b|contraindicated|unlikely|excluded|ruled|eliminated)",
            part,
            re.IGNORECASE,
        ):
            return False
    return False if _BAD.search(line) else None
