"""The books of the KV cache's pages, without tensors: which are in use, and which hold a known beginning of a text.

Rank 0 keeps them for all ranks, whose pages have the same numbers. A page has PAGE positions of all layers of a stage.
A full one whose tokens are known, with all tokens before them, can be used by any number of requests that begin with
the same tokens. Source of the idea: PagedAttention (arXiv 2309.06180).
"""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qubic_lab.errors import InputError, ModelError
from qubic_lab.model.layout import PAGE

MEMORY_SHARE, MOST_SHARE = 0.5, 0.9
"""Shares of a host's free memory that pages take by default, and at most."""
KEPT_BYTES = 512 * 2**20
"""Memory of a host for pages that nobody uses, beyond what running requests needed before."""


def affordable_pages(ranks: Iterable[Mapping[str, Any]], asked_tokens: int, needed_tokens: int) -> tuple[int, int]:
    """Return how many pages the ranks' hosts have memory for, and how many of them may be kept for nobody.

    Args:
        ranks: of each rank `page_bytes`, and `free_bytes` and the name of its `host`, as of RankDescription.
        asked_tokens: tokens that the pages must hold, or 0: `needed_tokens`, or as many as half the free memory holds.
        needed_tokens: more than this is never used.

    Raises:
        InputError: there is not enough memory for what was asked.
        ModelError: there is none for a single page.
    """
    hosts: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for rank in ranks:
        hosts[rank["host"]].append(rank)
    sizes = {host: sum(rank["page_bytes"] for rank in those) for host, those in hosts.items()}
    free = {host: min(rank["free_bytes"] for rank in those) for host, those in hosts.items()}
    tightest = min(hosts, key=lambda host: free[host] / sizes[host])
    size, room = sizes[tightest], free[tightest]
    kept = KEPT_BYTES // max(sizes.values())
    if asked_tokens:
        pages = -(-asked_tokens // PAGE)
        if pages * size > MOST_SHARE * room:
            most = int(MOST_SHARE * room / size) * PAGE
            raise InputError(
                f"kv_tokens asks for {pages} pages of {PAGE} tokens, which take {pages * size / 2**30:.1f} GiB on "
                f"{tightest}, where {room / 2**30:.1f} GiB are free: give at most {most}"
            )
        return pages, kept
    pages = min(-(-needed_tokens // PAGE), int(MEMORY_SHARE * room / size))
    if not pages:
        raise ModelError(f"{tightest} has {room / 2**20:.0f} MiB of free memory, too little for keys and values")
    return pages, kept


@dataclass(eq=False)
class Page:
    """A page; once it is known it has its `tokens`, and the known page `before` it, if it is not a text's first one."""

    number: int
    users: int = 0
    spoiled: bool = False  # it may have infinities
    tokens: tuple[int, ...] = ()
    before: "Page | None" = None
    followers: int = 0  # known pages that have this one before them

    @property
    def key(self) -> tuple[int | None, tuple[int, ...]]:
        """What a known page is found by: the number of the one before it, and its tokens."""
        return self.before.number if self.before else None, self.tokens


class Pages:
    """At most `total` pages. Of those that nobody uses, at most `most_kept` stay known while unused numbers are left.

    Whoever uses a known page uses those before it too. So among the known pages that nobody uses there is always one
    that nothing follows.
    """

    def __init__(self, total: int, most_kept: int) -> None:
        self.total = total
        self._most_kept = most_kept
        self._begun = 0  # numbers that have been in use
        self._free: list[Page] = []
        self._known: dict[tuple[int | None, tuple[int, ...]], Page] = {}
        self._kept: OrderedDict[int, Page] = OrderedDict()  # known and without users, longest unused first

    @property
    def available(self) -> int:
        """Pages that nobody uses."""
        return self.total - self._begun + len(self._free) + len(self._kept)

    @property
    def used(self) -> int:
        """Pages that somebody uses."""
        return self.total - self.available

    def find(self, tokens: Sequence[int]) -> list[Page]:
        """Return the known pages with which a text of these tokens begins; they get no user by that."""
        found: list[Page] = []
        for start in range(0, len(tokens) - PAGE + 1, PAGE):
            key = (found[-1].number if found else None, tuple(tokens[start : start + PAGE]))
            if (page := self._known.get(key)) is None:
                break
            found.append(page)
        return found

    def unused(self, pages: Sequence[Page]) -> int:
        """Return how many of these pages are available."""
        return sum(not page.users for page in pages)

    def take(self, count: int) -> list[Page]:
        """Return pages for one user each, whose contents are of no use; there must be as many available."""
        assert count <= self.available
        return [self._take() for _ in range(count)]

    def use(self, pages: Sequence[Page]) -> list[Page]:
        """Give each page one user more; return them."""
        for page in pages:
            page.users += 1
            self._kept.pop(page.number, None)
        return list(pages)

    def release(self, pages: Sequence[Page]) -> list[Page]:
        """Take a user from each page of a text; return those that must be cleared before they are used again."""
        spoiled = []
        for page in reversed(pages):  # so that what follows a page is forgotten before it
            page.users -= 1
            if page.users:
                continue
            if page.tokens:
                self._kept[page.number] = page
            else:
                self._free.append(page)
            if page.spoiled:
                page.spoiled = False
                spoiled.append(page)
        return spoiled

    def know(self, page: Page, before: Page | None, tokens: tuple[int, ...]) -> Page:
        """Make a full page of a text known and return it, or the one that already is; `before` is known."""
        key = (before.number if before else None, tokens)
        if known := self._known.get(key):
            return known
        page.before, page.tokens = before, tokens
        if before:
            before.followers += 1
        self._known[key] = page
        return page

    def _take(self) -> Page:
        begun = self._begun < self.total
        if not self._free and self._kept and (len(self._kept) > self._most_kept or not begun):
            self._forget(next(page for page in self._kept.values() if not page.followers))
        if self._free:
            page = self._free.pop()
        else:
            page = Page(self._begun)
            self._begun += 1
        page.users = 1
        return page

    def _forget(self, page: Page) -> None:
        del self._kept[page.number], self._known[page.key]
        if page.before:
            page.before.followers -= 1
        page.tokens, page.before = (), None
        self._free.append(page)
