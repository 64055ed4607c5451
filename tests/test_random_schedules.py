"""A few random schedules; `python tests/random_schedules.py --seeds 10000` plays as many as one likes."""

from pathlib import Path

import torch
from random_schedules import Outcome, TinyModel, play


def test_no_schedule_changes_a_token_or_a_bit(tmp_path: Path) -> None:
    total = Outcome()
    with torch.inference_mode():
        model = TinyModel(tmp_path / "model", torch.bfloat16)
        for seed in (0, 1, 4):
            outcome = play(seed, model)
            assert (outcome.differing, outcome.missing) == (0, 0), f"play({seed}, …) replays it"
            total.add(outcome)
    assert min(total.preemptions, total.cached, total.drafted, total.cancelled) > 0, total
