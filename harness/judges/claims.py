"""A yes/no question as the claim that "yes" would make: rules for the commonest forms, no parser.

    claim_of("Does diabetes influence the efficacy of FDG-PET?")  ->  "Diabetes does influence the efficacy of FDG-PET."
    claim_of("Double balloon enteroscopy: is it safe?")           ->  "Double balloon enteroscopy: it is safe."
    claim_of("Optimal timing of surgery?")                        ->  "The answer to the question "..." is yes."

The auxiliary goes behind the subject, whose end is where the first word stands that begins a predicate.
"""

from __future__ import annotations

import re

_BE = ("is", "are", "was", "were")
_HAVE = ("has", "have", "had")
_OTHER = ("does", "do", "did", "can", "could", "should", "will", "would", "may", "might", "must")
_ASKED = re.compile(rf"^(.*?[:;.,?]\s+)?({'|'.join((*_BE, *_HAVE, *_OTHER))})\s+(.+?)\s*\?\s*$", re.I | re.S)
_PRONOUN = re.compile(r"^(it|they|there|this|these|those|we|he|she|that)\s+(?=\S)", re.I)
_VERBS = re.compile(
    r"^(?:affect|influence|improve|increase|decrease|reduce|predict|play|cause|have|need|help|correlate|matter|work|change"
    r"|impact|lead|result|contribute|differ|require|provide|exist|alter|make|offer|benefit|prevent|protect|promote|modify"
    r"|determine|enhance|add|show|reflect|represent|cover|follow|receive|give|get|know|want|vary|remain|lower|raise"
    r"|minimi[sz]e|facilitate|induce|worsen|impair|account|explain|support|increase|replace|return|occur|respond|relate"
    r"|produce|offer|indicate|suggest|carry|do|be|become|begin|perform|compromise|decline|develop|delay|depend|detect"
    r"|accelerate|act|aid|allow|always|also|still|really|actually|ever|necessarily|mediate|adequately|agree|experience"
    r"|ensure|express|hold|identify|inhibit|interfere|justify|limit|meet|mean|merit|participate|persist|pose|preclude"
    r"|push|recogni[sz]e|resemble|safely|save|substitute|suffer|survive|take|tell|think|underestimate|understand|yield"
    r"|adhere|attenuate|exhibit|fare|favou?r|feel|go|guide|imply|learn|live|outperform|present|put|recover|undergo"
    r"|differentiate|stimulate|hurt|run|normali[sz]e|close|release|confer|call|lessen|stop"
    r"|significantly|consistently|effectively|independently|reliably|accurately)$",
    re.I,
)
_PREDICATES = re.compile(
    r"^(?:a|an|the|able|associated|related|linked|correlated|necessary|useful|effective|safe|important|more|less|better"
    r"|worse|still|really|also|always|as|at|too|not|only|different|justified|indicated|feasible|reliable|valid|possible"
    r"|appropriate|adequate|sufficient|predictive|superior|inferior|equivalent|comparable|responsible|beneficial|harmful"
    r"|independent|dependent|common|rare|higher|lower|greater|under|over|overused|worthwhile|cost-effective|accurate"
    r"|acceptable|available|aware|relevant|significant|similar|needed|required|impaired|increased|decreased|reduced"
    r"|influenced|affected|improved|caused|determined|mediated|underestimated|predicted|being|becoming|changing|getting"
    r"|routinely|well|efficacious|detrimental|essential|mandatory|advisable|suitable|specific|sensitive|helpful|obsolete"
    r"|dangerous|contraindicated|part|one|another|there|ready|prepared|consistent|representative|discouraging|good"
    r"|involved|compliant|identifiable|equal|due|exposed|treated|used|underused)$",
    re.I,
)
_PARTICIPLES = re.compile(r"^(?:\w{3,}ed|been|had|become|made|led|changed|gone|given|met|risen|fallen)$", re.I)


def claim_of(question: str) -> str:
    """A sentence that ends with a full stop."""
    text = " ".join(question.split())
    found = _ASKED.match(text)
    if found:
        lead, auxiliary, rest = found[1] or "", found[2].lower(), found[3]
        parts = _split(auxiliary, rest)
        if parts:
            subject, predicate = parts
            claim = f"{lead}{subject} {auxiliary} {predicate}"
            return f"{claim[0].upper()}{claim[1:]}."
    return f'The answer to the question "{text}" is yes.'


def _split(auxiliary: str, rest: str) -> tuple[str, str] | None:
    """(subject, predicate), or None where no rule finds the border."""
    if pronoun := _PRONOUN.match(rest):
        return pronoun[1], rest[pronoun.end() :]
    words = rest.split()
    if auxiliary in _BE and len(words) == 2:
        return words[0], words[1]
    starts = _PREDICATES if auxiliary in _BE else _PARTICIPLES if auxiliary in _HAVE else _VERBS
    for at in range(1, len(words)):
        word = words[at].strip(",;:()")
        before = words[at - 1].lower()
        if starts.match(word) and not _within_a_phrase(before):
            return " ".join(words[:at]), " ".join(words[at:])
    return None


def _within_a_phrase(before: str) -> bool:
    """Behind a preposition, an article or "and" the subject goes on."""
    return before in {
        "of", "in", "on", "for", "to", "by", "with", "from", "the", "a", "an", "and", "or", "at", "between", "after",
        "during", "among", "as", "than", "versus", "vs", "without", "before", "through", "more", "less", "their", "its",
        "that", "who", "which", "about", "into", "under", "over", "per", "via", "using", "within", "against",
    }  # fmt: skip
