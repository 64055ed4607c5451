"""How to split a model over devices: predictions for every plan, a recommendation and its reason. Pure."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qubic_lab.errors import InputError, check_at_least, check_choice, check_range
from qubic_lab.model.candidates import (
    GOALS,
    MOST_BATCH,
    TIE,
    Plan,
    Refused,
    Setup,
    best_plan,
    candidates,
    choose,
    cost_for,
    gigabytes,
    with_fewer,
)
from qubic_lab.model.changes import (
    ContextRange,
    RateRange,
    context_ranges,
    context_sentences,
    rate_ranges,
    rate_sentence,
)
from qubic_lab.model.config import ModelConfig
from qubic_lab.model.device import CATALOGUE, FP32_SHARE, LAYER_OVERHEAD_S, USABLE_SHARE, Device, Link, check_dtype
from qubic_lab.model.layout import QUANTIZATIONS
from qubic_lab.model.predict import hop_seconds, working_bytes


@dataclass(frozen=True)
class Baseline:
    """An alternative that the plans are compared with; `requests` decode at once."""

    name: str
    layers: tuple[int, ...]
    requests: int
    tokens_per_s: float
    latency_ms: float
    memory_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Advice:
    """The plans for one goal, the recommended plan or device (None: nothing fits), the reason, and when it changes."""

    setup: Setup
    goal: str
    answer_tokens: int
    plans: tuple[Plan, ...]
    refused: tuple[Refused, ...]
    recommendation: str | None
    reason: str
    baselines: tuple[Baseline, ...]
    by_context: tuple[ContextRange, ...]
    by_rate: tuple[RateRange, ...]
    changes: tuple[str, ...]
    assumptions: tuple[str, ...]
    sources: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `requests_per_s` of a plan is its rate at `most_batch`."""
        setup = self.setup
        return {
            "goal": self.goal,
            "context": setup.context,
            "batch": setup.batch,
            "dtype": setup.dtype,
            "quantization": setup.quantization,
            "accepted": setup.accepted,
            "answer_tokens": self.answer_tokens,
            "devices": [device.name for device in setup.devices],
            "link": asdict(setup.link),
            "plans": [
                asdict(plan) | {"requests_per_s": plan.most_tokens_per_s / self.answer_tokens} for plan in self.plans
            ],
            "refused": [asdict(refused) for refused in self.refused],
            "recommendation": self.recommendation,
            "reason": self.reason,
            "baselines": [asdict(baseline) for baseline in self.baselines],
            "changes": {
                "by_context": [asdict(part) for part in self.by_context],
                "by_rate": [asdict(part) for part in self.by_rate],
                "sentences": list(self.changes),
            },
            "assumptions": list(self.assumptions),
            "sources": self.sources,
        }


def plan(
    config: ModelConfig,
    devices: Sequence[Device],
    link: Link,
    goal: str = "throughput",
    context: int = 1024,
    batch: int = 1,
    dtype: str = "fp16",
    answer_tokens: int = 512,
    quantization: str = "",
    accepted: float = 0.0,
) -> Advice:
    """Predict all strategies on these devices, and recommend one of them, or one with fewer devices, for a goal.

    Args:
        config: the model's shape.
        devices: one per rank, in rank order.
        link: connection of each rank to the next.
        goal: `throughput` (tokens/s of all requests), `latency` (ms per token of a single request) or `memory` (bytes
            of the largest rank).
        context: tokens in the KV cache of each request, for which speeds are predicted.
        batch: requests per lane; a pipeline has as many lanes as ranks, replicas have one each.
        dtype: dtype of weights, activations and KV cache.
        answer_tokens: new tokens of a request, for requests per second.
        quantization: int8 or int4 weights, which CPUs compute with; or none.
        accepted: chance that a drafted token is right, as `bench speculation` measures it; 0 without drafts.

    Raises:
        InputError: there is no device, a goal or dtype is unknown or not supported, or a number is out of range.
    """
    check_choice("goal", goal, GOALS)
    check_at_least("number of devices", len(devices), 1)
    check_range("context", context, 1, config.max_positions)
    check_range("batch", batch, 1, MOST_BATCH)
    check_range("answer_tokens", answer_tokens, 1, config.max_positions)
    if quantization:
        check_choice("quantization", quantization, QUANTIZATIONS)
    cards = [device.name for device in devices if device.name in CATALOGUE]
    for option, value in (("quantization", quantization), ("accepted", accepted)):
        if value and cards:
            raise InputError(
                f"{option}={value} is for CPUs, not for {cards[0]}: give --devices such as "
                "cpu=24GB@50GB/s@1TFLOPS, or leave it out"
            )
    if not 0.0 <= accepted < 1.0:
        raise InputError(f"accepted is {accepted:g}: give a chance from 0 to below 1")
    setup = Setup(config, tuple(devices), link, context, batch, check_dtype(dtype, devices), quantization, accepted)
    plans, refused = candidates(setup)
    alone = with_fewer(setup, goal, plans)
    best = choose(plans, alone, goal)
    by_context, by_rate = context_ranges(setup, goal), rate_ranges(plans, goal, answer_tokens, alone)
    return Advice(
        setup=setup,
        goal=goal,
        answer_tokens=answer_tokens,
        plans=plans,
        refused=refused,
        recommendation=best.strategy if best else None,
        reason=explain(plans, goal, alone) if best else _why_nothing_fits(refused),
        baselines=tuple(map(_baseline, alone)),
        by_context=by_context,
        by_rate=by_rate,
        changes=_changes(by_context, by_rate, answer_tokens, alone),
        assumptions=assumptions(setup),
        sources={device.name: device.sources for device in devices},
    )


