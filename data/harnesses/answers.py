"""The task of inspect_ai: the questions of items.jsonl, answered in the model's own words."""

from pathlib import Path

from inspect_ai import Task, task
from inspect_ai.dataset import FieldSpec, json_dataset
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import match
from inspect_ai.solver import generate

ITEMS = Path(__file__).with_name("items.jsonl")


@task
def answers() -> Task:
    """Right if the answer ends with the right option, whatever its case and the marks after it."""
    fields = FieldSpec(input="question", target="answer", id="id")
    greedy = GenerateConfig(temperature=0.0, max_tokens=24)
    return Task(json_dataset(str(ITEMS), fields), solver=generate(), scorer=match(), config=greedy)
