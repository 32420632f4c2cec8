"""Damage to bytes, to structure (JSON, YAML) and to lines. Each function says what it did.

    draw = random.Random(7)
    text, done = damaged_json({"score": 1.0}, draw)      # '{"score": NaN}', 'score = NaN'

Structure is damaged in memory and then written; what no writer would produce (NaN, a key given twice, 100,000 brackets)
is a `Raw`, whose text goes into the file as it is.
"""

from __future__ import annotations

import copy
import gzip
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import yaml


@dataclass(frozen=True, slots=True)
class Raw:
    """Text for the file in place of a value or key; `label` stands for it in reports."""

    text: str
    label: str

    def __repr__(self) -> str:
        return self.label


def nested(depth: int) -> Raw:
    return Raw("[" * depth + "]" * depth, f"{depth} brackets")


PLAIN: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 0.0, -0.0, 0.5, 1.0, 1.5, 5.0, -0.5, 4.5, 1e308, -1e308, 1e-320),
    *(3 * 10**8, 2**31, 2**63, 2**64, -(2**63), 10**400, -(10**400)),
    *("", " ", "x", "1", "0", "1.0", "true", "null", "NaN", "A", "..", "../../x", "/", "~", "~nouser/x", "-", "a/b"),
    *("\x00", "a\x00b", "line\nbreak", "\r", "\u2028", "\ufeff", "\x1b[31m", "é" * 300, "{{ 7 * 7 }}", "{% for"),
    *("W" * 300, "W" * 5000, "9" * 5000, "2026-13-45", "<script>", "${HOME}", "user:password@host"),
    *([], {}, [[]], [None], {"": None}, {"a": 1}, ["x"] * 50, [0] * 2000, {str(n): n for n in range(500)}),
)
RAW_JSON: tuple[Raw, ...] = (
    *(Raw(text, text) for text in ("NaN", "Infinity", "-Infinity", "1e999", "-0", "1E400", "01", "+1", ".5", "0x10")),
    *(Raw(f'"{text}"', text) for text in ("\\ud800", "\\udfff\\ud800", "\\u0000", "\\x", "\t")),
    *(nested(depth) for depth in (50, 990, 100_000)),
    Raw("9" * 5000, "5,000 digits"),
    Raw('{"a":' * 3000 + "1" + "}" * 3000, "3,000 objects"),
    Raw("", "nothing"),
    Raw('{"a": 1, "a": 2}', "a key given twice"),
)


def alias_bomb(levels: int, width: int = 9) -> Raw:
    """`width` to the power of `levels` values, if they are all visited."""
    parts = [f"&b0 [{', '.join('x' * width)}]"]
    parts += [f"&b{level} [{', '.join([f'*b{level - 1}'] * width)}]" for level in range(1, levels)]
    return Raw(f"[{', '.join(parts)}]", f"aliases, {levels} levels")


def merge_bomb(levels: int) -> Raw:
    """A mapping that doubles at each level."""
    parts = ["&m0 {k0: 1}"]
    parts += [f"&m{at} {{<<: [*m{at - 1}, *m{at - 1}], k{at}: 1}}" for at in range(1, levels)]
    return Raw(f"[{', '.join(parts)}]", f"merges, {levels} levels")


RAW_YAML: tuple[Raw, ...] = (
    *(Raw(text, text) for text in (".nan", ".inf", "-.inf", "1e999", "0o17", "0b1", "1_000", "12:30:45", "~", "yes")),
    *(Raw(text, text) for text in ("2026-11-27", "2026-13-45", "!!binary AAAA", "!!set {a, b}", "!!float x", "!x y")),
    *(Raw(text, text) for text in ("*nothing", "&a [*a]", "&a {a: *a}", "{? [a]: b}", "{1: 2, null: 3}", "[1, 2", "|")),
    Raw('!!python/object/apply:os.system ["touch hacked"]', "python tag"),
    Raw("!!python/name:os.system", "python name"),
    Raw("!function os.system", "function tag"),
    *(Raw(f'"{text}"', text) for text in ("\\ud800", "\\0", "\\x07", "a\\nb")),
    *(alias_bomb(levels) for levels in (2, 5, 9, 30)),
    *(merge_bomb(levels) for levels in (4, 12, 40)),
    *(nested(depth) for depth in (50, 300, 5000)),
    Raw("{" + ", ".join(f"k{n}: 1" for n in range(20_000)) + "}", "20,000 keys"),
    Raw("9" * 5000, "5,000 digits"),
    Raw("\n  a: 1\n  a: 2", "a key given twice"),
)
KEYS: tuple[str, ...] = ("", "x", "__class__", "a\nb", "\x00", "schema_version", "id", "score", "<<", "K" * 3000, "é")

# --- structure ---------------------------------------------------------------------------------------------------


