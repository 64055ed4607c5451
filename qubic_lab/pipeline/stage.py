"""The work of one rank on a micro-batch: its layers, the check for infinities and, on the last rank, sampling."""

from collections.abc import Sequence
from pathlib import Path

import torch

from qubic_lab.model.decoder import Decoder, lane_rows
from qubic_lab.pipeline.message import NO_FAULT, NO_SAMPLE, NO_TOKEN, Kind, Message, Work
from qubic_lab.pipeline.sampling import choose_token, log_probabilities
from qubic_lab.trace import NO_TRACE, NoTracer, Tracer


class Stage:
    """A rank's decoder and its lanes."""

    def __init__(
        self,
        rank: int,
        decoder: Decoder,
        lanes: int,
        slots_per_lane: int,
        capture: Path | None,
        tracer: Tracer | NoTracer = NO_TRACE,
    ) -> None:
        """Prepare the KV cache; `capture` is a folder for the logits of each request (last rank), or None."""
        self.rank = rank
        self.decoder = decoder
        self.slots_per_lane = slots_per_lane
        self.rows = lane_rows(slots_per_lane, decoder.dtype)
        self._capture = capture
        self._tracer = tracer
        self._spoiled_slots: set[int] = set()
        decoder.reset(lanes * slots_per_lane)

    def hidden_shape(self, message: Message) -> tuple[int, int]:
        """Return the shape (rows, H) of the hidden states that travel with a micro-batch."""
        rows = message.count if message.is_prompt else self.rows
        return rows, self.decoder.config.hidden

    def embed(self, message: Message, token_ids: Sequence[int]) -> torch.Tensor:
        """Return the first stage's input (rows, H) for a micro-batch's tokens; idle rows carry token 0."""
        if message.is_prompt:
            return self.decoder.embed(token_ids)
        row_tokens = [0] * self.rows
        for work, token in zip(message.works, token_ids, strict=True):
            row_tokens[work.slot % self.slots_per_lane] = token
        return self.decoder.embed(row_tokens)

    @torch.inference_mode()
    def run(
        self, message: Message, hidden_RH: torch.Tensor, next_tokens_R: torch.Tensor | None = None
    ) -> tuple[Message, tuple[torch.Tensor, ...]]:
        """Run a micro-batch through the layers; a SCORE comes with the token id after each row of hidden states.

        Return the message with faults marked, and the payloads for the next rank: hidden states, and next tokens of a
        SCORE. On the last rank the message has its tokens, and log-probabilities follow if requested.
        """
        with self._tracer.span("compute", message):  # complete, because the check for infinities waits for the GPU
            message, hidden_RH = self._run_layers(message, hidden_RH)
        if not self.decoder.stage.has_head:
            return message, (hidden_RH,) if next_tokens_R is None else (hidden_RH, next_tokens_R)
        with self._tracer.span("sample", message):
            if next_tokens_R is not None:
                return self._score(message, hidden_RH, next_tokens_R)
            return self._sample(message, hidden_RH)

    def _run_layers(self, message: Message, hidden_RH: torch.Tensor) -> tuple[Message, torch.Tensor]:
        if message.is_prompt:
            work, *siblings = message.works
            if work.position == 0:
                self._clean_slot(work.slot)
            hidden_RH = self.decoder.prefill(hidden_RH, work.slot, work.position)
            for sibling in siblings:
                self._clean_slot(sibling.slot)
                self.decoder.copy_slot(work.slot, sibling.slot, work.position + message.count)
            rows = [slice(None)] * len(message.works)  # all rows belong to the prompt
        else:
            first = message.lane * self.slots_per_lane
            positions = [-1] * self.slots_per_lane
            for work in message.works:
                positions[work.slot - first] = work.position
            hidden_RH = self.decoder.decode(hidden_RH, first, positions)
            rows = [slice(work.slot - first, work.slot - first + 1) for work in message.works]
        finite_R = hidden_RH.isfinite().all(dim=-1)
        return self._mark(message, {i for i, own in enumerate(rows) if not bool(finite_R[own].all())}), hidden_RH

    def _score(
        self, message: Message, hidden_RH: torch.Tensor, next_tokens_R: torch.Tensor
    ) -> tuple[Message, tuple[torch.Tensor, ...]]:
        logprobs_RV = torch.log_softmax(self.decoder.logits(hidden_RH).float(), dim=-1)
        message = self._mark(message, set() if bool(logprobs_RV.isfinite().all()) else {0})
        scores_R = logprobs_RV.gather(1, next_tokens_R.to(logprobs_RV.device)[:, None])[:, 0]
        return message, (scores_R.cpu().double(),)

    def _sample(self, message: Message, hidden_RH: torch.Tensor) -> tuple[Message, tuple[torch.Tensor, ...]]:
        if all(work.sample == NO_SAMPLE for work in message.works):
            return message, ()
        if message.kind is Kind.PREFILL:
            logits = self.decoder.logits(hidden_RH[-1:]).float().expand(len(message.works), -1)
        else:
            rows = torch.tensor([work.slot % self.slots_per_lane for work in message.works], device=hidden_RH.device)
            logits = self.decoder.logits(hidden_RH)[rows].float()
        message = self._mark(message, {i for i, finite in enumerate(logits.isfinite().all(dim=-1)) if not finite})
        tokens = []
        for work, logits_V in zip(message.works, logits, strict=True):
            tokens.append(choose_token(logits_V, work) if work.fault == NO_FAULT else NO_TOKEN)
            if self._capture is not None:
                self._write_logits(self._capture, work, logits_V)
        message = message.with_tokens(tokens)
        return message, (log_probabilities(logits, message.works),) if message.has_logprobs else ()

    def _mark(self, message: Message, faulty: set[int]) -> Message:
        marked = message.with_fault(self.rank, faulty)
        self._spoiled_slots.update(work.slot for work in marked.works if work.fault != NO_FAULT)
        return marked

    def _clean_slot(self, slot: int) -> None:
        """Clear the slot of a request with infinities before the next request uses it."""
        if slot in self._spoiled_slots:
            self.decoder.clear_slot(slot)
            self._spoiled_slots.discard(slot)

    def _write_logits(self, folder: Path, work: Work, logits_V: torch.Tensor) -> None:
        with (folder / f"{work.request}.f32").open("wb" if work.sample == 0 else "ab") as file:
            file.write(logits_V.cpu().numpy().tobytes())
