"""A rank's work on prompts that are scored: few rows of logits at a time, and each row's scores are its logits'."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_native import decoder_of

from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.decoder import Decoder
from qubic_lab.model.layout import stage_ranges
from qubic_lab.model.native import NativeDecoder
from qubic_lab.pipeline.message import NO_LOGPROBS, Kind, Message, Work
from qubic_lab.pipeline.sampling import score_rows
from qubic_lab.pipeline.stage import SCORED_ROWS, Stage

LENGTHS, COUNTS = (70, 1, 40, 9), (3, 20, NO_LOGPROBS, 0)
TWO_PAGES = torch.tensor([(0, 0, 0), (1, 0, 1)])  # the first page of slots 0 and 1
TOKENS = [(7 * n + 2) % 300 for n in range(sum(LENGTHS))]


def torch_decoder(folder: Path) -> Decoder:
    checkpoint = Checkpoint.open(folder)
    stage = stage_ranges((checkpoint.config.layers,))[0]
    return Decoder(checkpoint, stage, torch.float32, torch.device("cpu"))


@pytest.mark.parametrize("make", [decoder_of, torch_decoder])
def test_a_scored_prompt_never_has_more_than_a_few_rows_of_logits(
    make: Callable[[Path], NativeDecoder | Decoder], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make(tiny)
    stage = Stage(0, decoder, 1, len(LENGTHS), None)
    works = [Work(n, n, 0, rows, prompt_logprobs=COUNTS[n]) for n, rows in enumerate(LENGTHS)]
    works[0] = works[0]._replace(sample=0, logprobs=2)  # it is answered, too
    message = Message(Kind.PREFILL, 1, count=len(TOKENS), works=tuple(works))
    next_tokens = torch.arange(message.score_shape[0])

    seen: list[torch.Tensor] = []
    make_logits = decoder.logits

    def logits(hidden_RH: torch.Tensor) -> torch.Tensor:
        seen.append(make_logits(hidden_RH))
        return seen[-1]

    monkeypatch.setattr(decoder, "logits", logits)
    pages = torch.tensor([(slot, place, 2 * slot + place) for slot in range(len(LENGTHS)) for place in (0, 1)])
    returned, (logprobs, scores) = stage.run(message, stage.embed(message, TOKENS), next_tokens, None, pages)
    assert returned.works[0].token >= 0 and logprobs.shape[0] == 1
    *blocks, last = seen  # the last is that of the answer's token
    assert len(last) == 1 and max(map(len, blocks)) <= SCORED_ROWS
    rows = torch.cat(blocks).float()
    counts = [count for count, length in zip(COUNTS, LENGTHS, strict=True) for _ in range(length) if count >= 0]
    assert torch.equal(scores.view(torch.float64), score_rows(rows, next_tokens, counts))
    assert scores.shape == message.score_shape == (80, 41)


def test_a_broken_row_is_the_fault_of_its_request_alone(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = decoder_of(tiny)
    stage = Stage(0, decoder, 1, 2, None)
    make_logits = decoder.logits

    def logits(hidden_RH: torch.Tensor) -> torch.Tensor:
        found = make_logits(hidden_RH)
        found[-1, 5] = torch.nan
        return found

    monkeypatch.setattr(decoder, "logits", logits)
    works = (Work(0, 0, 0, 4, prompt_logprobs=0), Work(1, 1, 0, 5, prompt_logprobs=0))
    message = Message(Kind.PREFILL, 1, count=9, works=works)
    returned, _ = stage.run(message, stage.embed(message, TOKENS[:9]), torch.arange(9), None, TWO_PAGES)
    assert [work.fault for work in returned.works] == [-1, 0]


def test_a_broken_drafted_row_harms_no_other_row(tiny: Path, tmp_path: Path) -> None:
    """What it leaves in the cache is multiplied by 0 in other rows, and 0 times infinity is no number."""

    def run(drafts: int) -> tuple[list[list[int]], list[bytes]]:
        folder = tmp_path / f"{drafts} drafts"
        folder.mkdir()
        stage, faults = Stage(0, decoder_of(tiny), 1, 2, folder), []
        prompts = (Work(0, 0, 0, 5, sample=0), Work(1, 1, 0, 3, sample=0))
        first = Message(Kind.PREFILL, 1, count=8, works=prompts)
        stage.run(first, stage.embed(first, TOKENS[:8]), None, None, TWO_PAGES)
        for sample in (1, 2):
            rows = tuple(Work(0, 0, 4 + sample + i, sample=sample + i) for i in range(1 + drafts))
            step = Message(Kind.DECODE, 1 + sample, works=(*rows, Work(1, 1, 2 + sample, sample=sample)))
            hidden = stage.embed(step, TOKENS[20 : 20 + len(step.works)])
            hidden[1:-1], hidden[-1] = torch.inf, hidden[0]
            faults.append([work.fault for work in stage.run(step, hidden)[0].works])
        logits = [(folder / f"{request}.f32").read_bytes() for request in (0, 1)]
        return faults, [each[: len(logits[1])] for each in logits]

    assert run(2)[0] == [[-1, 0, 0, -1]] * 2
    assert run(1)[1] == run(0)[1]
