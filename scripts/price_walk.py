"""Follow a price through the source, without running it: from the route that shows it to the read of its table."""

import ast
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROUTE = "/market_overview"
"""The route whose handler the walk begins with."""
TABLE = "market_data"
"""The table of prices, which the walk must reach."""
PRICE_FIELDS = {"close", "closes", "price", "prices", "last_close"}
"""Fields that make a class one that carries prices."""

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class PriceWalk:
    """What a price meets: classes that carry it and are built on the way, and functions that pass it on."""

    types: frozenset[str]
    hops: frozenset[str]


def parse_package(root: Path) -> dict[str, ast.Module]:
    """Return the modules of a package by name, such as `package.module`; generated ones are left out."""
    files = [file for file in sorted(root.rglob("*.py")) if "_pb2" not in file.name]
    names = [".".join(file.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return {name: ast.parse(file.read_text(encoding="utf-8")) for name, file in zip(names, files, strict=True)}


@cache
def nodes_of(tree: ast.Module) -> tuple[ast.AST, ...]:
    """Return all nodes of a module, which are looked for once."""
    return tuple(ast.walk(tree))


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield each name that import statements bind anywhere in a module, and the full name that it stands for."""
    for node in nodes_of(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.asname or alias.name, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names)


def walk_price(trees: dict[str, ast.Module]) -> PriceWalk:
    """Return what a price meets between the database and the route that shows it.

    A class carries prices if it has one of `PRICE_FIELDS` or a field of such a class, or is derived from one. The walk
    begins with the handler of `ROUTE`. It goes on to each function of the package that a function on the way mentions,
    by name or as an attribute of a value whose class is known from annotations, constructors, returned types and
    assignments; a container counts as its items. `types` are the classes that carry prices and are built in these
    functions; `hops` are those of the functions that take or return such a class, or are a method of it.

    Raises:
        ValueError: there is no such handler, or the walk does not reach the table.
    """
    index = _Index(trees)
    start, outer = index.handler()
    bodies = {start: _Body(index, start, index.functions[start], _Body(index, outer, index.functions[outer]).variables)}
    to_do = [start]
    while to_do:
        for name in bodies[to_do.pop()].functions - bodies.keys():
            bodies[name] = _Body(index, name, index.functions[name])
            to_do.append(name)
    table = index.of_table()
    if not any(table & body.mentioned for body in bodies.values()):
        raise ValueError(f"the walk from {ROUTE} does not reach the table {TABLE}")
    carriers = index.price_classes()
    built = {name for body in bodies.values() for name in body.built}
    hops = {name for name in bodies if (index.signature(name) | {name.rpartition(".")[0]}) & carriers}
    return PriceWalk(frozenset(built & carriers), frozenset(hops))


class _Index:
    """The functions, classes and constants of a package by their full names, such as `package.module.Class.method`."""

    def __init__(self, trees: dict[str, ast.Module]) -> None:
        self.trees = trees
        self.names = {module: dict(imported(tree)) for module, tree in trees.items()}
        self.functions: dict[str, FunctionNode] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self.constants: dict[str, ast.expr] = {}
        self._fields: dict[str, dict[str, set[str]]] = {}
        for module, tree in trees.items():
            for node in tree.body:
                self._add(module, node)

    def _add(self, module: str, node: ast.stmt) -> None:
        if isinstance(node, FunctionNode | ast.ClassDef):
            name = self.names[module][node.name] = f"{module}.{node.name}"
            if isinstance(node, ast.ClassDef):
                self.classes[name] = node
                self.functions |= {f"{name}.{each.name}": each for each in node.body if isinstance(each, FunctionNode)}
            else:
                self.functions[name] = node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = self.names[module][node.targets[0].id] = f"{module}.{node.targets[0].id}"
            self.constants[name] = node.value

    def module_of(self, name: str) -> str:
        while name not in self.trees:
            name = name.rpartition(".")[0]
        return name

    def handler(self) -> tuple[str, str]:
        """Return the handler of the route, and the function that it stands in."""
        for outer, function in list(self.functions.items()):
            for node in ast.walk(function):
                if isinstance(node, FunctionNode) and any(_is_route(each) for each in node.decorator_list):
                    self.functions[f"{outer}.{node.name}"] = node
                    return f"{outer}.{node.name}", outer
        raise ValueError(f"no function handles {ROUTE}")

    def mentioned(self, module: str, node: ast.AST) -> set[str]:
        """Return what the names in a piece of code stand for."""
        names, found = self.names[module], set[str]()
        for each in ast.walk(node):
            if isinstance(each, ast.Name):
                found.add(names.get(each.id, ""))
            elif isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
                found.add(f"{names.get(each.value.id, '')}.{each.attr}")
        return found

    def annotated(self, module: str, annotation: ast.expr | None) -> set[str]:
        """Return the classes in an annotation, quoted or not, and in aliases such as `Frames = list[Frame]`."""
        if annotation is None:
            return set()
        found = self.mentioned(module, annotation)
        for each in ast.walk(annotation):
            if isinstance(each, ast.Constant) and isinstance(each.value, str) and each.value.isprintable():
                with suppress(SyntaxError):  # the text of a Literal
                    found |= self.mentioned(module, ast.parse(each.value, mode="eval"))
        aliases = {name: self.constants[name] for name in found & self.constants.keys()}
        inner = (
            self.annotated(self.module_of(name), value)
            for name, value in aliases.items()
            if isinstance(value, ast.BinOp | ast.Subscript)
        )
        return (found & self.classes.keys()).union(*inner)

    def signature(self, name: str) -> set[str]:
        """Return the classes that a function takes or returns."""
        module, function = self.module_of(name), self.functions[name]
        annotations = [*(each.annotation for each in _parameters(function)), function.returns]
        return set[str]().union(*(self.annotated(module, each) for each in annotations))

    def bases(self, name: str) -> set[str]:
        module = self.module_of(name)
        return set[str]().union(*(self.annotated(module, each) for each in self.classes[name].bases))

    def method(self, name: str, attribute: str) -> set[str]:
        """Return the function that an attribute of a class is, if it is one; it may be inherited."""
        if (own := f"{name}.{attribute}") in self.functions:
            return {own}
        return set[str]().union(*(self.method(base, attribute) for base in self.bases(name)))

    def fields(self, name: str) -> dict[str, set[str]]:
        """Return the classes that the attributes of a class have: by annotation, or as `__init__` assigns them."""
        if name in self._fields:
            return self._fields[name]
        module, found = self.module_of(name), self._fields.setdefault(name, {})  # kept at once: it may refer to itself
        for base in self.bases(name):
            found |= self.fields(base)
        for node in self.classes[name].body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = self.annotated(module, node.annotation)
        if constructor := self.functions.get(f"{name}.__init__"):
            body = _Body(self, f"{name}.__init__", constructor, look=False)
            for part in ast.walk(constructor):
                for target, value in _assignments(part):
                    if isinstance(target, ast.Attribute):
                        found[target.attr] = found.get(target.attr, set()) | body.classes_of(value)
        return found

    def price_classes(self) -> set[str]:
        """Return the classes that carry prices."""
        own = {
            name: {
                each.target.id
                for each in node.body
                if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
            }
            for name, node in self.classes.items()
        }
        found = {name for name, fields in own.items() if fields & PRICE_FIELDS}
        while True:
            more = {
                name
                for name in self.classes.keys() - found
                if self.bases(name) & found or any(self.fields(name).get(each, set()) & found for each in own[name])
            }
            if not more:
                return found
            found |= more

    def of_table(self) -> set[str]:
        """Return the constants that are the table or made of it, such as statements that read it."""
        found = {name for name, value in self.constants.items() if _first_argument(value) == TABLE}
        while more := {
            name
            for name in self.constants.keys() - found
            if self.mentioned(self.module_of(name), self.constants[name]) & found
        }:
            found |= more
        return found


class _Body:
    """What a function mentions and builds, with the classes of its variables as far as they can be told."""

    def __init__(
        self,
        index: _Index,
        name: str,
        function: FunctionNode,
        outer: dict[str, set[str]] | None = None,
        look: bool = True,
    ) -> None:
        self.index, self.module = index, index.module_of(name)
        self.variables = dict(outer or {})
        for parameter in (each for node in ast.walk(function) for each in _parameters(node)):
            self._bind(parameter.arg, index.annotated(self.module, parameter.annotation))
        if (owner := name.rpartition(".")[0]) in index.classes:
            self._bind("self", {owner})
            self._bind("cls", {owner})
        self.functions: set[str] = set()
        self.built: set[str] = set()
        self.mentioned = index.mentioned(self.module, function)
        if look:
            self._look_through(function)

    def _bind(self, name: str, classes: set[str]) -> None:
        self.variables[name] = self.variables.get(name, set()) | classes

    def _look_through(self, function: FunctionNode) -> None:
        for _ in range(2):  # a variable may be used above the line that tells its class
            for node in ast.walk(function):
                for target, value in _assignments(node):
                    found = self.classes_of(value)
                    for each in ast.walk(target):
                        if isinstance(each, ast.Name):
                            self._bind(each.id, found)
        for node in ast.walk(function):
            if isinstance(node, ast.Name | ast.Attribute):
                self.functions |= self._meant(node) & self.index.functions.keys()
            elif isinstance(node, ast.Call):
                built = self._meant(node.func) & self.index.classes.keys()
                self.built |= built
                for name in built:
                    self.functions |= self.index.method(name, "__init__") | self.index.method(name, "__post_init__")

    def _meant(self, node: ast.expr) -> set[str]:
        """Return the function or class that a name or an attribute stands for."""
        names = self.index.names[self.module]
        if isinstance(node, ast.Name):
            return set() if node.id in self.variables else {names.get(node.id, "")}
        if not isinstance(node, ast.Attribute):
            return set()
        if isinstance(node.value, ast.Name) and node.value.id not in self.variables:
            return {f"{names.get(node.value.id, '')}.{node.attr}"}
        return set[str]().union(*(self.index.method(name, node.attr) for name in self.classes_of(node.value)))

    def classes_of(self, node: ast.AST) -> set[str]:
        """Return the classes that the value of an expression may have; of a container, those of its items."""
        index = self.index
        if isinstance(node, ast.Name):
            return self.variables.get(node.id, set())
        if isinstance(node, ast.Attribute):
            owners = self.classes_of(node.value)
            return set[str]().union(
                *(index.fields(owner).get(node.attr, set()) for owner in owners),
                *(self._returned(method) for owner in owners for method in index.method(owner, node.attr)),
            )
        if isinstance(node, ast.Call) and (
            meant := self._meant(node.func) & (index.functions.keys() | index.classes.keys())
        ):
            return set[str]().union(*({each} if each in index.classes else self._returned(each) for each in meant))
        if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
            return self.classes_of(node.elt)
        return set[str]().union(*(self.classes_of(each) for each in ast.iter_child_nodes(node)))

    def _returned(self, name: str) -> set[str]:
        return self.index.annotated(self.index.module_of(name), self.index.functions[name].returns)


def _parameters(node: ast.AST) -> list[ast.arg]:
    if not isinstance(node, FunctionNode | ast.Lambda):
        return []
    return [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]


def _assignments(node: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """Return the targets of an assignment, a loop or a `with`, each with what it is bound to."""
    if isinstance(node, ast.Assign):
        target, value = node.targets[0], node.value
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            return list(zip(target.elts, value.elts, strict=False))
        return [(each, value) for each in node.targets]
    if isinstance(node, ast.AnnAssign):
        return [(node.target, node.annotation)]
    if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
        return [(node.target, node.iter)]
    if isinstance(node, ast.NamedExpr):
        return [(node.target, node.value)]
    if isinstance(node, ast.withitem) and node.optional_vars is not None:
        return [(node.optional_vars, node.context_expr)]
    return []


def _is_route(decorator: ast.expr) -> bool:
    return str(_first_argument(decorator)).endswith(ROUTE)


def _first_argument(node: ast.expr) -> object:
    """Return the first argument of a call, if it is a constant."""
    first = node.args[0] if isinstance(node, ast.Call) and node.args else None
    return first.value if isinstance(first, ast.Constant) else None
