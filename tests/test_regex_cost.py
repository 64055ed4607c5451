"""No regular expression takes much more than twice the time for a text of twice the length."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import regex_attacks
from forked_python import PYTHON
from regex_attacks import grows_too_fast

import qubic_lab

PACKAGE = Path(qubic_lab.__file__).parent
ATTACK = """import resource, sys
within_s = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_CPU, (within_s, within_s))
import regex_attacks
regex_attacks.main()
"""
_USED = re.compile(r"\bre\.(?:compile|match|fullmatch|search|sub|split|findall|finditer)\(")


def modules() -> list[str]:
    """The modules with patterns."""
    files = [file for file in PACKAGE.rglob("*.py") if _USED.search(file.read_text(encoding="utf-8"))]
    return sorted(".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts) for file in files)


def attacked(within_s: int, *names: str) -> list[dict[str, Any]]:
    """Attack all patterns in a process with so much processor time; the last one has no times if it took longer."""
    paths = filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    done = subprocess.run(
        [PYTHON, "-c", ATTACK, str(within_s), *names],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, -signal.SIGKILL, -signal.SIGXCPU), done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [first | (lines[2 * n + 1] if 2 * n + 1 < len(lines) else {}) for n, first in enumerate(lines[::2])]


def slow(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in found if grows_too_fast(each.get("short_s", 0.0), each.get("long_s", 1e9))]


def test_patterns_take_linear_time() -> None:
    found = attacked(100, *modules())
    assert len(found) > 200
    assert slow(found) == []


def test_a_pattern_that_never_ends_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_patterns.py").write_text(
        'import re\n_ALONE = re.compile(r"\\s*-")\ndef is_alone(text): return _ALONE.match(text)\n'
        'def is_word(text): return re.fullmatch(r"(?:a|b|ab)+", text)\n'
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    assert [each["where"] for each in slow(attacked(1, "some_patterns"))] == ["some_patterns:4"]


def test_a_search_that_starts_everywhere_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regex_attacks, "LENGTH", 2_000)
    short_s, long_s, _ = regex_attacks.slowest(r"\s*$", 0, "search")
    assert grows_too_fast(short_s, long_s)
    assert regex_attacks.slowest(r"\s*$", 0, "match")[1] == 0.0
