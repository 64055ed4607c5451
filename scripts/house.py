"""Count what makes the code long, deep or hard to follow, beside what it was and what is aimed at; it fails nothing.

- Lines are those of all Python files, generated ones and migrations included.
- Import depth is the number of modules in the longest chain in which each imports the next, by any import statement
  wherever it stands; modules that import each other in a circle count as one. Of the oracle it is the longest chain
  that begins at a module with "oracle" in its name.
- A price's types and hops: see `price_walk.walk_price`.
- Functions with `as_of` parameters have a parameter named `as_of` or `as_of_us`.
- String subscripts are `x["name"]`, read or written, columns of data frames included.
- Repeated class names are those of public classes at the top level of two modules or more, generated ones aside; in
  `oracle/`: of two of its modules.
- The longest function is counted from `def` to its last line, migrations aside.
"""

import argparse
import ast
import gc
import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from price_walk import FunctionNode, imported, nodes_of, parse_package, walk_price

ROOT = Path(__file__).parents[1]
PACKAGE, ORACLE = "qubic_lab", "qubic_lab.oracle"
DICTIONARIES = ("qubic_lab.studies", "qubic_lab.runs")
"""Packages whose string subscripts are counted."""
MIGRATIONS = "qubic_lab.migrations"

Trees = dict[str, ast.Module]


@dataclass(frozen=True)
class Count:
    """A count: its value before the aims were set (commit b79369f), its value now, and the most that is aimed at."""

    what: str
    before: int
    now: int
    aim: int

    @property
    def met(self) -> bool:
        """Whether the aim is met."""
        return self.now <= self.aim


def count_all(root: Path) -> tuple[list[Count], dict[str, list[str]]]:
    """Return all counts of a checkout, and the names behind some of them."""
    trees = parse_package(root / PACKAGE)
    price, repeated, longest = walk_price(trees), repeated_classes(trees), longest_function(trees)
    oracle = {name: tree for name, tree in trees.items() if _is_in(name, ORACLE)}
    depths = import_depths(trees)
    counts = [
        Count("lines of qubic_lab/", 71_903, count_lines(root / "qubic_lab"), 60_000),
        Count("lines of oracle/", 27_467, count_lines(root / "qubic_lab" / "oracle"), 20_000),
        Count("files in oracle/", 155, len(list((root / "qubic_lab" / "oracle").rglob("*.py"))), 85),
        Count("lines of tests/", 37_506, count_lines(root / "tests"), 31_000),
        Count("import depth, all", 22, max(depths.values()), 15),
        Count("import depth, oracle", 19, max(depth for name, depth in depths.items() if "oracle" in name), 11),
        Count("types of a price's read", 10, len(price.types), 6),
        Count("hops of a price's read", 47, len(price.hops), 25),
        Count("functions with as_of parameters", 56, count_parameters(trees, {"as_of", "as_of_us"}), 12),
        Count("string subscripts in studies/ and runs/", 1_127, count_string_subscripts(trees), 350),
        Count("repeated class names in oracle/", 19, len(repeated_classes(oracle)), 0),
        Count("repeated class names in all", 67, len(repeated), 15),
        Count("lines of the longest function", 80, longest[0], 60),
    ]
    names = {
        "types of a price's read": sorted(price.types),
        "hops of a price's read": sorted(price.hops),
        "repeated class names": [f"{name} {count}" for name, count in repeated.items()],
        "longest function": [longest[1]],
    }
    return counts, names


def count_lines(folder: Path) -> int:
    """Return the number of lines of all Python files in a folder."""
    return sum(file.read_bytes().count(b"\n") for file in folder.rglob("*.py"))


def import_depths(trees: Trees) -> dict[str, int]:
    """Return for each module the length of the longest chain of imports that begins with it."""
    imports = {name: _imports(name, trees) for name in trees}
    reached = {name: _reached(name, imports) for name in trees}
    # Modules of one circle reach the same modules, so that the one that reaches most is the first in any chain.
    circles = {name: frozenset({name, *(each for each in reached[name] if name in reached[each])}) for name in trees}
    depths: dict[str, int] = {}
    for name in sorted(trees, key=lambda name: len(reached[name] | circles[name])):
        below = {each for member in circles[name] for each in imports[member]} - circles[name]
        depths[name] = 1 + max((depths[each] for each in below), default=0)
    return depths


def _imports(name: str, trees: Trees) -> set[str]:
    """Return the modules that a module imports; `from package import name` may mean a module or what is in one."""
    targets = {full for _, full in imported(trees[name])}
    return {each if each in trees else each.rpartition(".")[0] for each in targets} & trees.keys() - {name}


def _reached(name: str, imports: dict[str, set[str]]) -> set[str]:
    found, to_do = set[str](), [name]
    while to_do:
        new = imports[to_do.pop()] - found
        found |= new
        to_do += new
    return found


def count_parameters(trees: Trees, names: set[str]) -> int:
    """Return how many functions have a parameter of one of these names."""
    parameters = (
        {each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
        for tree in trees.values()
        for node in nodes_of(tree)
        if isinstance(node, FunctionNode)
    )
    return sum(bool(each & names) for each in parameters)


def count_string_subscripts(trees: Trees) -> int:
    """Return how often a value is read or written by a literal string in brackets."""
    return sum(
        isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)
        for name, tree in trees.items()
        if any(_is_in(name, each) for each in DICTIONARIES)
        for node in nodes_of(tree)
    )


def repeated_classes(trees: Trees) -> dict[str, int]:
    """Return the names that two public classes or more have, and how many."""
    names = Counter(
        node.name
        for tree in trees.values()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    return {name: count for name, count in sorted(names.items()) if count > 1}


def longest_function(trees: Trees) -> tuple[int, str]:
    """Return the lines of the longest function, and its name."""
    return max(
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{name}.{node.name}")
        for name, tree in trees.items()
        if not _is_in(name, MIGRATIONS)
        for node in nodes_of(tree)
        if isinstance(node, FunctionNode)
    )


def _is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one object")
    parser.add_argument("--names", action="store_true", help="print the names behind some of the counts as well")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout; by default this one")
    arguments = parser.parse_args()
    gc.disable()  # it would look through all trees again and again, which takes longer than all else
    counts, names = count_all(arguments.root)
    if arguments.json:
        print(json.dumps({"counts": [asdict(each) | {"met": each.met} for each in counts], "names": names}, indent=1))
        return
    print(f"{'':40} {'b79369f':>8} {'now':>8} {'aim':>8}")
    for each in counts:
        print(f"{each.what:40} {each.before:8,} {each.now:8,} {each.aim:8,}  {'met' if each.met else 'not met'}")
    for what, found in names.items() if arguments.names else ():
        print(f"\n{what}:", *found, sep="\n  ")


if __name__ == "__main__":
    main()
