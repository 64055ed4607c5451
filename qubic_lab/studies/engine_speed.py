"""Our engine's speed beside other engines' (`qubic_lab.bench.engine`): in words, tables and acceptance rows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qubic_lab.bench.engine import EngineResult, SpeedRatio
from qubic_lab.studies.acceptance import AcceptanceRow, Criterion, WeekResults, joined, meaningless_note, too_noisy
from qubic_lab.studies.engine_figures import COLUMNS
from qubic_lab.studies.finding import Finding, answering, say
from qubic_lab.studies.style import columns

Row = dict[str, Any]

QUESTION = "speed"
TOLERANCE = 0.97
"""The share of a target's value from which the target counts as met."""
PAIRS = 7
"""The fewest pairs of measurements that a verdict takes."""
PROMPT_TOKENS = 64
"""Of each prompt, where a target names no other number."""
SHARES = {
    "bandwidth_fraction": "weights, at full size, that one rank's decode steps use in a second ÷ memory bandwidth",
    "compute_share": "share of time in which the rank that works least computes",
}
WHAT = {**COLUMNS, **SHARES}
"""What each ratio or share compares, by its name."""
HEADLINES = {
    "vs_vllm": "vLLM",
    "vs_llamacpp": "llama.cpp",
    "vs_transformers": "transformers",
    "pipeline_vs_whole": "one rank",
}
"""Ratios with the name of the other engine; the first one that was measured is the headline."""
SMOLLM2, DEEPSEEK = ("smollm2",), ("random-deepseek", "deepseek")


@dataclass(frozen=True)
class SpeedTarget:
    """The least value of a ratio's median by `batch`, for these models, this number of ranks and length of prompts."""

    name: str
    models: tuple[str, ...]
    least: Mapping[int, float]
    ranks: int = 1
    prompt_tokens: int = PROMPT_TOKENS

    def concerns(self, result: EngineResult) -> bool:
        """Whether the result is of its kind."""
        return result.model in self.models and result.prompt_tokens == self.prompt_tokens

    def found(self, result: EngineResult) -> dict[int, SpeedRatio]:
        """Return what a result has of it, by batch."""
        ratios = result.ratios.get(self.name, ()) if self.concerns(result) else ()
        return {each.batch: each for each in ratios if each.ranks == self.ranks and each.batch in self.least}

    def missed(self, result: EngineResult) -> list[SpeedRatio]:
        """Return the ratios that are too low."""
        found = self.found(result)
        return [each for batch, each in found.items() if each.median < TOLERANCE * self.least[batch]]


TARGETS = (
    SpeedTarget("vs_vllm", DEEPSEEK, {1: 1.0, 4: 1.0, 8: 1.0, 16: 1.0}),
    SpeedTarget("vs_llamacpp", DEEPSEEK, {1: 1.0, 4: 1.4, 8: 1.4, 16: 1.4}),
    SpeedTarget("vs_transformers", DEEPSEEK, {1: 1.7, 4: 2.0, 8: 2.0, 16: 2.0}),
    SpeedTarget("bandwidth_fraction", DEEPSEEK, {1: 0.75}),
    SpeedTarget("pipeline_vs_whole", DEEPSEEK, {1: 1.0, 4: 1.0, 8: 1.0}, ranks=2),
    SpeedTarget("compute_share", DEEPSEEK, {8: 0.93}, ranks=2),
    SpeedTarget("vs_llamacpp_rpc", DEEPSEEK, {1: 0.9, 8: 1.3, 16: 1.3}, ranks=2),
    SpeedTarget("vs_vllm_pp", DEEPSEEK, {1: 1.0, 8: 1.0, 16: 1.0}, ranks=2),
    SpeedTarget("vs_vllm", SMOLLM2, {1: 1.0, 8: 1.0}),
    SpeedTarget("vs_llamacpp", SMOLLM2, {1: 1.0, 8: 1.0}),
    SpeedTarget("vs_transformers", SMOLLM2, {1: 2.0, 8: 2.5}),
    SpeedTarget("prefill_vs_vllm", DEEPSEEK, {8: 1.0}),
    SpeedTarget("prefill_vs_vllm", DEEPSEEK, {1: 1.0}, prompt_tokens=512),
    SpeedTarget("exact_vs_fastest", DEEPSEEK, {1: 0.75, 4: 0.95, 8: 0.95, 16: 0.95}),
)


def source_rows(result: EngineResult) -> list[Row]:
    """Return one row: when, where and how the result was measured, and the peers' versions."""
    names = ("measured_utc", "commit", "machine", "model", "dtype", "device", "threads", "prompt_tokens", "new_tokens")
    peers = "; ".join(f"{peer}: {version}" for peer, version in result.versions.items())
    return [{**columns(result, *names), "pairs": result.repeat, "peers": peers or "none"}]


def ratio_rows(result: EngineResult) -> list[Row]:
    """Return one row a ratio or share: its median and range, and the target where there is one."""
    return [
        {"ratio": name, "what": WHAT.get(name, name), **columns(each, "ranks", "batch", "median", "low", "high")}
        | {"target": next((t.least[each.batch] for t in TARGETS if t.found(result).get(each.batch) is each), None)}
        for name, found in result.ratios.items()
        for each in found
    ]


