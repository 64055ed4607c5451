import json
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.model.candidates import MOST_BATCH, Plan, Setup, best_plan, candidates, predict
from qubic_lab.model.changes import context_ranges, rate_ranges, rate_sentence
from qubic_lab.model.config import ModelConfig, parse_config
from qubic_lab.model.decoder import torch_dtype
from qubic_lab.model.device import parse_devices, parse_link
from qubic_lab.model.device_map import DeviceMap, accelerate_baseline, infer_map, map_baseline
from qubic_lab.model.plan import plan_layers
from qubic_lab.model.predict import WORKING_RESERVE_BYTES
from qubic_lab.model.random_model import read_shape
from qubic_lab.model.recommend import Advice, explain, plan
from qubic_lab.pipeline.message import MAX_SLOTS

DEEPSEEK = parse_config(read_shape("deepseek"))
SMOLLM2 = parse_config(read_shape("smollm2"))
LINK = parse_link("10Gbps:0.1ms")
SMALL = "small=3GB@259GB/s@65TFLOPS"
MEDIUM, FAST = "medium=4GB@259GB/s@65TFLOPS", "fast=4GB@600GB/s@65TFLOPS"
CRAWLING = "crawling=4GB@10GB/s@1TFLOPS"
CARD = "card=4GB@192GB/s@5TFLOPS"


def setup_of(devices: str, config=DEEPSEEK, context: int = 1024, batch: int = 1, dtype: str = "fp16") -> Setup:
    return Setup(config, parse_devices(devices.split(",")), LINK, context, batch, dtype)


def plans_of(plans: Iterable[Plan]) -> dict[str, Plan]:
    """Plans by their strategies."""
    return {plan.strategy: plan for plan in plans}


def advise(devices: str, config=DEEPSEEK, **options) -> Advice:
    return plan(config, parse_devices(devices.split(",")), LINK, **options)


def some_plan(strategy: str, tokens_per_s: float, latency_ms: float, memory: int, most: float = 1.0) -> Plan:
    layers = {"A": (1, 2), "B": (2, 1), "C": (2, 1), "D": (3, 3)}[strategy]
    return Plan(strategy, layers, 2, tokens_per_s, latency_ms, latency_ms, (memory, 1), (0.0, 0.0), 1, most)


def test_three_t4s_get_the_balanced_split_and_replicas_beside_it() -> None:
    advice = advise("t4,t4,t4")
    plans = plans_of(advice.plans)
    assert list(plans) == ["B", "C", "M", "D"]
    assert (plans["B"].layers, plans["C"].layers, plans["D"].layers) == ((10, 9, 9), (11, 11, 6), (28, 28, 28))
    assert plans["C"].tokens_per_s > 1.15 * plans["B"].tokens_per_s
    assert [refused.strategy for refused in advice.refused] == ["A"]
    assert "for 2 devices" in advice.refused[0].reason
    assert advice.recommendation == "D"
    assert "D (3 replicas)" in advice.reason and "C (11/11/6)" in advice.reason
    assert f"{plans['D'].tokens_per_s:.1f} tokens/s" in advice.reason


@pytest.mark.parametrize("ranks", [2, 3])
def test_equal_devices_are_split_as_the_pipeline_splits_within_a_layer(ranks: int) -> None:
    plans, _ = candidates(setup_of(",".join(["t4"] * ranks), context=1, batch=8))
    [planned] = (plan.layers for plan in plans if plan.strategy == "C")
    assert max(abs(a - b) for a, b in zip(planned, plan_layers(DEEPSEEK, ranks, "C"), strict=True)) <= 1


def test_quantised_weights_take_less_memory_and_time_on_cpus_and_move_the_split() -> None:
    cpus = parse_devices(["a=24GB@50GB/s@1TFLOPS", "b=24GB@50GB/s@1TFLOPS"])
    of = {name: plan(DEEPSEEK, cpus, LINK, quantization=name) for name in ("", "int8", "int4")}
    balanced = {name: plans_of(advice.plans)["C"] for name, advice in of.items()}
    assert balanced[""].latency_ms > 1.8 * balanced["int8"].latency_ms > 1.2 * 1.8 * balanced["int4"].latency_ms
    assert balanced["int4"].layers[0] > balanced[""].layers[0]  # the head has 8 bits and weighs more
    with pytest.raises(InputError, match="quantization=int8 is for CPUs, not for t4: give --devices such as cpu="):
        plan(DEEPSEEK, parse_devices(["t4"]), LINK, quantization="int8")


def test_unequal_devices_get_unequal_layers() -> None:
    plans = plans_of(advise("p4,v100").plans)
    slow, fast = plans["C"].layers
    assert fast > 2 * slow
    assert plans["C"].tokens_per_s > plans["B"].tokens_per_s


