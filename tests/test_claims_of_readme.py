"""The README's claims: each names what shows it; the commands exist, and those of less than a minute show it."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from commands import parse

TEXT = (Path(__file__).parents[1] / "README.md").read_text()
CLAIMS = re.findall(r"^\| ([A-Z][^|]+) \| ([^|]+) \| (\d+) (s|min) \|$", TEXT, re.MULTILINE)
COMMANDS = {shown.strip("`"): claim for claim, shown, _, unit in CLAIMS if unit == "s"}
SHOWN = {
    "generate": r"(?s)\w.*\n24 tokens, [\d.]+ tokens/s",
    "compare": r"^SAME: [\d,]+ tokens in 1 comparison, all equal, and their logits equal bit for bit\n",
    "plan": r"(?s)\| strategy .*\nRecommended: ",
    "chaos": r"20 requests in 1 cases: 0 lost, 0 answered twice, 0 wrong; each case as promised",
    "quality": r"(?s)\| age .*\| bitcoin \| packaged",
    "risk": r"(?s)Bitcoin, \w+ since .*this is old.*warn",
}
"""What the last command of a claim prints, by its name."""


def words(shown: str) -> list[list[str]]:
    """Return the words of each command of a claim."""
    return [shlex.split(part)[1:] for part in shown.split(" && ")]


def last(shown: str) -> str:
    """Return the name of the last command of a claim."""
    return parse(words(shown)[-1]).rsplit(" ", 1)[-1]


def test_each_claim_names_what_shows_it() -> None:
    table = TEXT.split("| claim |")[1].split("\n\n")[0]
    assert len(CLAIMS) == table.count("\n") - 1, "a row has another form"
    for shown in COMMANDS:
        assert shown.startswith("qubic-lab ")
        assert all(parse(each) for each in words(shown))
    assert [last(shown) for shown in COMMANDS] == [*SHOWN]
    others = [shown for _, shown, _, unit in CLAIMS if unit == "min"]
    assert all(re.fullmatch(r"\[[^\]]+\]\(docs/tutorials/[\w-]+\.md\)", shown) for shown in others), others


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("shown", COMMANDS, ids=[last(shown) for shown in COMMANDS])
def test_the_command_shows_the_claim(shown: str, tmp_path: Path) -> None:
    variables = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "QUBIC_LAB_DATA": str(tmp_path),
        "QUBIC_LAB_LEDGER_URL": f"sqlite:///{tmp_path}/ledger.db",
    }
    done = subprocess.run(
        shown, shell=True, cwd=tmp_path, env=os.environ | variables, stdout=-1, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    assert re.search(SHOWN[last(shown)], done.stdout), done.stdout
