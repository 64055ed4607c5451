"""What the project says of itself in several places must agree, and its house rules must hold."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import qubic_lab

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "qubic_lab"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LAB, ORACLE, DASHBOARD, SIMULATION = (
    PROJECT["optional-dependencies"][extra] for extra in ("lab", "oracle", "dashboard", "simulation")
)
PYPI_NAME = {"pytorch": "torch", "matplotlib-base": "matplotlib", "redis-py": "redis", "arch-py": "arch"}
"""By conda-forge's name, where they differ."""
USABLE_WITH = {"runs": LAB, "studies": LAB, "oracle": ORACLE, "dashboard": DASHBOARD, "simulation": SIMULATION}
"""Rooms that only an extra makes usable."""


def bounds(requirements: list[str]) -> dict[str, SpecifierSet]:
    """Return each requirement's specifier by its normalised PyPI name."""
    parsed = [Requirement(line) for line in requirements]
    return {str(canonicalize_name(PYPI_NAME.get(r.name, r.name))): r.specifier for r in parsed}


def git(*arguments: str) -> list[str]:
    """Return the paths that git answers with; status 1 means `none`."""
    done = subprocess.run(["git", "-c", "core.quotePath=false", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout.splitlines()


def test_conda_environment_asks_for_what_the_project_declares():
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = bounds([entry for entry in entries if isinstance(entry, str)])
    by_pip = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    assert conda.pop("python") == SpecifierSet(PROJECT["requires-python"])
    for tool in ("pip", "cxx-compiler"):  # no Python packages of ours
        conda.pop(tool)
    by_pip.remove("-e .[dev]")
    assert conda | bounds(by_pip) == bounds(PROJECT["dependencies"] + LAB + ORACLE + DASHBOARD)


def test_dependencies_are_lower_bounds_and_never_pins():
    extras = PROJECT["optional-dependencies"].values()
    declared = bounds(PROJECT["dependencies"] + [line for extra in extras for line in extra])
    assert [name for name, spec in declared.items() if any(part.operator != ">=" for part in spec)] == []


def test_declared_protobuf_can_run_the_generated_code():
    declared = bounds(PROJECT["dependencies"])
    generated = "\n".join(path.read_text() for path in sorted(PACKAGE.glob("wire/*_pb2.py")))
    made_with = re.findall(r"^# Protobuf Python Version: ([\d.]+)", generated, re.MULTILINE)
    assert made_with, "no generated code names its protobuf"
    (lower,) = declared["protobuf"]
    assert Version(lower.version) >= max(map(Version, made_with)), f"raise the bound of protobuf: {made_with}"


def test_changelog_opens_with_this_version_or_unreleased():
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in ("Unreleased", qubic_lab.__version__)


def test_notebooks_are_thin_clean_and_parameterized():
    notebooks = sorted((ROOT / "notebooks").glob("*.ipynb"))
    assert notebooks, "notebooks/ is empty"
    faults = []
    for path in notebooks:
        cells = json.loads(path.read_text())["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        if len(tagged) != 1:
            faults.append(f"{path.name}: {len(tagged)} cells are tagged `parameters`")
        for number, cell in enumerate(cells):
            lines = len("".join(cell["source"]).splitlines())
            if lines > 25:
                faults.append(f"{path.name}, cell {number}: {lines} lines")
            if cell.get("outputs") or cell.get("execution_count"):
                faults.append(f"{path.name}, cell {number}: stored output")
    assert faults == []


def test_no_file_names_a_folder_of_somebodys_machine():
    private = [r"/(?:home|Users|root)/\w", r"[A-Z]:\\Users\\"]
    if len(ROOT.parts) > 2:  # a checkout in /app or the like proves nothing
        private.append(re.escape(str(ROOT)) + r"\b")
    pattern = re.compile("|".join(private).encode())
    files = [ROOT / name for name in git("ls-files", "--cached", "--others", "--exclude-standard")]
    texts = {path: path.read_bytes() for path in files if path.is_file()}
    assert len(texts) > 20
    assert [str(path) for path, text in texts.items() if b"\0" not in text and pattern.search(text)] == []


def test_git_ignores_runs_and_pages_but_no_source():
    rooms = [path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    kept = [f"qubic_lab/{room}/x.py" for room in rooms] + ["tests/dist/test_x.py", "reports/sample/index.html"]
    ignored = ["runs/study/key/manifest.json", "reports/2026-W47/index.html", ".env", ".venv/x"]
    assert git("check-ignore", "--no-index", *kept, *ignored) == ignored


def imported_on_import(module: Path) -> set[str]:
    """Return the top-level packages that a module imports when it is imported itself."""

    def visit(statements: list[ast.stmt]) -> None:
        for node in statements:
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                found.add("qubic_lab" if node.level else str(node.module).split(".")[0])
            elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
                visit(node.orelse)
            elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                for field in ("body", "handlers", "orelse", "finalbody"):
                    visit(getattr(node, field, []))

    found: set[str] = set()
    visit(ast.parse(module.read_text()).body)
    return found


def test_modules_import_only_what_their_install_declares():
    brings = importlib.metadata.packages_distributions()
    core = set(bounds(PROJECT["dependencies"]))
    faults = []
    for module in sorted(PACKAGE.rglob("*.py")):
        room = module.relative_to(PACKAGE).parts[0]
        allowed = core | set(bounds(USABLE_WITH.get(room, [])))
        foreign = imported_on_import(module) - sys.stdlib_module_names - {"qubic_lab"}
        undeclared = [name for name in foreign if not allowed & set(map(canonicalize_name, brings.get(name, [])))]
        faults += [f"{module.relative_to(ROOT)} imports {name}" for name in sorted(undeclared)]
    assert faults == []


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("qubic_lab.cli.main", "torch transformers pandas matplotlib papermill pyarrow jinja2"),
        ("qubic_lab.api.serve", "aiolimiter datasketch feedparser pandas pandera scipy sklearn talib torch"),
        ("qubic_lab.runs.report", "aiolimiter arch datasketch feedparser pandera sklearn statsmodels talib"),
    ],
)
def test_commands_and_coordinators_start_without_what_is_heavy(module: str, heavy: str):
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert loaded & set(heavy.split()) == set()


def test_the_architecture_page_names_places_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`([\w./-]+(?:\.py|\.ipynb|\.yaml|\.proto|/))`", text)
    rooms = [ROOT, PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]
    assert len(named) > 80
    assert [name for name in named if not any((room / name).exists() for room in rooms)] == []
