"""Finds wrong calculations in a text, exactly, where both sides consist of numbers only."""

import ast
import re
from collections.abc import Iterator
from fractions import Fraction


def wrong_calculations(text: str) -> Iterator[str]:
    """Yield the wrong calculations of a text, such as 12 + 5 = 18.

    Results may be rounded to their last digit, or to a whole number after a division. Expressions next to a letter and
    parts of longer equations are skipped.
    """
    plain = _COMMA.sub("", text.replace("\\times", "×").replace("\\cdot", "×").replace("\\div", "÷").replace("$", ""))
    for found in _EQUATION.finditer(plain):
        start = found.start()
        if _VARIABLE.search(plain[max(0, start - 4) : start]):
            continue
        value = _calculated(found["left"])
        if value is not None and not _rounds_to(value, found["right"], "/" in found["left"] or "÷" in found["left"]):
            yield " ".join(found[0].split())


def _calculated(expression: str) -> Fraction | None:
    """Return the value of an arithmetic expression, or None if it is not one."""
    try:
        tree = ast.parse(expression.translate(_OPERATORS).strip(), mode="eval").body
        return _value(tree) if isinstance(tree, ast.BinOp) else None
    except (SyntaxError, ValueError, ZeroDivisionError, KeyError, RecursionError, MemoryError):
        return None


def _value(tree: ast.expr) -> Fraction:
    if isinstance(tree, ast.BinOp):
        left, right = _value(tree.left), _value(tree.right)
        match tree.op:
            case ast.Add():
                return left + right
            case ast.Sub():
                return left - right
            case ast.Mult():
                return left * right
            case ast.Div():
                return left / right
    if isinstance(tree, ast.UnaryOp) and isinstance(tree.op, ast.USub):
        return -_value(tree.operand)
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int | float):
        return Fraction(str(tree.value))
    raise ValueError(ast.dump(tree))


def _rounds_to(value: Fraction, written: str, is_divided: bool) -> bool:
    """Return whether a result is right; its sign is ignored because a dash may mean a range: 1990-2000 = 10 years."""
    decimals = len(written.partition(".")[2])
    off = abs(abs(value) - abs(Fraction(written)))
    return off < 1 if is_divided and not decimals else off <= Fraction(1, 2 * 10**decimals) * (decimals > 0)


_COMMA = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_EQUATION = re.compile(  # longer expressions than 200 characters are skipped
    r"(?<![\w.,^%])(?P<left>[\d(][\d \t.()+*/×÷·−-]{1,200}[\d)])[ \t]*=[ \t]*(?P<right>-?\d+(?:\.\d+)?)"
    r"(?![\w%^]|\.\d|[ \t]*[-+*/×÷·−^(=])"
)
_VARIABLE = re.compile(r"(?:[-+*/×÷·−^(]|(?<![^\W\d_])[^\W\d_])\s*$")
_OPERATORS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-"})
