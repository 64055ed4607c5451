"""What the engine gains by drafts, shared beginnings, samples, small weights: kept results of benchmarks, in words."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from qubic_lab.bench.engine import EngineResult
from qubic_lab.bench.long_prompt import LongPromptResult
from qubic_lab.bench.prediction_result import PredictionResult
from qubic_lab.bench.prefixes import PrefixesResult
from qubic_lab.bench.result import ModelResult, read_printed
from qubic_lab.bench.samples import SamplesResult
from qubic_lab.bench.slow_link import SlowLinkResult
from qubic_lab.bench.speculation import OWN, SpeculationResult
from qubic_lab.errors import InputError
from qubic_lab.studies.finding import Finding, answering, estimate, say
from qubic_lab.studies.style import columns

QUESTION = "speed"
NEVER_MS = -1.0
"""In place of a delay: a pipeline is slower than one process over each link."""


@dataclass(frozen=True)
class SchedulesResult(ModelResult):
    """What `tests/random_schedules.py --json` prints: random schedules of a tiny model, computed again in one pass."""

    first_seed: int
    seeds: int
    tokens: int
    differing: int
    missing: int
    preemptions: int
    cached: int
    drafted: int
    cancelled: int

    def report(self) -> Iterator[str]:
        """Yield one sentence."""
        yield f"{self.seeds} schedules, {self.tokens:,} tokens: {self.differing} differ, {self.missing} answers miss"


@dataclass(frozen=True)
class Gain:
    """One figure: `what` names it (a key of WHAT); `target` is the least it may be, or with `at_most` the most."""

    kind: str
    what: str
    value: float
    low: float | None = None
    high: float | None = None
    target: float | None = None
    at_most: bool = False
    reaches: bool = False
    """Whether it is enough that the upper end of the interval reaches the target."""
    cases: int | None = None
    """Of how many, where the value counts some of them."""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None: there is none."""
        if self.target is None:
            return None
        if self.at_most:
            return self.value <= self.target
        return (self.high if self.reaches and self.high is not None else self.value) >= self.target


@dataclass(frozen=True)
class Measured:
    """The figures of one kept file, and what they are of."""

    file: str
    gains: tuple[Gain, ...]
    model: str
    meaningless: bool
    dtype: str
    device: str
    threads: int
    commit: str
    machine: str
    faults: tuple[str, ...] = ()
    """What should be equal and was not (keys of WHAT)."""


@dataclass(frozen=True)
class Gains:
    """All kept figures, and the command for each kind of which there is none."""

    measured: tuple[Measured, ...]
    absent: dict[str, str]


WHAT = {
    "schedules": "differing tokens of random schedules",
    "prefixes": "times as fast to the first tokens, with a common beginning computed once",
    "long-prompt": "times as long between tokens of short answers (p95), beside a long prompt",
    "code": "times as fast with drafts: code",
    "quoting": "times as fast with drafts: quotation",
    "arithmetic": "times as fast with drafts: arithmetic",
    "free": "times as fast with drafts: free text",
    OWN: "times as fast with drafts: the model's own text",
    "samples": "times as long for all samples as for one answer",
    "int8_vs_bf16": "times as fast in int8 as in bf16, one request",
    "int4_vs_bf16": "times as fast in int4 as in bf16, one request",
    "vs_llamacpp_q8_0": "times as fast in int8 as llama.cpp's Q8_0, one request",
    "vs_llamacpp_q4_0": "times as fast in int4 as llama.cpp's Q4_0, one request",
    "kl": "mean KL against bf16 (nats)",
    "right": "points of right answers beside bf16",
    "link-alone": "ms that a hop may take more before one process is faster, one answer",
    "link-drafted": "ms that a hop may take more before one process is faster, one answer with drafts",
    "speed-error": "median error of predicted speeds (%)",
    "drafts-error": "median error of predicted speeds, answers with drafts alone (%)",
    "memory-error": "median error of predicted memory (%)",
    "tokens": "tokens",
    "answers": "answers",
}
"""What a figure or a fault is, by its name."""


