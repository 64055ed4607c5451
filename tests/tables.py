"""Tables of examples as text: a row ends with a bar and white space, an arrow separates its parts, a tilde pairs."""

import re


def table(text: str) -> list[str]:
    """Return the rows of a table."""
    return [row.strip() for row in re.split(r" \|\s", text)]


def parts(row: str) -> tuple[str, str]:
    """Return the parts of a row before and after its arrow."""
    first, _, second = row.partition(" →")
    return first, second.strip()


def sides(row: str) -> tuple[str, str]:
    """Return the two sides of a row."""
    one, _, other = row.partition(" ~")
    return one.strip(), other.strip()
