"""Random schedules on a tiny model: `python tests/random_schedules.py --seeds 10000 [--first SEED]`.

The project's own scheduler and stages run without processes; one seed decides ranks, lanes, slots, pages, requests
with shared beginnings, samples, forced tokens, drafts, arrivals and cancels. Each answer is then computed again by one
pass over prompt and answer: tokens and logits must be equal bit for bit.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from models import tiny_model

from qubic_lab.core import SamplingParams
from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.decoder import Segment
from qubic_lab.model.layout import PAGE, stage_ranges
from qubic_lab.model.native import NativeDecoder
from qubic_lab.pipeline.message import NO_LOGPROBS, Message, Work
from qubic_lab.pipeline.sampling import adjusted, choose_tokens
from qubic_lab.pipeline.schedule import Event, Limits, Scheduler, Sibling
from qubic_lab.pipeline.stage import Stage

LAYERS, MOST_TOKENS, CHUNK = 3, 320, 48
SPLITS = {1: (3,), 2: (1, 2), 3: (1, 1, 1)}


@dataclass
class Outcome:
    """What happened in schedules; `tokens` were compared, of which `differing` differ, or their logits do."""

    requests: int = 0
    tokens: int = 0
    differing: int = 0
    missing: int = 0
    preemptions: int = 0
    cached: int = 0
    drafted: int = 0
    cancelled: int = 0

    def add(self, other: "Outcome") -> None:
        """Add another outcome to this one."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclass(frozen=True)
class Asked:
    """A request, with its answer's first tokens if they are forced."""

    prompt: tuple[int, ...]
    sampling: SamplingParams
    forced: tuple[int, ...] = ()
    scored: int = NO_LOGPROBS


class CapturingStage(Stage):
    """A stage that keeps the logits of each token in memory."""

    def __init__(self, rank: int, decoder: NativeDecoder, lanes: int, slots: int) -> None:
        super().__init__(rank, decoder, lanes, slots, Path())
        self.logits: dict[tuple[int, int], torch.Tensor] = {}

    def _write_logits(self, folder: Path, work: Work, logits_V: torch.Tensor) -> None:
        self.logits[work.request, work.sample] = logits_V.clone()


