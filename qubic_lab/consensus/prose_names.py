"""Reads the name that an answer in plain prose gives: who, which, where, what is the."""

import re
from collections.abc import Iterable, Iterator, Sequence

from qubic_lab.consensus import answer_readers as readers
from qubic_lab.consensus.answer_readers import CHOICE, SPAN, FinalAnswer
from qubic_lab.consensus.prose_sentences import (
    BRACKETS,
    CLAUSE,
    CORRECTS,
    DENIED,
    MOST_SENTENCES,
    MOST_WORDS,
    QUOTES,
    SHORTEST_SENTENCE,
    agreed,
    length,
    repeats,
)
from qubic_lab.consensus.question_form import QuestionForm
from qubic_lab.consensus.words import is_chinese, simplified, stem, word_set, words

MOST_TOLD = 12
"""Words of a sentence whose only new name is read, wherever it stands."""
MOST_LOWER = 2
"""Words of a name in lower case."""

TAGS = {
    word: tag
    for tag, listed in {
        "b": "is are was were be been it's that's become becomes became remains called",
        "v": "has have had will would can could may might must shall should do does did",
        "o": "of",
        "l": "in at on near within",
        "p": "from for with to through into over under between around about during since after before",
        "y": "by named",
        "c": "and or",
        "r": "author writer painter inventor discoverer founder creator composer artist",
        "n": """scientists researchers experts historians people someone everyone everybody nobody nothing others which
        who whose whom what where when how why while unlike contrary try check ask look see visit contact please
        consider""",
        "f": """the a an it its this that they he she i we you your our his her there here as so but then now
        also just indeed really still often most more one only known located situated considered regarded referred
        believed thought said generally usually typically commonly widely officially currently probably actually simply
        mainly certainly definitely think say guess believe answer yes no sure found find listed written
        held itself himself herself themselves sometimes perhaps maybe
        however therefore thus hence""",
    }.items()
    for word in listed.split()
}
"""The tag of a word that is no name: a form of "be" (b), another verb (v), "of" (o), a preposition of place (l),
another preposition (p), "by" (y), a role (r), people in general (n), a word that frames an answer (f). Other words are
tagged q if the question has them, j if they join names ("van"), else x; Q and X begin with a capital letter."""
FRAME = frozenset(TAGS) - {"of"}
_DETERMINERS = word_set("the a an its this that my your our his her their")
_JOINING = word_set("de da van von der la le")
_NAME = r"([xr]*X(?:[XxrQ]|[jo][jf]?X)*+|x++)"
_CAPITAL = _NAME.replace("|x++", "")
_CAPITAL_RUN = r"X(?:[XQ]|[jo]f?X)*"
_SUBJECT = re.compile(rf"[fr]*{_CAPITAL}(?=[bqQvplf]|xf?[qQ])|[frq]*{_CAPITAL}(?=[bv])|[fr]*(x++)(?=[bqQvl])")
_ACTOR = re.compile(r"[fr]*(X++(?:[jo]f?X++)*)xf?[qQ]")
_AGENT = re.compile(rf"y[fqQr]*{_CAPITAL}(?![qQ])|(?<=[qQ])yf(x++)(?![qQ])")
_STATED = re.compile(rf"b[fqQvr]*{_NAME}(?![qQoy])")
_PLACED = re.compile(rf"[lo][fqQ]*{_CAPITAL}(?![qQ])")
_PLACED_IN = re.compile(_PLACED.pattern.replace("[lo]", "l", 1))
_OBJECT = re.compile(rf"(?<=[qQ]){_NAME}(?![qQ])")
_BARE = re.compile(rf"[fbvr]*b[fbvr]*{_NAME}(?:[plyo].*)?$|[fr]*{_NAME}v?(?:[pl].*)?$")
_BARE_PLACE = re.compile(rf"[fbv]*l[fl]*{_NAME}(?:[plyvo].*)?$|f*{_NAME}$")
_TOWN = re.compile(r"\b(in|at|of)\s[A-Z]\w+(?:\s[A-Z]\w+)?,\s(?=[A-Z])")
_NAMING = re.compile(r"\b(?:called|known\sas|named)\s", re.IGNORECASE)
_SETTING = re.compile(r"(?:in|when|if|while|although|though|since|because|unlike|after|before)\b", re.IGNORECASE)
_CREDITED = r"\b(?:(?:attributed|credited)\s+to|(?:work|creation|invention|idea|discovery)\s+of)\b"
_IDENTITY = re.compile(
    r"\s(?:(?:is|are)\s+(?:\w+ly\s+)?made\s+(?:\w+ly\s+)?(?:of|from)|consists?\s+(?:mainly\s+|mostly\s+)?of|stands?\s+for|is\s+the\s+(?:chemical\s+)?symbol\s+(?:for|of)|comes?\s+from|refers?\s+to|uses?|means|(?:gives?|yields?|makes?)(?!\s+(?:up|it|you|us|off)\b))\s",
    re.IGNORECASE,
)
_NOT_BUT = re.compile(r"\bnot\s(?!only\b)[^.;]{1,60}?,?\sbut\s(?:rather\s)?", re.IGNORECASE)
_MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
_TIME = re.compile(
    rf"\s(?:on|in|since|from|until|of)\s(?:\d{{1,2}}(?:st|nd|rd|th)?\s)?(?:{_MONTHS})\b(?:\s\d{{1,2}})?(?:,?\s\d{{4}})?(?!\d)"
    r"|\s(?:in|since|from|until)\s\d{4}"
)
_IT_IS = re.compile(
    r"(?:(?:it|that|this|they|these|those)(?:'s|\s(?:is|was|are|were|would\sbe))\s(?:\w+ly\s)?(?:called\s)?(?:the\s|an?\s)?|(?:the|your)\s)"
    r"(?:(?<=s\sthe\s)\w+\s)?\w+(?<!ed)(?<!ing)(?<!ous)(?<!ful)(?<!ive)(?<!ble)(?<!al)(?<!y)(?:\s(?:do|did|does|has|is|was))?$",
    re.IGNORECASE,
)
_SUBORDINATE = re.compile(
    r"(?<![,\s])[,\s]+(?:who|which|that|because|since|although|though|while|whereas|when|where|before|after|followed|but"
    r"|if|until|however|through|using)\b.*",
    re.IGNORECASE | re.DOTALL,
)
_RESTRICTIVE = re.compile(r"(?:the|an?)\s\w+\s(?:\w+\s)?(?:that|which|who)\b.*\s(?:is|was|are)\b", re.IGNORECASE)
_LEADS_ON = re.compile(
    rf"{DENIED.pattern}|^(?:as|with|for|like)\s|\bwhether\b|mistak"
    r"|\b(?:some|many|most|few|people|others)\b.{0,20}\b(?:say|think|believe|guess|assume|claim)",
    re.IGNORECASE,
)
"""Denials and opinions of others."""
_ADVERB = re.compile(r"(?!family)[a-z]{3,}(?<!f)ly")
_ALSO_NAMED = re.compile(r",\san?\s[^,]{1,60}\snamed\s([A-Z]\w*(?:\s[A-Z]\w*)*)")
_OTHER_THING = re.compile(r"(?:the|an?|this|that)\s\w+\s(?:is|was)\s\w+ed\sby\s", re.IGNORECASE)
_ALSO = re.compile(r"(?:and|or)\s(?:the\s)?[A-Z]")
_MODIFIER = re.compile(r"\w+(?:an|ch|ish|ese|ous|al|ic)$")