def _schedules(found: SchedulesResult) -> Iterator[Gain]:
    yield Gain("schedules", "schedules", found.differing + found.missing, target=0, at_most=True, cases=found.tokens)


def _prefixes(found: PrefixesResult) -> Iterator[Gain]:
    yield Gain("prefixes", "prefixes", found.speedup, found.speedup_low, found.speedup_high, 3.0)


def _long_prompt(found: LongPromptResult) -> Iterator[Gain]:
    yield Gain("long-prompt", "long-prompt", found.times, found.low, found.high, 2.0, at_most=True)


def _speculation(found: SpeculationResult) -> Iterator[Gain]:
    for each in found.points:
        free = each.kind in ("free", OWN)
        least = 0.97 if free else 1.5
        yield Gain("speculation", each.kind, each.ratio, each.low, each.high, least, reaches=free)


def _samples(found: SamplesResult) -> Iterator[Gain]:
    most, times = 1.3 if len(found.layers) == 1 else 1.5, found.times
    yield Gain("samples", "samples", times.median, times.low, times.high, most, at_most=True)


def _small_weights(found: EngineResult) -> Iterator[Gain]:
    targets = {"int8_vs_bf16": 1.4, "int4_vs_bf16": 2.0, "vs_llamacpp_q8_0": 1.0, "vs_llamacpp_q4_0": 1.0}
    for name, least in targets.items():
        for each in found.ratios.get(name, ()):
            if each.batch == 1:
                yield Gain("small-weights", name, each.median, each.low, each.high, least)


def _links(found: SlowLinkResult) -> Iterator[Gain]:
    for each in found.break_even:
        if each.requests == 1 and each.kind == "free":
            delay_ms = NEVER_MS if each.delay_ms is None else each.delay_ms
            yield Gain("links", "link-drafted" if each.drafted else "link-alone", delay_ms)


def _prediction(found: PredictionResult) -> Iterator[Gain]:
    yield Gain("prediction", "speed-error", 100 * found.median_error, target=10.0, at_most=True)
    if drafted := [abs(cell.error) for cell in found.cells if cell.answer]:
        yield Gain("prediction", "drafts-error", 100 * median(drafted), target=10.0, at_most=True)
    if found.median_memory_error is not None:
        yield Gain("prediction", "memory-error", 100 * found.median_memory_error, target=5.0, at_most=True)


KINDS: dict[str, tuple[type[Any], Callable[[Any], Iterator[Gain]], str]] = {
    "schedules": (SchedulesResult, _schedules, "python tests/random_schedules.py --seeds 10000 --json"),
    "prefixes": (PrefixesResult, _prefixes, "qubic-lab bench prefixes --json"),
    "long-prompt": (LongPromptResult, _long_prompt, "qubic-lab bench concurrency --long-prompt 16000 --json"),
    "speculation": (SpeculationResult, _speculation, "qubic-lab bench speculation --json"),
    "samples": (SamplesResult, _samples, "qubic-lab bench samples --samples 8 --json"),
    "small-weights": (EngineResult, _small_weights, "qubic-lab bench engine --quantization int8,int4 --json"),
    "links": (SlowLinkResult, _links, "qubic-lab bench link --model smollm2 --json"),
    "prediction": (PredictionResult, _prediction, "qubic-lab bench prediction --json"),
}
"""By how the names of its files begin: the result that they hold, its figures, and the command that prints it."""
ACCURACY, ACCURACY_COMMAND = "accuracy", "qubic-lab compare --quantization int8 --ranks 1 --json"
EQUAL = {"same": "tokens", "equal_tokens": "tokens", "answers_unchanged": "answers"}
"""Fields of results that say that nothing changed, and what."""


def read(folder: Path, accuracy: Path) -> Gains:
    """Read all results that are kept in the two folders.

    Raises:
        InputError: a file is not what its name says.
    """
    measured = [
        _measured(file, kind, figures) for name, (kind, figures, _) in KINDS.items() for file in _files(folder, name)
    ]
    known = {gain.kind for each in measured for gain in each.gains}
    absent = {name: command for name, (_, _, command) in KINDS.items() if name not in known}
    prices = [_price(file) for file in sorted(accuracy.glob("*.json"))]
    return Gains((*measured, *prices), absent if prices else {**absent, ACCURACY: ACCURACY_COMMAND})


