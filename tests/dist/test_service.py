"""The service under load and abuse: answers stay the same, what one client does disturbs no other, slots come back."""

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest
import torch
from clusters import wait_until
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st

from qubic_lab.core import MAX_SEED, Request, SamplingParams
from qubic_lab.errors import BusyError, DeadlineError, InputError, RankError, RequestCancelled
from qubic_lab.pipeline import AsyncPipeline, Pipeline, PipelineConfig
from qubic_lab.pipeline.calls import SERVICE, as_request
from qubic_lab.pipeline.config import MOST_WAITING
from qubic_lab.pipeline.engine import Engine
from qubic_lab.pipeline.schedule import Limits
from qubic_lab.pipeline.server import start_server
from qubic_lab.wire import pipeline_pb2 as pb
from qubic_lab.wire.channel import MOST_BYTES, open_channel
from qubic_lab.wire.services import PIPELINE_SERVICE, stub_of

pytestmark = pytest.mark.dist

ENDLESS = {"max_new_tokens": 450, "ignore_eos": True}


@pytest.fixture
def lab(two_ranks: Pipeline, tiny: Path) -> Iterator[Pipeline]:
    """Two ranks with two lanes of one slot; at the end nothing may be running."""
    two_ranks.configure(PipelineConfig(model=str(tiny), ranks=2, threads=1))
    yield two_ranks
    wait_until(lambda: two_ranks.stats().requests == 0)  # else a request was left behind


def raw_client(lab: Pipeline) -> tuple[grpc.Channel, Any]:
    """A second, raw client of the same pipeline."""
    channel = open_channel(lab.address)
    return channel, stub_of(channel, PIPELINE_SERVICE)


@pytest.mark.parametrize("dtype", [pytest.param("fp32", marks=pytest.mark.slow), "bf16"])
@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_many_clients_get_what_each_request_gets_alone(
    ranks: int, dtype: str, of_ranks: Callable[[PipelineConfig], Pipeline], tiny: Path
) -> None:
    lab = of_ranks(PipelineConfig(model=str(tiny), ranks=ranks, dtype=dtype, slots=3, threads=1))
    asked = [
        Request(
            token_ids=tuple((7 * n + k) % 300 for k in range(1 + 37 * n % 150)),
            sampling=SamplingParams(1 + n % 13, temperature=n % 3 / 2, top_k=n % 5 * 10, seed=n, ignore_eos=True),
        )
        for n in range(50)
    ]
    alone = [lab.answer(request).completion.token_ids for request in asked]
    with ThreadPoolExecutor(8) as clients:
        together = [answer.completion.token_ids for answer in clients.map(lab.answer, asked * 4)]
    assert together == alone * 4


def test_a_stream_is_its_completion(lab: Pipeline) -> None:
    stream = lab.stream("Why?", max_new_tokens=30, ignore_eos=True)
    with pytest.raises(InputError, match="read the stream"):
        _ = stream.completion
    tokens = list(stream)
    assert tuple(token.id for token in tokens) == stream.completion.token_ids
    assert "".join(map(str, tokens)) == stream.completion.text
    assert replace(
        lab.generate("Why?", max_new_tokens=30, ignore_eos=True), ttft_ms=0, queue_ms=0, tokens_per_s=0, cached_tokens=0
    ) == replace(stream.completion, ttft_ms=0, queue_ms=0, tokens_per_s=0, cached_tokens=0)


def test_a_whole_answer_is_one_reply_with_what_the_stream_tells(lab: Pipeline) -> None:
    sampling = pb.Sampling(max_new_tokens=40, top_p=1, temperature=1, seed=3, ignore_eos=True, logprobs=True)
    channel, stub = raw_client(lab)
    with channel:
        for samples in (1, 2):
            asked = {"prompt": "Why?", "sampling": sampling, "samples": samples}
            streamed = list(stub.Generate(pb.GenerateRequest(**asked)))
            whole = list(stub.Generate(pb.GenerateRequest(**asked, whole=True)))
            assert (len(streamed), len(whole)) == (41 * samples, samples)
            for end in (reply.end for reply in whole):
                sample = end.request - whole[0].end.request + whole[0].sample
                tokens = [reply.token for reply in streamed if reply.sample == sample and reply.HasField("token")]
                assert list(end.token_ids) == [token.id for token in tokens]
                assert list(end.logprobs) == [token.logprob for token in tokens]
                assert end.text == "".join(token.text for token in tokens)


