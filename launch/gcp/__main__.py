"""The Pulumi program: registers what resources.json beside it describes, which `qubic-lab gcp up` writes.

Nothing is decided here: `qubic_lab/launch_plan/resources.py` says what there is, and `qubic-lab gcp plan` shows it.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pulumi
import pulumi_gcp


def register(described: Sequence[Mapping[str, Any]]) -> dict[str, pulumi.Resource]:
    """Register resources in their order; return them by name."""
    made: dict[str, pulumi.Resource] = {}
    for each in described:
        room, _, kind = each["kind"].rpartition(".")
        options = pulumi.ResourceOptions(
            provider=made.get(each["provider"]), depends_on=[made[name] for name in each["after"]]
        )
        properties = {name: _value(value, made) for name, value in each["properties"].items()}
        maker = getattr(getattr(pulumi_gcp, room) if room else pulumi_gcp, kind)
        made[each["name"]] = maker(each["name"], **properties, opts=options)
    return made


def _value(value: Any, made: Mapping[str, pulumi.Resource]) -> Any:
    if isinstance(value, Mapping) and set(value) == {"ref", "output", "template"}:
        return getattr(made[value["ref"]], value["output"]).apply(value["template"].format)
    if isinstance(value, Mapping):
        return {name: _value(each, made) for name, each in value.items()}
    return [_value(each, made) for each in value] if isinstance(value, list) else value


if __name__ == "__main__":
    register(json.loads(Path(__file__).with_name("resources.json").read_text(encoding="utf-8")))
