"""docs/three-vms.md: its commands are ours, run by a test or marked as not run; both languages have the same."""

import re
import shlex
from pathlib import Path

import pytest
from commands import Run, parse

from qubic_lab.launch_plan.network import Network

ROOT = Path(__file__).parents[1]
MARK = "# not run here"
RUN = {
    "backup": "test_backup.py",
    "certs make": "test_certificates.py",
    "certs renew": "test_certificates.py",
    "certs show": "test_certificates.py",
    "cluster status": "test_cluster_command.py",
    "cluster upgrade": "test_cluster_command.py",
    "doctor": "test_doctor.py",
    "gcp cost": "test_gcp_command.py",
    "gcp plan": "test_gcp_command.py",
    "model fetch": "test_download.py",
    "restore": "test_backup.py",
    "split": "test_split.py",
    "testbed down": "test_testbed.py",
    "testbed scan": "test_testbed.py",
    "testbed up": "test_testbed.py",
    "token add": "test_access.py",
    "verify": "test_split.py",
}
"""Where each command is run; what else is not of ours, such as `launch/install.sh`, is in test_units.py."""
OTHERS = ("export ", "set -a;", "/opt/qubic-lab/launch/install.sh ")


def commands(language: str = "") -> list[str]:
    """Return the lines of all blocks of commands."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "docs" / f"three-vms{language}.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_each_command_is_run_by_a_test_or_says_that_it_is_not() -> None:
    assert len(commands()) > 40
    ours = set()
    for line in commands():
        command, _, marked = line.partition(f"  {MARK}")
        words = re.split(r"(?:^|\s)qubic-lab (?=[a-z])", command)
        if len(words) == 1:
            assert marked or MARK in line or line.startswith(OTHERS), line
            continue
        path = parse(shlex.split(words[-1]))
        if MARK not in line:
            ours.add(path)
    assert ours == RUN.keys()
    for path, file in RUN.items():
        text = (ROOT / "tests" / file).read_text()
        assert path.split()[-1] in text, (path, file)


def test_addresses_are_those_of_the_plan() -> None:
    text = "\n".join(commands())
    hosts = Network().hosts
    assert set(re.findall(r"10\.0\.0\.\d+", text)) == {host.address for host in hosts}
    for host in hosts:
        assert f"{host.name},{host.address},{host.domain_name}" in text
        assert re.search(rf"install\.sh \w+ {host.name} {host.address}", text)


def test_both_languages_have_the_same_commands_and_chapters() -> None:
    assert commands(".zh-TW") == commands()
    heads = [
        re.findall(r"^#+ ", (ROOT / "docs" / f"three-vms{each}.md").read_text(), re.MULTILINE)
        for each in ("", ".zh-TW")
    ]
    assert heads[0] == heads[1]


def test_certificates_and_models_are_made_as_the_page_says(tmp_path: Path, here: Run, monkeypatch) -> None:
    monkeypatch.setenv("QUBIC_LAB_API_TOKENS", str(tmp_path / "tokens.yaml"))
    for line in commands():
        if line.startswith(
            ("qubic-lab certs make", "qubic-lab certs show", "qubic-lab certs renew", "qubic-lab token add")
        ):
            done = here(line.removeprefix("qubic-lab ").replace("~", str(tmp_path)))
            assert done.status == 0, done.err
    made = {file.name for file in (tmp_path / "qubic-lab-tls").glob("*.key")}
    assert made == {"authority.key", "laptop.key", "vm-1.key", "vm-2.key", "vm-3.key"}


@pytest.mark.parametrize("word", ["/work", "localhost:"])
def test_it_speaks_of_machines_of_the_reader(word: str) -> None:
    assert word not in (ROOT / "docs" / "three-vms.md").read_text()