def test_a_whole_answer_tells_when_its_tokens_came_not_when_it_was_sent(lab: Pipeline) -> None:
    def shares() -> tuple[float, float]:
        """The times of the first and the last token as shares of the whole time."""
        started = time.perf_counter()
        answer = lab.generate("hi", **ENDLESS)
        taken_s = time.perf_counter() - started
        decode_s = (len(answer.token_ids) - 1) / answer.tokens_per_s
        return answer.ttft_ms / 1_000 / taken_s, (answer.ttft_ms / 1_000 + decode_s) / taken_s

    found = [shares() for _ in range(3)]  # a busy machine may hold up one of them
    assert all(first < last < 1 for first, last in found)
    assert min(first for first, _ in found) < 0.5 < max(last for _, last in found)


def test_a_whole_answer_can_be_counted_and_cancelled_while_it_runs(lab: Pipeline) -> None:
    before = lab.stats().tokens
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(lab.generate, "hi", id="whole", **ENDLESS)
        wait_until(lambda: lab.stats().tokens >= before + 5)
        assert lab.cancel("whole")
        with pytest.raises(RequestCancelled):
            answer.result()


def test_stats_count_what_became_of_requests(lab: Pipeline) -> None:
    before = lab.stats()
    for _ in range(5):
        lab.generate("hi", max_new_tokens=3, ignore_eos=True)
    with pytest.raises(DeadlineError, match=r"deadline of 0\.01 s"):
        lab.generate("hi", deadline_s=0.01, **ENDLESS)
    wait_until(lambda: lab.stats().requests == 0)
    after = lab.stats()
    assert (after.finished - before.finished, after.failed - before.failed) == (5, 1)
    assert after.tokens - before.tokens >= 15


@pytest.mark.parametrize("ranks", [1, 2])
def test_logprobs_are_those_of_the_logits(
    ranks: int, of_ranks: Callable[[PipelineConfig], Pipeline], tiny: Path, tmp_path: Path
) -> None:
    lab = of_ranks(PipelineConfig(model=str(tiny), ranks=ranks, slots=2, threads=1, dtype="fp32", capture=tmp_path))
    options = {"max_new_tokens": 9, "temperature": 1.0, "ignore_eos": True}
    plain = [lab.stream(f"other {n}", **options) for n in range(3)]
    stream = lab.stream("hi", **options, logprobs=True, top_logprobs=4)
    tokens = list(stream)
    answer = stream.answer()
    logits = np.fromfile(tmp_path / f"{answer.number}.f32", "<f4").reshape(9, -1).astype(np.float64)
    expected = torch.log_softmax(torch.from_numpy(logits), dim=-1).numpy()
    for row, token in zip(expected, tokens, strict=True):
        assert token.logprob == pytest.approx(row[token.id])
        told = [top.logprob for top in token.top_logprobs]
        assert told == pytest.approx(sorted(row, reverse=True)[:4])
        assert [row[top.id] for top in token.top_logprobs] == pytest.approx(told)
    assert answer.completion.logprobs == tuple(token.logprob for token in tokens)
    assert all(s.answer().completion.logprobs == () for s in plain)


@pytest.mark.parametrize("ranks", [1, 2])
def test_penalties_and_biases_change_the_choice_and_no_logprob(
    ranks: int, of_ranks: Callable[[PipelineConfig], Pipeline], tiny: Path, tmp_path: Path
) -> None:
    lab = of_ranks(PipelineConfig(model=str(tiny), ranks=ranks, slots=3, threads=1, capture=tmp_path))
    plain = {"max_new_tokens": 16, "ignore_eos": True, "logprobs": True}
    bias = {5: 3.0, 7: -100.0}
    alone = lab.generate("hi", **plain)
    other = lab.stream("hi", **plain)
    request = as_request("hi", {**plain, "presence_penalty": 1.5, "frequency_penalty": 0.5, "logit_bias": bias})
    answer = lab.answer(request)
    tokens = answer.completion.token_ids
    assert other.answer().completion.token_ids == alone.token_ids != tokens
    logits = torch.from_numpy(np.fromfile(tmp_path / f"{answer.number}.f32", "<f4").reshape(16, -1).copy())
    for step, (logits_V, token) in enumerate(zip(logits, tokens, strict=True)):
        said = answer.completion.logprobs[step]
        assert said == torch.log_softmax(logits_V.double(), dim=-1)[token]
        for changed, count in Counter(tokens[:step]).items():
            logits_V[changed] -= 1.5 + 0.5 * count - bias.get(changed, 0.0)
        for changed in bias.keys() - set(tokens[:step]):
            logits_V[changed] += bias[changed]
        assert token == int(logits_V.argmax())
    for known in (1, 8):
        assert lab.generate(replace(request, forced_token_ids=tokens[:known])).token_ids == tokens
    with pytest.raises(InputError, match="logit_bias's token id 320 is not in the vocabulary of 320"):
        lab.generate("hi", logit_bias={320: 1.0})


