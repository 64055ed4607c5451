r"""Finds the conclusion of an answer: a model's thoughts never count, and a marked conclusion counts most."""

import re
from collections.abc import Iterator

from qubic_lab.consensus.quantities import plain
from qubic_lab.consensus.words import without_emphasis, words

LONGEST = 400
"""Characters; a longer text is not read as a conclusion."""
LONGEST_OPENING = 8
"""Words; a longer first sentence is not an answer followed by reasons."""


def without_thoughts(text: str) -> str:
    """Return the text after a model's thoughts; "" if the thoughts never end."""
    _, thought, rest = text.rpartition("</think>")
    return (rest if thought else text).partition("<think>")[0]


def conclusion(text: str) -> str:
    """Return the part of an answer that counts, in normal spelling; the whole text if nothing is marked."""
    said = without_thoughts(text)
    marked = marked_conclusion(said)
    return plain(said if marked is None else marked).strip()


def marked_conclusion(text: str) -> str | None:
    r"""Return the content of the last `\boxed{}`, else the sentence after the last "answer is" (答案是), else None."""
    if box := boxed(text):
        return box.strip()
    text = without_emphasis(text)
    marks = list(_MARK.finditer(text))
    return _SENTENCE_END.split(text[marks[-1].end() :], maxsplit=1)[0].strip() if marks else None


def boxed(text: str) -> str | None:
    """Return the content of the last closed box, with any braces nested in it."""
    for opened in reversed(list(_BOX.finditer(text))[-_MOST_BOXES:]):
        depth = 1
        for place, sign in enumerate(text[opened.end() : opened.end() + LONGEST], start=opened.end()):
            depth += (sign == "{") - (sign == "}")
            if depth == 0:
                return text[opened.end() : place]
    return None


def conclusions(text: str) -> Iterator[str]:
    """Yield the parts of an unmarked answer that may be its conclusion, the most likely first.

    These are a last sentence that begins with "So" or similar, a short opening sentence, and the last sentence.
    """
    said = sentences(without_emphasis(text))
    for sentence in reversed(said[-2:]):
        if SO.match(sentence):
            yield SO.sub("", sentence)
            break
    if len(said) > 1 and (opened := opening(text)):
        yield opened
    yield from said[-1:]


def opening(text: str) -> str:
    """Return the first sentence if it may be an answer followed by reasons: it is short and begins no calculation."""
    first = next(iter(sentences(without_emphasis(text))), "")
    said = words(first)
    return first if len(said) <= LONGEST_OPENING and not _CHATTER.match(first) and "not" not in said else ""


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; a line break also ends one."""
    found = (sentence.strip() for line in text.splitlines() for sentence in _SENTENCE.findall(line))
    return [sentence for sentence in found if sentence]


_MOST_BOXES = 8
_BOX = re.compile(r"\\boxed\s*\{")
_MARK = re.compile(
    r"\banswer(?:\s+to\s+(?:your|the|this|that)(?:\s+\w+){0,2}?\s+(?:question|problem|puzzle))?"
    r"[\"']?(?:\s*:|\s+(?:is|are|was|would be)\b(?!\s+(?:not|based|determined)\b)"
    r"(?:\s+(?:indeed|actually|simply|just|probably)\b)?:?)"
    r"[\s:]*(?=\S)"
    r"|\b(?:correct|right|best|final)\s+(?:option|choice|one|statement)"
    r"(?:\s*:|\s+(?:is|would be)\b(?!\s+not\b):?)[\s:]*(?=\S)"
    r"|\bi(?:['’]d|['’]ll|\s+would|\s+will|\s+must)?\s+(?:choose|pick|select|go\s+with)\s+"
    r"(?=(?:option\s+)?\(?(?-i:[A-Z])(?![\w'’]))"
    r"|^####[ \t]*(?!\d+[.)]\s)(?=\S*\d\S*(?: \S+)?\s*$)"
    r"|(?:答案(?:应该|應該|应|應)?(?:是|为|為|[:：])(?!不)|^[^\S\n]*答\s*[:：])[\s:：]*(?=\S)"
    r"|(?:应该?|應該?|故|我|所以|因此)[选選](?!项|項)\s*(?=[(（]?[A-Z])",
    re.IGNORECASE | re.MULTILINE,
)
_FULL_STOP = r"(?<!\bSt)(?<!\bMr)(?<!\b[DJ]r)(?<!\bMrs)(?<!\bProf)(?<!\b[A-Z](?=\.\s[A-Z]))\.(?=\s|$)"
_SENTENCE_END = re.compile(rf"\n|{_FULL_STOP}|。")
_SENTENCE = re.compile(rf"(?:[^.。！？!?]+|(?!{_FULL_STOP})\.)+[.。！？!?]*")
SO = re.compile(
    r"(?:so|therefore|thus|hence|in conclusion|in total|altogether)\b,?\s*"
    r"|(?:所以|因此|因而|故|(?:综|綜)上(?:所述)?|(?:总|總)之)[，,]?\s*",
    re.IGNORECASE,
)
_CHATTER = re.compile(
    r"(?:sure|of course|certainly|okay|ok|great|good|let me|let us|let's|hello|hi|well|first|firstly|step|given|since"
    r"|if)\b"
    r"|to (?:find|solve|calculate|determine|answer|get)\b"
    r"|(?:好的|当然可以|让我|你好|首先|先|从)|.*[!！:：?？]$",
    re.IGNORECASE,
)
