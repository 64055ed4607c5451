"""Registers resources twice by the program of launch/gcp with the mocks of Pulumi's engine; prints what it was told.

It runs in the environment that `make gcp` makes. It also checks the names within nested properties, which Pulumi passes
on as they are.
"""

import importlib.util
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pulumi
import pulumi_gcp

folder = Path(sys.argv[1])
spec = importlib.util.spec_from_file_location("program", folder / "__main__.py")
assert spec and spec.loader
program = importlib.util.module_from_spec(spec)
spec.loader.exec_module(program)


class Recorder(pulumi.runtime.Mocks):
    """Remembers each registration; outputs are the inputs, and what the cloud adds."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def new_resource(self, args: pulumi.runtime.MockResourceArgs) -> tuple[str, dict[str, Any]]:
        self.seen.append({"name": args.name, "type": args.typ, "inputs": args.inputs})
        added = {"number": "1234", "member": f"serviceAccount:{args.name}", "address": "10.0.0.99", "name": args.name}
        return f"{args.name}-id", added | args.inputs

    def call(self, args: pulumi.runtime.MockCallArgs) -> dict[str, Any]:
        raise AssertionError(f"the program asks the cloud: {args.token}")


def refuse_kept(request: Any) -> None:
    assert not request.protect and not request.retainOnDelete, f"{request.name} would outlive its removal"


def check_names(described: list[dict[str, Any]]) -> None:
    for each in described:
        room, _, kind = each["kind"].rpartition(".")
        if room:
            for name, value in each["properties"].items():
                if name != "metadata":
                    check_nested(getattr(pulumi_gcp, room), kind + camel(name), value)


def check_nested(room: Any, owner: str, value: Any) -> None:
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, dict) or set(each) == {"ref", "output", "template"}:
            continue
        known = getattr(room, f"{owner}Args", None) or getattr(room, f"{owner.removesuffix('s')}Args")
        taken = inspect.signature(known.__init__).parameters
        assert set(each) <= set(taken), f"{known.__name__} has no {set(each) - set(taken)}"
        for name, inner in each.items():
            check_nested(room, known.__name__.removesuffix("Args") + camel(name), inner)


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def registered(described: list[dict[str, Any]]) -> list[dict[str, Any]]:
    recorder = Recorder()
    pulumi.runtime.set_mocks(recorder, project="qubic-ai", stack="test", preview=False)

    @pulumi.runtime.test
    def run() -> pulumi.Output[Any]:
        made = program.register(described)
        return pulumi.Output.all(*(each.urn for each in made.values()))

    run()
    return sorted(recorder.seen, key=lambda each: (each["type"], each["name"]))


monitor = pulumi.runtime.mocks.MockMonitor
register = monitor.RegisterResource
monitor.RegisterResource = lambda self, request: (refuse_kept(request), register(self, request))[1]
found = {}
for name, described in json.loads((folder / "described.json").read_text()).items():
    check_names(described)
    found[name] = [registered(described), registered(described)]
print(json.dumps(found))