@pytest.mark.parametrize(("ranks", "dtype"), [(1, "fp32"), (2, "fp32"), (2, "bf16")])
def test_samples_of_one_prompt_are_what_each_seed_gives_alone(
    ranks: int, dtype: str, of_ranks: Callable[[PipelineConfig], Pipeline], tiny: Path
) -> None:
    lab = of_ranks(PipelineConfig(model=str(tiny), ranks=ranks, slots=4, threads=1, dtype=dtype))
    options = {"token_ids": tuple(range(1, 200)), "max_new_tokens": 12, "temperature": 1.0, "ignore_eos": True}
    others = [lab.stream("something else", max_new_tokens=20, ignore_eos=True) for _ in range(2)]
    samples = lab.samples("", 3, **options, seed=5)
    alone = [lab.generate("", **options, seed=5 + n) for n in range(3)]
    assert [sample.token_ids for sample in samples] == [answer.token_ids for answer in alone]
    assert len({sample.token_ids for sample in samples}) == 3
    assert [sample.text for sample in samples] == [answer.text for answer in alone]
    assert all(len(other.answer().completion.token_ids) == 20 for other in others)


def test_more_samples_than_a_micro_batch_holds_are_refused(two_ranks: Pipeline, tiny: Path) -> None:
    two_ranks.configure(PipelineConfig(model=str(tiny), ranks=2, slots=40, threads=1))
    with pytest.raises(InputError, match="samples is 65: this pipeline answers at most 64 at once"):
        two_ranks.samples("hi", 65, max_new_tokens=1)
    assert len(two_ranks.samples("hi", 64, max_new_tokens=1)) == 64


@pytest.mark.parametrize("ranks", [1, 2])
def test_scores_are_the_log_probabilities_of_transformers(
    ranks: int, of_ranks: Callable[[PipelineConfig], Pipeline], tiny: Path
) -> None:
    from transformers import AutoModelForCausalLM

    lab = of_ranks(PipelineConfig(model=str(tiny), ranks=ranks, slots=2, threads=1, dtype="fp32"))
    tokens = [(11 * n + 3) % 300 for n in range(300)]  # longer than two chunks
    busy = lab.stream("something else", **ENDLESS)
    next(iter(busy))
    scores = lab.score(token_ids=tokens)
    busy.cancel()
    logits = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)(torch.tensor([tokens])).logits[0]
    expected = torch.log_softmax(logits[:-1], dim=-1)[torch.arange(299), torch.tensor(tokens[1:])]
    assert scores.token_ids == tuple(tokens)
    assert scores.logprobs == pytest.approx(expected.tolist(), abs=1e-4)
    assert lab.score("hi").logprobs == lab.score(token_ids=lab.score("hi").token_ids).logprobs


def test_what_cannot_be_answered_is_the_callers_error(lab: Pipeline) -> None:
    for message, ask in (
        ("did you mean 'temperature'", lambda: lab.generate("hi", temprature=1.0)),
        ("together with a ready request", lambda: lab.generate(Request(prompt="hi"), seed=1)),
        ("samples is 3: .* at most 2", lambda: lab.samples("hi", 3)),
        ("context is 512", lambda: lab.generate(token_ids=(1,) * 512)),
        ("token id 320", lambda: lab.generate(token_ids=(1, 320))),
        ("at most 64 MiB can be sent", lambda: lab.generate(TOO_LARGE.decode())),
        ("at most 64 MiB can be sent", lambda: lab.score(TOO_LARGE.decode())),
    ):
        with pytest.raises(InputError, match=message):
            ask()


