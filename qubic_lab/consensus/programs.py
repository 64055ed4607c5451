"""Programs and literals in an answer, normalized so that spaces and comments do not count."""

import ast
import re
import textwrap
from dataclasses import dataclass
from functools import lru_cache

LONGEST = 20_000
"""Characters; of a longer program only spaces are normalized."""
LITERAL = "literal "
"""The prefix of a normalized literal."""
_NOT_PARSED = (SyntaxError, ValueError, TypeError, MemoryError, RecursionError)
_FENCE = re.compile(r"^[ \t]*```[ \t]*+([\w+#.-]*+)[^\n`]*+\n(.*?)(?:```|\Z)", re.DOTALL | re.MULTILINE)
_LITERAL = re.compile(
    r"\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]|\{[^{}]*\}|\([^(),]*,[^()]*\)|(?<!\w)(['\"])[^'\"\n]*\1(?!\w)"
)
_SIGN = re.compile(r"[(){}\[\];=|<>$]|--?\w|\w\.\w|\w\s+\w")
_COMMENT = re.compile(r"(?<!\S)(?:#|//)[^\n]*|/\*.*?\*/", re.DOTALL)
_SQL_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)
_TOKEN = re.compile(r"\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|\w+|[^\w\s]")
_SQL = re.compile(r"\s*(?:select|insert\s+into|update|delete\s+from|create\s+table|with)\b", re.IGNORECASE)
_PROMPT = re.compile(r"^(?:>>>|\.\.\.) ?", re.MULTILINE)


@dataclass(frozen=True)
class CodeBlock:
    """A fenced code block; `language` may be ""; `length` counts characters including the fences."""

    language: str
    code: str
    length: int


def blocks(text: str) -> list[CodeBlock]:
    """Return the fenced blocks of a text; the last one may be unclosed."""
    return [CodeBlock(found[1].casefold(), found[2], len(found[0])) for found in _FENCE.finditer(text)]


def without_blocks(text: str) -> str:
    """Return a text without its fenced blocks."""
    return _FENCE.sub("\n", text)


def literal(text: str) -> tuple[str, str] | None:
    """Return the last literal of a text (list, tuple, set, dict or string) and the text without it, or None."""
    for found in reversed(list(_LITERAL.finditer(text))):
        try:
            value = ast.literal_eval(found[0])
        except _NOT_PARSED:
            continue
        return f"{LITERAL}{value!r}", text[: found.start()] + " " + text[found.end() :]
    return None


def looks_like_code(text: str) -> bool:
    """Return whether a text is nothing but code: it has signs of code, and is SQL or valid Python."""
    return bool(_SIGN.search(text)) and (bool(_SQL.match(text)) or _python(text) is not None)


def has_code_sign(text: str) -> bool:
    """Return whether a text has signs of code, so is more than one word."""
    return _SIGN.search(text) is not None


@lru_cache(1024)
def normal_code(code: str, language: str = "") -> str:
    """Return a form that is equal for programs that differ only in spaces and comments.

    This is Python's syntax tree if the code parses, else its tokens; SQL ignores case. Of code that only claims to be
    Python just the spaces are normalized.
    """
    if len(code) > LONGEST:
        return " ".join(code.split())
    if language in ("", "python", "py", "python3"):
        if (tree := _python(code)) is not None:
            return tree
        if language:
            return " ".join(code.split())
    is_sql = language == "sql" or _SQL.match(code) is not None
    tokens = _TOKEN.findall((_SQL_COMMENT if is_sql else _COMMENT).sub(" ", code))
    if is_sql:
        tokens = [token if token[0] in "'\"" else token.casefold() for token in tokens]
    return " ".join(tokens).removesuffix(" ;")


def _python(code: str) -> str | None:
    code = _PROMPT.sub("", textwrap.dedent(code).strip())
    try:
        return ast.dump(ast.parse(code))
    except _NOT_PARSED:
        return None
