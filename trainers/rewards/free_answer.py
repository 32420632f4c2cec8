"""Verifies free-text answers: a reply that states one answer is compared with the ground truth, as text or as a number.

    matches("28.41 kg/m²", "28.4 kg/m^2", tolerance=0.01)    # True

Which answer a reply states: the last \\boxed{...}, "The answer is ..." (or "Answer: ...", "#### ...") up to the end of
its line, or else the whole text after the reasoning if it is a single line of at most LONGEST characters. A reply that
states two different answers states none.

As text, both must be the same but for case, white space, Markdown, quotes, brackets around everything, an article at
the start, a full stop at the end, and hyphens inside words. Synonyms do not match.

If both are numbers, perhaps with a unit, they must differ by at most `tolerance`, a share of the ground truth. A ground
truth without a unit takes any unit; one with a unit takes the same unit or one that converts to it by powers of ten or
by time ("0.5 g" is "500 mg", "5 mg/dL" is "0.05 g/L"), and no answer without a unit. Ranges, fractions and pairs such
as "120/80 mmHg" are compared as text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

from medbench.harness.contracts import Extraction

LONGEST = 200
"""Characters of an answer that can be compared; longer ones are explanations."""
ROUNDING = 1e-9
"""What conversions between units may change, also with tolerance 0."""

_STATED = re.compile(
    r"(?:\b(?:the|my)\s+(?:final\s+|correct\s+)?answer\s+(?:is|would\s+be)\b|(?:^|\n)[\s*_#>-]{0,8}(?:final\s+)?answer"
    r"[\s*_]{0,3}:|(?:^|\n)\s{0,8}####)[\s:]{0,8}(?P<answer>\S[^\n]*)",
    re.IGNORECASE,
)
_BOXED = re.compile(r"\\boxed\s*\{")
_WRAPPED = re.compile(r"\\(?:boxed|text(?:bf|it|rm)?|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_MARKS = "*_`\"'“”‘’«» \t\r\n"
_PAIRS = {"(": ")", "[": "]", "{": "}", "$": "$", "\\(": "\\)"}
_ARTICLE = re.compile(r"^(?:a|an|the)\s+(?=\S)")
_HYPHEN = re.compile(r"(?<=[^\W_])\s*[-‐‑–—]\s*(?=[^\W\d_])")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_TIMES_TEN = re.compile(r"\s*(?:[x×*·]|\\times|\\cdot)\s*10\s*\^\s*\{?([-+]?\d{1,3})\}?")
_TEN = re.compile(r"^10\s*\^\s*\{?([-+]?\d{1,3})\}?")
_NUMBER = re.compile(
    r"(?:(?:[≈~=]|about|approximately|around|roughly)\s*)?(?P<currency>[$€£])?\s*"
    r"(?P<number>[-+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[-+]?\d{1,3})?)\s*"
    r"(?P<unit>/?\s*[^\W\d_].{0,40}|[%°].{0,20})?$"
)
_UNIT = re.compile(r"[^\W\d_]+(?:\^?-?\d)?|%|°\s*[cf]?")
_NO_UNIT = {
    "or",
    "and",
    "to",
    "but",
    "not",
    "nor",
    "if",
    "than",
    "with",
    "without",
    "maybe",
    "perhaps",
    "possibly",
    "of",
}


def read_free_answer(text: str, start: int) -> Extraction:
    """The answer that `text` states from `start` on, where its reasoning ends; "ambiguous" if it states several."""
    behind = text[start:]
    boxes = _boxed(behind)
    lines = [match.span("answer") for match in _STATED.finditer(behind)]
    spans = boxes + [line for line in lines if not any(line[0] <= box[0] and box[1] <= line[1] for box in boxes)]
    if not spans:
        line = behind.strip()
        if not line or "\n" in line or len(line) > LONGEST:
            return Extraction(None, "unparsed" if line else "empty")
        at = behind.index(line)
        spans = [(at, at + len(line))]
    first, last = max(spans)
    found = start + first, start + last
    stated = {normal(behind[slice(*span)]) for span in spans}
    if len(stated) > 1:
        return Extraction(None, "ambiguous", found)
    answer = behind[first:last].strip()
    if stated == {""} or len(answer) > LONGEST:
        return Extraction(None, "unparsed", found)
    return Extraction(answer, "answered", found)


def ground_truth(answer: str) -> str:
    """The part of a worked answer that replies are compared with: what follows the last "####" (GSM8K), or all."""
    _, marked, last = answer.rpartition("####")
    return last.strip() if marked and last.strip() else answer.strip()


def matches(answer: str, truth: str, tolerance: float) -> bool:
    """Whether the two are the same number or the same text (see above)."""
    given, wanted = quantity(answer), quantity(truth)
    if given is None or wanted is None:
        return normal(answer) == normal(truth)
    if wanted.unit is None:
        return _is_near(given.stated, wanted.stated, tolerance)
    return given.unit == wanted.unit and _is_near(given.value, wanted.value, tolerance)


def _is_near(given: float, wanted: float, tolerance: float) -> bool:
    return abs(given - wanted) <= max(tolerance, ROUNDING) * abs(wanted)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number, perhaps with a unit."""

    stated: float
    """As written."""
    value: float
    """In base units: gram, litre, metre, mole, second."""
    unit: tuple[tuple[str, int], ...] | None
    """(base unit, power), sorted; empty if all cancel ("mg/kg"), None if there is no unit."""