def read_name(said: Sequence[str], form: QuestionForm) -> FinalAnswer | None:
    """Return the name that one of the first sentences gives, unless another gives a different one."""
    is_short = length(" ".join(said)) <= SHORTEST_SENTENCE
    found: list[tuple[str, FinalAnswer]] = []
    is_corrected = False
    titles = {*_TITLE.findall(" ".join(said))} if "哪" in form.words and form.words & _WORKS else set()
    if titles := {title for title in titles if not {*words(title)} <= form.words}:
        title = titles.pop()
        return None if titles else readers.read_conclusion(title, form, marked=True)
    members = _CLOSED.get(form.content[0], "").split("; ") if form.content else []
    for number, sentence in enumerate(said[:MOST_SENTENCES]):
        find = _han_name if is_chinese(sentence) else _english_name
        text = QUOTES.sub("", BRACKETS.sub("", sentence)).strip(" .。!！")
        name = find(text, form, not (number or DENIED.match(sentence) or (is_short and "," in text)))
        answer = readers.read_conclusion(name, form, marked=True) if name else None
        is_name = answer is not None and answer.kind in (SPAN, CHOICE) and _is_about(sentence, form)
        found += [(sentence, answer)] if answer and is_name else []
        is_corrected = is_corrected or bool(
            not answer and CORRECTS.match(sentence) and repeats(sentence, form) == len(form.content)
        )
    if found or is_corrected:
        answer = None if is_corrected else agreed(found, form)
        is_other = form.content[:1] == ("season",) and answer and answer.value not in members
        return None if is_other else answer
    text = _OF_A_CONTINENT.sub(r"\1", " ".join(each for each in said[:MOST_SENTENCES] if _is_about(each, form)))
    own = [each for each in readers.named(text, {each: each.split() for each in members}) if each not in form.words]
    return readers.read_conclusion(own[0], form, marked=True) if len(own) == 1 else None