def _files(folder: Path, kind: str) -> list[Path]:
    return [file for file in sorted(folder.glob("*.json")) if file.stem == kind or file.stem.startswith(f"{kind}-")]


def _measured(file: Path, kind: type[ModelResult], figures: Callable[[Any], Iterator[Gain]]) -> Measured:
    found = kind.from_json(file)
    faults = tuple(what for name, what in EQUAL.items() if getattr(found, name, True) is False)
    names = ("model", "meaningless", "dtype", "device", "threads", "commit", "machine")
    return Measured(file.name, tuple(figures(found)), faults=faults, **columns(found, *names))


def _price(file: Path) -> Measured:
    """Return what small weights cost, of a comparison with the same model in its own dtype."""
    content = read_printed(file)
    try:
        case, paired = content["cases"][0], content["paired"][0]["tests"]
        ends = [100 * paired[name] for name in ("difference", "low", "high")]
        gains = (Gain(ACCURACY, "kl", case["kl_mean"]), Gain(ACCURACY, "right", *ends))
        names = ("meaningless", "device", "threads", "commit")
        values = {name: content[name] for name in names} | {"model": content["candidate"], "dtype": case["dtype"]}
    except (LookupError, TypeError) as error:
        raise InputError(f"{file} is no comparison of small weights: {error!r} is missing") from error
    return Measured(file.name, gains, machine=content.get("machine", ""), **values)


def rows(gains: Gains) -> list[dict[str, Any]]:
    """Return one row a figure, with what it is of."""
    return [
        {
            "figure": WHAT[gain.what],
            **columns(gain, "value", "cases", "low", "high"),
            "target": None if gain.target is None else f"{'≤' if gain.at_most else '≥'} {gain.target:g}",
            **columns(each, "model", "dtype", "device", "threads", "commit", "file"),
        }
        for each in gains.measured
        for gain in each.gains
    ]


def findings(gains: Gains) -> list[Finding]:
    """Say how many targets are met, each figure with its model, and what was not measured."""
    judged = [gain for each in gains.measured for gain in each.gains if gain.met is not None]
    said = [say("None of the engine's gains was measured.")]
    if judged:
        met, kinds = sum(bool(gain.met) for gain in judged), tuple(kind.replace("-", " ") for kind in gains.absent)
        text = "The engine meets {met} of {targets:target} for long answers, drafts, samples and small weights."
        if kinds:
            text = "The engine meets {met} of {targets:measured target}. Not measured: {absent}."
        said = [say(text, met=met, targets=len(judged), absent=kinds)]
    said += [_sentence(each) for each in gains.measured if each.gains]
    faults = [(what, each.file) for each in gains.measured for what in each.faults]
    if faults:
        broken = [say("{what} of {file}", what=say(WHAT[what]), file=file) for what, file in faults]
        said.append(say("These differ and must not: {broken}.", broken=broken))
    if gains.absent:
        absent = [say("{kind} ({command})", kind=kind, command=command) for kind, command in gains.absent.items()]
        said.append(say("Not measured, as no result of its command is kept: {absent}.", absent=absent))
    return answering(QUESTION, said)


def _sentence(each: Measured) -> Finding:
    return say(
        "{figures} ({model}, {dtype}, {device}, {threads:thread} a rank, commit {commit}).",
        figures=[_figure(gain) for gain in each.gains],
        **columns(each, "model", "dtype", "device", "threads", "commit"),
    )


def _figure(gain: Gain) -> Finding:
    what = say(WHAT[gain.what])
    if gain.cases is not None:
        return say("{what}: {value} of {cases}", what=what, value=int(gain.value), cases=gain.cases)
    return say("{what}: {value:.3g}", what=what, value=_value(gain))


def _value(gain: Gain) -> Finding:
    if gain.value == NEVER_MS:
        return say("never, it is slower at once")
    whole = gain.low is not None
    return estimate(gain.value, gain.low, gain.high) if whole else say("{value}", value=gain.value)
