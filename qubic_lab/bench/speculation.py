"""Measures how much faster answers come with drafted tokens, on texts that repeat themselves and on free ones."""

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

from qubic_lab.bench.peers import LOOKUP_SERVER, SERVERS, PeerError, PeerModel, PeerProcess
from qubic_lab.bench.result import (
    FEWEST_PAIRS,
    ModelResult,
    Table,
    interval_text,
    median_interval,
    seconds_of,
    settings_of,
)
from qubic_lab.core import Progress, Request, SamplingParams, no_progress
from qubic_lab.errors import check_at_least
from qubic_lab.model.predict import MOST_DRAFTED
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig, ResolvedConfig
from qubic_lab.pipeline.lookup import Texts
from qubic_lab.pipeline.text import Tokenizer

_METHODS = "".join(
    f"""
    def add_{fruit}(self, count):
        \"\"\"Add {fruit} to the shop.\"\"\"
        if count < 0:
            raise ValueError("count must not be negative")
        self.{fruit} = self.{fruit} + count
        return self.{fruit}
"""
    for fruit in ("apples", "pears")
)
_REPORT = (
    "We measured the river on Monday and again on Friday. On Monday it was two metres deep below the bridge. On "
    "Friday, after the storm, it was four metres deep, and the ferry did not run. The school at the river was closed."
)
_STORY = (
    "Once there was a dog who wanted to see the moon from near by. Each night he climbed the hill behind the mill and "
    "barked until the owls complained. An old woman heard him, laughed, and built him a small rocket out of milk cans, "
    "tape and a bicycle bell. It flew no higher than the church, but from up there he saw the sea for the first time, "
    "with all the stars lying in it, and he forgot what he had come for."
)
TEXTS = {
    "code": (f"Rename count to number:\n{_METHODS}", f"Here it is:\n{_METHODS.replace('count', 'number')}"),
    "quoting": (
        f"{_REPORT}\nWhat does the report say?",
        f'The report says: "{_REPORT}" It says nothing about Tuesday.',
    ),
    "arithmetic": (
        "Write the multiplication table of 12.",
        "\n".join(f"{n} times 12 is {12 * n}, because {n} times 10 is {10 * n}." for n in range(1, 11)),
    ),
    "free": ("Tell a story about a dog who wants to travel to the moon.", _STORY),
}
"""Questions and answers, by how much of an answer stands in it or in its question already."""
OWN = "the model's own, free"
BESIDE = ("code", "quoting")
"""Texts whose second half the model writes itself, greedily, beside llama.cpp: it repeats the question there."""
_FREE = SamplingParams(max_new_tokens=128, temperature=0.7, seed=1, ignore_eos=True)


@dataclass(frozen=True)
class SpeculationPoint:
    """Answers of one kind.

    `ratio` is the time without drafts divided by the time with them, the median over pairs; `low` to `high` is its 95 %
    interval. `ms_per_token` is the median without drafts, prompt included. `accepted` is the chance of a drafted token
    to be right where the one before it is, for `qubic-lab plan --accepted`; no draft counts as a wrong one.
    """

    kind: str
    tokens: int
    ms_per_token: float
    accepted: float
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class BesideLookup:
    """What drafts do for an answer here and in llama.cpp, whose server runs as one process of as many threads.

    `ours` and `theirs` are the times without drafts divided by those with them, `both` is llama.cpp's time with drafts
    divided by ours with drafts: medians over pairs, each with its 95 % interval.
    """

    kind: str
    ours: tuple[float, float, float]
    theirs: tuple[float, float, float]
    both: tuple[float, float, float]


@dataclass(frozen=True)
class SpeculationResult(ModelResult):
    """Answers with and without drafts, one at a time; `equal_tokens` says whether the model's own were the same.

    `beside` is empty without llama.cpp; `peer` names its version, or says why it could not be measured.
    """

    points: tuple[SpeculationPoint, ...]
    beside: tuple[BesideLookup, ...]
    peer: str
    equal_tokens: bool
    pairs: int
    ranks: int

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                *(each.kind, f"{each.tokens}", f"{each.ms_per_token:.1f}", f"{each.accepted:.0%}"),
                interval_text(each.ratio, each.low, each.high, ".2f"),
            )
            for each in self.points
        ]
        yield Table(
            ("answer", "tokens", "ms a token without drafts", "drafts right", "times as fast with drafts"), rows
        )
        if self.beside:
            forms = [
                (each.kind, *(interval_text(*of, ".2f") for of in (each.ours, each.theirs, each.both)))
                for each in self.beside
            ]
            yield Table(
                ("continued greedily", "ours with drafts", "llama.cpp's lookup", "ours ÷ llama.cpp, both"), forms
            )
        yield f"one request at a time, {self.pairs} pairs, 95 % intervals"
        yield "no token changes" if self.equal_tokens else "TOKENS CHANGE"


