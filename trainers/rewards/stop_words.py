"""Words that say nothing about a particular question: function words, and words that fit any medical question.

A text made of them alone ("carefully evaluating each option, the correct diagnosis is clear") contains no reasoning.
Chosen by hand: a missing word lets some filler count, a wrong one hides some reasoning, and the bounds in reasoning.py
leave room for both.
"""

from __future__ import annotations

from functools import lru_cache

_STEM = 6

_GRAMMAR = """
a about after again all also although always am an and any are as at be because been before being below between both
but by can cannot could did do does doing done down due during each either else even ever every few for from further
had has have having he hence her here him his how i if in into is it its itself just like made make makes many may me
might more most much must my near neither never no nor not now of off often on once one only onto or other our out
over own per quite rather same she should since so some still such than that the their them then there therefore these
they this those though through thus to together too toward two under until up upon us very was we well were what when
where whether which while who whom whose why will with within without would yet you your
"""
_GENERIC = """
able absolute accept accordingly accurate actual additional address advantage affect age agree alone already alright
alternative analysis analyze another answer anything apparent appear apply approach appropriate area argue aspect
assess assume attention available away background bad based basic basis begin believe benefit best better bottom brief
broad call came care careful carry case category cause certain challenge chance change check choice choose chosen
claim clarify classic clear clinical close clue combine come common compare complete complex concept concern conclude
conclusion condition confident confirm connect consequence consider consistent contain context continue contrast
contribute correct correspond course cover critical crucial current data deal decide deep define definite demographics
demonstrate depend describe despite detail determine diagnose diagnosis difference different difficult direct discuss
disease disorder dive double doubt easy effective effort eliminate emphasize end enough ensure entire epidemiological
epidemiology especially essential establish evaluate evidence evident exact exam examination examine example exclude
exist expect expert explain explore express extent fact factor fair false familiar far feature feel figure final find
finding fine first fit focus follow form found four full fundamental general get give given go goes good great guess
guideline hallmark hand happen hard help high highlight hint history hmm hold hope however idea identify illustrate
imagine imaging immediate implication imply important incorrect indeed indicate individual inform initial insight
instance instead intend interest invalid investigate involve issue judge jump keep key kind know knowledge lab
laboratory large last later lead learn least left less let letter level likely line link list little logic long look
main maintain major manage management match matter maybe mean meaning measure mechanism medical medicine meet mention
method mind moment moreover move name namely narrow nature necessary need next nonetheless note nothing notice number
obvious offer ok okay option order organism original otherwise outcome overall paragraph part particular
pathophysiology patient pattern people perfect perhaps perspective physician pick picture piece place plausible please
point poor possible potential practice precise prefer presence present presentation previous primary principle prior
probable problem proceed process proper provide purpose put question quick reach read real realize reason recall recap
recommend reconsider refer reflect regard reject relate relation relevant remain remember remove represent require
response rest result return review right role rule safe sake satisfy say scenario second section see seem select sense
separate serious set several show side sign significant similar simple situation solid solution solve someone
something sound stand standard start state statement step stick straightforward strategy strong structure study
subject suggest suit suitable summarize summary support suppose sure symptom syndrome system tackle take talk task
tell term test text textbook thing think third thorough thought three tie time timeline timing today topic total tough
treat treatment tricky true try turn type typical ultimate uncertain unclear underlying understand unique unlikely use
usual valid value various verify vignette vital want way weigh whatever whole wonder word work wrong yeah yes zero
"""
GRAMMAR = frozenset(_GRAMMAR.split())


def stem(word: str) -> str:
    """The first letters of a lower-case word, so that "consider", "considered" and "considering" are one."""
    return (word[:-1] if word.endswith("s") and len(word) > 3 else word)[:_STEM]


@lru_cache(maxsize=100_000)
def content_stem(word: str) -> str | None:
    """The stem of a word that says something about the question; None for any other word."""
    return stem(word) if len(word) > 1 and not says_nothing(word) else None


@lru_cache(maxsize=100_000)
def says_nothing(word: str) -> bool:
    """Whether `word` (lower case) fits any question."""
    return (
        word in GRAMMAR
        or stem(word) in _GENERIC_STEMS
        or any(word.endswith(end) and stem(word[: -len(end)] + more) in _GENERIC_STEMS for end, more in _ENDINGS)
    )


_ENDINGS = (("es", ""), ("ed", ""), ("ed", "e"), ("ing", ""), ("ing", "e"), ("ly", ""), ("er", ""), ("est", ""))
_GENERIC_STEMS = frozenset(stem(word) for word in _GENERIC.split())
