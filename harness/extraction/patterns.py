"""The words and marks with which completions state an answer, reject one, doubt one, or refuse to give one."""

from __future__ import annotations

import re


def any_of(words: str) -> str:
    """A group of the words, which may be regular expressions; "_" stands for white space."""
    return "(?:" + "|".join(words.replace("_", r"\s+").split()) + ")"


# Marks around an answer that mean nothing: Markdown, quotes, brackets, LaTeX wrappers.
_LATEX = any_of(
    "text(?:bf|it|sf|rm|tt|normal)? math(?:bf|rm|sf|it|bb|cal)? bf rm sf it mbox hbox boxed fbox displaystyle large "
    r"Large huge bold underline color\s*\{\w+\} quad , ; !"
)
MARK = rf"(?:\\{_LATEX}(?![a-z])\s*\{{?|[\s*_`$\"'“”‘’«»「」『』【】（）(\[{{}}<>#|~=]|\\[(\[\]])"
MARKS = rf"{MARK}{{0,40}}"
CLOSERS = r"[\s*_`$\"'”’)\]}.]{0,8}"
WORD = r"(?<![^\W_])"  # a word begins here, also after an underscore
ADVERB = any_of(
    "therefore thus hence then so most very likely probably clearly definitely indeed actually simply still now best "
    "certainly undoubtedly presumably perhaps instead obviously"
)
BE = any_of(
    "is are was be would should must will has have to seems? appears? remains? becomes? equals? points? leans? "
    "turns?_out_to_be corresponds"
)
_OPTION = any_of(  # "option" and its like, in several languages
    r"option choice letter answer alternative statement number opción alternativa lettre buchstabe letra opção opzione "
    r"lettera literka litera optie alternativ alternativet vaihtoehto seçenek şık phương_án đáp_án pilihan opsi "
    r"variant varianta wariant respuesta réponse antwort resposta вариант варианта варіант под_буквой буква "
    r"选项 選項 选择 選択肢 선택지 보기 الخيار विकल्प বিকল্প ข้อ ตัวเลือก"
)
_ARTICLE = any_of("the (?-i:an?) donc la el le il lo die das der de het den det az")
_HEDGE = any_of(
    "combination_of indeed likely most probably clearly definitely either both all_of correct therefore thus still "
    "actually with towards? best case"
)
FILLER = rf"(?:(?:{_OPTION}|{_ARTICLE}|{_HEDGE})(?:\b|(?<=[项項择肢지기้ก]))[\s:*_]{{0,6}}){{0,5}}"
CUE = r"(?:[:=→⇒➜➤►▶➡]|\|(?![ \t]*\n)|[—–-]+>?)+"
_STATED = rf"{BE}\b(?:\s+(?:{BE}|{ADVERB})\b){{0,4}}\s*:?"
_BEGINS = r"(?:(?<=^)|(?<=[\n.;|!?*#>)\]-])|(?<=[\n.;|!?*#>)\]-]\s))[\s*_#>|-]{0,8}"  # a line, a sentence, a cell
_NOUN = any_of(  # of a label that stands before a colon: "Choice: D", "Final ans: C", "Output: C"
    "answers? ans choice option letter selection selected(?:_(?:option|answer|choice))? pick response result output "
    "solution final correct verdict decision conclusion prediction predicted label judge?ment key guess chosen "
    "most_likely bottom_line in_short in_summary summary tl;?\\s?dr overall"
)
# "Answer [A/B/C/D]:", "Answer 1:"
_ASKED = r"(?:\s*[\[(](?:[A-Za-z]\s*[/,|-]\s*){1,9}[A-Za-z][\])])?(?:\s*#?\d{1,3}\b)?"
_TO_THE_QUESTION = r"(?:\s+(?:to|for|in|here)\b(?:\s+\w{1,20}){0,4}?(?:\s*[\"“][^\"”]{0,400}[\"”])?)?"
_KEY = (  # of JSON
    r"(?:(?:final|correct|best|chosen|selected|predicted|your|my|model)[_ -]?)?"
    + any_of(
        "answers? choices? options? responses? predictions? labels? letters? decision verdict selections? results? "
        "output final conclusion pred ans selected correct judge?ment"
    )
    + r"(?:[_ -]?(?:choice|option|letter|label|key|id|idx|index|text|value|code|answer|final))?"
)
HEADS = (
    # "The answer is", "Final answer:", "**Answer:** ", "the answer to this question would most likely be"
    rf"{WORD}answers?(?![^\W_])(?:\s+(?:choice|option|letter|key))?{_ASKED}{_TO_THE_QUESTION}"
    rf"[\s*_`\"'’”)\],]{{0,8}}(?:(?:{ADVERB}\s+){{0,3}}{_STATED}|{CUE})",
    # "the correct option is", "best choice:"
    rf"\b{any_of('correct right best final chosen appropriate likely accurate preferred top first only remaining my')}"
    rf"\s+(?:remaining\s+)?{any_of('option choice response letter selection pick conclusion alternative one guess')}\b"
    rf"(?:\s+(?:left|here|remaining))?[\s*_`\"')]{{0,8}}(?:(?:here\s+)?{_STATED}|{CUE})",
    rf"\b(?:conclusion|verdict|decision|judge?ment)\s+{_STATED}",
    # a header, the answer below it
    rf"\bfinal\s+(?:answer|response|verdict|choice|decision|ans)\b(?!\s*{BE}\b)[\s*_`:#.-]{{0,12}}",
    # a label before a colon: "Choice: D", "ANS: C", "FINAL: B", "| Answer | C |"
    rf"{_BEGINS}(?:final\s+|my\s+|the\s+)?{_NOUN}{_ASKED}[\s*_`\"'’”)\]]{{0,4}}{CUE}",
    r"(?:(?<=^)|(?<=[\n.;|]))[\s*_#>|-]{0,8}ans\.",
    r"(?:(?<=^)|(?<=\n))[ \t]{0,8}[QA]\s?\d{1,3}\s*[:.)]",
    # a correction: "... no, A", "wait: (C)"
    r"(?P<weak>\b(?:no|wait|actually|rather|correction|i\s+mean)\b[\s,:;.…—–-]{1,6}(?:it(?:'s|’s|\s+is)\s+)?)",
    r"\banswer\s+(?:choice|option|letter)?(?=\s*[*_`(\[]{0,4}[A-Z]\b)",  # "answer choice (B)", "answer B"
    r"\\boxed\s*\{|\\fbox\s*\{|\bboxed\s*\{|\\framebox\s*\{",
    r"<(?:final[_ ]?)?(?:answer|choice|option|output|final|response|result|solution|selection|prediction)>",
    r"\[(?:final[_ ]?)?(?:answer|choice)\]",
    rf"[\"']{_KEY}[\"']\s*:",
    r"\bwhere\s+[\"'(*]{0,2}X[\"')*]{0,2}\s+(?:is|=)",
    r"(?:答案|正确选项|正確答案|正确答案|正確選項)\s*(?:应该|應該|应当|应|應)?\s*(?:就?是|为|為|选择|选|選|:)?",
    r"\b(?:respuesta|réponse|reponse|antwort|resposta|risposta|lösung)\b"
    r"(?:\s+(?:correcta|correcte|correta|corretta|final|finale|richtige|est))?"
    r"[\s*_]{0,6}(?:(?:es|est|ist|lautet|wäre|é|e|è|sería|seria)\b|:)[\s:]{0,3}",
    r"\b(?:ответ|відповідь)\b(?:ом)?[\s*_]{0,6}(?:является|будет|это|:|—|–|-)?",
)
FOREIGN_NOUNS = any_of(  # "answer", "right option": the letter follows in the same sentence
    "答え 正解 解答 回答 答案 정답 답안 답변 답 الإجابة الاجابة الجواب उत्तर जवाब উত্তর جواب پاسخ התשובה תשובה đáp_án "
    "câu_trả_lời คำตอบ cevap cevabı yanıt odpowied[źz] odpowiedzią antwoord svaret svar vastaus respuesta "
    "alternativa_correcta opción_correcta resposta gabarito alternativa_correta opção_correta risposta "
    "opzione_corretta réponse reponse antwort richtig(?:e_(?:option|antwort|lösung))?_(?:ist|wäre) lösung ответ "
    "вариант(?:_ответа)? відповідь варіант odpověď odpoveď răspuns(?:ul)? válasz απάντηση jawaban(?:nya)? jawapan "
    "sagot jibu 正しいのは 適切なのは 該当するのは 考えられるのは 正解は 正确的是 最合适的是 옳은_것은 적절한_것은"
)
FOREIGN_DENIED = (
    r"\b"
    + any_of("no not non ne nicht kein niet geen nie inte ikke ei não nao не ні değil không bukan není nu nem δεν")
    + r"\b"
    r"|不|没|非|ない|아니|아닌|ليست|ليس|नहीं|नही|নয়|לא|نیست|ไม่"
)
_IT_IS = r"it(?:'s|’s|\s+is|\s+must\s+be|\s+should\s+be|\s+has\s+to\s+be|\s+would\s+be|\s+can\s+only\s+be)\s+"
CHOICES = (
    # "I would choose B", "go with (C)", "my pick: D", "it must be B", "therefore C"
    r"\b"
    + any_of(
        "choose chose select selected pick picked choosing selecting picking go(?:ing)?_with went_with "
        "opt(?:ing)?_for settl(?:e|ed|ing)_on leaning_towards? lean_towards? leans? points?_to(?:wards?)? "
        r"(?:leaves?|leaving)(?:\s+us|\s+only)?(?:\s+with)? left_with conclude(?:_that)? believe think guess "
        "vote_for say answer_with"
    )
    + rf"\b[\s:,]{{0,4}}(?:that\s+)?(?:{_IT_IS}|for\s+)?",
    r"\b(?:i|we)(?:\s+would|\s+will|['’]d|['’]ll)?\s+"
    + any_of("answer go_for give prescribe start recommend order administer use")
    + r"\b[\s:,]{0,4}",
    r"(?:故选|应选|选择|选项|选|選|而是|应为|應為|就是)\s*:?",
    r"\b"
    + any_of(
        "therefore thus hence so consequently in_conclusion in_summary in_short conclusion overall no "
        "based_on_(?:the_above|this|these_findings|that)"
    )
    + rf"\b[\s,:—–-]{{1,6}}(?:{_IT_IS})?",
    rf"\b{_IT_IS}",
    r"\b(?:i\.e\.|that\s+is|namely),?[\s*_(]{1,4}(?=(?:the\s+)?(?:option|choice|answer)\b)",
    r"\bnot\s+(?:entirely\s+|completely\s+|fully\s+|quite\s+)?(?:sure|certain)\b[,;.]?\s*but\s+"
    r"(?:probably\s+|i(?:['’]d|\s+would)\s+(?:say|guess|go\s+with)\s+)?",
    r"\bnot\s+\(?[A-Z]\)?,?\s+but\s+(?:rather\s+)?",
    r"(?:=>|⇒|→|➜)\s*",
)
# not "is correct for", "is best when"
GOOD = (
    r"(?:the\s+)?(?:single\s+)?(?:most\s+|only\s+|both\s+|all\s+)?(?:\w+ly\s+)?"
    + any_of(
        "correct right best appropriate accurate likely true answer one_that_fits preferred choice option "
        "only_(?:one|option|choice|answer)"
    )
    + rf"\b(?!\s+{any_of('for to in when at than as with if about that because_of')}\b"
    r"(?!\s+(?:this|the|her|his|our|it)\b))"
)
PRAISED = "|".join(
    (
        r"[\s*_)\"']{1,8}"
        + any_of(
            "is are was would_be seems? remains? must_be has_to_be should_be appears_to_be es est ist è é jest är er "
            "on to"
        )
        + rf"\s+(?:\w+ly\s+)?{GOOD}",
        r"\s*[–—:-]\s*correct\b",
        r"[\s*_)]{1,8}(?:alone\s+|only\s+|clearly\s+)?(?:best\s+)?"
        rf"{any_of('fits matches explains accounts_for satisfies describes corresponds suits')}\b",
        r"\s+it\s+is\b(?=\s*(?:[.!]|$))",
        r"\s+(?:es|est|ist|è|é)\s+(?:la|le|el|il|a|die|der|das|o)?\s*"
        r"(?:correct|correcta|correcte|correta|corretta|certa|richtig|esatta)\w*",
        r"\s*(?:项|項|选项|選項|选|が)?\s*(?:是|为|為|就是|才是)?\s*最?\s*"
        r"(?:正确|正確|合适|合適|符合|恰当|对的|正しい|適切|最も適切)",
        r"\s*(?:가|이|번이|번)\s*(?:정답|맞|옳|가장\s*적절)",
    )
)
PRAISE_LEAD = "|".join(  # what may stand before a praised letter; not "hepatitis B is the best answer"
    (
        r"(?:^|[\n.:;,!?(\[—–|>*_#\"“”'-]|=>|→)[\s*_(\[\"'“]{0,6}(?:the\s+)?"
        r"(?:(?:option|choice|answer|letter|statement|alternative)\s+)?(?:choice\s+|option\s+)?[\s*_(\[\"'“]{0,6}$",
        r"\b"
        + any_of(
            "option choice answer letter alternative statement that think believe so thus therefore hence and or but "
            "only both while whereas because since conclude clearly say although then here opción opção réponse "
            "antwort resposta respuesta guess feel sure of_these overall no yes ok okay actually rather "
            "sondern sino mais mas ma maar utan vaan men lecz ale но а"
        )
        + r"\s+[\s*_(\[\"'“]{0,6}$",
        r"(?:选项|選項|选择|選択肢|보기|선택지|因此|所以|故|综上|综上所述)[\s,:]*$",
    )
)
# "The most likely diagnosis is (B)", "the next best step is colonoscopy"
CONCLUDED = (
    rf"\b{any_of('most best next correct likeliest closest appropriate recommended answer only remaining')}\b"
    r"[^.\n]{0,160}?\b(?:is|be|are)\b[\s:]{0,3}"
)
POINTED = r"\b(?:is|be|are|corresponds\s+to|matches)\s+(?:option\s+|choice\s+)?\((?=[A-Z]\))"  # "... is (B)."
DENIED = any_of("not n[o']t neither none incorrect wrong false unclear unknown uncertain never no_longer") + r"\b"
REJECTED = (
    r"[\s*_)\]\"'’]{0,6}(?:\([^()\n]{1,60}\)\s*)?(?:is|are|was|can\s+be|seems|would\s+be|looks)\s+(?:\w+ly\s+)?"
    r"(?:incorrect|wrong|not\b|false|unlikely|less|excluded|ruled|eliminated|out\b|inappropriate|contraindicated)"
    r"|[\s*_)\]\"'’]{0,6}(?:isn|wasn|doesn|don|cannot|can['’]t|won['’]t|does\s+not|不|错|錯)"
)
_OTHERS = any_of("students? people one you some many others")
DOUBTED = (  # in the same sentence before a statement: it is not the writer's own
    r"\b(?:do(?:es)?(?:n['’]t|\s+not)\s+(?:think|believe|agree|seem|look)|doubt\w*|"
    r"not\s+(?:at\s+all\s+)?(?:sure|certain|convinced|clear)\s+(?:that|if|whether|the)|"
    r"unlikely\s+(?:that|to)|wonder\w*|unless|pretend|mistake\w*|pitfall|trap|distractor|tempt\w+|"
    rf"{_OTHERS}\s+(?:might|may|could|would|often|sometimes|will)\s+"
    rf"{any_of('think say choose pick select argue answer assume be_tempted')}|"
    r"might\s+(?:think|say|choose|pick)|"
    r"second\s+(?:best|choice|option|most|likely|guess)|second:|runner[- ]up|alternatively|next[- ]best|"
    r"backup|fallback|can(?:not|['’]t)\s+(?:say|conclude)|rule\s+out\s+that|false\s+that|wrong\s+to)\b"
)
CONDITION = r"\b(?:if|had|were|unless|in\s+case|provided|supposing|otherwise)\b"
FORCED = (  # conditions that are none
    r"\bif\s+(?:i|we|you|one)\s+(?:had|have|has|must|were|was)\s+(?:to|forced)|\bif\s+(?:forced|pressed|pushed)"
    r"|\bif\s+(?:i|we)\s+(?:am|are|is)\s+right\b"
)
REVISION = (
    r"\b(?:wait|hmm+|actually|correction|scratch\s+that|on\s+second\s+thoughts?|"
    r"let\s+me\s+(?:re|double|think\s+again|correct)\w*|i\s+(?:was|made)\s+(?:wrong|an?\s+(?:error|mistake))|"
    r"no,|sorry|rather|oops|my\s+mistake|i\s+take\s+that\s+back|however,\s+on\s+re\w+)"
)
TAKEN_BACK = (
    r"\b(?:scratch|strike)\s+that\b|\bi\s+take\s+that\s+back\b|"
    r"\b(?:that|this|it|which|the\s+above|my\s+(?:first\s+)?answer)\s+(?:\w+\s+){0,3}"
    r"(?:is|was|would\s+be|can(?:not|['’]t)\s+be|isn['’]t|wasn['’]t)\s+(?:\w+ly\s+)?"
    r"(?:wrong|incorrect|not\s+(?:right|correct)|contraindicated|a\s+mistake)"
)
BECAUSE = (
    any_of(
        "because since as is was and or but which due for given based in from according per that would here with by on "
        "of_the_options rather over are y o et ou und oder porque car weil"
    )
    + r"\b"
)
FOLLOW = (  # words after a letter that leave it a choice: "B because", "C fits", "D not A"
    any_of(
        "because since as is was are were and or but which due for given based in from according per that would here "
        "with by on of rather over not if when where though although while whereas it the this these those we he she "
        "they there so hence thus therefore then again indeed only alone too most best seems? appears? remains? has "
        "have had can cannot may might should will must among however still after before also instead without yes "
        "correct right explanation reason(?:ing)? rationale justification note confidence final option choice answer "
        "fits matches explains "
        "y o et ou und oder och og en e i ja ve porque ya pues car parce puisque weil da denn ponieważ gdyż omdat want "
        "aangezien eftersom fordi koska sillä çünkü şıkkı\\w* seçeneği\\w* olarak vì bởi do là karena sebab poiché "
        "perché dato deoarece pentru потому так поскольку тому оскільки adalah yang protože neboť mert mivel επειδή "
        "διότι כי لأن زیرا क्योंकि है হল কারণ pois já visto"
    )
    + r"(?![^\W_])"
)
SPECIES = any_of(  # "C. difficile" is no choice of C
    "difficile diff coli pylori aureus albicans perfringens botulinum tetani diphtheriae jejuni neoformans burnetii "
    "trachomatis psittaci pneumoniae influenzae ducreyi faecalis faecium histolytica cloacae cereus fragilis "
    "burgdorferi anthracis pertussis henselae abortus melitensis cepacia fumigatus baumannii lumbricoides israelii "
    "actinomycetemcomitans xylosoxidans hydrophila latum medinensis granulosus multilocularis vermicularis tularensis "
    "nucleatum lamblia vaginalis capsulatum immitis krusei glabrata parapsilosis auris freundii hominis parvum belli "
    "jiroveci canis gondii falciparum carinii corrodens chaffeensis aerogenes simplex quintana bacilliformis subtilis"
)
TERM_LEAD = any_of(  # words before a letter that make it part of a term, or exclude it
    "vitamin hepatitis type group class grade stage factor protein influenza immunoglobulin amphotericin polymyxin "
    "cyclosporin child[-\\s]?pugh phase part figure fig table panel apolipoprotein apo troponin coenzyme compound "
    "chain blood rh interferon botulinum toxin serotype subtype category level nephron lead cluster section "
    "appendix ward case patient plan arm cohort haemophilia hemophilia mitomycin penicillin ig hb igg step score "
    "bacteroides not than of unlike except over exclude excludes excluding versus vs nor neither"
)
JOIN = (
    r"(?:\s*(?:,\s*(?:and|or)|,|/|&|\+|\band\b|\bor\b(?:\s+(?:maybe|perhaps|possibly)\b)?|\bund\b|\boder\b|\bto\b|\by\b"
    r"|\bo\b|\bet\b|\bou\b|和|或|、|と|및)\s*"
    r"|(?<=[)\]\s])(?=[(\[][A-Z][)\]])|(?<=\s)(?=(?:[A-Z]\s+)*[A-Z][.!]?\s*$))"  # "(A) (B)", "A B C" at the end
)
REFUSAL = re.compile(
    r"\b(?:i|we)(?:['’]m|\s+am|\s+are)?\s+(?:sorry|afraid|unable\s+to|not\s+able\s+to|not\s+qualified|cannot|can['’]t|"
    r"can\s+not|won['’]t|do\s+not\s+feel\s+comfortable|must\s+decline|decline)\b|\bas\s+an?\s+(?:ai|language\s+model)\b|"
    r"\b(?:please\s+)?consult\s+(?:a|your|with)\b[^.\n]{0,40}(?:doctor|physician|professional|provider)",
    re.IGNORECASE,
)
NEXT_TURN = re.compile(
    r"(?:(?<=^)|(?<=[.!?)*]\s)|(?<=\n))[ \t]{0,8}[*_#]{0,6}[ \t]{0,8}"
    r"(?:question|next\s+question|user|human|instruction|input)\s*\d{0,3}\s*[*_]{0,2}:"
    r"|(?<=\n)[ \t]{0,8}Q\s?\d{0,3}[ \t]{0,8}[:.]\s"
    r"|(?<=\n)[ \t]{0,8}#{2,4}[ \t]{0,8}(?:instruction|input|question|user|human|next\s+question)\b"
    r"|<\|im_start\|>\s*(?:user|human)|<\|start_header_id\|>\s*user|<start_of_turn>\s*user|\[INST\]|<\|user\|>"
    r"|<\|start\|>user|<｜User｜>",
    re.IGNORECASE,
)
"""Where a completion goes on to a turn or a question of its own."""
