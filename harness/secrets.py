"""Passwords, keys and tokens, replaced by *** in whatever is stored, shown or compared.

    print(redact("no answer from http://nurse:s3cret@host/v1?api_key=x"))   # http://***@host/v1?api_key=***

What counts as one: user and password in a URL; the value of a URL's query key, of an option or of a setting whose name
says so (hf_token, api-key, clientSecret, ...); and the value of such an environment variable, wherever it stands.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "***"
LEAST = 6
"""Characters of an environment variable's value; shorter ones would blank out parts of ordinary words."""
PLACEHOLDERS = {"EMPTY", "dummy", "unused", "not-needed"}
"""What servers without a key are told."""

_SECRET = {"token", "key", "apikey", "secret", "password", "passwd", "passphrase", "credential", "credentials",
           "authorization", "auth", "bearer", "sig", "signature", "cookie"}  # fmt: skip
_OF_A_VOCABULARY = {"eos", "bos", "pad", "unk", "sep", "cls", "mask", "image", "video", "audio", "think", "reasoning"}
"""`eos_token` and the like are tokens of another kind."""
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# up to the last @ of the authority; and a password with an unescaped / ? or # in it. Bounded, so that a long text
# takes linear time
_USERINFO = re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,20}://)(?:[^\s/?#]{0,999}@|[^\s/?#:@]{0,99}:[^\s@]{0,999}@)")
_QUERY = re.compile(r"""([?&;])([^\s=&?#;"']{1,100})=([^\s&#;"']+)""")
_OPTION = re.compile(r"(?s)(--?[A-Za-z][\w-]*)=(.+)")


def is_secret(name: object) -> bool:
    """Whether a setting, query key, option or variable of this name holds a secret: hf_token, not max_tokens."""
    words = {word.lower() for word in _WORD.findall(str(name)[:200])}
    return bool(words & _SECRET) and not words & _OF_A_VOCABULARY


def redact(text: str) -> str:
    """`text` with every secret in it replaced."""
    for value in _from_environment():
        text = text.replace(value, HIDDEN)
    return _QUERY.sub(_without_value, _USERINFO.sub(rf"\1{HIDDEN}@", text))


def redacted(value: Any, *, secret: bool = False) -> Any:
    """JSON-able settings, as deep as they go; numbers are no secrets. `secret`: every text in `value` is one."""
    if isinstance(value, str):
        return HIDDEN if secret and value else redact(value)
    if isinstance(value, Mapping):
        return {key: redacted(inner, secret=secret or is_secret(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redacted(inner, secret=secret) for inner in value]
    return value


def redacted_command(words: Iterable[str]) -> list[str]:
    """The words of a command line. What is not Unicode in them is escaped, since they are stored as UTF-8."""
    hidden, after = [], False
    for word in words:
        option = _OPTION.fullmatch(word)
        if after and not word.startswith("-"):
            hidden.append(HIDDEN)
        elif option and is_secret(option[1]):
            hidden.append(f"{option[1]}={HIDDEN}")
        else:
            hidden.append(redact(word).encode(errors="backslashreplace").decode())
        after = word.startswith("-") and not option and is_secret(word)
    return hidden


def without_credentials(url: str) -> str:
    """The address that a URL names; the same before and after a password changes."""
    address, marker, query = _USERINFO.sub(r"\1", url).partition("?")
    kept = [part for part in query.split("&") if not is_secret(part.partition("=")[0])]
    return address + (marker + "&".join(kept) if kept else "")


def _from_environment() -> list[str]:
    """Longest first, so that no part of one is left over."""
    found = {value for name, value in os.environ.items() if is_secret(name) and _is_hideable(value.strip())}
    return sorted({part for value in found for part in (value, value.strip())}, key=len, reverse=True)


def _is_hideable(value: str) -> bool:
    # paths (SSH_AUTH_SOCK, SSL_KEY_FILE) and numbers are no secrets, and stand in many lines
    return len(value) >= LEAST and value not in PLACEHOLDERS and not value.isdigit() and not value.startswith("/")


def _without_value(found: re.Match[str]) -> str:
    separator, name, _ = found.groups()
    return f"{separator}{name}={HIDDEN}" if is_secret(name) else found[0]
