"""Texts that make a regular expression slow, if anything does: repeats of what its own repeated parts match.

`python regex_attacks.py MODULE…` prints two lines of JSON for each pattern of these modules: its place, and
the seconds that the worst attack of n and of 2 n characters took, in the way in which the pattern is used.
"""

import ast
import importlib
import json
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from types import ModuleType
from typing import Any

LENGTH = 4_000
"""Characters of the shorter attack."""
SAMPLES, MOST_PUMPS = 6, 40
NOTICED_S, MOST_TIMES = 0.01, 3.0
"""An attack of twice the length may take the one or the other."""
TAILS = ("", "\0", "é")
SUSPECT_S = 0.0015
"""Patterns that take less for LENGTH characters grow slowly enough, and so do those that take a 64th of it for a fourth
of the length: what grows faster than a cube takes far more even there.
"""
USES = ("match", "fullmatch", "search", "sub", "split", "findall", "finditer")
WEAKER = {"match": 0, "fullmatch": 1}
"""Uses that start at one place only; all others start at each place."""
_OF_CATEGORY = {sre.CATEGORY_DIGIT: "7", sre.CATEGORY_SPACE: " \n", sre.CATEGORY_WORD: "a"}

Found = dict[tuple[str, int], tuple[str, set[str]]]
"""By pattern and flags: where it was found, and how it is used."""


def patterns(module: ModuleType) -> Found:
    """Return the patterns of a module: global ones, those in global containers, and those written in a call."""
    found: Found = {}
    calls = [node for node in ast.walk(_tree(module)) if isinstance(node, ast.Call) and _method(node) in USES]
    held = {name: list(_within(value)) for name, value in vars(module).items()}
    elsewhere: set[str] = set()  # uses of patterns that are not named by a global: entries of a table
    for call in calls:
        assert isinstance(call.func, ast.Attribute)
        owner = call.func.value
        if isinstance(owner, ast.Name) and owner.id == "re":
            pattern = _written(call, module)
            compiled = [] if pattern is None else [pattern]
            _note(found, f"{module.__name__}:{call.lineno}", compiled, {call.func.attr})
        elif isinstance(owner, ast.Name) and isinstance(vars(module).get(owner.id), re.Pattern):
            _note(found, f"{module.__name__}.{owner.id}", held[owner.id], {call.func.attr})
        else:
            elsewhere.add(call.func.attr)
    for name, compiled in held.items():
        if not isinstance(vars(module)[name], re.Pattern):
            _note(found, f"{module.__name__}.{name}", compiled, elsewhere or {"search"})
    return found


def _note(found: Found, where: str, compiled: Iterable["re.Pattern[str]"], uses: set[str]) -> None:
    for each in compiled:
        found.setdefault((each.pattern, each.flags), (where, set()))[1].update(uses)


def _tree(module: ModuleType) -> ast.Module:
    assert module.__file__ is not None
    return ast.parse(Path(module.__file__).read_text(encoding="utf-8"))