_CLOSED = {
    "season": "spring; summer; autumn; winter; fall",
    "planet": "mercury; venus; earth; mars; jupiter; saturn; uranus; neptune; pluto",
    "continent": "africa; antarctica; asia; europe; australia; oceania; north america; south america",
    "ocean": "pacific; atlantic; indian; arctic; southern",
}
_OF_A_CONTINENT = re.compile(r"\b(Africa|Asia|Europe|Australia|America)a?n\b")


_RANK = re.compile(r"(?:\w{3,}(est)|first|second|third|fourth|fifth|last|most|least|capital)$")
"""Words that say which of several."""


def _is_about(sentence: str, form: QuestionForm) -> bool:
    """Return whether a sentence does not tell of another rank than the question: the closest one for the third."""
    told, asked = (
        {word: rank[1] for word in said if (rank := _RANK.match(word))} for said in (words(sentence), form.words)
    )
    return not (told and asked) or not told.keys().isdisjoint(asked) or all([*told.values(), *asked.values()])


def _english_name(sentence: str, form: QuestionForm, may_be_bare: bool) -> str:
    """Return the only name at a place of the sentence where the answer stands, else nothing."""
    sentence = re.sub(_CREDITED, "by", _IDENTITY.sub(" is ", _NOT_BUT.sub("", sentence)))
    if "country" in form.words:
        sentence = _TOWN.sub(r"\1 ", sentence)
    if "month" not in form.words:
        sentence = _TIME.sub("", sentence)
    clauses = CLAUSE.split(sentence)
    hits = [repeats(clause, form) for clause in clauses]
    if len(clauses) > 1 and _SETTING.match(clauses[0]):
        hits[:2] = 0, max(hits[:2])
    is_named = _NAMING.search(sentence) is not None
    is_lower = (
        is_named or sum(hits) >= min(2, len(form.content)) or (may_be_bare and _IT_IS.match(clauses[0]) is not None)
    )
    is_lower = is_lower or (may_be_bare and "do" in form.words and len(sentence.split()) <= SHORTEST_SENTENCE)
    is_lower = is_lower and not ("who" in form.words or form.asks_place)
    is_in = {*_names(sentence, [_PLACED_IN], form, False)} - {""}
    patterns = [
        _SUBJECT,
        _STATED,
        *([_PLACED_IN if is_in else _PLACED] * form.asks_place),
        *([_OBJECT] * ("do" in form.words)),
    ]
    patterns = [_PLACED] if "where" in form.words and {*_names(sentence, [_PLACED], form, False)} else patterns
    found: set[str] = set()
    concluded = [clause for clause, hit in zip(clauses, hits, strict=True) if hit and clause.startswith("so ")]
    for clause, hit in zip(clauses, hits, strict=True):
        main = clause if _RESTRICTIVE.match(clause) else _SUBORDINATE.sub("", clause)
        counts = hit == max(hits) or (clause.startswith("but ") and 2 * hit >= max(hits))
        counts = counts and (not concluded or clause.startswith("so "))
        if hit and counts and not _LEADS_ON.search(main):
            agents = {*_names(main, [_AGENT], form, is_lower)} - {""}
            actors = [_ACTOR] * ("who" in form.words)
            found |= agents or {*_names(main, patterns, form, is_lower)} or {*_names(main, actors, form, False)}
    asked = [each for each in clauses if "who" in form.words and not _OTHER_THING.match(each)]
    opened = _SUBORDINATE.sub("", clauses[0])
    if not hits[0] and not _LEADS_ON.search(opened):
        if found and form.asks_place:
            found |= {*_names(opened, [_PLACED], form, False)}
        elif not found and (may_be_bare or max(hits)):
            found = {*_names(opened, [_BARE_PLACE if form.asks_place else _BARE], form, is_lower)}
            found |= {name for each in asked for name in _names(each, [_AGENT], form, False)}
    if not found and (may_be_bare or any(hits)):
        found = (
            set()
            if _LEADS_ON.search(sentence)
            or len(sentence.split()) > MOST_TOLD
            or ("who" in form.words and not any(hits) and not asked)
            else {*_capitalized(sentence, form)}
        )
    also = _ALSO_NAMED.search(sentence)
    if len(found) != 1:
        return ""
    name = found.pop()
    is_other = also and sentence[: also.start()].endswith(name) and {*words(also[1])}.isdisjoint(words(name))
    return "" if is_other else name