def test_cancelling_frees_the_slot_and_says_so(lab: Pipeline) -> None:
    stream = lab.stream("hi", id="mine", **ENDLESS)
    tokens = iter(stream)
    next(tokens)
    with pytest.raises(InputError, match="'mine' is in use"):
        lab.generate("hi", id="mine")
    assert lab.cancel("mine")
    with pytest.raises(RequestCancelled):
        list(tokens)
    assert not lab.cancel("mine")
    assert not lab.cancel("")


def test_a_client_that_hangs_up_frees_its_slot(lab: Pipeline) -> None:
    channel, stub = raw_client(lab)
    replies = stub.Generate(pb.GenerateRequest(prompt="hi", sampling=pb.Sampling(top_p=1, **ENDLESS)))
    next(replies)
    channel.close()
    wait_until(lambda: lab.stats().requests == 0)


def test_a_client_that_does_not_read_disturbs_no_other(lab: Pipeline) -> None:
    stream = lab.stream("hi", **ENDLESS)
    expected = lab.generate("other", max_new_tokens=5, ignore_eos=True).token_ids
    for _ in range(3):
        assert lab.generate("other", max_new_tokens=5, ignore_eos=True).token_ids == expected
    assert len(stream.answer().completion.token_ids) == 450


def test_one_request_too_many_is_told_at_once(lab: Pipeline) -> None:
    room = lab.stats().most_requests
    assert room == lab.stats().slots + MOST_WAITING
    waiting = [lab.stream("hi", **ENDLESS) for _ in range(room)]
    wait_until(lambda: lab.stats().requests == room)
    with pytest.raises(BusyError, match=f"{MOST_WAITING} are waiting"):
        lab.generate("hi")
    with pytest.raises(BusyError, match="configure it when they are done"):
        lab.configure(PipelineConfig(model=str(lab.config.folder), ranks=2))
    for stream in waiting:
        stream.cancel()


def test_the_wrong_model_does_not_answer(lab: Pipeline) -> None:
    channel, stub = raw_client(lab)
    with channel, pytest.raises(grpc.RpcError) as caught:
        next(stub.Generate(pb.GenerateRequest(prompt="hi", model="gpt", sampling=pb.Sampling(top_p=1, **ENDLESS))))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "'gpt' is not loaded" in str(caught.value.details())


def test_health_says_serving_only_while_a_model_is_loaded(lab: Pipeline) -> None:
    channel, stub = raw_client(lab)
    with channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        good = stub.Describe(pb.DescribeRequest()).settings
        with pytest.raises(grpc.RpcError):
            stub.Configure(pb.Settings(model_folder="/nowhere", lanes=1, slots_per_lane=1))
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(InputError, match="has no model"):
            lab.generate("hi")
        stub.Configure(good)
        assert any(reply.status == health_pb2.HealthCheckResponse.SERVING for reply in watch)
        watch.cancel()


def test_a_second_handle_joins_a_running_pipeline_and_leaves_it_running(lab: Pipeline) -> None:
    with Pipeline.connect(lab.address) as other:
        assert other.config == lab.config
        assert other.generate("hi", max_new_tokens=4).token_ids == lab.generate("hi", max_new_tokens=4).token_ids
    assert lab.generate("hi", max_new_tokens=1).token_ids


def test_nobody_at_an_address_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("qubic_lab.pipeline.client.CONNECT_TIMEOUT_S", 0.2)
    with pytest.raises(RankError, match=r"nobody\.sock does not answer"):
        Pipeline.connect(f"unix:{tmp_path}/nobody.sock")


class LoadingEngine:
    """As much of an engine as joining takes: a model is being loaded until `loaded` is set."""

    progressed_at = 0.0

    def __init__(self) -> None:
        self.loaded = threading.Event()

    def configure(self, settings: object, limits: Limits) -> list[dict[str, object]]:
        self.limits = limits
        self.loaded.wait()
        return []

    report = list