def speed_rows(result: EngineResult) -> list[Row]:
    """Return one row a side of a comparison: medians and ranges of its speeds, beside the probed bandwidth."""
    return [
        columns(side, "comparison", "system", "ranks", "threads_a_rank", "requests")
        | {
            f"{name}{end}_{unit}": getattr(getattr(side, f"{name}_{unit}"), attribute)
            for name, unit in (("decode", "tokens_per_s"), ("prefill", "tokens_per_s"))
            for end, attribute in (("", "median"), ("_low", "low"), ("_high", "high"))
        }
        | {"bandwidth_gb_per_s": side.bandwidth_gb_per_s.median}
        for side in result.setups
    ]


def missing(result: EngineResult) -> dict[str, str]:
    """Return why each ratio that is not there, or not for all batches, was not measured."""
    unasked = {name: "the run was not asked for it" for name in WHAT if name not in result.ratios}
    return {**unasked, **result.not_measured}


def findings(result: EngineResult) -> list[Finding]:
    """Say how fast ours is beside the strongest peer that was measured, what missed its target, and what is missing."""
    said = [_headline(result)]
    if result.repeat < PAIRS:
        said.append(
            say("Only {pairs:pair} of measurements: a verdict takes {needed}.", pairs=result.repeat, needed=PAIRS)
        )
    met = sum(bool(target.found(result)) and not target.missed(result) for target in TARGETS)
    missed = [
        say(
            "{ratio} at B = {batch} ({median:.2f} of {least:g})",
            ratio=target.name,
            least=target.least[each.batch],
            **columns(each, "batch", "median"),
        )
        for target in TARGETS
        for each in target.missed(result)
    ]
    if met:
        said.append(say("{met:ratio} met each target measured.", met=met))
    if missed:
        said.append(say("These missed their targets: {missed}.", missed=missed))
    said.append(
        say(
            "Measured {at} at commit {commit} on {machine}, {pairs:pair} of measurements.",
            at=result.measured_utc,
            pairs=result.repeat,
            **columns(result, "commit", "machine"),
        )
    )
    if absent := list(missing(result)):
        said.append(say("Not measured: {ratios}.", ratios=absent))
    return answering(QUESTION, said)


def _headline(result: EngineResult) -> Finding:
    name = next((name for name in HEADLINES if name in result.ratios), None)
    day = result.measured_utc[:10]
    if name is None:
        return say("Nothing was compared with {model} on {day}.", model=result.model, day=day)
    found = result.ratios[name]
    worst = min(found, key=lambda each: each.median)
    values = {"model": result.model, "peer": say(HEADLINES[name]), "day": day, "batches": len(found), "unit": "×"}
    values |= {"key": worst.median, "low": worst.low, "high": worst.high}
    if len(found) == 1:
        return say("{model} decodes at {key:.2f} times the speed of {peer} ({day}).", **values)
    return say(
        "{model} decodes at {key:.2f} times the speed of {peer} or more ({batches:batch size}, {day}).", **values
    )


def acceptance(week: WeekResults) -> list[AcceptanceRow]:
    """Judge each target by the least favourable run that measured it."""
    return list(_rows(week.read("engine_speed", EngineResult)))


def _rows(results: Mapping[str, EngineResult]) -> Iterator[AcceptanceRow]:
    for number, target in enumerate(TARGETS, start=1):
        least = [say("{value:g} at B = {batch}", value=value, batch=batch) for batch, value in target.least.items()]
        text = "Speed of {model}: {what}"
        if target.prompt_tokens != PROMPT_TOKENS:
            text = "Speed of {model} at prompts of {tokens} tokens: {what}"
        what = say(text, model=target.models[0], tokens=target.prompt_tokens, what=say(WHAT[target.name]))
        asked = say("a ratio of at least {least}", least=least)
        criterion = Criterion(f"11.8.{number}", str(what), str(asked), "engine_speed")
        of_model = {run: result for run, result in results.items() if target.concerns(result)}
        judged = [_row(criterion, target, run, result) for run, result in of_model.items()]
        order = ("fail", "pass", "not measured here")  # runs may share the ratios between them
        unmeasured = criterion.not_measured(say("has measured {model}", model=target.models[0]) if results else "")
        yield min(judged, key=lambda row: order.index(row.verdict), default=unmeasured)


def _row(criterion: Criterion, target: SpeedTarget, run: str, result: EngineResult) -> AcceptanceRow:
    found, missed = target.found(result), target.missed(result)
    if not found:
        return criterion.row("", "not measured here", missing(result).get(target.name, "at other batches only"), run)
    at = "{median:.2f} ({low:.2f} to {high:.2f}) at B = {batch}"
    ratios = [say(at, **columns(each, "median", "low", "high", "batch")) for each in found.values()]
    absent = [f"B = {batch}" for batch in target.least if batch not in found]
    short = [
        say(
            "{median:.2f} of {least:g} at B = {batch}",
            least=target.least[each.batch],
            **columns(each, "median", "batch"),
        )
        for each in missed
    ]
    reason = joined(
        say("missed: {missed}", missed=short) if short else "",
        say("not measured: {absent}", absent=absent) if absent else "",
        say("{pairs:pair}: a verdict takes {needed}", pairs=result.repeat, needed=PAIRS)
        if result.repeat < PAIRS
        else "",
        meaningless_note(result.meaningless),
    )
    measured = say("measured on {day}: {ratios}", day=result.measured_utc[:10], ratios=ratios)
    if result.repeat < PAIRS or (absent and not missed):
        return criterion.row(measured, "not measured here", reason, run)
    certain = any(each.high < target.least[each.batch] for each in missed)
    return criterion.row(measured, not missed, reason, run, noisy=too_noisy(result.noise), certain=certain)