def _capitalized(sentence: str, form: QuestionForm) -> Iterator[str]:
    """Yield the runs of capitalized words that a sentence adds to the question; "" for what cannot be its answer."""
    for clause in CLAUSE.split(sentence):
        yield from _capitalized_in(clause, form)


def _capitalized_in(clause: str, form: QuestionForm) -> Iterator[str]:
    said = [word for each in clause.split() if (word := each.strip(".,!?\"'"))]
    tags = _tags(said, form)
    initials = "".join(word[0] for word in form.content)
    for run in re.finditer(_CAPITAL_RUN, tags):
        name = " ".join(said[run.start() : run.end()])
        before = tags[: run.start()].rstrip("fr")[-1:]
        after = tags[run.end() : run.end() + 1]
        is_told = before in ("lpby" if "who" not in form.words else "by") or "to" in said[: run.start()][-1:]
        is_told = is_told if run.start() else after in ("b", "v")
        is_other = _MODIFIER.fullmatch(name) or name.endswith("'s") or (after == "x" and run.start())
        if name.casefold() not in initials:
            yield readers.HONOURS.sub("", name) if is_told and not is_other else ""


def _names(clause: str, patterns: Iterable[re.Pattern[str]], form: QuestionForm, may_be_lower: bool) -> Iterator[str]:
    """Yield what stands at the places of patterns and can be a name; "" for what only describes one."""
    said = [word for each in clause.split() if (word := each.strip(".,!?\"'"))]
    tags = _tags(said, form)
    for pattern in patterns:
        is_first = pattern in (_SUBJECT, _ACTOR, _BARE, _BARE_PLACE)
        for each in filter(None, [pattern.match(tags)] if is_first else pattern.finditer(tags)):
            at = next(group for group in range(1, pattern.groups + 1) if each[group])
            run = said[each.start(at) : each.end(at)]
            end = each.end(at)
            if (pattern is _AGENT and run[0].endswith("ing")) or (is_first and {*said[end : end + 1]} & _DETERMINERS):
                continue
            if (
                len(run) > 1
                and run[0].islower()
                and [stem(word.casefold()) for word in said[end : end + 1]] == [*form.content[:1]]
            ):
                continue
            if pattern is _AGENT and tags[end : end + 1] == "x" and _MODIFIER.fullmatch(run[-1]):
                continue
            name = (
                ""
                if _ALSO.match(" ".join(said[end : end + 3]))
                else _proper(
                    run,
                    is_first or (pattern is _AGENT and run[-1].islower() and sum(w[0].isupper() for w in run) > 1),
                    pattern is not _AGENT and "who" not in form.words and said[each.start(at) - 1] not in ("a", "an"),
                )
            )
            is_adjective = tags[end : end + 1] in ("q", "Q") and "b" in tags
            is_adjective = is_adjective or (
                said[each.start(at) - 1 : each.start(at)] in (["a"], ["an"]) and "called" not in said
            )
            if (
                run[0][0].islower()
                and name[:1].islower()
                and (
                    is_adjective
                    or re.search(r"\w{3}(?:ed|est|ible|able)\b", name)
                    or len(run) > MOST_LOWER
                    or not may_be_lower
                )
            ):
                continue
            yield readers.HONOURS.sub("", re.sub(r"^.*'s\s(?=[A-Z])", "", name)).removesuffix("'s")


