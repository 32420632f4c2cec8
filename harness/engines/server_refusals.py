"""Which field of a request a server does not take, as its answer says, and requests without such fields.

    refused_field(400, b'{"error": {"code": "unsupported_parameter", "param": "seed"}}', {"seed", "top_p"})   # "seed"

OpenAI and Azure name the field in error.param and error.code, FastAPI and Mistral in a list of faults, each with its
place; all others (vLLM, SGLang, TGI, llama.cpp, LiteLLM, Groq, xAI, Google, Anthropic, Moonshot) only in words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

STATUSES = (400, 422, 500, 501)
"""llama.cpp's server and LiteLLM's proxy say 500."""
LEAVABLE = (
    "chat_template_kwargs",
    "min_p",
    "repetition_penalty",
    "top_k",
    "seed",
    "top_p",
    "temperature",
    "max_tokens",
)
"""Fields that a request can do without, those that matter least first; max_tokens only for its newer name."""
NEWER_LIMIT = "max_completion_tokens"
LONGEST = 4000
"""Characters of a message that are read."""

_CODES = {"unsupported_parameter", "unsupported_value", "unknown_parameter", "unrecognized_parameter"}
_OTHER_FAULTS = re.compile(
    r"(?i)maximum context length|context_length_exceeded|content_filter|content management policy|content_policy"
    r"|model_not_found|model '?\S+ (?:does not exist|was not found)"
)
_NOUN = r"(?:param(?:eter)?|argument|field|propert(?:y|ie)|option|key|name|value|input)(?:s|\(s\))?"
_LIST = r"[\[{(]*'?(?:[\w.]+'?(?:: [^,]{1,20})?, ?'?){0,20}"
"""What may stand between "parameters: " and the field: other fields of a list."""
_REFUSALS = tuple(
    pattern.replace("LIST", _LIST).replace("NOUN", _NOUN)
    for pattern in (
        # Unrecognized request arguments supplied: a, FIELD; Unknown name 'FIELD': Cannot find field
        r"(?:unsupported|unrecogni[sz]ed|unknown|unexpected|extra|additional) (?:\w+ ){0,2}?NOUN"
        r"(?: (?:supplied|provided|received|found))?:? LISTFIELD\b",
        # 'FIELD' is not supported with this model; property 'FIELD' is unsupported; FIELD is deprecated for this model
        r"FIELD'?(?: NOUN)? (?:is|are|was) (?:currently )?(?:unsupported|deprecated|forbidden|disabled"
        r"|(?:not|no longer) (?:(?:currently|yet) )?(?:supported|allowed|permitted|accepted|recogni[sz]ed|available))",
        r"FIELD'? (?:does not support|cannot both be|cannot be (?:set|used|specified|changed|combined))",
        r"FIELD'? and '?\w+'? (?:cannot|can't|may not) (?:both )?be (?:specified|set|used|given)",
        r"\b\w{1,40}'? and '?FIELD'? (?:cannot|can't|may not) (?:both )?be (?:specified|set|used|given)",
        r"FIELD'?: extra inputs are not permitted",
        r"extra_forbidden', ?'loc': ?[\[(]'body', ?'FIELD'[\])]",
        # does not support parameters: ['FIELD']; Argument not supported on this model: FIELD
        r"(?:not|n't) (?:support(?:ed)?|accept(?:ed)?|allow(?:ed)?|recogni[sz]ed?|permit(?:ted)?)"
        r"(?: [\w-]+){0,6}?:? LISTFIELD\b",
        # invalid FIELD: only 1 is allowed for this model
        r"invalid '?FIELD'?: only \S+ is (?:allowed|supported)",
        # bounds that leave out the value that switches a field off: 0 of temperature, 1 of top_p
        r"FIELD'?(?: NOUN)?(?: \(=?[\d.]+\))? (?:must|should|has to) be (?:a )?(?:strictly positive"
        r"|(?:>|greater than) 0)",
        r"FIELD'?(?: NOUN)?(?: \(=?[\d.]+\))? (?:must|should|has to) be (?:in|within) (?:the )?range \(0",
    )
)
_EXCLUSIVE = ("greater_than", "less_than")
"""Pydantic's names of such bounds."""


