"""Sampling of tokens from logits; a request gets the same tokens whatever runs beside it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from qubic_lab.model.native import NativeDecoder
from qubic_lab.pipeline.message import LOGPROB_COLUMNS, NO_FAULT, NO_LOGPROBS, NO_TOKEN, Work

_SURE = 1e-9
"""Share of the total by which a sum of weights must miss a bound; sums in another order differ by far less."""
_LEAST_TEMPERATURE = 0.01
"""Of kernels: the definition divides before it subtracts, which rounds too much below."""
_BLOCK = 512
_GROUP = 64

Logits = npt.NDArray[np.float32]
Weights = npt.NDArray[np.float64]
Tokens = npt.NDArray[np.int64]


def non_finite_rows(values_RX: torch.Tensor, native: NativeDecoder | None = None) -> set[int]:
    """Return the rows with an infinity or NaN; `native` knows sooner that there is none."""
    if native and native.all_finite(values_RX):
        return set()
    if bool(values_RX.sum(dim=-1).isfinite().all()):  # far cheaper, but the sum of finite numbers can overflow
        return set()
    return {row for row, finite in enumerate(values_RX.isfinite().all(dim=-1).tolist()) if not finite}


def adjusted(logits_RV: torch.Tensor, adjustments_A3: torch.Tensor) -> torch.Tensor:
    """Return logits with numbers added: each adjustment is a row, a token and a number, each place at most once."""
    adjustments_A3 = adjustments_A3.view(torch.float64)
    rows, tokens = adjustments_A3[:, :2].to(logits_RV.device, torch.int64).T
    changed_RV = logits_RV.clone()
    changed_RV[rows, tokens] += adjustments_A3[:, 2].to(logits_RV)
    return changed_RV


def choose_tokens(logits_RV: torch.Tensor, works: Sequence[Work], native: NativeDecoder | None = None) -> list[int]:
    """Choose the token number `work.sample` of each request from its row of finite fp32 logits; NO_TOKEN after a fault.

    Temperature 0 takes the largest logit (the first of equal ones). Otherwise the kept tokens (min-p, arXiv 2407.01082,
    top-k, then nucleus sampling, arXiv 1904.09751) are drawn by inverting their cumulative distribution at a number
    that depends only on the request's seed and the token's index. `native` finds the same tokens sooner.
    """
    tokens = [NO_TOKEN] * len(works)
    drawn = {} if native is None else _drawn(native, logits_RV, works)
    if any(work.temperature == 0.0 for work in works):
        largest = logits_RV.numpy() if logits_RV.device.type == "cpu" else logits_RV  # NumPy's argmax is the faster one
        tokens = largest.argmax(-1).tolist()
    for row, work in enumerate(works):
        if work.fault != NO_FAULT:
            tokens[row] = NO_TOKEN
        elif work.temperature > 0.0:
            tokens[row] = drawn[row] if row in drawn else _sampled_token(logits_RV[row].cpu().numpy(), work)
    return tokens


def _drawn(native: NativeDecoder, logits_RV: torch.Tensor, works: Sequence[Work]) -> dict[int, int]:
    """Draw from whole distributions; return the tokens by their rows, without those that rounding could decide."""
    rows = [
        row
        for row, work in enumerate(works)
        if work.fault == NO_FAULT
        and work.temperature >= _LEAST_TEMPERATURE
        and work.top_p == 1.0
        and not (work.top_k or work.min_p)
    ]
    chosen = [works[row] for row in rows]
    tokens = native.draw(
        logits_RV,
        rows,
        [work.temperature for work in chosen],
        [work.seed for work in chosen],
        [work.sample for work in chosen],
    )
    return {row: token for row, token in zip(rows, tokens, strict=True) if token >= 0}


def log_probabilities(logits_RV: torch.Tensor, works: Sequence[Work]) -> torch.Tensor:
    """Return the log-probabilities of the chosen and the likeliest tokens, (works, LOGPROB_COLUMNS) fp64, on the CPU.

    They are the model's, before temperature and truncation. Equally likely tokens come in the order of their ids.
    """
    found = torch.zeros(len(works), LOGPROB_COLUMNS, dtype=torch.float64)
    for row, work in enumerate(works):
        if work.logprobs != NO_LOGPROBS and work.token != NO_TOKEN:
            scores = score_rows(logits_RV[row : row + 1].cpu(), torch.tensor([work.token]), [work.logprobs])
            found[row, : scores.shape[1]] = scores
    return found


def score_rows(logits_RV: torch.Tensor, tokens_R: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Return the log-probability of each row's token, then pairs (token, log-probability) of its `counts` likeliest.

    They have the shape (R, 1 + 2 * the largest count), fp64, on the CPU, with zeros behind smaller counts.
    """
    logprobs_RV = torch.log_softmax(logits_RV, dim=-1, dtype=torch.float64)
    found = torch.zeros(len(counts), 1 + 2 * max(counts), dtype=torch.float64)
    found[:, 0] = logprobs_RV.gather(1, tokens_R.to(logprobs_RV.device)[:, None])[:, 0]
    for row, count in enumerate(counts):
        if count:
            tokens = torch.from_numpy(_largest(logits_RV[row].cpu().numpy(), count))
            pairs = torch.stack((tokens.double(), logprobs_RV[row].cpu()[tokens]), dim=1)
            found[row, 1 : 1 + 2 * len(tokens)] = pairs.flatten()
    return found


