"""The committed protocol code is what the .proto says, and errors keep their kind over the wire."""

import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from qubic_lab.errors import (
    BusyError,
    DeadlineError,
    InputError,
    ModelError,
    NonFiniteError,
    QubicLabError,
    RankError,
    RequestCancelled,
)
from qubic_lab.wire.channel import error_of, status_of

ROOT = Path(__file__).parents[1]
PROTOS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("qubic_lab/wire/*.proto"))
KINDS = [InputError, ModelError, NonFiniteError, RankError, BusyError, DeadlineError, RequestCancelled]


class Failed(grpc.RpcError):
    """A failed call with a status and details."""

    def __init__(self, status: grpc.StatusCode, details: str) -> None:
        self._status = status
        self._details = details

    def code(self) -> grpc.StatusCode:
        return self._status

    def details(self) -> str:
        return self._details


def test_the_generated_code_is_what_the_proto_says(tmp_path: Path) -> None:
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, *PROTOS], cwd=ROOT, check=True)
    made = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert len(made) == 2 * len(PROTOS) == 4
    for path in made:
        committed = ROOT / path.relative_to(tmp_path)
        assert without_versions(path) == without_versions(committed), f"{committed.name} is stale: run make proto"


def without_versions(path: Path) -> list[str]:
    """Lines of generated code but for those that name the generator's version."""
    return [line for line in path.read_text().splitlines() if "VERSION" not in line and "ersion" not in line.lower()]


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_keeps_its_kind_and_text(kind: type[QubicLabError]) -> None:
    error = error_of(Failed(status_of(kind("what, value, remedy")), "what, value, remedy"))
    assert type(error) is kind
    assert str(error) == "what, value, remedy"
