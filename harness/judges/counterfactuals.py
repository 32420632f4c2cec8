"""A sentence with one thing changed, so that a text which supported it contradicts it.

    draw = random.Random(0)
    changed("Mortality fell from 12% to 8% in men.", "...the abstract...", "number", draw)

Kinds: number, direction (fell -> rose), negation, population, drug, finding. Each function changes one place
that it draws, and gives None where the sentence has no such place. What it puts there does not occur in the text, so
that the new sentence is not true of another part of it. Word lists: English, as in biomedical abstracts.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence

Change = Callable[[str, str, random.Random], str | None]
"""(sentence, the text that supports it, source of chance) -> the changed sentence, or None."""

NUMBER = re.compile(r"(?<![\w.,-])(?:\d{1,3}(?:,\d{3})+|\d+(?:\.\d+)?)(?![\w,]|\.\d|[-\u2013]\w|\. [a-z])")
"""Not those of names (IL-6, 3-T) nor of list items ("2. the")."""
FACTORS = (0.3, 0.5, 0.6, 1.6, 2.0, 3.0)

OPPOSITES = (
    ("increase", "decrease"), ("increased", "decreased"), ("increases", "decreases"), ("increasing", "decreasing"),
    ("higher", "lower"), ("highest", "lowest"), ("high", "low"), ("more", "less"), ("greater", "smaller"),
    ("greatest", "smallest"), ("longer", "shorter"), ("better", "worse"), ("improved", "worsened"),
    ("improves", "worsens"), ("improve", "worsen"), ("improvement", "deterioration"), ("rose", "fell"),
    ("rise", "fall"), ("risen", "fallen"), ("reduced", "raised"), ("reduces", "raises"), ("reduce", "raise"),
    ("reduction", "rise"), ("positive", "negative"), ("positively", "negatively"), ("superior", "inferior"),
    ("above", "below"), ("before", "after"), ("earlier", "later"), ("early", "late"), ("faster", "slower"),
    ("larger", "smaller"), ("stronger", "weaker"), ("benefit", "harm"), ("beneficial", "harmful"),
    ("effective", "ineffective"), ("safe", "unsafe"), ("common", "rare"), ("frequent", "infrequent"),
    ("frequently", "rarely"), ("majority", "minority"), ("most", "few"), ("success", "failure"),
    ("successful", "unsuccessful"), ("protective", "harmful"), ("elevated", "reduced"), ("enhanced", "impaired"),
    ("upregulated", "downregulated"), ("gain", "loss"), ("younger", "older"), ("mild", "severe"), ("acute", "chronic"),
    ("similar", "different"), ("with", "without"), ("adequate", "inadequate"), ("appropriate", "inappropriate"),
    ("feasible", "infeasible"), ("reliable", "unreliable"), ("accurate", "inaccurate"), ("necessary", "unnecessary"),
)  # fmt: skip

POPULATIONS = (
    ("men", "women"), ("male", "female"), ("males", "females"), ("boys", "girls"), ("children", "adults"),
    ("child", "adult"), ("infants", "elderly people"), ("adolescents", "older adults"), ("mothers", "fathers"),
    ("maternal", "paternal"), ("newborns", "elderly patients"), ("neonates", "elderly patients"),
    ("pregnant", "postmenopausal"), ("premenopausal", "postmenopausal"), ("outpatients", "inpatients"),
    ("smokers", "non-smokers"), ("rats", "mice"), ("nurses", "physicians"), ("urban", "rural"),
    ("pediatric", "geriatric"), ("paediatric", "geriatric"), ("twins", "singletons"), ("students", "retired people"),
)  # fmt: skip

DRUGS = (
    "aspirin", "ibuprofen", "paracetamol", "morphine", "fentanyl", "tramadol", "diclofenac", "naproxen", "warfarin",
    "heparin", "enoxaparin", "clopidogrel", "rivaroxaban", "simvastatin", "atorvastatin", "enalapril", "captopril",
    "ramipril", "losartan", "valsartan", "metoprolol", "atenolol", "propranolol", "amlodipine", "nifedipine",
    "verapamil", "diltiazem", "furosemide", "spironolactone", "hydrochlorothiazide", "digoxin", "amiodarone",
    "metformin", "insulin", "glibenclamide", "pioglitazone", "levothyroxine", "prednisone", "prednisolone",
    "dexamethasone", "hydrocortisone", "budesonide", "salbutamol", "montelukast", "theophylline", "omeprazole",
    "pantoprazole", "ranitidine", "metoclopramide", "ondansetron", "amoxicillin", "ampicillin", "penicillin",
    "ceftriaxone", "ciprofloxacin", "levofloxacin", "azithromycin", "clarithromycin", "erythromycin", "doxycycline",
    "gentamicin", "vancomycin", "metronidazole", "rifampicin", "isoniazid", "fluconazole", "acyclovir", "oseltamivir",
    "zidovudine", "tenofovir", "ivermectin", "chloroquine", "artesunate", "methotrexate", "azathioprine",
    "cyclosporine", "tacrolimus", "infliximab", "rituximab", "trastuzumab", "bevacizumab", "cisplatin", "carboplatin",
    "paclitaxel", "docetaxel", "doxorubicin", "cyclophosphamide", "fluorouracil", "gemcitabine", "tamoxifen",
    "letrozole", "imatinib", "erlotinib", "haloperidol", "olanzapine", "risperidone", "clozapine", "fluoxetine",
    "sertraline", "citalopram", "amitriptyline", "lithium", "diazepam", "lorazepam", "midazolam", "propofol",
    "ketamine", "phenytoin", "carbamazepine", "valproate", "lamotrigine", "levodopa", "donepezil", "memantine",
    "estradiol", "progesterone", "testosterone", "oxytocin", "misoprostol", "sildenafil", "finasteride", "allopurinol",
    "colchicine", "alendronate", "calcium", "iron", "zinc", "lidocaine", "bupivacaine", "atropine", "epinephrine",
    "naloxone", "methadone", "buprenorphine", "nicotine",
)  # fmt: skip

FINDINGS = (
    "mortality", "survival", "recurrence", "infection", "pneumonia", "sepsis", "hypertension", "hypotension",
    "diabetes", "obesity", "asthma", "anemia", "bleeding", "thrombosis", "stroke", "dementia", "depression", "anxiety",
    "pain", "fever", "nausea", "vomiting", "diarrhea", "constipation", "fatigue", "headache", "dizziness", "insomnia",
    "dyspnea", "cough", "cancer", "metastasis", "fibrosis", "cirrhosis", "hepatitis", "pancreatitis", "appendicitis",
    "arthritis", "osteoporosis", "fracture", "fractures", "malnutrition", "hypoglycemia", "hyperglycemia",
    "arrhythmia", "bradycardia", "tachycardia", "ischemia", "edema", "incontinence", "infertility", "preeclampsia",
    "epilepsy", "seizures", "migraine", "neuropathy", "retinopathy", "nephropathy", "glaucoma", "cataract", "deafness",
    "tinnitus", "eczema", "psoriasis", "allergy", "tuberculosis", "malaria", "influenza", "leukemia", "lymphoma",
    "melanoma", "autism", "schizophrenia", "alcoholism", "hypothermia", "dehydration", "jaundice", "delirium",
)  # fmt: skip

AUXILIARIES = ("is", "are", "was", "were", "can", "could", "should", "may", "might", "will", "would", "has", "have",
               "had", "does", "do", "did")  # fmt: skip
DENIED = (
    (re.compile(r"\bcannot\b"), "can"),
    (re.compile(rf"\b({'|'.join(AUXILIARIES)}) not\b"), r"\1"),
    (re.compile(r"\bno (?=evidence|differences|associations|effects)\b"), ""),
    (re.compile(r"\bno (?=association|effect)\b"), "an "),
    (re.compile(r"\bno (?=(?:statistically )?significant \w+s\b)"), ""),
    (re.compile(r"\bno (?=(?:statistically )?significant|clear|strong|difference)\b"), "a "),
    (re.compile(r"\b(?:neither|nor)\b"), "also"),
)  # fmt: skip
"""(a denial, what the sentence says without it)"""


def number(sentence: str, text: str, draw: random.Random) -> str | None:
    """Another number of the same form, not in the text, and for a percentage not above 100."""
    places = [found for found in NUMBER.finditer(sentence) if _value(found) > 0]
    if not places:
        return None
    place = draw.choice(places)
    for factor in draw.sample(FACTORS, len(FACTORS)):
        new = _like(place.group(), _value(place) * factor)
        if new is None or re.search(rf"(?<![\d.]){re.escape(new)}(?![\d.])", f"{text} {sentence}"):
            continue
        if sentence[place.end() :].lstrip().startswith("%") and float(new.replace(",", "")) > 100:
            continue
        return _replaced(sentence, place.span(), new)
    return None


def direction(sentence: str, text: str, draw: random.Random) -> str | None:
    """The opposite of a word of direction, size, time or worth."""
    return _swapped(sentence, _both_ways(OPPOSITES), draw)


def negation(sentence: str, text: str, draw: random.Random) -> str | None:
    """A denial taken away, or one put after an auxiliary verb."""
    if sentence.rstrip().endswith("?"):
        return None
    for denied, plain in DENIED:
        if found := denied.search(sentence):
            return sentence[: found.start()] + found.expand(plain) + sentence[found.end() :]
    places = list(re.finditer(rf"\b(?:{'|'.join(AUXILIARIES)})\b(?! (?:not|no)\b)", sentence))
    if not places:
        return None
    place = draw.choice(places)
    return _replaced(sentence, place.span(), "cannot" if place.group() == "can" else f"{place.group()} not")


def population(sentence: str, text: str, draw: random.Random) -> str | None:
    """Other people, or other animals, of whom the text does not speak."""
    return _swapped(sentence, _both_ways(POPULATIONS), draw, unless_in=text)


def drug(sentence: str, text: str, draw: random.Random) -> str | None:
    """Another drug, which the text does not name."""
    return _exchanged(sentence, text, DRUGS, draw)


def finding(sentence: str, text: str, draw: random.Random) -> str | None:
    """Another disease, symptom or outcome, which the text does not name."""
    return _exchanged(sentence, text, FINDINGS, draw)


CHANGES: Mapping[str, Change] = {
    "number": number,
    "direction": direction,
    "negation": negation,
    "population": population,
    "drug": drug,
    "finding": finding,
}


def changed(sentence: str, text: str, kind: str, draw: random.Random) -> str | None:
    """The sentence with one thing of that kind changed; None where it has none, or where nothing else would fit."""
    found = CHANGES[kind](sentence, text, draw)
    return found if found != sentence else None


def _value(found: re.Match[str]) -> float:
    return float(found.group().replace(",", ""))


def _like(old: str, value: float) -> str | None:
    """`value` written like `old`: as many decimals, thousands separated where they were."""
    decimals = len(old.partition(".")[2])
    new = f"{value:,.{decimals}f}" if "," in old else f"{value:.{decimals}f}"
    return None if new == old or float(new.replace(",", "")) == 0 else new


def _both_ways(pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Each word's opposite; the first pair that a word stands in decides."""
    found: dict[str, str] = {}
    for one, other in pairs:
        found.setdefault(one, other)
        found.setdefault(other, one)
    return found


def _swapped(sentence: str, other: Mapping[str, str], draw: random.Random, unless_in: str = "") -> str | None:
    places = [
        found
        for found in re.finditer(r"[A-Za-z][A-Za-z-]*", sentence)
        if (new := other.get(found.group().lower())) and not _names(unless_in, new)
    ]
    if not places:
        return None
    place = draw.choice(places)
    return _replaced(sentence, place.span(), other[place.group().lower()])


def _exchanged(sentence: str, text: str, words: Sequence[str], draw: random.Random) -> str | None:
    places = [found for found in re.finditer(r"[A-Za-z]+", sentence) if found.group().lower() in words]
    unnamed = [word for word in words if not _names(f"{text} {sentence}", word)] if places else []
    if not unnamed:
        return None
    return _replaced(sentence, draw.choice(places).span(), draw.choice(unnamed))


def _names(text: str, word: str) -> bool:
    return re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) is not None


def _replaced(sentence: str, span: tuple[int, int], new: str) -> str:
    old = sentence[span[0] : span[1]]
    new = new[:1].upper() + new[1:] if old[:1].isupper() and not old.isupper() else new
    return sentence[: span[0]] + new + sentence[span[1] :]
