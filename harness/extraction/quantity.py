r"""Numbers, dates, and numbers of weeks and days: found in a text, written in one form each, and compared.

    python -c "from medbench.harness.extraction.quantity import accepts; print(accepts('24 (22.8 to 25.2)', '23.1'))"

The forms are "-0.5", "12/02/2000" (month, day, year) and "34 weeks 3 days". A right answer may have limits behind it,
"24 (22.8 to 25.2)", within which an answer is right too; without them only the same quantity is.
"""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

from medbench.harness.text import foreign

LARGEST_POWER = 20
"""Numbers from 10^-20 to 10^20 are read."""

_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}\.?"
_TH = "(?:st|nd|rd|th)?"
_DATE = re.compile(
    r"(?<![\w/.-])(?:(?P<month>\d{1,2})(?P<by>[/.-])(?P<day>\d{1,2})(?P=by)(?P<year>\d{4}|\d{2})(?![\w/])"
    r"|(?P<iso_year>\d{4})-(?P<iso_month>\d{1,2})-(?P<iso_day>\d{1,2})(?![\w/-])"
    rf"|(?P<word>{_MONTH})\s{{1,3}}(?P<word_day>\d{{1,2}}){_TH}\s?,?\s{{1,3}}(?P<word_year>\d{{4}})(?!\d)"
    rf"|(?P<of_day>\d{{1,2}}){_TH}\s{{1,3}}(?:of\s{{1,3}})?(?P<of>{_MONTH})\s?,?\s{{1,3}}(?P<of_year>\d{{4}})(?!\d))",
    re.IGNORECASE,
)
_LATEX = r"(?:\\(?:text|mathrm)?\s?\{?\s{0,2})?"
_WEEKS = re.compile(
    rf"(?<![\w.,/])(?P<weeks>\d{{1,3}})(?:\s{{1,2}}(?P<sevenths>[0-6])/7)?[\s~]{{0,3}}{_LATEX}-?(?:weeks?|wks?|w)(?![a-z])"
    rf"(?:[\s,'\"&+*}}~]{{0,6}}(?:and\s{{1,3}})?['\"]?(?P<days>\d{{1,2}})[\s~]{{0,3}}{_LATEX}(?:days?|d)(?![a-z]))?"
    r"|\(\s{0,3}(?P<pair>\d{1,3})\s{0,3},\s{1,3}(?P<pair_days>\d{1,2})\s{0,3}\)",
    re.IGNORECASE,
)
# no digits of a word (CHA2DS2-VASc, FIB-4) and none of a unit (mL/min/1.73 m2)
_NUMBER = re.compile(
    r"(?<![\w.])(?<!\w[-–−])(?<![A-Za-z]/)(?P<sign>[-+–−])?"
    r"(?P<digits>\d{1,3}(?:,\d{3}){1,5}(?![\d,])(?:\.\d{1,40})?|\d{1,40}(?:[.,]\d{1,40})?|\.\d{1,40})(?!\d)"
    r"(?:\s?(?:[x×*·]|\\times|\\cdot)\s?10\s?(?:\^|\*\*)\s?\{?(?P<power>[-+−]?\d{1,3})\}?|e(?P<e>[-+]?\d{1,3})(?!\w))?",
    re.IGNORECASE,
)
_LIMITS = re.compile(r"(?P<value>\S+) \((?P<low>\S+) to (?P<high>\S+)\)")


class Quantity(NamedTuple):
    """One that was found in a text."""

    written: str
    """In the form of its kind."""
    start: int
    end: int


def first_quantity(text: str, start: int = 0, end: int | None = None) -> Quantity | None:
    """The first one in text[start:end]; None also where that is a date that does not exist."""
    stop = len(text) if end is None else end
    kinds = ((_DATE, _date), (_WEEKS, _weeks), (_NUMBER, _number))
    found = [(match, write) for pattern, write in kinds if (match := pattern.search(text, start, stop))]
    if not found:
        return None
    match, write = min(found, key=lambda one: one[0].start())  # of equals the first kind
    written = write(match)
    return Quantity(written, *match.span()) if written is not None else None


def written(value: object) -> str | None:
    """`value`, such as a cell of a table, in the form of its kind; None where it is not one quantity."""
    text = str(value).strip().strip("()[]'\" ")
    whole = f"({text})" if "," in text and not _NUMBER.fullmatch(text) else text
    found = first_quantity(whole)
    if found is None or whole[: found.start].strip("('\" ") or whole[found.end :].strip(")'\" "):
        return None
    return found.written


def with_limits(value: object, low: object, high: object) -> str:
    """The right answer `value` with the limits within which an answer is right too, in any order.

    The value is always right. Raises ValueError where one of the three is no number.
    """
    try:
        numbers = [Decimal(written(one) or "none") for one in (value, low, high)]
    except InvalidOperation:
        said = ", ".join(foreign(str(one), 40) for one in (value, low, high))
        raise ValueError(f"answer and limits {said}: not three numbers") from None
    least, most = min(numbers), max(numbers)
    limits = f" ({_plain(least)} to {_plain(most)})" if least < most else ""
    return f"{_plain(numbers[0])}{limits}"


def without_limits(gold: str) -> str:
    """The right answer alone."""
    limits = _LIMITS.fullmatch(gold)
    return limits["value"] if limits else gold


def accepts(gold: str, answer: str) -> bool:
    """Whether `answer` is the right answer `gold` or within its limits."""
    limits = _LIMITS.fullmatch(gold)
    if limits is None:
        return answer == gold
    try:
        return Decimal(limits["low"]) <= Decimal(answer) <= Decimal(limits["high"])
    except InvalidOperation:  # a date, a NaN
        return False


def _number(match: re.Match[str]) -> str | None:
    digits, power = match["digits"], int((match["power"] or match["e"] or "0").replace("−", "-"))
    thousands = re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", digits) is not None
    value = Decimal(digits.replace(",", "" if thousands else ".")).scaleb(power)
    if value and abs(value.adjusted()) > LARGEST_POWER:
        return None
    return _plain(-value if (match["sign"] or "+") != "+" else value)


def _plain(value: Decimal) -> str:
    return format(value.normalize() if value else Decimal(0), "f")


def _date(match: re.Match[str]) -> str | None:
    if match["iso_year"]:
        year, month, day = match["iso_year"], int(match["iso_month"]), match["iso_day"]
    elif match["month"]:
        year, month, day = match["year"], int(match["month"]), match["day"]
    else:
        word = (match["word"] or match["of"]).rstrip(".").lower()
        named = [at for at, name in enumerate(_MONTHS, 1) if word in (name, name[:3], name[:4])]
        if not named:
            return None
        year, month, day = match["word_year"] or match["of_year"], named[0], match["word_day"] or match["of_day"]
    try:
        return date(int(year) + (2000 if len(year) == 2 else 0), month, int(day)).strftime("%m/%d/%Y")
    except ValueError:
        return None


def _weeks(match: re.Match[str]) -> str:
    if match["pair"]:
        return f"{int(match['pair'])} weeks {int(match['pair_days'])} days"
    return f"{int(match['weeks'])} weeks {int(match['days'] or match['sevenths'] or 0)} days"
