"""A sentence in slightly other words, of the same meaning: what a text supports is not always a copy of it.

    framed(reworded("However, morphine utilized in surgery was safe (p = 0.3).", draw), draw)

English, as in biomedical abstracts. None of these words is one that counterfactuals.py puts in, so a reworded sentence
is never one of those.
"""

from __future__ import annotations

import random
import re

LIKELY = 0.7
"""Of each rewording that fits."""
CUT = 0.4
"""Of leaving out a second clause, or a bracket with a p value."""
FRAMED = 0.25
"""Of saying whose words they are."""

_LEADS = re.compile(
    r"^(?:however|moreover|furthermore|in addition|additionally|in conclusion|interestingly|importantly|notably|overall"
    r"|finally|we found that|our results (?:show|showed|suggest|indicate) that|the results (?:show|showed|suggest) that"
    r"|our (?:findings|data) (?:show|suggest|indicate) that|we (?:conclude|demonstrated|showed) that),? ",
    re.IGNORECASE,
)
WORDS = {
    "demonstrated": "showed", "demonstrate": "show", "demonstrates": "shows", "revealed": "showed", "utilized": "used",
    "utilised": "used", "utilizing": "using", "approximately": "about",
    "compared with": "compared to", "compared to": "compared with", "in order to": "to", "evaluated": "assessed",
    "evaluate": "assess", "assessed": "evaluated", "assess": "evaluate", "investigated": "examined",
    "investigate": "examine", "examined": "investigated", "was performed": "was carried out",
    "were performed": "were carried out", "was conducted": "was carried out", "were conducted": "were carried out",
    "whereas": "while", "although": "though", "several": "a number of", "via": "through", "regarding": "about",
    "observed": "seen", "identified": "found", "found": "seen", "objective": "goal", "purpose": "goal",
    "individuals": "people", "subjects": "participants", "years of age": "years old", "due to": "because of",
    "associated with": "linked to", "related to": "linked to", "correlated with": "linked to", 
    "mean age": "average age",
    "obtained": "collected", "collected": "gathered",
    "determine whether": "find out whether", "evaluation": "assessment", "assessment": "evaluation",
    "therefore": "thus", "thus": "therefore", "questionnaire": "survey", "method": "approach",
    "techniques": "methods", "technique": "method", "physician": "doctor", "physicians": "doctors", "upon": "on",
    "analyzed": "analysed", "analysed": "analyzed", "tumor": "tumour", "tumors": "tumours", "tumour": "tumor",
    "tumours": "tumors", "randomized": "randomised", "randomised": "randomized",
    "performed": "done", "undergoing": "having", "underwent": "had", "numerous": "many",
    "surgical procedure": "operation", "procedures": "interventions",
    "parameters": "measures", "indicated": "suggested", "suggests": "indicates", "suggest": "indicate",
    "indicate": "suggest", "indicates": "suggests", "consecutive": "successive", "calculated": "computed",
}  # fmt: skip
_WORDS = re.compile(rf"\b(?:{'|'.join(sorted(WORDS, key=len, reverse=True))})\b", re.IGNORECASE)
_PERCENT = re.compile(r"(?<=\d) ?%")
_STATISTICS = re.compile(r" ?[(\[][^()\[\]]*\b[pP] ?[<=>≤≥][^()\[\]]*[)\]]")
_SECOND_CLAUSE = re.compile(r"(?:, (?:but|whereas|while|and|although) |; ).*$", re.DOTALL)
FEWEST_WORDS = 7
"""Of a first clause that stands alone."""
FRAMES = (
    "The abstract says that {}", "The authors report that {}", "According to the study, {}",
    "The study states that {}", "It is reported that {}", "The text says that {}", "So {}", "We are told that {}",
)  # fmt: skip
_COMMON_FIRST = re.compile(
    r"^(?:the|a|an|this|these|those|there|in|of|for|we|our|all|both|among|between|after|before|during|with|without|at|on"
    r"|it|its|they|their|no|most|some|patients|women|men|children|one|two|three|to|from|by|as|when|each|data|results)\b",
    re.IGNORECASE,
)


def reworded(sentence: str, draw: random.Random) -> str:
    """Some of: leading words left out, single words replaced, a bracket of statistics or a second clause left out.

    The sentence itself where nothing fits or is drawn.
    """
    text = sentence
    if draw.random() < CUT:
        text = _STATISTICS.sub("", text)
    first = _SECOND_CLAUSE.sub("", text)
    if first != text and len(first.split()) >= FEWEST_WORDS and _balanced(first) and draw.random() < CUT:
        text = first.rstrip(" ,;") + "."
    if (lead := _LEADS.match(text)) and draw.random() < LIKELY:
        text = _capital(text[lead.end() :])
    text = _WORDS.sub(lambda found: _replacement(found[0]) if draw.random() < LIKELY else found[0], text)
    return _PERCENT.sub(" percent", text) if draw.random() < CUT else text


def framed(sentence: str, draw: random.Random) -> str:
    """Now and then with a few words before it that say whose statement it is."""
    if draw.random() < FRAMED and _COMMON_FIRST.match(sentence):
        return draw.choice(FRAMES).format(sentence[0].lower() + sentence[1:])
    return sentence


def _balanced(text: str) -> bool:
    return text.count("(") == text.count(")") and text.count("[") == text.count("]")


def _replacement(old: str) -> str:
    new = WORDS[old.lower()]
    return _capital(new) if old[0].isupper() else new


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
