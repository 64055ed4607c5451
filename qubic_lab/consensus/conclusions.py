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
    if boxed := _last_box(text):
        return boxed.strip()
    text = without_emphasis(text)
    marks = list(_MARK.finditer(text))
    return _SENTENCE_END.split(text[marks[-1].end() :], maxsplit=1)[0].strip() if marks else None


def conclusions(text: str) -> Iterator[str]:
    """Yield the parts of an unmarked answer that may be its conclusion, the most likely first.

    These are a last sentence that begins with "So" or similar, a short opening sentence, and the last sentence.
    """
    said = sentences(without_emphasis(text))
    for sentence in reversed(said[-2:]):
        if _SO.match(sentence):
            yield _SO.sub("", sentence)
            break
    if len(said) > 1:
        opening = words(said[0])
        if len(opening) <= LONGEST_OPENING and not _CHATTER.match(said[0]) and "not" not in opening:
            yield said[0]
    yield from said[-1:]


def sentences(text: str) -> list[str]:
    """Return the sentences of a text; a line break also ends one."""
    found = (sentence.strip() for line in text.splitlines() for sentence in _SENTENCE.findall(line))
    return [sentence for sentence in found if sentence]


_MOST_BOXES = 8
_BOX = re.compile(r"\\boxed\s*\{")
_MARK = re.compile(
    r"\banswer(?:\s*:|\s+(?:is|are|was|would be)\b(?!\s+not\b):?)[\s:]*(?=\S)"
    r"|答案(?:应该|应)?(?:是|为|[:：])(?!不)[\s:：]*(?=\S)",
    re.IGNORECASE,
)
_FULL_STOP = r"(?<!\bSt)(?<!\bMr)(?<!\bDr)(?<!\bMrs)\.(?=\s|$)"
_SENTENCE_END = re.compile(rf"\n|{_FULL_STOP}|。")
_SENTENCE = re.compile(rf"(?:[^.。！？!?]+|(?!{_FULL_STOP})\.)+[.。！？!?]*")
_SO = re.compile(
    r"(?:so|therefore|thus|hence|in conclusion|in total|altogether)\b,?\s*"
    r"|(?:所以|因此|因而|故|综上(?:所述)?|总之)[，,]?\s*",
    re.IGNORECASE,
)
_CHATTER = re.compile(
    r"(?:sure|of course|certainly|okay|ok|great|good|let me|let us|let's|hello|hi|well)\b"
    r"|(?:好的|当然可以|让我|你好)|.*[!！:：]$",
    re.IGNORECASE,
)


def _last_box(text: str) -> str | None:
    """Return the content of the last closed box, with any braces nested in it."""
    for opened in reversed(list(_BOX.finditer(text))[-_MOST_BOXES:]):
        depth = 1
        for place, sign in enumerate(text[opened.end() : opened.end() + LONGEST], start=opened.end()):
            depth += (sign == "{") - (sign == "}")
            if depth == 0:
                return text[opened.end() : place]
    return None