def bench_speculation(
    config: PipelineConfig,
    pairs: int = 10,
    new_tokens: int = 128,
    beside_llama: bool = False,
    progress: Progress = no_progress,
) -> SpeculationResult:
    """Answer with and without drafts in turns, at most `new_tokens` each.

    The answers of TEXTS are given, as forced tokens: they go through the steps of a model that says just that. So the
    result depends on the texts and on the speed of the machine, and not on whether a small model does as it is told.
    With `beside_llama` the model also continues a few texts itself, here and in llama.cpp with its own lookup.

    Raises:
        InputError: too few pairs, or as for Pipeline.launch.
        ModelError, RankError: as for Pipeline.launch.
    """
    check_at_least("pairs", pairs, FEWEST_PAIRS)
    ways = {each: replace(config, speculation=each) for each in (None, "lookup")}
    taken_s: dict[tuple[str, str | None], list[float]] = {}
    answers: dict[str, tuple[int, ...]] = {}
    own: set[tuple[int, ...]] = set()
    peer = ""
    with ExitStack() as stack:
        pipeline = stack.enter_context(Pipeline.launch(ways["lookup"]))
        used = pipeline.config
        tokenizer = Tokenizer(used.folder)
        asked = {kind: given(tokenizer, *texts, new_tokens) for kind, texts in TEXTS.items()}
        asked[OWN] = Request(TEXTS["free"][0], sampling=replace(_FREE, max_new_tokens=min(new_tokens, 128)))
        servers: dict[str | None, PeerProcess] = {}
        if beside_llama:
            try:
                servers, peer = _start_servers(stack, used), ""
                peer = servers["lookup"].version
            except PeerError as error:
                peer = f"llama.cpp was not measured: {error}"
        begun = {kind: _begun(*TEXTS[kind]) for kind in BESIDE if servers}
        for pair in range(-1, pairs):  # the first is the warm-up
            for way in (None, "lookup") if pair % 2 == 0 else ("lookup", None):
                pipeline.configure(ways[way])
                for kind, request in asked.items():
                    started_s = time.perf_counter()
                    answers[kind] = pipeline.answer(request).completion.token_ids
                    taken_s.setdefault((kind, way), []).append(time.perf_counter() - started_s)
                own.add(answers[OWN])
                for kind, text in begun.items():
                    request = Request(text, raw=True, sampling=SamplingParams(new_tokens, ignore_eos=True))
                    ours = seconds_of(partial(pipeline.answer, request))
                    taken_s.setdefault((f"ours {kind}", way), []).append(ours)
                    with servers[way].awake():
                        theirs = seconds_of(partial(_continue, servers[way].url, text, new_tokens))
                    taken_s.setdefault((f"theirs {kind}", way), []).append(theirs)
            progress("pairs", pair + 1, pairs)

    def times(kind: str, way: str | None, other: str, other_way: str | None) -> tuple[float, float, float]:
        ratios = [b / a for a, b in zip(taken_s[kind, way][1:], taken_s[other, other_way][1:], strict=True)]
        return median_interval(ratios)

    return SpeculationResult(
        points=tuple(
            SpeculationPoint(
                kind,
                request.sampling.max_new_tokens,
                1e3 * median(taken_s[kind, None][1:]) / request.sampling.max_new_tokens,
                accepted_share(tokenizer.encode(request), answers[kind]),
                *times(kind, "lookup", kind, None),
            )
            for kind, request in asked.items()
        ),
        beside=tuple(
            BesideLookup(
                kind,
                ours=times(f"ours {kind}", "lookup", f"ours {kind}", None),
                theirs=times(f"theirs {kind}", "lookup", f"theirs {kind}", None),
                both=times(f"ours {kind}", "lookup", f"theirs {kind}", "lookup"),
            )
            for kind in begun
        ),
        peer=peer,
        equal_tokens=len(own) == 1,
        pairs=pairs,
        **settings_of(used, "ranks"),
    )


def accepted_share(prompt: tuple[int, ...], answer: tuple[int, ...]) -> float:
    """Return the chance of a drafted token to be right where the one before it is, over the steps of an answer."""
    lookup = Texts(prompt).begin()
    right = wrong = 0
    known = 1  # the first token comes with the prompt
    while known < len(answer):
        drafted, _ = lookup.draft(answer[:known], MOST_DRAFTED)
        rest = answer[known:]
        count = next((i for i, (one, other) in enumerate(zip(drafted, rest, strict=False)) if one != other), None)
        count = min(len(drafted), len(rest)) if count is None else count
        right += count
        wrong += count < min(MOST_DRAFTED, len(rest))
        known += count + 1
    return right / (right + wrong) if right else 0.0


def _begun(question: str, answer: str) -> str:
    return f"{question}\n{answer[: len(answer) // 2]}"


def _start_servers(stack: ExitStack, used: ResolvedConfig) -> dict[str | None, PeerProcess]:
    """Start llama.cpp's server without and with lookup; they sleep until they are asked."""
    model = PeerModel(used.folder, used.dtype, used.device, used.threads * used.ranks, context=2048)
    plain = next(each for each in SERVERS if each.package == LOOKUP_SERVER.package)
    servers = {None: plain, "lookup": LOOKUP_SERVER}
    return {way: stack.enter_context(PeerProcess(peer, model)) for way, peer in servers.items()}


def _continue(url: str, text: str, new_tokens: int) -> None:
    """Let llama.cpp's server continue a text greedily, without what it remembers of earlier ones."""
    asked = {"prompt": text, "n_predict": new_tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    request = urllib.request.Request(
        f"{url}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as reply:
        predicted = json.load(reply).get("tokens_predicted")
    if predicted != new_tokens:
        raise PeerError(f"llama.cpp gave {predicted} tokens instead of {new_tokens}")


def given(tokenizer: Tokenizer, question: str, answer: str, most: int | None = None) -> Request:
    """Return the request for the first tokens of a given answer, and one token more: at most this many in all."""
    tokens = tuple(tokenizer.encode_text(answer, special=False))[: most and most - 1]
    sampling = SamplingParams(len(tokens) + 1, ignore_eos=True)
    return Request(question, raw=True, sampling=sampling, forced_token_ids=tokens)