def _tags(said: Sequence[str], form: QuestionForm) -> str:
    """Return the tags of words; "I" after a name is a number."""
    tags = [tag_of(word, form) for word in said]
    return "".join("X" if n and word == "I" and tags[n - 1] == "X" else tags[n] for n, word in enumerate(said))


def tag_of(word: str, form: QuestionForm) -> str:
    """Return the tag of a word, see TAGS."""
    bare = word.casefold().replace("’", "'")
    if known := TAGS.get(bare, "") or TAGS.get(bare.partition("'")[0], "") * ("'" in bare):
        return known
    is_upper = not word[0].islower()
    if stem(bare.removesuffix("'s")) in form.words:
        return "Q" if is_upper else "q"
    if _ADVERB.fullmatch(word):
        return "f"
    return "j" if bare in _JOINING else "X" if is_upper else "x"


def _proper(run: Sequence[str], is_subject: bool, may_be_thing: bool) -> str:
    """Return the name after a description, such as "English playwright", or before a verb, else the whole run."""
    lower = [place for place, word in enumerate(run) if word[0].islower() and word not in _JOINING | {"of", "the"}]
    if not lower or len(lower) == len(run) or (is_subject and len(run) == len(lower) + 1 == 2):
        return " ".join(run)
    if not run[-1][0].islower():
        return " ".join(run[lower[-1] + 1 :]).removeprefix("of ")
    if _MODIFIER.fullmatch(run[lower[0] - 1]):
        return " ".join(run) if may_be_thing and len(run) <= MOST_LOWER else ""
    return " ".join(run[: lower[0]] if is_subject else run if len(run) <= MOST_LOWER else [])


