"""What `scripts/house.py` counts, on packages of a few lines."""

import ast

import house
import pytest
from price_walk import walk_price

SHOP = {
    "shop.tables": 'PRICES = Table("market_data")\nLATEST = select(PRICES)\nOTHER = Table("other")',
    "shop.rows": "class Quote:\n    close: float\n\nclass Unbuilt:\n    close: float",
    "shop.store": """
from shop.rows import Quote
from shop.tables import LATEST

class Store:
    def last(self) -> "Quote | None":
        return Quote(run(LATEST))
""",
    "shop.web": """
from shop.store import Store
from shop.rows import Quote

class Shown:
    quotes: list[Quote]

class Views:
    def __init__(self, store: Store) -> None:
        self.store = store

    def show(self) -> int:
        return [Shown(each) for each in map(self.store.last, range(3)) if is_late(each)]

def is_late(quote: Quote) -> bool: ...

def make_routes(views: Views):
    @routes.get("/market_overview")
    def overview():
        return views.show()
""",
}


def parsed(package: dict[str, str]) -> dict[str, ast.Module]:
    return {name: ast.parse(text) for name, text in package.items()}


def test_a_price_is_followed_from_its_route_to_its_table() -> None:
    found = walk_price(parsed(SHOP))
    assert found.types == {"shop.rows.Quote", "shop.web.Shown"}
    assert found.hops == {"shop.store.Store.last", "shop.web.is_late"}


def test_a_walk_that_does_not_arrive_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not reach the table"):
        walk_price(parsed(SHOP | {"shop.store": SHOP["shop.store"].replace("LATEST", "OTHER")}))


def test_the_longest_chain_of_imports_counts_a_circle_as_one_module() -> None:
    package = {
        "p.top": "def f():\n    from p.middle import g",
        "p.middle": "from p import ring",
        "p.ring": "import p.ring_too",
        "p.ring_too": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.ring\nfrom p.bottom import x",
        "p.bottom": "import json",
    }
    found = house.import_depths(parsed(package))
    assert found == {"p.bottom": 1, "p.ring": 2, "p.ring_too": 2, "p.middle": 3, "p.top": 4}


def test_parameters_subscripts_classes_and_lines_of_functions() -> None:
    text = """
class Answer: ...
class _Hidden: ...
def f(a, *, as_of_us=None):
    a["x"] = a["y"][0]
    return a[b]
async def g(as_of, /): ...
"""
    trees = parsed({"qubic_lab.runs.a": text, "qubic_lab.runs.b": text, "qubic_lab.cli.c": text})
    assert house.count_parameters(trees, {"as_of", "as_of_us"}) == 6
    assert house.count_string_subscripts(trees) == 4
    assert house.repeated_classes(trees) == {"Answer": 3}
    assert house.longest_function(trees) == (3, "qubic_lab.runs.b.f")


@pytest.mark.slow
def test_all_counts_of_this_checkout_are_found() -> None:
    counts, names = house.count_all(house.ROOT)
    assert all(each.now > 0 for each in counts if "repeated" not in each.what)
    assert all(found for what, found in names.items() if "repeated" not in what)
