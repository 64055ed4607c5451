"""`qubic-lab plan` as users and their scripts meet it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from commands import Run
from models import SHAPE

from qubic_lab.model import device_map


@pytest.fixture(autouse=True)
def stand_in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def planned(line: str, here: Run) -> Any:
    return here(f"plan {line} --json").json


def test_the_question_of_the_project_is_answered_without_weights(here: Run) -> None:
    content = planned("--model deepseek --devices t4,t4,t4 --link 10Gbps:0.1ms --goal throughput", here)
    layers = {plan["strategy"]: plan["layers"] for plan in content["plans"]}
    assert layers == {"B": [10, 9, 9], "C": [11, 11, 6], "D": [28, 28, 28]}
    assert (content["model"], content["recommendation"], content["context"]) == ("deepseek", "D", 1024)
    assert content["refused"][0]["strategy"] == "A"
    assert sum(content["accelerate"]["layers"]) == 28
    assert "one after the other" in content["accelerate_note"]
    assert content["changes"]["by_context"] and content["changes"]["sentences"]


def test_the_page_says_what_is_recommended_and_what_it_rests_on(here: Run) -> None:
    page = here("plan").out
    for said in (
        "A refused: not applicable",
        r"Recommended: D\. D \(3 replicas\): \d+",
        "With 1 to 2 requests a lane: D at every context",
        "Nothing here was measured on these devices",
        r"- t4: NVIDIA T4 data sheet.*259 GB/s",
    ):
        assert re.search(said, page), said


def test_a_folder_needs_no_more_than_a_config(tmp_path: Path, here: Run) -> None:
    shape = SHAPE | {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "shape").mkdir()
    (tmp_path / "shape" / "config.json").write_text(json.dumps(shape))
    content = planned("--model shape --devices t4,l4 --context 512", here)
    assert [sum(plan["layers"]) for plan in content["plans"]] == [4, 4, 4, 8]


def test_a_page_without_accelerate_or_plans_says_so(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_map, "find_spec", lambda name: None)
    page = here("plan --devices box=1GB@20GB/s@1TFLOPS").out
    assert "Recommended: none. No plan fits" in page
    assert "accelerate is not installed" in page