_TITLE = re.compile("《([^《》]{1,20})》")
_WORKS = frozenset("首本部篇书诗歌")
"""Questions with these characters may ask for a work; then its title is the answer."""
_HAN_LEAD = re.compile(
    r"^(?:但|其实|我想|我认为|我觉得|[一通普][般常遍]认为|应该|(?:正确)?答案|其实|毫无疑问|这幅画|这本书)*"
)
_HAN_IS = re.compile(r"(?:其实|才)?(?:被称为|被认为是|成为|出自|(?:使用|采用)(?!.*是)|叫做|名叫|就是|是|为|叫|即)")
_HAN_DOES = r"所?(?:写|著|发明(?!家)|创作|画(?!家)|发现|设计(?!师)|建立|提出|创立|创办|执导|编剧|作曲|改进|制造)"
_HAN_BY = re.compile(rf"(?:由|出自)(.{{2,12}}?)(?:于|在|之手|{_HAN_DOES})")
_HAN_AT = re.compile(r"(?:位于|(?:坐落|收藏|陈列)[于在]|在)(.{2,8}?)(?:的?[东南西北中境]+部?)?$")
_HAN_ADDED = re.compile(r"(?<=..)(?:先生|女士|爵士|教授|博士)?(?:[于在]\d.*)?$")
_HAN_DID = re.compile(rf"{_HAN_DOES}(?:了|出|的|过)?.*$")
_HAN_TITLE = re.compile(
    r"^.*(?:作家|[说画作曲科学明治业险]家|诗人|皇帝|总统|导演|宇航员|航天员|演员|歌手|工程师|设计师|医生|学者)(?=.{2,16}$)"
)


def _part_asked(name: str) -> str:
    """Return the district that ends a Chinese address, or the province or city that begins it."""
    if name.endswith("区"):
        return name[max(name.rfind(sign, 0, -2) for sign in "省市县") + 1 :]
    return (
        name[: min(name.index(sign) for sign in "省市县" if sign in name) + 1] if name.endswith(("市", "县")) else name
    )


def han_own(form: QuestionForm) -> set[str]:
    """Return the characters that are the question's, or those of every answer."""
    return {*filter(is_chinese, form.words), *readers.HAN_FRAME, *"你您我他她的它其由被于之这那地位作者发明人画写家"}


def _han_name(sentence: str, form: QuestionForm, may_be_bare: bool) -> str:
    own = han_own(form)
    for clause in CLAUSE.split(simplified(sentence))[:2]:
        clause, name = _HAN_LEAD.sub("", clause), ""
        reply = re.sub(f"^[他她它]?(?:{'|'.join(map(re.escape, form.content[-1:]))})(?=.)", "", clause)
        if by := _HAN_BY.search(clause):
            name = by[1].rpartition("的")[2]
        elif form.asks_place and (at := _HAN_AT.search(clause)) and set(clause[: at.start()]) <= own:
            name = at[1]
        elif copula := _HAN_IS.search(clause):
            left, right = clause[: copula.start()], clause[copula.end() :]
            right = re.sub("的(?:作品|画作|小说|著作)$", "", right)
            right = _HAN_TITLE.sub("", right) if len(right) > 4 else right
            right = _HAN_DID.sub("", right) if len(right) > 2 else right
            is_asked = set(right) <= own or set(form.content) <= set(right)
            is_told = set(left) <= own or set(form.content) <= set(left)
            own_right = right.rpartition("的")[2] if "的" in right[:-2] else right
            name = own_right if is_told else left if is_asked else ""
        elif (did := _HAN_DID.search(clause)) and did.start() > 1:
            name = clause[: did.start()]
        elif (
            may_be_bare
            and set(form.content).isdisjoint(simplified(sentence).replace(clause, reply))
            and (length(reply) <= MOST_WORDS - 1 or "·" in reply)
        ):
            name = reply
        elif set(form.content) <= set(clause):
            name = clause.lstrip("".join(own)).rstrip("".join(form.words))
        name = name.rstrip("喔哦啊呢啦呀")
        name = name.rpartition("的")[2] if "的" in name[:-2] else name
        name = _HAN_ADDED.sub("", _HAN_TITLE.sub("", name).strip(" ·") if len(name) > 4 else name)
        name = re.sub("^中国(?=.{2,}[省市县区]$)", "", _part_asked(name))
        if (
            not DENIED.search(clause)
            and 0 < length(name) <= 2 * MOST_WORDS
            and not set(name) <= own
            and "由" not in name
        ):
            return name
    return ""
