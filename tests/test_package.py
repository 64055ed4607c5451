"""The wheel has all that its commands need; what it depends on has licences that this project builds on."""

import os
import re
import subprocess
import sys
import tomllib
from email.message import Message
from pathlib import Path
from typing import Any

import licences
import pytest
import site_pages
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


class Said:
    """A package that says this in its metadata."""

    def __init__(self, **said: str) -> None:
        self.metadata = Message()
        for name, value in {"Name": "x", **said}.items():
            self.metadata[name.replace("_", "-")] = value


def test_the_wheel_alone_has_what_its_commands_read(wheel: Path, tmp_path: Path) -> None:
    lines = "gcp plan; init lab"
    code = (
        "import sys, qubic_lab; from qubic_lab.cli.main import run; print(qubic_lab.__file__)\n"
        f"for line in {lines!r}.split('; '): assert run(line.split()) == 0, line"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(wheel))
    assert (tmp_path / "lab" / "experiments" / "weekly.yaml").is_file()


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    (about,) = wheel.glob("qubic_lab-*.dist-info/METADATA")
    (licence,) = about.parent.glob("licenses/LICENSE")
    assert "Apache License" in licence.read_text()
    text = about.read_text()
    for python in ("3.11", "3.12", "3.13"):
        assert f"\nClassifier: Programming Language :: Python :: {python}\n" in text
    assert not [path for path in wheel.iterdir() if path.name not in ("qubic_lab", about.parent.name)]


def test_every_extra_is_explained() -> None:
    page = (ROOT / "docs" / "install.md").read_text()
    extras = PROJECT["optional-dependencies"].keys() - {"bench", "dev"}
    assert [extra for extra in sorted(extras) if f"| `{extra}` |" not in page] == []


def test_licences_of_all_dependencies_are_known_and_fit() -> None:
    packages = licences.needed("qubic-lab")
    assert len(packages) > 60
    assert licences.faults(packages) == []


@pytest.mark.parametrize(
    ("said", "licence", "fits"),
    [
        ({"License_Expression": "MIT OR AGPL-3.0-only", "License": "MIT"}, "MIT OR AGPL-3.0-only", False),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, "MIT License", True),
        ({"License": "BSD\nall of its text"}, "BSD", True),
        ({"License": "Apache 2.0 with Commons Clause"}, "Apache 2.0 with Commons Clause", False),
        ({"Classifier": "Topic :: Software Development"}, "", False),
    ],
)
def test_a_licence_is_read_and_judged(said: dict[str, str], licence: str, fits: bool) -> None:
    package: Any = Said(**said)
    assert licences.licence(package) == licence
    assert (licences.faults([package]) == []) is fits


def test_ci_runs_the_two_commands_on_every_python_that_is_promised() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    promised = [line.rsplit(" ", 1)[1] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert jobs["test"]["strategy"]["matrix"]["python"] == promised
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    steps = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    made = {step.split()[1] for step in steps if step.startswith("make ")}
    assert {"test", "report", "docs"} <= made <= targets


def test_pages_link_to_what_is_there_and_stand_in_the_navigation() -> None:
    pages = site_pages.pages(ROOT)
    assert [(page.name, target) for page in pages for target in site_pages.links(page) if not target.exists()] == []
    navigation = (ROOT / "zensical.toml").read_text()
    ours = [str(page.relative_to(ROOT)) for page in pages if page.is_relative_to(ROOT / "docs")]
    assert [page for page in ours if f'"{page}"' not in navigation] == []


@pytest.mark.slow
@pytest.mark.network
def test_the_site_is_built_without_a_warning() -> None:
    command = ["make", "docs", f"BIN={Path(sys.executable).parent}", "-o", ".venv/.report"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=-1, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0 and "No issues found" in done.stdout, done.stdout
    assert (ROOT / "dist" / "site" / "docs" / "tutorials" / "first-report.html").is_file()
