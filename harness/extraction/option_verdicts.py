"""The one option that a reply calls right where it judges them one by one: "A? No. B? Yes.", tables, check marks."""

from __future__ import annotations

import re

LENGTH = 600
"""Only this much of what is said about an option is read, in characters."""

_JUDGED = re.compile(
    r"(?:(?<=^)|(?<=[\n.;|?!]\s)|(?<=[\n.;|]))[\s*_#>|•-]{0,10}(?i:(?:option|choice|answer)\s+)?[*_(\[]{0,4}([A-Z])"
    r"(?![^\W_]|['’-]\w)[*_]{0,3}[)\].:?|–—-]?"
)
_PARTS = re.compile(r"[|:–—]|\s-\s|\?\s|[.]\s|\)\s")
_GOOD = re.compile(
    r"[\s*_|:.()–—✅✓✔☑-]*(?:this\s+(?:option\s+|choice\s+)?is\s+(?:the\s+)?|is\s+|it\s+is\s+|the\s+)?"
    r"(?:correct|right|true|yes|fits|best|matches|answer|supported)\b(?!\s+(?:in|that|but|for|about|only)\b)",
    re.IGNORECASE,
)
_BAD = re.compile(
    r"[\s*_(✗❌]*(?:(?:this\s+(?:option\s+)?|it\s+)?is\s+)?(?:not\b|incorrect|wrong|false|no\b|contraindicated|"
    r"unlikely|excluded|ruled|eliminated)",
    re.IGNORECASE,
)
_BAD_ANYWHERE = re.compile(
    r"\b(?:incorrect|wrong|false|no|not|contraindicated|unlikely|excluded|ruled\s+out|eliminated|inappropriate|"
    r"less\s+likely|doesn['’]t|isn['’]t|rejected)\b|[❌✗✘✖✕×🚫]",
    re.IGNORECASE,
)
_TICKED, _CROSSED = re.compile("[✅✓✔☑]"), re.compile("[❌✗✘✖✕🚫]")


def chosen_option(text: str, labels: tuple[str, ...], start: int = 0) -> re.Match[str] | None:
    """The match whose group 1 is the letter of the option that is called right.

    None unless at least two options are judged, exactly one of them as right.
    """
    judged = [match for match in _JUDGED.finditer(text, start) if match.group(1) in labels]
    good: dict[str, re.Match[str]] = {}
    bad: set[str] = set()
    stops = [*(following.start() for following in judged[1:]), len(text)]
    for match, stop in zip(judged, stops, strict=False):
        is_right = _judge(text[match.end() : min(stop, match.end() + LENGTH)])
        if is_right:
            good[match.group(1)] = match
        elif is_right is False:
            bad.add(match.group(1))
    if len(good) != 1 or not bad or bad & good.keys():
        return None
    return next(iter(good.values()))


def _judge(said: str) -> bool | None:
    """True for right, False for wrong, None if neither is said."""
    line = said.strip().split("\n", 1)[0]
    ticked, crossed = bool(_TICKED.search(line)), bool(_CROSSED.search(line))
    if ticked != crossed:
        return ticked
    for part in _PARTS.split(line):
        if _GOOD.match(part):
            return True
        if _BAD.match(part):
            return False
    return False if _BAD_ANYWHERE.search(line) else None