def test_what_does_not_fit_one_device_is_no_replica_and_says_why() -> None:
    advice = advise(f"{SMALL},{SMALL},{SMALL}")
    refused = {refused.strategy: refused.reason for refused in advice.refused}
    assert "on rank 0 (small) the whole model" in refused["D"]
    assert "needs 4.7 GB: only 2.7 GB of its 3.0 GB are usable" in refused["D"]
    assert advice.recommendation == "C"
    assert all(held <= 2.7e9 for plan in advice.plans for held in plan.memory_bytes)


def test_memory_limits_the_balanced_split() -> None:
    narrow = "narrow=2GB@259GB/s@65TFLOPS"
    free, limited = (plans_of(advise(devices).plans)["C"] for devices in ("t4,t4", f"{narrow},t4"))
    assert limited.layers[0] < free.layers[0]
    assert limited.memory_bytes[0] <= 0.9 * 2e9


def test_where_nothing_or_only_replicas_fit_the_reason_says_so() -> None:
    advice = advise("t4,t4", replace(DEEPSEEK, layers=30, hidden=8192, intermediate=40_000))
    assert (advice.plans, advice.recommendation, advice.by_rate[0].recommendation) == ((), None, None)
    assert advice.reason.startswith("No plan fits. A: on rank 0 (t4)")
    assert "C: 30 layers cannot be divided" in advice.reason
    assert all("nothing fits at any context" in sentence for sentence in advice.changes)
    more_than_layers = advise("t4,t4,t4", replace(DEEPSEEK, layers=2))
    assert list(plans_of(more_than_layers.plans)) == ["D"]
    assert more_than_layers.reason.startswith("Only D (3 replicas) fits")


def test_each_goal_has_its_own_best() -> None:
    plans = [some_plan("A", 90, 5.0, 50), some_plan("C", 100, 9.0, 80), some_plan("D", 80, 8.0, 200)]
    assert [best_plan(plans, goal).strategy for goal in ("throughput", "latency", "memory")] == ["C", "A", "A"]


def test_within_one_percent_the_simpler_is_taken_and_the_reason_says_so() -> None:
    replicas, balanced = some_plan("D", 99.5, 5.0, 200), some_plan("C", 100.0, 5.0, 80)
    assert best_plan([balanced, replicas], "throughput") is replicas
    assert "equal within 1%" in explain([balanced, replicas], "throughput")
    assert best_plan([balanced, replace(replicas, tokens_per_s=98.5)], "throughput") is balanced


def test_a_device_that_does_better_alone_is_named() -> None:
    advice = advise(f"h100,{SMALL}", goal="latency")
    assert advice.recommendation == "one h100 alone"
    assert "leave the others out" in advice.reason
    assert advice.baselines[0].name == "one h100 alone"


def test_one_device_with_all_requests_stands_beside_three() -> None:
    alone, batched = advise("t4,t4,t4", batch=2).baselines
    assert (alone.requests, batched.requests) == (2, 6)
    assert MOST_BATCH == MAX_SLOTS  # as many as the pipeline takes
    assert batched.tokens_per_s > 2 * alone.tokens_per_s


def test_long_contexts_move_the_recommendation_from_replicas_to_the_pipeline() -> None:
    ranges = [part for part in context_ranges(setup_of("p4,p4,p4"), "throughput") if part.batch == 8]
    assert [part.recommendation for part in ranges] == ["D", "C", None]
    for part, following in pairwise(ranges):
        assert 0 < following.context_from - part.context_to <= 256
    for part in ranges:
        for context in (part.context_from, part.context_to):
            plans, _ = candidates(setup_of("p4,p4,p4", context=context, batch=8))
            assert (best_plan(plans, "throughput").strategy if plans else None) == part.recommendation


def test_rates_beyond_a_plan_go_to_the_best_that_keeps_up() -> None:
    quick, wide = some_plan("D", 80, 5.0, 200, most=1000), some_plan("C", 70, 9.0, 80, 3000)
    ranges = rate_ranges([quick, wide], "latency", answer_tokens=100)
    assert [(part.requests_per_s_to, part.recommendation) for part in ranges] == [(10, "D"), (30, "C"), (None, None)]
    assert "D up to 10, C up to 30; beyond" in rate_sentence(ranges, 100)
    assert [part.recommendation for part in rate_ranges([quick, wide], "memory", 100)] == ["C", None]