def _baseline(plan: Plan) -> Baseline:
    return Baseline(plan.strategy, plan.layers, plan.requests, plan.tokens_per_s, plan.latency_ms, plan.memory_bytes)


def explain(plans: Sequence[Plan], goal: str, alone: Sequence[Plan] = ()) -> str:
    """Explain why the best plan, or one of `alone` with fewer devices, is recommended, beside the runner-up."""
    best = choose(plans, alone, goal)
    assert best is not None
    if best in alone:
        text = f"{str(best)[0].upper()}{str(best)[1:]}: {_measures(best)}."
        if not plans:
            return f"{text} No plan over all devices fits."
        second = best_plan(plans, goal)
        return f"{text} Best over all devices is {second}: {_measures(second)}; so leave the others out."
    if len(best.layers) == 1:
        return f"On one device every strategy is the whole model: {_measures(best)}."
    return _beside_the_next(best, [plan for plan in plans if plan.layers != best.layers], goal)


def _beside_the_next(best: Plan, others: Sequence[Plan], goal: str) -> str:
    if not others:
        return f"Only {best} fits: {_measures(best)}."
    second = best_plan(others, goal)
    text = f"{best}: {_measures(best)}. Next is {second}: {_measures(second)}."
    if cost_for(second, goal) <= cost_for(best, goal) * (1 + TIE):
        text += f" For {goal} the two are equal within {TIE:.0%}, so the simpler one is taken."
    return text


def _why_nothing_fits(refused: Sequence[Refused]) -> str:
    reasons = {plan.reason: plan.strategy for plan in reversed(refused)}  # each reason once, with its first strategy
    return "No plan fits. " + "; ".join(f"{strategy}: {reason}" for reason, strategy in reversed(reasons.items()))


def _measures(plan: Plan) -> str:
    largest = gigabytes(max(plan.memory_bytes))
    return f"{plan.tokens_per_s:.1f} tokens/s, {plan.latency_ms:.1f} ms a token alone, {largest} on the largest rank"


def _changes(
    by_context: Sequence[ContextRange],
    by_rate: Sequence[RateRange],
    answer_tokens: int,
    alone: Sequence[Plan],
) -> tuple[str, ...]:
    sentences = context_sentences(by_context)
    if len(by_rate) > 1:
        sentences.append(rate_sentence(by_rate, answer_tokens))
    if alone:
        enough = alone[0].most_tokens_per_s / answer_tokens
        sentences.append(f"Up to {enough:.3g} of those requests a second {alone[0]} is enough.")
    return tuple(sentences)


def assumptions(setup: Setup) -> tuple[str, ...]:
    """Return the assumptions of the predictions."""
    hop_s = hop_seconds(setup.config, setup.link, setup.dtype, setup.batch)
    reserve = gigabytes(working_bytes(setup.config, setup.dtype, setup.packed, first=True))
    takes = "reading its bytes and doing its operations take together."
    if not all(device.is_cpu for device in setup.devices):
        takes = (
            "reading its bytes or doing its operations, whichever is longer; "
            f"each layer takes {LAYER_OVERHEAD_S * 1e6:.0f} µs more."
        )
    lines = [
        "Nothing here was measured on these devices: speeds are computed from the model's shape and the figures below.",
        f"A part of a step takes as long as {takes}",
        f"Every request has {setup.context:,} tokens in its KV cache. Prompts, sampling and the pipeline's own "
        "bookkeeping take no time.",
        f"Memory of a rank: weights, KV cache, and {reserve} for {'the process' if setup.packed else 'CUDA'}, "
        f"workspaces and activations; {USABLE_SHARE:.0%} of a device are usable.",
        "A pipeline has as many lanes in flight as ranks; replicas share nothing and take one lane each. "
        f"A hop takes {1e3 * hop_s:.3g} ms: the link's latency and the hidden states of a lane.",
    ]
    if setup.quantization:
        lines.append(
            f"Weights of layers are in {setup.quantization}, those of the head in int8, with a scale for each 32; the "
            "embedding and the KV cache stay in the dtype."
        )
    elif setup.packed and setup.dtype == "bf16":
        lines.append("The kernels keep bf16 matrices in 12 bits a value, as AVX-512 allows; the embedding is as it is.")
    if setup.accepted:
        lines.append(
            "A request alone has as many drafted tokens a step as pay, each right with a chance of "
            f"{setup.accepted:.0%} where the one before it is; the rows of a step share the reading of weights."
        )
    if setup.dtype == "fp32" and not all(device.is_cpu for device in setup.devices):
        lines.append(f"Compute in fp32 is {FP32_SHARE:.3g} of that in 16 bit.")
    if not all(device.bf16 for device in setup.devices):
        names = ", ".join(dict.fromkeys(device.name for device in setup.devices if not device.bf16))
        lines.append(f"No bf16 in the hardware of {names}: 16-bit runs there are fp16.")
    return tuple(lines)