class TinyModel:
    """The decoders of all splits of one random model."""

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        tiny_model(folder, num_hidden_layers=LAYERS)
        checkpoint = Checkpoint.open(folder)
        self.vocab = checkpoint.config.vocab
        self.whole, self.splits = NativeDecoder(checkpoint, stage_ranges((LAYERS,))[0], dtype, 1), {}
        for ranks, layers in SPLITS.items():
            self.splits[ranks] = [NativeDecoder(checkpoint, stage, dtype, 1) for stage in stage_ranges(layers)]

    def answer_again(self, asked: Asked, tokens: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
        """Return the logits before each token of an answer, and what they choose."""
        text = [*asked.prompt, *tokens[:-1]]
        self.whole.reset(1)
        hidden = self.whole.forward(self.whole.embed(text), [Segment(0, 0, len(text))], prompt=True)
        logits = self.whole.logits(hidden[len(asked.prompt) - 1 :])
        sampling = asked.sampling
        works = [
            Work(0, 0, 0, 1, i, sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed)
            for i in range(len(tokens))
        ]
        penalties = [
            (row, token, -sampling.frequency_penalty * times)
            for row in range(len(tokens))
            for token, times in Counter(tokens[:row]).items()
            if sampling.frequency_penalty
        ]
        chosen_from = logits
        if penalties:
            chosen_from = adjusted(logits, torch.tensor(penalties, dtype=torch.float64).view(torch.int64))
        return logits, choose_tokens(chosen_from, works)


def play(seed: int, model: TinyModel) -> Outcome:
    """Play one schedule to its end, and compare each answer with the one that is computed again."""
    draw = random.Random(seed)
    ranks, slots = draw.choice([1, 2, 3]), draw.choice([1, 3, 6])
    most_pages = draw.choice([MOST_TOKENS // PAGE, 6, 8, 12, 64])
    limits = Limits(
        ranks,
        slots,
        CHUNK,
        MOST_TOKENS,
        frozenset({0}),
        most_drafted=draw.choice([0, 3, 15]),
        draft_always=draw.random() < 0.5,
        pages=most_pages,
        most_kept=draw.choice([0, 4, 64]),
        prefix_caching=draw.random() < 0.8,
    )
    scheduler = Scheduler(limits)
    stages = [CapturingStage(rank, each, ranks, slots) for rank, each in enumerate(model.splits[ranks])]
    ring: deque[Message] = deque()
    asked: dict[int, Asked] = {}
    groups: list[range] = []
    got: defaultdict[int, list[Event]] = defaultdict(list)
    outcome = Outcome()

    def turn() -> None:
        while len(ring) < ranks and (message := scheduler.next_micro_batch()):
            ring.append(run(scheduler, stages, message))
        for event in scheduler.complete(ring.popleft()) if ring else ():
            got[event.request].append(event)

    beginnings = [[draw.randrange(1, 6) for _ in range(MOST_TOKENS)] for _ in range(2)]
    for _ in range(draw.randint(3, 8)):
        group = requests(draw, beginnings, ranks * slots, limits, model.vocab)
        first_number = groups[-1].stop if groups else 0
        numbers = range(first_number, first_number + len(group))
        groups.append(numbers)
        asked |= dict(zip(numbers, group, strict=True))
        siblings = [Sibling(number, each.sampling) for number, each in zip(numbers[1:], group[1:], strict=True)]
        first = group[0]
        scheduler.submit(numbers[0], first.prompt, first.sampling, siblings, first.forced, first.scored)
        for _ in range(draw.choice([0, 0, 3, 25])):
            turn()
        if draw.random() < 0.15:
            for gone in draw.choice(groups):
                scheduler.cancel(gone)
                outcome.cancelled += asked.pop(gone, None) is not None
    while not scheduler.idle:
        turn()
    for number, each in asked.items():
        outcome.add(compared(number, each, got[number], stages[-1], model))
    outcome.preemptions = scheduler.preemptions
    return outcome


def run(scheduler: Scheduler, stages: Sequence[CapturingStage], message: Message) -> Message:
    """Run a micro-batch through all ranks."""
    payloads: tuple[torch.Tensor, ...] = (stages[0].embed(message, scheduler.input_tokens(message)),)
    next_tokens = torch.tensor(scheduler.next_tokens(message)) if message.scored else None
    added, placed = scheduler.adjustments(message), scheduler.placements()
    adjustments = torch.tensor(added, dtype=torch.float64).view(torch.int64) if added else None
    placements = torch.tensor(placed) if placed else None
    for stage in stages:
        message, payloads = stage.run(message, payloads[0], next_tokens, adjustments, placements)
    return message


def requests(
    draw: random.Random, beginnings: Sequence[Sequence[int]], slots: int, limits: Limits, vocab: int
) -> list[Asked]:
    """Return a request, or several samples of one prompt, whose text begins like others."""
    shared = draw.choice([0, 5, PAGE, 2 * PAGE, 2 * PAGE + 9, 230])
    own = [draw.randrange(1, 6) for _ in range(draw.choice([1, 3, 40, 80]))]
    prompt = (*draw.choice(beginnings)[:shared], *own)[: MOST_TOKENS - 1]
    sampling = SamplingParams(
        draw.choice([1, 5, 40, 120]),
        temperature=draw.choice([0.0, 0.9]),
        top_k=draw.choice([0, 4]),
        seed=draw.randrange(3),
        ignore_eos=draw.random() < 0.7,
        frequency_penalty=draw.choice([0.0, 0.0, 0.4]),
    )
    samples = draw.randint(1, min(3, slots))
    if samples > 1 and limits.pages_of(len(prompt), samples) <= limits.pages:
        each = [SamplingParams(**{**vars(sampling), "seed": sampling.seed + n}) for n in range(samples)]
        return [Asked(prompt, one) for one in each]
    room = min(sampling.max_new_tokens - 1, MOST_TOKENS - len(prompt) - 1, 20)
    forced = tuple(draw.randrange(1, vocab) for _ in range(room)) if draw.random() < 0.2 else ()
    return [Asked(prompt, sampling, forced, 0 if draw.random() < 0.1 else NO_LOGPROBS)]


def compared(number: int, asked: Asked, events: Sequence[Event], stage: CapturingStage, model: TinyModel) -> Outcome:
    """Compare an answer's tokens, and its logits, with those that are computed again."""
    new = [event for event in events if event.token is not None]
    tokens = [*asked.forced, *(event.token for event in new if event.token is not None)]
    whole = (
        bool(new) and new[-1].finish is not None and [e.index for e in new] == [*range(len(asked.forced), len(tokens))]
    )
    logits, chosen = model.answer_again(asked, tokens) if tokens else (torch.empty(0), [])
    differing = sum(
        (i >= len(asked.forced) and chosen[i] != token) or not torch.equal(stage.logits[number, i], logits[i])
        for i, token in enumerate(tokens)
    )
    return Outcome(
        *(1, len(tokens), differing),
        missing=not whole,
        cached=sum(event.cached for event in events),
        drafted=sum(event.drafted for event in events),
    )


def main() -> None:
    """Play schedules, and print what they did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--json", action="store_true", help="print one JSON object, which data/gains keeps")
    options = parser.parse_args()
    total, wrong, started = Outcome(), [], time.monotonic()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        model = TinyModel(Path(folder) / "model", getattr(torch, options.dtype))
        seeds = range(options.first, options.first + options.seeds)
        for done, seed in enumerate(seeds, 1):
            outcome = play(seed, model)
            total.add(outcome)
            if outcome.differing or outcome.missing:
                wrong.append(seed)
                print(f"seed {seed}: {outcome}", file=sys.stderr if options.json else None, flush=True)
            if sys.stderr.isatty() or done % 500 == 0:
                print(f"\r{done} of {len(seeds)} schedules", end="", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    if options.json:
        from qubic_lab.studies.engine_gains import SchedulesResult

        settings = {"model": "tiny random", "meaningless": True, "device": "cpu", "threads": 1}
        counts = {
            field.name: getattr(total, field.name) for field in fields(SchedulesResult) if hasattr(total, field.name)
        }
        dtype = {"float32": "fp32", "bfloat16": "bf16"}[options.dtype]
        found = SchedulesResult(dtype=dtype, first_seed=seeds.start, seeds=len(seeds), **settings, **counts)
        print(json.dumps(found.to_dict()))
        sys.exit(bool(wrong))
    print(f"\nseeds {seeds.start} to {seeds.stop - 1} in {seconds:.0f} s: {total}; wrong: {wrong or 'none'}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