def refused_field(status: int, body: bytes, sent: Collection[str]) -> str | None:
    """The first field of LEAVABLE that the request had and the server says it does not take, if it says so of one."""
    if status not in STATUSES:
        return None
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        content = body[:LONGEST].decode(errors="replace")
    fields = [name for name in (*LEAVABLE, NEWER_LIMIT) if name in sent]
    errors = list(_errors(content))
    said = _plain(" ".join(text for error in errors for text in _texts(error)))
    if _OTHER_FAULTS.search(said) or any(_OTHER_FAULTS.search(str(error.get("code"))) for error in errors):
        return None
    named = {name for error in errors for name in _named(error)}
    return next((name for name in fields if name in named or _refused_in_words(name, said)), None)


@dataclass(slots=True)
class Refusals:
    """The fields that one server does not take, and why."""

    said: dict[str, str] = field(default_factory=dict)
    """Field -> what becomes of it, in words."""

    def taken(self, fields: Mapping[str, Any], also: Collection[str] = ()) -> dict[str, Any]:
        """`fields` without those that the server does not take, nor those in `also`; the limit under its newer name."""
        gone = {*self.said, *also}
        kept = {name: value for name, value in fields.items() if name not in gone}
        if "max_tokens" in gone and "max_tokens" in fields:
            kept[NEWER_LIMIT] = fields["max_tokens"]
        return kept

    def learn(self, name: str, value: object) -> str | None:
        """Leave the field out from now on; the caveat for readers of the run, None where it is known."""
        if name in self.said:
            return None
        self.said[name] = _caveat(name, value)
        return self.said[name]


def _caveat(name: str, value: object) -> str:
    if name == "max_tokens":
        return (
            f"the server does not take max_tokens: the limit is sent as {NEWER_LIMIT}, which also counts "
            f"reasoning that the server hides"
        )
    why = f"the server does not take {name} {json.dumps(value)}"
    if name == "temperature":
        return f"{why}: replies are drawn at its own temperature, so the scores are those of another protocol"
    if name == "seed":
        return "the server takes no seed: sampled replies cannot be drawn again"
    if name == "chat_template_kwargs":
        return f"{why}: reasoning is as the server sets it, so the scores are those of another protocol"
    return f"{why}: its own default is used"


def _errors(content: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The error objects of a body: {"error": {...}}, the object alone, Google's list of one, a text, FastAPI's list."""
    if isinstance(content, str):
        yield {"message": content}
    elif depth > 5:
        return
    elif isinstance(content, list):
        for one in content[:20]:
            yield from _errors(one, depth + 1)
    elif isinstance(content, dict):
        yield content
        for key in ("error", "detail", "message"):
            if isinstance(content.get(key), dict | list):
                yield from _errors(content[key], depth + 1)


def _texts(error: Mapping[str, Any]) -> Iterator[str]:
    """Only what the server says: `input` of a fault is what it was sent."""
    for key in ("message", "msg", "detail", "error"):
        value = error.get(key)
        if isinstance(value, str):
            # LiteLLM and gateways put the first server's answer, as JSON, into their message
            yield value[:LONGEST]


def _named(error: Mapping[str, Any]) -> Iterator[str]:
    """Fields that a fault names by itself."""
    if str(error.get("code")) in _CODES and isinstance(error.get("param"), str):
        yield str(error["param"])
    place = error.get("loc")
    if isinstance(place, list) and len(place) == 2 and place[0] == "body" and isinstance(place[1], str):
        kind = error.get("type")
        if kind == "extra_forbidden" or (kind in _EXCLUSIVE and place[1] in ("temperature", "top_p")):
            yield place[1]


def _plain(text: str) -> str:
    """Every quote as ', without the backslashes of JSON inside JSON."""
    unescaped = text.replace("\\n", " ").replace("\\", "")
    return " ".join(re.sub(r"['\"`‘’“”]+", "'", unescaped).split())[: 2 * LONGEST]


def _refused_in_words(name: str, said: str) -> bool:
    camel = re.sub(r"_(\w)", lambda found: found[1].upper(), name)
    either = rf"(?<![\w.-])(?:body\.)?(?:{name}|{camel})(?![\w-])"
    return any(re.search(pattern.replace("FIELD", either), said, re.IGNORECASE) for pattern in _REFUSALS)