def _method(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else ""


def _written(call: ast.Call, module: ModuleType) -> "re.Pattern[str] | None":
    """Return the pattern in a call such as re.match(pattern, …); None if it is made of local values."""
    try:
        value = eval(compile(ast.Expression(call.args[0]), "", "eval"), vars(module))
        return re.compile(value) if isinstance(value, str) else None
    except NameError:
        return None


def _within(value: Any) -> Iterator["re.Pattern[str]"]:
    if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _within(part)


def attacks(pattern: str, flags: int) -> Iterator[Callable[[int], str]]:
    """Yield functions that make an attack of about so many characters."""
    tree = parser.parse(pattern, flags)
    draw = random.Random(pattern)
    pumps = {pump for body in _repeated(tree) for _ in range(SAMPLES) if (pump := _sample(body, draw))}
    pumps |= {head + pump for pump in sorted(pumps) if (head := _sample(tree, draw)[:8])}
    pumps |= {a + b for a in sorted(pumps)[:SAMPLES] for b in sorted(pumps)[:SAMPLES] if a != b}
    for pump in sorted(pumps)[:MOST_PUMPS]:
        for head in sorted({"", _sample(tree, draw)[:8]}):
            for tail in TAILS:
                yield lambda length, pump=pump, head=head, tail=tail: head + pump * (length // len(pump)) + tail


def _repeated(tree: Any) -> Iterator[Any]:
    """Yield the bodies of all long repeats of a parsed pattern."""
    for kind, value in tree:
        if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            _, most, body = value
            if most is sre.MAXREPEAT or most > 20:
                yield body
            yield from _repeated(body)
        else:
            for inner in _inner(kind, value):
                yield from _repeated(inner)


def _inner(kind: Any, value: Any) -> Iterable[Any]:
    if kind is sre.BRANCH:
        return value[1]
    if kind is sre.SUBPATTERN:
        return [value[3]]
    if kind is sre.ATOMIC_GROUP:
        return [value]
    if kind in (sre.ASSERT, sre.ASSERT_NOT):
        return [value[1]]
    return []


def _sample(tree: Any, draw: random.Random) -> str:
    """Return a text that a parsed pattern matches, apart from what it looks for around it."""
    return "".join(_sample_of(kind, value, draw) for kind, value in tree)


def _sample_of(kind: Any, value: Any, draw: random.Random) -> str:
    if kind is sre.LITERAL:
        return chr(value)
    if kind is sre.NOT_LITERAL:
        return "b" if value == ord("a") else "a"
    if kind is sre.ANY:
        return "a"
    if kind is sre.IN:
        return _of_set(value, draw)
    if kind in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        least, most, body = value
        return "".join(_sample(body, draw) for _ in range(max(least, min(most, draw.randint(0, 2)))))
    if kind in (sre.ASSERT, sre.ASSERT_NOT):
        return ""
    inner = list(_inner(kind, value))
    return _sample(draw.choice(inner), draw) if inner else ""


def _of_set(members: Any, draw: random.Random) -> str:
    if members[0][0] is sre.NEGATE:
        return "b" if (sre.LITERAL, ord("a")) in members else "a"
    kind, value = draw.choice(members)
    if kind is sre.RANGE:
        return chr(draw.choice(value))
    if kind is sre.CATEGORY:
        return draw.choice(_OF_CATEGORY.get(value, "-"))
    return chr(value)


def slowest(pattern: str, flags: int, use: str) -> tuple[float, float, str]:
    """Return the times of the attack that takes longest, or of the first that grows too fast, and how it begins."""
    compiled = re.compile(pattern, flags)
    apply = {"match": compiled.match, "fullmatch": compiled.fullmatch}.get(use, lambda text: compiled.sub("", text))
    worst = (0.0, 0.0, "")
    for attack in attacks(pattern, flags):
        if _seconds(apply, attack(LENGTH // 4)) <= SUSPECT_S / 64:
            continue
        short, long = attack(LENGTH), attack(2 * LENGTH)
        if _seconds(apply, short) > SUSPECT_S:
            for _ in range(5):  # again, as caches of the processor have other users
                times = [min(_seconds(apply, text) for _ in range(3)) for text in (short, long)]
                if not grows_too_fast(*times):
                    break
            else:
                return times[0], times[1], long[:40]
            if times[1] > worst[1]:
                worst = (times[0], times[1], long[:40])
    return worst


def grows_too_fast(short_s: float, long_s: float) -> bool:
    """Return whether the times of two attacks, one twice as long as the other, show that a pattern is slow."""
    return long_s > max(NOTICED_S, MOST_TIMES * short_s)


def _seconds(apply: Callable[[str], Any], text: str) -> float:
    started = time.process_time()
    apply(text)
    return time.process_time() - started


def main() -> None:
    """Attack the patterns of the named modules."""
    found: Found = {}
    for name in sys.argv[1:]:
        for key, (where, uses) in patterns(importlib.import_module(name)).items():
            found.setdefault(key, (where, set()))[1].update(uses)
    for (pattern, flags), (where, uses) in found.items():
        use = max(uses, key=lambda each: WEAKER.get(each, 2))
        print(json.dumps({"where": where, "use": use, "pattern": pattern[:80]}), flush=True)
        times = slowest(pattern, flags, use)
        print(json.dumps(dict(zip(("short_s", "long_s", "attack"), times, strict=True))), flush=True)


if __name__ == "__main__":
    main()
