"""The words and marks with which completions state an answer, reject one, or refuse to give one."""

from __future__ import annotations

import re

# Marks around an answer that mean nothing: Markdown, quotes, brackets, LaTeX wrappers.
MARK = r"(?:\\(?:text|textbf|mathbf|mathrm|mathsf|bf|boxed|fbox)\b\s*\{?|[\s*_`$\"'“”‘’«»「『（(\[{<#>|~]|\\[(\[])"
MARKS = rf"{MARK}{{0,40}}"
CLOSERS = r"[\s*_`$\"'”’)\]}.]{0,8}"
ADVERB = r"(?:therefore|thus|hence|then|so|most|likely|probably|clearly|definitely|indeed|actually|simply|still|now)"
WORD = r"(?<![^\W_])"  # a word begins here, also after an underscore
BE = r"(?:is|are|was|be|would|should|must|will|has|have|to|seems?|appears?|remains?|becomes?|equals?)"
FILLER = (
    r"(?:(?:the|(?-i:an?)|combination\s+of|option|choice|letter|answer|statement|number|indeed|likely|most|probably|clearly|"
    r"definitely|either|both|correct|therefore|thus|still|actually|"
    r"opción|alternativa|lettre|buchstabe|letra|donc|la|el|le|die|respuesta|réponse|antwort|resposta|вариант|选项|選項)"
    r"(?:\b|(?<=[项項]))[\s:*_]{0,6}){0,5}"
)
HEADS = (
    # "The answer is", "Final answer:", "**Answer:** ", "the answer to this question would most likely be"
    rf"{WORD}answers?(?![^\W_])(?:\s+(?:choice|option|letter|key))?(?:\s+(?:to|for|in|here)\b(?:\s+\w{{1,20}}){{0,4}}?)?"
    rf"[\s*_`\"'’”)\]]{{0,8}}(?:(?:{ADVERB}\s+){{0,3}}{BE}\b(?:\s+(?:{BE}|{ADVERB})\b){{0,4}}\s*:?|[:=→⇒—–-]+>?)",
    # "the correct option is", "best choice:"
    r"\b(?:correct|right|best|final|chosen|appropriate|likely|accurate|preferred|my)\s+"
    r"(?:option|choice|response|letter|selection|pick|conclusion|alternative)\b[\s*_`\"')]{0,8}"
    rf"(?:(?:here\s+)?{BE}\b(?:\s+(?:{BE}|{ADVERB})\b){{0,4}}\s*:?|[:=→—–-]+>?)",
    rf"\bfinal\s+(?:answer|response|verdict|choice)\b(?!\s*{BE}\b)[\s*_`:#-]{{0,12}}",  # a header, the answer below it
    # a correction: "... no, A", "wait: (C)"
    r"(?P<weak>\b(?:no|wait|actually|rather|correction|i\s+mean)\b[\s,:;.…—–-]{1,6}(?:it(?:'s|’s|\s+is)\s+)?)",
    r"\banswer\s+(?:choice|option|letter)?(?=\s*[*_`(\[]{0,4}[A-Z]\b)",  # "answer choice (B)", "answer B"
    r"\\boxed\s*\{|\\fbox\s*\{",
    r"<(?:final_)?answer>|[\"'](?:final_?)?(?:answer|answer_idx|answer_letter|choice|option)[\"']\s*:",
    r"(?:答案|正确选项|正確答案)\s*(?:应该|應該|应|應)?\s*(?:是|为|為|选|選|:)?",
    r"\b(?:respuesta|réponse|reponse|antwort|resposta|risposta|lösung)\b(?:\s+(?:correcta|correcte|correta|corretta|final|finale|richtige|est))?"
    r"[\s*_]{0,6}(?:(?:es|est|ist|lautet|wäre|é|e|è|sería|seria)\b|:)[\s:]{0,3}",
    r"\b(?:ответ|відповідь)\b(?:ом)?[\s*_]{0,6}(?:является|будет|это|:|—|–|-)?",
)
CHOICES = (
    # "I would choose B", "go with (C)", "my pick: D", "it must be B", "therefore C"
    r"\b(?:choose|chose|select|selected|pick|picked|choosing|selecting|picking|go(?:ing)?\s+with|went\s+with|opt(?:ing)?\s+for|"
    r"settle\s+on|leaning\s+towards?|lean\s+towards?|points?\s+to|leaves?(?:\s+us\s+with)?|conclude(?:\s+that)?|"
    r"believe|think)\b[\s:,]{0,4}(?:that\s+)?(?:it(?:'s|’s|\s+is|\s+must\s+be)\s+|for\s+)?",
    r"(?:故选|应选|选择|选项|选)\s*:?",
    r"\b(?:therefore|thus|hence|so|consequently|in conclusion|conclusion|overall|no)\b[\s:,—–-]{1,6}"
    r"(?:it(?:'s|’s|\s+is|\s+must\s+be)\s+)?",
    r"\bit(?:'s|’s|\s+is|\s+must\s+be|\s+should\s+be)\s+",
)
PRAISED = (
    r"[\s*_)]+(?:is|are|was|would\s+be|seems?|remains?|must\s+be)\s+(?:\w+ly\s+)?(?:the\s+)?(?:single\s+)?(?:most\s+|only\s+|both\s+|all\s+)?"
    r"(?:correct|right|best|appropriate|accurate|likely|true|answer|one\s+that\s+fits|preferred)\b|\s*[–—:-]\s*correct\b"
)
# "The most likely diagnosis is (B)", "the next best step is colonoscopy"
CONCLUDED = (
    r"\b(?:most|best|next|correct|likeliest|closest|appropriate|recommended|answer)\b[^.\n]{0,160}?"
    r"\b(?:is|be|are)\b[\s:]{0,3}"
)
POINTED = r"\b(?:is|be|are|corresponds\s+to|matches)\s+(?:option\s+|choice\s+)?\((?=[A-Z]\))"  # "... is (B)."
DENIED = r"(?:not|n[o']t|neither|none|incorrect|wrong|false|unclear|unknown|uncertain|never|no\s+longer)\b"
REJECTED = (
    r"[\s*_)\]\"'’]{0,6}(?:\([^()\n]{1,60}\)\s*)?(?:is|are|was|can\s+be|seems|would\s+be|looks)\s+(?:\w+ly\s+)?"
    r"(?:incorrect|wrong|not\b|false|unlikely|less|excluded|ruled|eliminated|out\b|inappropriate|contraindicated)"
)
BECAUSE = (
    r"(?:because|since|as|is|was|and|or|but|which|due|for|given|based|in|from|according|per|that|would|here|with|by|on|"
    r"of\s+the\s+options|rather|over|are|y|o|et|ou|und|oder|porque|car|weil)\b"
)
JOIN = (
    r"(?:\s*(?:,\s*(?:and|or)|,|/|&|\+|\band\b|\bor\b(?:\s+(?:maybe|perhaps|possibly)\b)?|\bund\b|\boder\b|\bto\b|\by\b|\bo\b|\bet\b|\bou\b|和|或|、)\s*"
    r"|(?<=[)\]\s])(?=[(\[][A-Z][)\]])|(?<=\s)(?=(?:[A-Z]\s+)*[A-Z][.!]?\s*$))"  # "(A) (B)", "A B C" at the end
)
END = r"(?=[\s*_`$\"'”’)\]}>.,:;!?\\<|~—–/&+。，、；」』(（\[]|$)"
REFUSAL = re.compile(
    r"\b(?:i|we)(?:['’]m|\s+am|\s+are)?\s+(?:sorry|afraid|unable\s+to|not\s+able\s+to|not\s+qualified|cannot|can['’]t|can\s+not|won['’]t|"
    r"do\s+not\s+feel\s+comfortable|must\s+decline|decline)\b|\bas\s+an?\s+(?:ai|language\s+model)\b|"
    r"\b(?:please\s+)?consult\s+(?:a|your|with)\b[^.\n]{0,40}(?:doctor|physician|professional|provider)",
    re.IGNORECASE,
)
