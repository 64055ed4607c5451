"""A replica without a model: each answer says its seed and then counts words; tokens have log-probabilities."""

import asyncio
import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from qubic_lab.errors import QubicLabError, RankError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2

END = 0
"""The id of the token that ends an answer; other tokens are bytes, or words from FIRST_WORD on."""
FIRST_WORD = 300
MOST_TOKENS = 20
"""An answer ends by itself after so many tokens, its end included."""


@dataclass
class Words:
    """Answers at once, or, while it is `held`, after the first token of each sample; `error` ends each answer there."""

    slots: int = 4
    held: bool = False
    error: Exception | None = None
    after: int = 0
    fails_to_start: int = 0
    running: int = 0
    asked: list[pipeline_pb2.GenerateRequest] = field(default_factory=list)
    _lost: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self) -> pb.Capabilities:
        if self.fails_to_start:
            self.fails_to_start -= 1
            raise RankError("rank 0 does not start")
        self._lost = asyncio.Event()
        return pb.Capabilities(model="words", model_hash="ab" * 32, layers=[1], slots=self.slots, tokens_per_s=1.0)

    async def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncGenerator[pipeline_pb2.GenerateReply, None]:
        self.asked.append(request)
        self.running += 1
        try:
            samples = range(max(1, request.samples))
            answers = [answer(request, sample) for sample in samples]
            for place in range(max(map(len, answers), default=0)):
                if self.error is not None and place == self.after:
                    raise self.error
                for sample in samples:
                    if not request.whole and place < len(answers[sample]):
                        yield pipeline_pb2.GenerateReply(sample=sample, token=answers[sample][place])
                while self.held and not self._lost.is_set():
                    await asyncio.sleep(0.01)
                if self._lost.is_set():
                    raise RankError("rank 1 is gone")
            for sample in samples:
                yield pipeline_pb2.GenerateReply(sample=sample, end=end_of(request, answers[sample]))
        finally:
            self.running -= 1

    def lose(self) -> None:
        self._lost.set()

    async def stats(self) -> pipeline_pb2.StatsReply:
        return pipeline_pb2.StatsReply()

    async def lost(self) -> QubicLabError:
        await self._lost.wait()
        return RankError("rank 1 is gone")

    async def stop(self) -> None:
        pass


def text_of(seed: int, tokens: int = MOST_TOKENS) -> str:
    """Return the text of an answer of so many tokens."""
    return " ".join(_words(seed)[:tokens])


def answer(request: pipeline_pb2.GenerateRequest, sample: int) -> list[pipeline_pb2.Token]:
    """Return the tokens of an answer; the last one of a whole answer ends it."""
    sampling = request.sampling
    texts = [*(("" if number == 0 else " ") + word for number, word in enumerate(_words(sampling.seed + sample))), ""]
    tokens = []
    for number, text in enumerate(texts[: sampling.max_new_tokens]):
        id = FIRST_WORD + number if text else END
        token = pipeline_pb2.Token(id=id, text=text, raw=text.encode() or b"<end>")
        if sampling.logprobs:
            token.logprob = logprob(number, sample)
            if sampling.top_logprobs:
                token.top.add(id=id, logprob=token.logprob, raw=token.raw)
                token.top.add(id=128, logprob=-9.0, raw=b"\xe2\x82")
        tokens.append(token)
    return tokens


def logprob(number: int, sample: int) -> float:
    """Return the log-probability of a token: later samples are likelier."""
    return -(number + 1) / (sample + 1)


def _words(seed: int) -> list[str]:
    return ["seed", str(seed), *(f"w{number}" for number in range(1, MOST_TOKENS - 2))]


def prompt_bytes(request: pipeline_pb2.GenerateRequest) -> bytes:
    """Return a prompt, whose tokens are bytes."""
    chat = "".join(f"<{message.role}>{message.content}" for message in request.messages)
    return bytes(id % 256 for id in request.token_ids) or (request.prompt or chat).encode()


def end_of(request: pipeline_pb2.GenerateRequest, tokens: list[pipeline_pb2.Token]) -> pipeline_pb2.End:
    """Return the end of an answer."""
    prompt = prompt_bytes(request)
    end = pipeline_pb2.End(
        text="".join(token.text for token in tokens),
        finish_reason="stop" if tokens and tokens[-1].id == END else "length",
        prompt_tokens=len(prompt),
        ttft_ms=5.0,
        queue_ms=2.0,
        tokens_per_s=100.0,
        token_ids=[token.id for token in tokens],
        logprobs=[token.logprob for token in tokens] if request.sampling.logprobs else [],
    )
    if request.HasField("prompt_logprobs"):
        for number, byte in enumerate(prompt):
            scored = end.prompt.add(id=byte, raw=bytes([byte]))
            if number:
                scored.logprob = -float(number) if number < 1_000 else -math.inf
                if request.prompt_logprobs:
                    scored.top.add(id=byte, logprob=scored.logprob, raw=scored.raw)
    return end