@contextmanager
def loading_pipeline(tiny: Path, folder: Path) -> Iterator[tuple[str, LoadingEngine]]:
    """A service at an address, whose engine has just been told to load a model."""
    engine, address = LoadingEngine(), f"unix:{folder / 'socket'}"
    server, service = start_server(cast(Engine, engine), address)
    settings = pb.Settings(model_folder=str(tiny), layers=[4], lanes=1, slots_per_lane=2, dtype="bf16")
    load = threading.Thread(target=service.configure, args=(settings,))
    load.start()
    try:
        yield address, engine
    finally:
        engine.loaded.set()
        load.join()
        server.stop(grace=None).wait()


def test_joining_waits_until_the_model_is_loaded(tiny: Path, tmp_path: Path) -> None:
    with loading_pipeline(tiny, tmp_path) as (address, engine), ThreadPoolExecutor(2) as pool:
        joined = pool.submit(Pipeline.connect, address)
        joined_async = pool.submit(lambda: asyncio.run(join_and_leave(address)))
        time.sleep(0.5)
        assert not joined.done() and not joined_async.done()
        engine.loaded.set()
        with joined.result(timeout=60) as pipeline:
            assert pipeline.config.slots == 2
        joined_async.result(timeout=60)


async def join_and_leave(address: str) -> None:
    async with await AsyncPipeline.connect(address):
        pass


def test_joining_a_pipeline_that_never_loads_is_an_error(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("client", "async_client"):
        monkeypatch.setattr(f"qubic_lab.pipeline.{module}.NO_PROGRESS_S", 0.3)
    with loading_pipeline(tiny, tmp_path) as (address, _):
        with pytest.raises(DeadlineError, match=r"socket has loaded no model within 0\.3 s: see what its ranks print"):
            Pipeline.connect(address)
        with pytest.raises(DeadlineError, match=r"socket has loaded no model within 0\.3 s"):
            asyncio.run(join_and_leave(address))


METHODS = [method.name for method in PIPELINE_SERVICE.methods]
STREAMS = [method.name for method in PIPELINE_SERVICE.methods if method.server_streaming]
TOO_LARGE = bytes(MOST_BYTES + 1)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"\xff" * 40, grpc.StatusCode.INVALID_ARGUMENT),
        (b"\x0a\x7fcut", grpc.StatusCode.INVALID_ARGUMENT),  # a text of 127 bytes that ends after three
        (TOO_LARGE, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["no message", "cut message", "too large"],
)
def test_bytes_that_are_no_request_disturb_nobody(content: bytes, status: grpc.StatusCode, lab: Pipeline) -> None:
    options = {"max_new_tokens": 200, "ignore_eos": True}
    alone = lab.generate("other", **options).token_ids
    other = lab.stream("other", **options)
    channel, _ = raw_client(lab)
    with channel:
        for method in METHODS:
            name = f"/{SERVICE}/{method}"
            call = channel.unary_stream(name) if method in STREAMS else channel.unary_unary(name)
            with pytest.raises(grpc.RpcError) as caught:
                list(call(content))
            assert caught.value.code() is status, method
            assert caught.value.details() and "\n" not in str(caught.value.details())
    assert other.answer().completion.token_ids == alone
    assert lab.stats().slots == 2, "what was sent to Configure changed nothing"


class SlowRelay:
    """Passes bytes on between one client and a service; once `slow` is set, one byte a second comes back."""

    def __init__(self, path: Path, service: str) -> None:
        self.slow = threading.Event()
        self.slow_bytes = 0
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._service = socket.socket(socket.AF_UNIX)
        self._service.connect(service)
        threading.Thread(target=self._relay, daemon=True).start()

    def _relay(self) -> None:
        client, _ = self._listener.accept()
        self._listener.close()
        there = threading.Thread(target=self._pass_on, args=(client,), daemon=True)
        there.start()
        with suppress(OSError):  # whoever hangs up first
            while content := self._service.recv(most := 1 if self.slow.is_set() else 4096):
                if most == 1:
                    self.slow_bytes += 1
                    time.sleep(1.0)
                client.sendall(content)
        client.close()
        there.join()
        self._service.close()

    def _pass_on(self, client: socket.socket) -> None:
        with suppress(OSError):
            while content := client.recv(4096):
                self._service.sendall(content)
            self._service.shutdown(socket.SHUT_RDWR)