def quantity(text: str) -> Quantity | None:
    """The number that `text` is; None if it is anything else."""
    if len(text) > 2 * LONGEST:
        return None
    plain = _RAISED.sub(lambda found: "^" + found[0].translate(_LOWERED), text)
    plain = _TEN.sub(r"1e\1", _TIMES_TEN.sub(r"e\1", _bare(plain).replace("−", "-")))
    found = _NUMBER.match(plain.casefold())
    if found is None:
        return None
    stated = float(found["number"].replace(",", ""))
    written = found["unit"] or found["currency"]
    if written is None:
        return Quantity(stated, stated, None) if math.isfinite(stated) else None
    unit = _unit(written)
    if unit is None or not math.isfinite(stated * unit[0]):
        return None
    return Quantity(stated, stated * unit[0], unit[1])


def _unit(text: str) -> tuple[float, tuple[tuple[str, int], ...]] | None:
    """(factor to base units, base units with their powers) of "mg/dl" or "breaths per minute"; None if it is none."""
    text = _WRAPPED.sub(r"\1", text).replace("\\", "").replace("µ", "u").replace("μ", "u")
    factor, powers = 1.0, Counter[str]()
    for at, part in enumerate(re.split(r"/|\bper\b", text)):
        words = part.strip(" .").split()
        if at == 0 and not words:
            continue
        sound = all((_UNIT.fullmatch(word) or word in "$€£") and word not in _NO_UNIT for word in words)
        if not sound or not 1 <= len(words) <= 2:
            return None
        name = "".join(words).replace("^", "")
        base, scale = UNITS.get(name, (name, 1.0))
        power = -1 if at else 1
        factor *= scale**power
        powers[base] += power
    return factor, tuple(sorted((base, power) for base, power in powers.items() if power))


def normal(text: str) -> str:
    """The form in which texts are compared."""
    plain = _HYPHEN.sub(" ", unicodedata.normalize("NFKC", _bare(text)).casefold())
    return _ARTICLE.sub("", " ".join(plain.split()))


def _bare(text: str) -> str:
    """Without the marks, brackets and full stops around all of it."""
    before = None
    while text != before:
        before = text
        text = _WRAPPED.sub(r"\1", text).strip(_MARKS).rstrip(".;,!").lstrip(":").strip()
        for opened, closed in _PAIRS.items():
            inner = text[len(opened) : -len(closed)]
            if text.startswith(opened) and text.endswith(closed) and len(text) > 1 and closed not in inner:
                text = inner
    return text


def _boxed(text: str) -> list[tuple[int, int]]:
    r"""The span inside each \boxed{...} of at most 2 * LONGEST characters."""
    found = []
    for opened in _BOXED.finditer(text):
        depth = 1
        for at in range(opened.end(), min(len(text), opened.end() + 2 * LONGEST)):
            depth += (text[at] == "{") - (text[at] == "}")
            if not depth:
                found.append((opened.end(), at))
                break
    return found


_PREFIXES = {"k": 1e3, "": 1.0, "d": 1e-1, "c": 1e-2, "m": 1e-3, "u": 1e-6, "n": 1e-9, "p": 1e-12}
_NAMES = {
    ("g", 1e3): "kilogram kilograms",
    ("g", 1.0): "gram grams gm",
    ("g", 1e-3): "milligram milligrams",
    ("g", 1e-6): "mcg microgram micrograms",
    ("l", 1.0): "liter liters litre litres",
    ("l", 1e-3): "milliliter milliliters millilitre millilitres cc",
    ("s", 1.0): "s sec second seconds",
    ("s", 60.0): "min mins minute minutes",
    ("s", 3600.0): "h hr hrs hour hours",
    ("s", 86400.0): "d day days",
    ("s", 604800.0): "wk week weeks",
    ("month", 1.0): "mo month months",
    ("year", 1.0): "y yr yrs year years",
    ("%", 1.0): "% percent",
    ("u", 1.0): "u unit units",
    ("$", 1.0): "$ dollar dollars usd",
    ("°c", 1.0): "°c c degreescelsius",
    ("°f", 1.0): "°f f degreesfahrenheit",
}
UNITS: dict[str, tuple[str, float]] = {
    **{prefix + base: (base, factor) for base in ("g", "l", "m", "mol") for prefix, factor in _PREFIXES.items()},
    **{name: unit for unit, names in _NAMES.items() for name in names.split()},
}
"""Name, in lower case and without blanks, -> (base unit, factor). "M" is read as metre: write "mol/l"."""