def damaged_json(content: Any, draw: random.Random, indent: int | None = None) -> tuple[str, str]:
    changed, done = _changed(content, draw, RAW_JSON)
    return as_json(changed, indent), done


def damaged_yaml(content: Any, draw: random.Random) -> tuple[str, str]:
    changed, done = _changed(content, draw, RAW_YAML)
    return as_yaml(changed), done


def as_json(content: Any, indent: int | None = None) -> str:
    raw: list[Raw] = []
    text = json.dumps(_marked(content, raw), ensure_ascii=_needs_ascii(content), indent=indent)
    return _filled(text, raw)


def as_yaml(content: Any) -> str:
    raw: list[Raw] = []
    text = yaml.dump(_marked(content, raw), Dumper=_NoAliases, sort_keys=False, allow_unicode=True, width=10_000)
    return _filled(text, raw)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _needs_ascii(content: Any) -> bool:
    """Whether JSON of `content` has to escape: half a surrogate pair has no UTF-8."""
    try:
        json.dumps(_marked(content, []), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _marked(content: Any, raw: list[Raw]) -> Any:
    """`content` with a mark in place of every Raw, which is appended to `raw`."""
    if isinstance(content, Raw):
        raw.append(content)
        return f"RAW{len(raw) - 1}RAW"
    if isinstance(content, dict):
        return {_marked(key, raw): _marked(value, raw) for key, value in content.items()}
    if isinstance(content, list):
        return [_marked(value, raw) for value in content]
    return content


def _filled(text: str, raw: Sequence[Raw]) -> str:
    return re.sub(r'"?RAW(\d+)RAW"?', lambda found: raw[int(found[1])].text, text)


Path_ = tuple[Any, ...]


def _places(content: Any, here: Path_ = ()) -> list[Path_]:
    """Paths of all values below `content`."""
    inner: Any = content.items() if isinstance(content, dict) else enumerate(content) if _is_list(content) else ()
    found: list[Path_] = []
    for key, value in inner:
        found += [(*here, key), *_places(value, (*here, key))]
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _at(content: Any, path: Path_) -> Any:
    for key in path:
        content = content[key]
    return content


def _changed(content: Any, draw: random.Random, raw: Sequence[Raw]) -> tuple[Any, str]:
    content = copy.deepcopy(content)
    places = _places(content)
    if not places or draw.random() < 0.02:
        value = draw.choice((*PLAIN, *raw))
        return value, f"(top) = {_short(value)}"
    path = draw.choice(places)
    parent, key = _at(content, path[:-1]), path[-1]
    kind = draw.choice(("value",) * 8 + ("near",) * 4 + ("delete", "delete", "key", "twice", "more", "swap", "wrap"))
    name = ".".join(map(str, path))
    if kind == "near" and (value := _near(parent[key], draw)) is not None:
        parent[key] = value
        return content, f"{name} = {_short(value)}"
    if kind == "delete":
        del parent[key]
        return content, f"{name} deleted"
    if kind == "key" and isinstance(parent, dict):
        parent[draw.choice((*KEYS, f"{key}s", str(key).upper()))] = parent.pop(key)
        return content, f"{name} under another key"
    if kind == "twice" and isinstance(parent, dict):
        other = draw.choice(PLAIN)
        parent[Raw(json.dumps(str(key)), f"{key} again")] = other
        return content, f"{name} again = {_short(other)}"
    if kind == "more" and isinstance(parent, list):
        parent.extend([copy.deepcopy(parent[key]) for _ in range(draw.choice((1, 3, 500)))])
        return content, f"{name} repeated"
    if kind == "swap":
        other_path = draw.choice(places)
        parent[key] = copy.deepcopy(_at(content, other_path))
        return content, f"{name} = that of {'.'.join(map(str, other_path))}"
    if kind == "wrap":
        parent[key] = draw.choice((lambda value: [value], lambda value: {"a": value}, str))(parent[key])
        return content, f"{name} wrapped"
    parent[key] = value = draw.choice((*PLAIN, *raw))
    return content, f"{name} = {_short(value)}"


def _near(value: Any, draw: random.Random) -> Any:
    """Another value of the same type, or the same value as another type; None where there is none."""
    if isinstance(value, bool):
        return draw.choice((not value, int(value), str(value)))
    if isinstance(value, int | float):
        half = value + 0.5 if abs(value) < 1e15 else 0.5  # 10^400 has no float
        other = (-value, value + 1, value - 1, value * 1000, half, 0)
        return draw.choice((*other, str(value), [value], bool(value)))
    if isinstance(value, str):
        return draw.choice((value + "x", value[1:], value[:-1], value.upper(), value * 100, f" {value}", value + "\n"))
    return None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 50 else f"{text[:40]}... ({len(text)})"


# --- bytes -------------------------------------------------------------------------------------------------------


def damaged_bytes(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    change = draw.choice(BYTES)
    return change(content, draw), change.__name__.strip("_").replace("_", " ")


def _span(content: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(content) + 1)
    return start, min(len(content), start + draw.choice((1, 1, 2, 10, 100, 1000)))


def _bits_flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 3, 30))):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _span_deleted(content: bytes, draw: random.Random) -> bytes:
    start, end = _span(content, draw)
    return content[:start] + content[end:]