def test_a_client_that_takes_one_byte_a_second_disturbs_no_other(lab: Pipeline, tmp_path: Path) -> None:
    """It gives no sign of life in time, since that comes after the bytes that wait for it: it counts as gone."""
    other = {"max_new_tokens": 40, "ignore_eos": True}
    alone = lab.generate("other", **other).token_ids
    relay = SlowRelay(tmp_path / "relay", lab.address.removeprefix("unix:"))
    with Pipeline.connect(f"unix:{tmp_path / 'relay'}") as slow:
        tokens = iter(slow.stream("hi", **ENDLESS, logprobs=True, top_logprobs=20))  # much to be sent
        next(tokens)
        relay.slow.set()
        finished = lab.stats().finished
        asked = 0
        while lab.stats().requests:
            assert lab.generate("other", deadline_s=60.0, **other).token_ids == alone
            asked += 1
            assert asked < 1000
        after = lab.stats()
        assert asked >= 3, "others were answered while the slow client was served"
        assert after.finished - finished == asked, "the slow client's request did not end as answered"
        assert 0 < relay.slow_bytes < 60
        with pytest.raises(RankError, match="is gone"):
            list(tokens)


text = st.text(max_size=20)
word = st.integers(0, 2**32 - 1)
samplings = st.builds(
    pb.Sampling,
    max_new_tokens=st.one_of(st.integers(0, 3), word),
    temperature=st.floats(),
    top_p=st.floats(),
    top_k=st.one_of(st.integers(0, 400), word),
    seed=st.one_of(st.integers(0, MAX_SEED), st.integers(0, 2**64 - 1)),
    ignore_eos=st.booleans(),
    stop=st.lists(text, max_size=3),
    logprobs=st.booleans(),
    top_logprobs=st.one_of(st.integers(0, 30), word),
    min_p=st.sampled_from([0.0, 0.5, 2.0]),
    presence_penalty=st.sampled_from([0.0, 1.0]) | st.floats(),
    frequency_penalty=st.just(0.0) | st.floats(),
    logit_bias=st.dictionaries(st.integers(0, 330) | word, st.floats(-100, 100) | st.floats(), max_size=2),
)
wild_requests = st.builds(
    pb.GenerateRequest,
    prompt=text,
    token_ids=st.lists(st.one_of(st.integers(0, 400), word), max_size=3),
    raw=st.booleans(),
    sampling=samplings,
    id=text,
    deadline_s=st.one_of(st.just(0.0), st.floats()),
    model=st.one_of(st.just(""), text),
    samples=st.one_of(st.integers(0, 3), word),
    messages=st.lists(st.builds(pb.ChatMessage, role=st.sampled_from(["user", "x"]), content=text), max_size=2),
    prompt_logprobs=st.none() | st.integers(0, 20) | word,
)


@settings(max_examples=150)
@given(request=wild_requests)
def test_wild_requests_end_in_an_answer_or_one_line(request: pb.GenerateRequest, lab: Pipeline) -> None:
    channel, stub = raw_client(lab)
    with channel:
        replies = stub.Generate(request)
        try:
            for _ in zip(range(5), replies, strict=False):
                pass
            replies.cancel()
        except grpc.RpcError as error:
            assert error.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DEADLINE_EXCEEDED}, error
            assert "\n" not in str(error.details())
    wait_until(lambda: lab.stats().requests == 0)
    assert lab.generate(token_ids=(1, 2), max_new_tokens=2, ignore_eos=True).token_ids


def test_the_asynchronous_client_gives_the_same_answers(lab: Pipeline) -> None:
    prompts = [f"question {n}" for n in range(6)]

    async def ask() -> list[tuple[int, ...]]:
        async with await AsyncPipeline.connect(lab.address) as client:
            answers = await asyncio.gather(*(client.generate(p, max_new_tokens=5, ignore_eos=True) for p in prompts))
            stream = client.stream("hi", **ENDLESS, id="async")
            seen = 0
            with pytest.raises(RequestCancelled):
                async for _ in stream:
                    seen += 1
                    if seen == 2:
                        assert await client.cancel("async")
            with pytest.raises(InputError, match="max_new_tokens is 0"):
                await client.generate("hi", max_new_tokens=0)
            return [answer.token_ids for answer in answers]

    assert asyncio.run(ask()) == [lab.generate(p, max_new_tokens=5, ignore_eos=True).token_ids for p in prompts]
