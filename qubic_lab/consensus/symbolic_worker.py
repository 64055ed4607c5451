"""The worker process of `symbolic`: reads formulas as lines of JSON and writes their canonical forms."""

import hashlib
from fractions import Fraction
from typing import Any

from qubic_lab.killable import answer_lines

PARSE_SECONDS = 3
DIGITS = 40
KEPT = 25
"""Digits that must agree; SymPy computes DIGITS."""


def main() -> None:
    """Answer until the input ends."""
    import math_verify.parser  # noqa: F401  # now, not at the first question

    answer_lines(canonical)


def canonical(formula: str) -> list[str] | None:
    """Return the forms of a LaTeX formula for positive and for negative unknowns, or None if it cannot be parsed."""
    from math_verify import LatexExtractionConfig, parse

    read = parse(f"${formula}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=PARSE_SECONDS)
    return [_form(read[0], sign) for sign in (1, -1)] if read else None


def _form(read: Any, sign: int) -> str:
    """Return the form of a SymPy object; a defined unknown is left out: x = 12 is 12."""
    import sympy
    from latex2sympy2_extended.sets import FiniteSet

    if isinstance(read, sympy.Eq):
        if read.lhs.is_Symbol and read.lhs not in read.rhs.free_symbols:
            return _form(read.rhs, sign)
        return " = ".join(sorted((_form(read.lhs, sign), _form(read.rhs, sign))))
    if isinstance(read, sympy.Lt | sympy.Gt | sympy.Le | sympy.Ge):
        order = "<" if isinstance(read, sympy.Lt | sympy.Gt) else "<="
        return f"{_form(read.lts, sign)} {order} {_form(read.gts, sign)}"
    if isinstance(read, FiniteSet | sympy.FiniteSet):
        return "{" + ", ".join(sorted({_form(part, sign) for part in read.args})) + "}"
    if isinstance(read, sympy.MatrixBase):
        return f"{read.shape}: " + ", ".join(_form(part, sign) for part in read)
    if isinstance(read, sympy.Expr):
        return _value(read, sign)
    return f"{type(read).__name__}({', '.join(_form(part, sign) for part in read.args) or read})"


def _value(expression: Any, sign: int) -> str:
    """Return an expression's value at a fixed point, where different expressions almost always differ."""
    import sympy

    at = {symbol: sign * sympy.Rational(_coordinate(symbol.name)) for symbol in expression.free_symbols}
    at |= {symbol: sympy.I for symbol in at if symbol.name == "i" and symbol.is_real is False}
    value = sympy.N(expression.subs(at), DIGITS)
    if not (value.is_number and value.is_finite):
        return str(sympy.srepr(expression))
    return " + i ".join(_digits(part) for part in value.as_real_imag())


def _digits(value: Any) -> str:
    import sympy

    return "0" if abs(value) < sympy.Float(10) ** (-3 * DIGITS // 2) else str(sympy.N(value, KEPT))


def _coordinate(name: str) -> Fraction:
    """Return a fixed number between 1 and 2 for an unknown."""
    return 1 + Fraction(int.from_bytes(hashlib.sha256(name.encode()).digest()[:2], "big") | 1, 2**16 + 1)


if __name__ == "__main__":
    main()