def _span_doubled(content: bytes, draw: random.Random) -> bytes:
    start, end = _span(content, draw)
    return content[:end] + content[start:end] * draw.choice((1, 1, 20)) + content[end:]


def _span_of_NULs(content: bytes, draw: random.Random) -> bytes:
    start, end = _span(content, draw)
    return content[:start] + b"\0" * (end - start) + content[end:]


def _noise_inserted(content: bytes, draw: random.Random) -> bytes:
    start, _ = _span(content, draw)
    return content[:start] + draw.randbytes(draw.choice((1, 4, 50))) + content[start:]


PIECES = (b"\r", b"\xff", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"\xef\xbb\xbf", b'"', b"{", b"]", b"\t", b": ", b"&a ")


def _text_inserted(content: bytes, draw: random.Random) -> bytes:
    start, _ = _span(content, draw)
    pieces = (
        b"\r",
        b"\xff",
        b"\xed\xa0\x80",
        b"\xe2\x80\xa8",
        b"\xef\xbb\xbf",
        b'"',
        b"{",
        b"]",
        b"\t",
        b": ",
        b"- ",
        b"&a ",
    )
    return content[:start] + draw.choice(pieces) + content[start:]


def _cut_off(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _page_of_NULs_at_the_end(content: bytes, draw: random.Random) -> bytes:
    return _cut_off(content, draw) + b"\0" * 4096


def _emptied(content: bytes, draw: random.Random) -> bytes:
    return draw.choice((b"", b"\n", b" ", b"\0", b"null\n", b"---\n"))


def _byte_order_mark(content: bytes, draw: random.Random) -> bytes:
    return b"\xef\xbb\xbf" + content


def _other_line_ends(content: bytes, draw: random.Random) -> bytes:
    return content.replace(b"\n", draw.choice((b"\r\n", b"\r", b"\n\n", b"\xe2\x80\xa8")))


def _other_encoding(content: bytes, draw: random.Random) -> bytes:
    encoding = draw.choice(("utf-16", "utf-16-le", "utf-32", "cp037", "utf-7"))
    return content.decode("utf-8", "replace").encode(encoding, "replace")


def _compressed(content: bytes, draw: random.Random) -> bytes:
    return gzip.compress(content, mtime=0)


def _repeated(content: bytes, draw: random.Random) -> bytes:
    return content * draw.choice((2, 3, 30))


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(_bits_flipped, _span_deleted, _span_doubled, _span_of_NULs, _noise_inserted, _text_inserted, _cut_off),
    *(_page_of_NULs_at_the_end, _emptied, _byte_order_mark, _other_line_ends, _other_encoding, _compressed, _repeated),
)

# --- JSON lines --------------------------------------------------------------------------------------------------


LINE_KINDS = ("inside",) * 10 + ("contradicted",) * 3 + ("deleted", "doubled", "moved", "blank", "torn", "long")


def damaged_lines(content: bytes, draw: random.Random) -> tuple[bytes, str]:
    """One line of JSON lines damaged, or their order, number or ends."""
    lines = content.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    kind = draw.choice(
        ("inside",) * 10 + ("contradicted",) * 3 + ("deleted", "doubled", "moved", "blank", "torn", "long")
    )
    line = lines[at]
    if kind == "inside":
        text, done = damaged_json(json.loads(line), draw)
        lines[at] = _encoded(text) + b"\n"
        kind = done
    elif kind == "contradicted":  # the line stays, and another with other contents follows it
        text, done = damaged_json(json.loads(line), draw)
        lines.insert(draw.randrange(len(lines) + 1), _encoded(text) + b"\n")
        kind = f"again, but {done}"
    elif kind == "deleted":
        del lines[at]
    elif kind == "doubled":
        lines.insert(draw.randrange(len(lines) + 1), line)
    elif kind == "moved":
        lines.insert(draw.randrange(len(lines)), lines.pop(at))
    elif kind == "blank":
        lines.insert(at, draw.choice((b"\n", b" \n", b"{}\n", b"[]\n", b"null\n", b"\0" * 4096, b'"x"\n', b"\xff\n")))
    elif kind == "torn":
        lines[at] = line[: draw.randrange(len(line))]
    else:
        lines[at] = line[:-2] + b', "x": "' + b"W" * draw.choice((10_000, 300_000, 10_500_000)) + b'"}\n'
    return b"".join(lines), f"line {at + 1}: {kind}"


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
