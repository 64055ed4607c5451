"""Compares formulas by canonical forms, computed with Math-Verify's LaTeX parser and SymPy in separate processes.

Math-Verify limits itself by signals, which only a main thread receives, and a power tower can hold SymPy past a signal.
So a worker process that can be killed (`symbolic_worker`) reads each formula and returns its canonical form: text that
is equal exactly for equal formulas. Math-Verify's own comparison is not used: it is directed and rounds, so it is not
an equivalence.
"""

import logging
import re
import time
from collections import deque
from functools import lru_cache

from qubic_lab.consensus.quantities import superscripts_lowered
from qubic_lab.killable import WorkerPool

SECONDS = 5.0
"""Time limit; a formula that takes longer has no canonical form."""
MOST_PROCESSES = 2
LOST_SECONDS, WITHIN_SECONDS = 8.0, 60.0
"""Once so much time went to formulas that were not read in time, within so much, no more are read for a while."""
DIGITS = 20
"""Longer numbers are not compared with formulas."""
LONGEST = 300
"""Characters; a longer formula is not read."""
LONGEST_LEAD = 200
"""Characters of a lead such as "The area is"; a text that is longer than lead and formula is no formula."""

Forms = tuple[str, str]

_LOG = logging.getLogger(__name__)
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|cot|sec|csc|exp|ln|log|min|max|gcd"
_LATEX = [
    (re.compile(pattern), written)
    for pattern, written in (
        (r"\\[()\[\]]|\$|\\left(?![a-z])|\\right(?![a-z])|\\[,;!]", ""),
        (r"\*\*", "^"),
        (r"√\s*\(([^()]*)\)|(?<![\\a-z])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1\2}"),
        (r"√\s*(\w+)", r"\\sqrt{\1}"),
        (rf"(?<![\\a-zA-Z])({_FUNCTIONS})(?![a-z])", r"\\\1"),
        (r"(?<![\\a-zA-Z])pi(?![a-z])|π", r"\\pi "),
        (r"\^\(([^()]*)\)", r"^{\1}"),
        (r"\^(-?\d+)", r"^{\1}"),
        (r"×|·|(?<=[\w)])\s*\*\s*(?=[\w(\\])", r" \\cdot "),
        (r"≤|<=", r"\\leq "),
        (r"≥|>=", r"\\geq "),
        (r"∞", r"\\infty "),
    )
]


SIGN = re.compile(r"\\(?:sqrt|frac|pi|sin|cos|tan|ln|log|infty|cdot|in\b|le|ge|sum|int)|\^|√|π|∞|(?<=\w)\*\*(?=[\w(])")
"""Signs that only formulas have."""
DEFINED = re.compile(r"\s*([a-zA-Z])\s*=\s*(?![^=]*=)")
"""The opening of a formula that defines an unknown."""
_OPERATOR = re.compile(r"[+*/=<>≤≥()|-]")
# Possessive (++): each part is read in one way, or the time would double with each part of a text that does not match.
_FORMULA = re.compile(
    r"(?:\\[a-zA-Z]+|(?:arc)?(?:sin|cos|tan)|sqrt|ln|log|exp|pi|or|and|(?<![A-Za-z])[A-Za-z](?![A-Za-z])"
    r"|(?<=\d)[a-z]{1,2}(?![a-z])|[a-zA-Z]{2}(?=[+\-*/^)=]|$)|[\d\s+\-*/^=()\[\]{}.,<>≤≥|!√π∞·×⁰¹²³⁴-⁹_&])++"
)
_BEFORE = re.compile(
    r"^.*?(?:\b(?:is|are|equals|gives)\b|[是为]|等于)\s*(?=\S{0,300}[\d\\√π∞^(])", re.IGNORECASE | re.DOTALL
)


def formula(text: str) -> str | None:
    """Return the formula if a text is nothing else, apart from a lead such as "The area is"; else None."""
    if len(text) > LONGEST_LEAD + LONGEST:
        return None
    for written in (text, _BEFORE.sub("", text)):
        written = re.sub(r"^(?:\$+|\\[(\[])|(?:(?<!\$)\$+|\\[)\]])$", "", written.strip(" .。,，;")).strip(" .")
        if 1 < len(written) <= LONGEST and _FORMULA.fullmatch(written) and re.search(r"[a-zA-Z\d]", written):
            return written if SIGN.search(written) or _OPERATOR.search(written) else None
    return None


def is_relation(forms: Forms) -> bool:
    """Return whether a canonical form is an equation or inequality: equal ones can have different forms."""
    return "=" in forms[0] or "<" in forms[0]


def latex(formula: str) -> str:
    """Return a formula in LaTeX; plain notation such as sqrt(2)/2, x**2 and 2π is converted."""
    formula = superscripts_lowered(formula)
    for pattern, written in _LATEX:
        formula = pattern.sub(written, formula)
    return formula.strip()


class _NoTimeLeft(Exception):
    """Too many formulas were not read in time; not kept in the cache, unlike an answer."""


def canonical(formula: str) -> Forms | None:
    """Return two forms that are equal for equal formulas, or None if the formula could not be read in time.

    The forms take all unknowns as positive and as negative: x and |x| agree only in the first. The first call starts a
    worker process, which takes about a second.
    """
    try:
        return None if len(formula) > LONGEST else _canonical(formula)
    except _NoTimeLeft:
        return None


@lru_cache(4096)
def _canonical(formula: str) -> Forms | None:
    started = time.monotonic()
    if sum(lost for when, lost in tuple(_LOSSES) if started - when < WITHIN_SECONDS) > LOST_SECONDS:
        raise _NoTimeLeft
    try:
        forms = _POOL.ask(latex(formula), SECONDS)
    except OSError as error:
        _LOSSES.append((time.monotonic(), time.monotonic() - started))
        _LOG.warning("the formula %.80r was not read (%s)", formula, error)
        return None
    return None if forms is None else (forms[0], forms[1])


_POOL = WorkerPool("qubic_lab.consensus.symbolic_worker", MOST_PROCESSES)
_LOSSES: deque[tuple[float, float]] = deque(maxlen=100)
"""When a formula was given up, and after how many seconds."""