def test_advice_is_json_with_a_value_for_each_rank() -> None:
    content = json.loads(json.dumps(advise("t4,t4", goal="memory", batch=4, answer_tokens=256).to_dict()))
    assert (content["goal"], content["batch"], content["devices"]) == ("memory", 4, ["t4", "t4"])
    for entry in content["plans"]:
        assert len(entry["layers"]) == len(entry["memory_bytes"]) == len(entry["idle_share"]) == 2
        assert entry["latency_ms"] <= entry["loaded_latency_ms"]
        assert entry["requests_per_s"] == pytest.approx(entry["most_tokens_per_s"] / 256)
    assert "vllm" in content["sources"]["t4"]
    assert any("fp16" in line for line in content["assumptions"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"goal": "latancy"}, "did you mean 'latency'"),
        ({"context": 131073}, "context is 131073: it must be at most 131072"),
        ({"batch": 65}, "batch is 65: it must be at most 64"),
        ({"dtype": "bf16"}, "t4 lacks in hardware"),
    ],
)
def test_what_is_asked_wrongly_is_refused(options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        advise("t4", **options)


@cache
def model_without_weights(config: ModelConfig) -> Any:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.for_model(
        config.family,
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        tie_word_embeddings=config.tied_head,
    )
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(shape)
    model.tie_weights()
    return model


def map_of_accelerate(setup: Setup) -> DeviceMap:
    """The map that the library itself makes."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    config, model = setup.config, model_without_weights(setup.config)
    rooms = [max(0, each.usable_bytes - WORKING_RESERVE_BYTES) for each in setup.devices]
    options = {"no_split_module_classes": list(model._no_split_modules), "dtype": torch_dtype(setup.dtype)}
    with warnings.catch_warnings(action="ignore"):  # that the devices are not in this machine
        balanced = get_balanced_memory(model, max_memory=dict(enumerate(rooms)), **options)
        places = infer_auto_device_map(model, max_memory=balanced, **options)

    def place_of(name: str) -> int:
        while name and name not in places:
            name = name.rpartition(".")[0]
        return places[name]

    if not all(isinstance(place, int) for place in places.values()):
        raise QubicLabError("no room for all weights")
    layers = tuple(place_of(f"model.layers.{layer}") for layer in range(config.layers))
    return DeviceMap(place_of("model.embed_tokens"), layers, place_of("lm_head"))


@pytest.mark.parametrize("dtype", ["fp16", "fp32"])
@pytest.mark.parametrize(
    "gigabytes", ["1.3,1.4,16", "16,1.3", "1.5,1.5,1.5,2", "2,3", "1,4,2.5", "1.4,1.3", "4", "3,3,3,3"]
)
@pytest.mark.parametrize(
    "config",
    [DEEPSEEK, replace(DEEPSEEK, layers=7), SMOLLM2, replace(SMOLLM2, layers=3), replace(SMOLLM2, vocab=320)],
    ids=["deepseek", "seven layers", "smollm2", "a heavy head", "a light head"],
)
def test_the_map_is_that_of_accelerate_itself(config: ModelConfig, gigabytes: str, dtype: str) -> None:
    devices = ",".join(f"d{n}={each}GB@259GB/s@65TFLOPS" for n, each in enumerate(gigabytes.split(",")))
    setup = setup_of(devices, config, dtype=dtype)
    try:
        theirs = map_of_accelerate(setup)
    except QubicLabError as error:
        with pytest.raises(QubicLabError, match=str(error)):
            infer_map(setup)
        return
    assert infer_map(setup) == theirs


@pytest.mark.parametrize(("layers", "head", "hops"), [((0, 1, 1), 2, 3), ((0, 1, 1), 0, 2), ((0, 0, 0), 0, 0)])
def test_hops_are_counted_on_the_way_there_and_back(layers: tuple[int, ...], head: int, hops: int) -> None:
    assert DeviceMap(0, layers, head).hops == hops


def test_a_map_of_one_device_is_one_device() -> None:
    setup = setup_of("t4")
    baseline = map_baseline(setup, DeviceMap(0, (0,) * 28, 0))
    whole = plans_of(candidates(setup)[0])["D"]
    assert baseline.tokens_per_s == pytest.approx(whole.tokens_per_s)
    assert baseline.memory_bytes == whole.memory_bytes


def test_a_tied_matrix_is_held_twice_where_a_map_parts_embedding_and_head() -> None:
    setup = setup_of("t4,t4", SMOLLM2)
    apart, together = (map_baseline(setup, DeviceMap(0, (0,) * 15 + (1,) * 15, head)) for head in (1, 0))
    assert sum(apart.memory_bytes) - sum(together.memory_bytes) == 2 * SMOLLM2.vocab * SMOLLM2.hidden


def test_accelerate_divides_by_bytes_and_runs_one_device_at_a_time() -> None:
    setup = setup_of("t4,t4,t4")
    baseline = accelerate_baseline(setup)
    assert sum(baseline.layers) == 28 and 0 < baseline.layers[0] < baseline.layers[1]  # the embedding is heavy, too
    balanced = plans_of(candidates(setup)[0])["C"]
    assert baseline.latency_ms == pytest.approx(balanced.latency_ms)
    assert baseline.tokens_per_s < balanced.tokens_per_s / 2


def test_accelerate_is_no_baseline_where_it_would_use_the_disk() -> None:
    with pytest.raises(QubicLabError, match="no room for all weights"):
        infer_map(setup_of(f"{SMALL},{SMALL}", replace(DEEPSEEK, layers=60)))


def best_shown(advice: Advice) -> float:
    """The most tokens/s of all plans and baselines that are shown."""
    return max(each.tokens_per_s for each in (*advice.plans, *advice.baselines))


@pytest.mark.parametrize(
    "devices", [f"{CARD},t4", f"{SMALL},t4", "p4,v100", "t4,l4", "t4,t4,t4", "p4,t4,h100", f"{MEDIUM},{FAST}"]
)
@pytest.mark.parametrize("batch", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_nothing_is_recommended_that_the_table_shows_to_be_slower(devices: str, batch: int) -> None:
    advice = advise(devices, batch=batch)
    shown = {plan.strategy: plan for plan in advice.plans} | {each.name: each for each in advice.baselines}
    assert shown[advice.recommendation].tokens_per_s >= best_shown(advice) / 1.01
    assert f"{shown[advice.recommendation].tokens_per_s:.1f} tokens/s" in advice.reason


def test_a_device_that_is_faster_alone_than_with_a_small_card_is_recommended_at_every_place() -> None:
    advice = advise(f"{CARD},t4")
    plans, (_, batched) = plans_of(advice.plans), advice.baselines
    assert "D" not in plans and plans["C"].tokens_per_s < batched.tokens_per_s
    assert advice.recommendation == batched.name == "one t4, all requests in one batch"
    assert advice.reason.startswith("One t4, all requests in one batch: ") and "leave the others out" in advice.reason
    assert advice.by_rate[0].recommendation == batched.name
    at_1024 = next(part for part in advice.by_context if part.batch == 1 and part.context_from <= 1024)
    assert at_1024.recommendation == batched.name
    assert advise(f"{CARD},t4", goal="memory").recommendation in plans
    with_64 = advise("p4,v100", batch=MOST_BATCH)
    assert [each.name for each in with_64.baselines] == ["one v100 alone"]  # a batch of 128 is more than a lane takes


def test_the_split_with_the_smallest_largest_rank_is_known() -> None:
    advice = advise("t4,t4,t4", goal="memory")
    best = plans_of(advice.plans)["M"]
    assert (advice.recommendation, best.layers) == ("M", (8, 12, 8))
    assert max(best.memory_bytes) == pytest.approx(2.31e9, rel=0.002)
    smallest = min(
        max(predict(setup_of("t4,t4,t4"), "B", (first, second, 28 - first - second)).memory_bytes)
        for first in range(1, 27)
        for second in range(1, 28 - first)
    )
    assert max(best.memory_bytes) == smallest
    assert "M" not in plans_of(advise("t4,t4", SMOLLM2).plans), "it is B there"


def test_for_one_request_the_fastest_devices_take_what_they_hold() -> None:
    advice = advise(f"t4,{FAST},t4", goal="latency")
    plans = plans_of(advice.plans)
    assert plans["L"].layers == (1, 26, 1)
    assert plans["L"].latency_ms < min(plans[each].latency_ms for each in "BCM")
    assert "L" not in plans_of(advise("t4,t4,t4").plans), "no split of equal devices is faster than another"


def test_devices_that_are_better_left_out_are_left_out() -> None:
    advice = advise(f"{MEDIUM},{MEDIUM},{CRAWLING}")
    assert advice.recommendation == "C on medium + medium"
    assert advice.reason.startswith("C on medium + medium (16/12): ") and "leave the others out" in advice.reason
    [alone] = advice.baselines
    assert (alone.layers, alone.requests) == ((16, 12), 2)
    assert "C on medium + medium at every context" not in "".join(advice.changes), "long ones need the third"
    assert advice.by_rate[0].recommendation == "C on medium + medium"
    assert [each.name for each in advise("t4,t4,t4").baselines] == ["one t4 alone", "one t4, all requests in one batch"]


def test_a_device_that_is_too_small_for_any_part_is_left_out() -> None:
    advice = advise(f"tiny=1.1GB@3000GB/s@65TFLOPS,{MEDIUM},{MEDIUM}", goal="latency")
    assert advice.plans == () and advice.recommendation == "A on medium + medium"
    assert advice.reason.endswith("No plan over all devices fits.")


def test_a_device_that_alone_holds_the_model_is_better_than_nothing() -> None:
    advice = advise("tiny=1.2GB@192GB/s@5TFLOPS,t4")
    assert (advice.plans, advice.recommendation) == ((), "one t4, all requests in one batch")
    assert advice.reason.endswith("No plan over all devices fits.")