def _sampled_token(logits_V: Logits, work: Work) -> int:
    """Draw a token; this defines the result, and `_quick_token` finds the same sooner unless rounding could matter."""
    if work.min_p:
        tokens = _likely(logits_V, work)
        tokens = tokens[: work.top_k or None]
    elif not work.top_k and (token := _quick_token(logits_V, work)) is not None:
        return token
    elif not work.top_k and work.top_p == 1.0:
        return _draw(torch.softmax(torch.from_numpy(_scaled(logits_V, work)), dim=0), work)
    else:
        tokens = _largest(logits_V, work.top_k or logits_V.size)
    probabilities = torch.softmax(torch.from_numpy(_scaled(logits_V[tokens], work)), dim=0)
    if work.top_p < 1.0:
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities[before < work.top_p]  # the first token always stays
    return int(tokens[_draw(probabilities, work)])


def _draw(probabilities: torch.Tensor, work: Work) -> int:
    cumulative = probabilities.cumsum(0)
    threshold = _uniform(work.seed, work.sample) * float(cumulative[-1])
    index = int(torch.searchsorted(cumulative, threshold, right=True))
    return min(index, probabilities.numel() - 1)


def _quick_token(logits_V: Logits, work: Work) -> int | None:
    """Draw a token from all or from a nucleus, or return None if the order of a sum could decide which it is."""
    largest = logits_V.max()
    weights_V = _scaled(logits_V, work)
    weights_V -= float(largest) / _temperature(work)
    np.exp(weights_V, out=weights_V)
    uniform = _uniform(work.seed, work.sample)
    if work.top_p == 1.0:
        blocks = np.add.reduceat(weights_V, np.arange(0, logits_V.size, _BLOCK))
        cumulative = _cumulative(0.0, blocks)
        block = _interval(cumulative, uniform * cumulative[-1], cumulative[-1])
        if block is None:
            return None
        start = block * _BLOCK
        inner = _cumulative(cumulative[block], weights_V[start : start + _BLOCK])
        index = _interval(inner, uniform * cumulative[-1], cumulative[-1])
        return None if index is None else start + index
    total = weights_V.sum()
    # All tokens below this weight together have less than the mass that the nucleus may miss.
    floor = (1.0 - _SURE) * (1.0 - work.top_p) * total / logits_V.size
    least = largest + _temperature(work) * np.log(floor)
    tokens = _descending(logits_V, np.flatnonzero(logits_V >= np.nextafter(np.float32(least), np.float32(-np.inf))))
    cumulative = _cumulative(0.0, weights_V[tokens])
    last = _interval(cumulative, work.top_p * total, total)
    if last is None:
        return None
    index = _interval(cumulative, uniform * cumulative[last + 1], total)
    return None if index is None else int(tokens[index])


def _interval(cumulative: Weights, at: float, total: float) -> int | None:
    """Return which step of a cumulative sum contains `at`, or None if it is too close to the step's ends to be sure."""
    index = int(np.searchsorted(cumulative, at, side="right")) - 1
    ends = cumulative[index : index + 2]
    return index if len(ends) == 2 and bool((abs(ends - at) > _SURE * total).all()) else None


def _cumulative(start: float, weights: Weights) -> Weights:
    """Return the cumulative sums from `start` on; there is one more than weights."""
    sums = np.empty(weights.size + 1)
    sums[0] = start
    torch.cumsum(torch.from_numpy(weights), dim=0, out=torch.from_numpy(sums[1:]))  # several times faster than NumPy's
    sums[1:] += start
    return sums


def _largest(logits_V: Logits, count: int) -> Tokens:
    """Return the tokens of the `count` largest logits, in descending order; equal ones in the order of their ids."""
    groups = logits_V.size // _GROUP
    if count <= groups:  # as many groups have a maximum of at least the bound, so as many logits have it
        bound = np.partition(logits_V[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0), groups - count)[-count]
        return _descending(logits_V, np.flatnonzero(logits_V >= bound))[:count]
    return _descending(logits_V, np.arange(logits_V.size))[:count]


def _likely(logits_V: Logits, work: Work) -> Tokens:
    """Return the tokens with at least `min_p` of the largest probability, in the order of `_largest`."""
    scaled_V = _scaled(logits_V, work)
    return _descending(logits_V, np.flatnonzero(scaled_V >= scaled_V.max() + np.log(work.min_p)))


def _descending(logits_V: Logits, tokens: Tokens) -> Tokens:
    """Sort tokens by descending logit; equal ones by their ids."""
    bits = (logits_V[tokens] + np.float32(0.0)).view(np.int32)  # the sum makes -0.0 the same as 0.0
    rising = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits)
    keys = (~rising).astype(np.int64) << 32 | tokens
    keys.sort()
    return keys & 0xFFFFFFFF


def _scaled(logits: Logits, work: Work) -> Weights:
    scaled = logits.astype(np.float64)
    scaled /= _temperature(work)
    return scaled


def _temperature(work: Work) -> float:
    """Return the temperature, or the least one with which fp32 logits cannot overflow: only the largest are drawn."""
    return max(work.temperature, 1e-200)


def _uniform(seed: int, index: int) -> float:
    """Return the random number in [0, 1) of a seed and an index (Philox, a counter-based generator)."""
    return float(np.random.Generator(np.random.Philox(key=seed, counter=index)).random())
