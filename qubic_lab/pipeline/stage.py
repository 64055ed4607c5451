"""The work of one rank on a micro-batch: its layers, the check for infinities and, on the last rank, sampling."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import torch

from qubic_lab.model.decoder import IDLE, Decoder, Segment, lane_rows
from qubic_lab.model.native import NativeDecoder
from qubic_lab.pipeline.message import NO_FAULT, NO_LOGPROBS, NO_SAMPLE, Kind, Message, Work
from qubic_lab.pipeline.sampling import adjusted, choose_tokens, log_probabilities, non_finite_rows, score_rows
from qubic_lab.trace import NO_TRACE, NoTracer, Tracer

SCORED_ROWS = 32
"""Rows that are scored at once, because each has the logits of the whole vocabulary."""


class Stage:
    """A rank's decoder and its lanes."""

    def __init__(
        self,
        rank: int,
        decoder: Decoder | NativeDecoder,
        lanes: int,
        slots_per_lane: int,
        capture: Path | None,
        tracer: Tracer | NoTracer = NO_TRACE,
    ) -> None:
        """Prepare the KV cache; `capture` is a folder for the logits of each request (last rank), or None."""
        self.rank = rank
        self.decoder = decoder
        self._slots_per_lane = slots_per_lane
        self._rows = lane_rows(slots_per_lane, decoder.dtype)
        self._capture = capture
        self._tracer = tracer
        self._native = decoder if isinstance(decoder, NativeDecoder) else None
        self._spoiled_slots: set[int] = set()
        if isinstance(decoder, NativeDecoder):
            decoder.reset(lanes * slots_per_lane, placed=True)
        else:
            decoder.reset(lanes * slots_per_lane)

    def hidden_shape(self, message: Message) -> tuple[int, int]:
        """Return the shape (rows, H) of the hidden states that travel with a micro-batch."""
        return self._rows if self._is_lane(message) else message.count, self.decoder.config.hidden

    def embed(self, message: Message, token_ids: Sequence[int]) -> torch.Tensor:
        """Return the first stage's input (rows, H) for a micro-batch's tokens; idle rows carry token 0."""
        if not self._is_lane(message):
            return self.decoder.embed(token_ids)
        row_tokens = [0] * self._rows
        for work, token in zip(message.works, token_ids, strict=True):
            row_tokens[work.slot % self._slots_per_lane] = token
        return self.decoder.embed(row_tokens)

    @torch.inference_mode()
    def run(
        self,
        message: Message,
        hidden_RH: torch.Tensor,
        next_tokens_R: torch.Tensor | None = None,
        adjustments_A3: torch.Tensor | None = None,
        placements_P3: torch.Tensor | None = None,
    ) -> tuple[Message, tuple[torch.Tensor, ...]]:
        """Run a micro-batch through the layers; scored works come with the token id after each of their rows.

        Return the message with faults marked, and the payloads for the next rank: hidden states, next tokens of scored
        works, adjustments of logits, and placements of pages. On the last rank the message has its tokens, and
        log-probabilities and scores follow if requested.
        """
        if placements_P3 is not None and isinstance(self.decoder, NativeDecoder):
            self.decoder.place_pages(placements_P3.tolist())
        with self._tracer.span("compute", message):  # complete, because the check for infinities waits for the GPU
            ends_only = self.decoder.stage.has_head and next_tokens_R is None and message.kind is Kind.PREFILL
            message, hidden_RH = self._run_layers(message, hidden_RH, ends_only)
        if not self.decoder.stage.has_head:
            more = (next_tokens_R, adjustments_A3, placements_P3)
            return message, (hidden_RH, *(each for each in more if each is not None))
        with self._tracer.span("sample", message):
            if next_tokens_R is None:
                return self._sample(message, hidden_RH, adjustments_A3)
            message, scores = self._score(message, hidden_RH, next_tokens_R)
            message, logprobs = self._sample(message, hidden_RH, adjustments_A3)
            return message, (*logprobs, scores.view(torch.int64))

    def _run_layers(self, message: Message, hidden_RH: torch.Tensor, ends_only: bool) -> tuple[Message, torch.Tensor]:
        if message.kind is Kind.PREFILL and not isinstance(self.decoder, NativeDecoder):
            for work in message.works:
                if work.position == 0 or not work.rows:
                    self._clean_slot(self.decoder, work.slot)
        drafted = message.drafted
        fed_RH = hidden_RH.clone() if drafted else hidden_RH
        hidden_RH = self.decoder.forward(
            hidden_RH, self._segments(message), prompt=message.kind is Kind.PREFILL, ends_only=ends_only
        )
        leader = message.works[0]
        for work in message.works:
            if work.rows:
                leader = work
            else:
                self.decoder.copy_slot(leader.slot, work.slot, work.position)
        faulty = self._faulty(message, hidden_RH)
        if drafted and faulty:
            faulty, hidden_RH = self._without_drafts(message, faulty, fed_RH)
        return self._mark(message, faulty), hidden_RH

    def _without_drafts(
        self, message: Message, faulty: set[int], fed_RH: torch.Tensor
    ) -> tuple[set[int], torch.Tensor]:
        """Run a decode step again, without the drafted tokens of slots with infinities, which all their rows may share.

        Those works count as faulty. Their rows are zeros, so that what they leave in the cache is finite.
        """
        slots = {message.works[index].slot for index in faulty}
        left_out = {index for index in message.drafted if message.works[index].slot in slots}
        fed_RH[sorted(left_out)] = 0
        hidden_RH = self.decoder.forward(fed_RH, self._segments(message), prompt=False)
        return self._faulty(message, hidden_RH) | left_out, hidden_RH

    def _is_lane(self, message: Message) -> bool:
        """Whether a micro-batch has a row for each slot of its lane, idle or not."""
        return self.decoder.fixed_rows and message.kind is not Kind.PREFILL

    def _segments(self, message: Message) -> list[Segment]:
        """Return whose rows the hidden states are; those of a slot's drafted tokens follow its first row."""
        segments: list[Segment] = []
        for work in message.works:
            if segments and work.rows and segments[-1].slot == work.slot:
                segments[-1] = segments[-1]._replace(rows=segments[-1].rows + work.rows)
            elif work.rows:
                segments.append(Segment(work.slot, work.position, work.rows))
        if not self._is_lane(message):
            return segments
        first = message.lane * self._slots_per_lane
        lane = [Segment(first + place, IDLE, 1) for place in range(self._slots_per_lane)]
        for segment in segments:
            lane[segment.slot - first] = segment
        return lane

    def _last_rows(self, message: Message) -> list[int]:
        """Return the last row of each work; a sibling shares that of the work before it."""
        if self._is_lane(message):
            return [work.slot % self._slots_per_lane for work in message.works]
        return [end - 1 for end in accumulate(work.rows for work in message.works)]

    def _faulty(self, message: Message, hidden_RH: torch.Tensor) -> set[int]:
        """Return the indices of works with a row that is not finite."""
        faulty_rows = non_finite_rows(hidden_RH, self._native)
        if not faulty_rows:
            return set()
        faulty, first = set(), 0
        for index, (work, last) in enumerate(zip(message.works, self._last_rows(message), strict=True)):
            first = last + 1 - work.rows if work.rows else first
            if not faulty_rows.isdisjoint(range(first, last + 1)):
                faulty.add(index)
        return faulty

    def _score(
        self, message: Message, hidden_RH: torch.Tensor, next_tokens_R: torch.Tensor
    ) -> tuple[Message, torch.Tensor]:
        """Return the scores (message.score_shape) of the scored works' rows."""
        works = [  # the index of each, and its first and last row
            (index, last + 1 - work.rows, last)
            for index, (work, last) in enumerate(zip(message.works, self._last_rows(message), strict=True))
            if work.prompt_logprobs != NO_LOGPROBS
        ]
        rows = [(index, row) for index, first, last in works for row in range(first, last + 1)]
        cuts = (
            [0, *accumulate(last + 1 - first for _, first, last in works)]
            if self.decoder.fixed_rows
            else [0, len(rows)]
        )
        blocks = [
            range(start, min(start + SCORED_ROWS, end))
            for begin, end in pairwise(cuts)
            for start in range(begin, end, SCORED_ROWS)
        ]
        scores = torch.zeros(message.score_shape, dtype=torch.float64)
        for block in blocks:
            chosen = rows[block.start : block.stop]
            logits_NV = self.decoder.logits(hidden_RH[[row for _, row in chosen]]).float()
            message = self._mark(message, {chosen[row][0] for row in non_finite_rows(logits_NV, self._native)})
            counts = [message.works[index].prompt_logprobs for index, _ in chosen]
            found = score_rows(logits_NV, next_tokens_R[block.start : block.stop], counts)
            scores[block.start : block.stop, : found.shape[1]] = found
        return message, scores

    def _sample(
        self, message: Message, hidden_RH: torch.Tensor, adjustments_A3: torch.Tensor | None
    ) -> tuple[Message, tuple[torch.Tensor, ...]]:
        chosen = [index for index, work in enumerate(message.works) if work.sample != NO_SAMPLE]
        if not chosen:
            return message, ()
        last_rows = self._last_rows(message)
        logits_NV = self._logits(message, hidden_RH, [last_rows[index] for index in chosen])
        message = self._mark(message, {chosen[row] for row in non_finite_rows(logits_NV, self._native)})
        if self._capture is not None:
            for work, logits_V in zip(message.sampled, logits_NV, strict=True):
                self._write_logits(self._capture, work, logits_V)
        chosen_from = logits_NV if adjustments_A3 is None else adjusted(logits_NV, adjustments_A3)
        message = message.with_tokens(choose_tokens(chosen_from, message.sampled, self._native))
        return message, (log_probabilities(logits_NV, message.sampled),) if message.has_logprobs else ()

    def _logits(self, message: Message, hidden_RH: torch.Tensor, rows: list[int]) -> torch.Tensor:
        """Return the fp32 logits (len(rows), V) of some rows."""
        if self._is_lane(message):
            chosen_N = torch.tensor(rows, device=hidden_RH.device)
            return self.decoder.logits(hidden_RH).index_select(0, chosen_N).float()
        if not self.decoder.fixed_rows:
            every_row = rows == list(range(len(hidden_RH)))  # to pick them takes a quarter of a ms
            return self.decoder.logits(hidden_RH if every_row else hidden_RH[rows]).float()
        each = {row: self.decoder.logits(hidden_RH[row : row + 1]) for row in dict.fromkeys(rows)}
        return torch.cat([each[row] for row in rows]).float()

    def _mark(self, message: Message, faulty: set[int]) -> Message:
        marked = message.with_fault(self.rank, faulty)
        self._spoiled_slots.update(work.slot for work in marked.works if work.fault != NO_FAULT)
        return marked

    def _clean_slot(self, decoder: Decoder, slot: int) -> None:
        """Clear the slot of a request with infinities before the next request uses it."""
        if slot in self._spoiled_slots:
            decoder.clear_slot(slot)
            self._spoiled_slots.discard(slot)

    def _write_logits(self, folder: Path, work: Work, logits_V: torch.Tensor) -> None:
        """Write the logits at their token's place; those behind a wrong draft are overwritten, or stay at the end."""
        row = logits_V.cpu().numpy().tobytes()
        with (folder / f"{work.request}.f32").open("wb" if work.sample == 0 else "r+b") as file:
            file.seek(work.sample * len(row))
            file.write(row)
