"""A reply without the marks that mean nothing, each character with its place in the completion.

HTML tags and entities, the special tokens of chat templates, invisible characters and emoji selectors go; letters of
other forms become plain ones (full-width, circled, squared, mathematical; Cyrillic and Greek look-alikes that stand
alone), and a letter inside a script without spaces gets spaces around it: "正解はBです" becomes "正解は B です".
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import NamedTuple

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u11ff\u1780-\u17ff\u2e80-\u2fff\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u30fa\u30fc-\u30ff"
    "\u3105-\u318f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff"
)
"""Thai, Lao, Burmese, Khmer, Chinese, Japanese, Korean: what touches a letter there is no part of its word."""
_ENTITY = re.compile(r"&(?:#\d{1,6}|#x[0-9a-fA-F]{1,5}|[a-zA-Z]{2,8});")
_TOKEN = re.compile(
    r"</?s>|<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|\[/?INST\]|<(?:bos|eos|pad|unk|(?:start|end)_of_turn)>|<turn\|>|<\|turn>"
)
_INLINE = "b|i|u|em|strong|span|font|mark|code|small|big|sup|sub|kbd|tt|center"
_BLOCK = "p|br|hr|div|li|ul|ol|tr|table|tbody|thead|h[1-6]|pre|blockquote|section|html|body"
_TAG = re.compile(
    rf"</?(?:(?P<inline>{_INLINE})|(?P<block>{_BLOCK})|(?P<cell>t[dh]))(?:\s[^<>\n]{{0,80}})?/?>", re.IGNORECASE
)
_LONE = re.compile(r"<([A-Z])>(?![^<]*</\1>)")
_ALPHABETS = (0x1F110, 0x1F130, 0x1F150, 0x1F170, 0x1F1E6)
"""Where A stands among bracketed, squared, circled and squared letters in black, and regional indicators."""
_LETTERS = {start + n: chr(ord("A") + n) for start in _ALPHABETS for n in range(26)}
_DROPPED = re.compile("[\ufe00-\ufe0f\u20e3\u0332\u0336\U000e0100-\U000e01ef]")
_ALIKE = str.maketrans("АВСЕНІЈΑΒΕΗΙ", "ABCEHIJABEHI")
_ALONE = re.compile(r"(?<![^\W_])[АВСЕНІЈΑΒΕΗΙ](?![^\W_])")
_TOUCHING = re.compile(
    rf"(?<=[{_UNSPACED}])(?=[A-Z](?![A-Za-z\d]))|(?<=[{_UNSPACED}\W_][A-Z])(?=[{_UNSPACED}])|(?<=^[A-Z])(?=[{_UNSPACED}])"
)


class Cleaned(NamedTuple):
    """A text, and the offset of each of its characters in the completion."""

    text: str
    origin: Sequence[int]


def clean(text: str, start: int) -> Cleaned:
    """The text from `start` on. Takes time linear in its length."""
    cleaned = Cleaned(text[start:], range(start, len(text)))
    if "&" in cleaned.text:
        cleaned = _replaced(cleaned, _ENTITY, lambda match: html.unescape(match.group()))
    if "<" in cleaned.text or "[" in cleaned.text:
        cleaned = _replaced(cleaned, _TOKEN, lambda match: " ")
        cleaned = _replaced(cleaned, _LONE, lambda match: f" {match.group(1)} ")
        cleaned = _replaced(cleaned, _TAG, _instead_of_tag)
    if cleaned.text.isascii():
        return cleaned
    cleaned = _folded(cleaned)
    cleaned = _replaced(cleaned, _ALONE, lambda match: match.group().translate(_ALIKE))
    return _replaced(cleaned, _TOUCHING, lambda match: " ")


def _instead_of_tag(match: re.Match[str]) -> str:
    return "" if match.group("inline") else " | " if match.group("cell") else "\n"


def _folded(cleaned: Cleaned) -> Cleaned:
    """Compatibility forms made plain, invisible characters dropped."""
    folded = [
        (plain, at)
        for character, at in zip(cleaned.text, cleaned.origin, strict=True)
        if unicodedata.category(character) != "Cf" and not _DROPPED.match(character)
        for plain in _LETTERS.get(ord(character)) or unicodedata.normalize("NFKC", character)
    ]
    return Cleaned("".join(plain for plain, _ in folded), [at for _, at in folded])


def _replaced(cleaned: Cleaned, pattern: re.Pattern[str], new: Callable[[re.Match[str]], str]) -> Cleaned:
    text, origin = cleaned
    pieces: list[str] = []
    places: list[int] = []
    at = 0
    for match in pattern.finditer(text):
        instead = new(match)
        pieces += [text[at : match.start()], instead]
        places += origin[at : match.start()]
        places += [origin[min(match.start(), len(text) - 1)]] * len(instead)
        at = match.end()
    if not at and not pieces:
        return cleaned
    return Cleaned("".join([*pieces, text[at:]]), [*places, *origin[at:]])
