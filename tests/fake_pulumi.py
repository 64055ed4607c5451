"""A stand-in for Pulumi's command: the same subcommands, output and state, without a cloud.

It refuses what the real one would refuse. `FAKE_PULUMI` names a fault.
"""

import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlparse

fault = os.environ.get("FAKE_PULUMI", "")
assert os.environ["PULUMI_CONFIG_PASSPHRASE"] == "" and not sys.stdin.isatty()
backend = Path(unquote(urlparse(os.environ["PULUMI_BACKEND_URL"]).path))
project = json.loads(Path("Pulumi.yaml").read_text())
assert (Path(project["runtime"]["options"]["virtualenv"]) / "bin" / "python").exists()
command = [word for word in sys.argv[1:] if not word.startswith("--")]
given = sys.argv[1:]
stack = given[given.index("--stack") + 1] if "--stack" in given else command[-1]
file = backend / f"{stack}.json"


def fail(text: str) -> None:
    print(f"error: {text}", file=sys.stderr)
    sys.exit(255)


def row(name: str, kind: str, **outputs: object) -> dict[str, object]:
    return {"urn": f"urn:pulumi:{stack}::{project['name']}::{kind}::{name}", "type": kind, "outputs": outputs}


def write(rows: list[dict[str, object]]) -> None:
    file.write_text(json.dumps({"version": 3, "deployment": {"resources": rows}}))


if command[:2] == ["stack", "ls"]:
    if fault == "no json":
        print("You are using an old version of Pulumi")
    else:
        print(json.dumps([{"name": f"organization/{project['name']}/{each.stem}"} for each in backend.glob("*.json")]))
    sys.exit()
if command[:2] == ["stack", "select"]:
    if not file.exists():
        write([])
    sys.exit()
if not file.exists():
    fail(f"no stack named '{stack}' found")
rows = json.loads(file.read_text())["deployment"]["resources"]
if command[:2] == ["stack", "export"]:
    print(file.read_text())
elif command[:2] == ["stack", "rm"]:
    if rows:
        fail(f"'{stack}' still has resources; removal rejected")
    file.unlink()
elif command[0] == "up":
    assert {"--yes", "--non-interactive"} <= set(given)
    print(f"Updating ({stack}):", flush=True)
    if fault == "locked":
        fail("the stack is currently locked by 1 lock(s). Either wait for the other process(es) to end")
    if fault == "slow":
        Path("begun").touch()
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            write([row("qubic-ai-vpc", "gcp:compute/network:Network")])
            fail("update canceled")
    rows = [row(f"{project['name']}-{stack}", "pulumi:pulumi:Stack")]
    for each in json.loads(Path("resources.json").read_text()):
        if fault == "quota" and each["name"] == "vm-3":
            write(rows)
            fail("googleapi: Error 403: Quota 'GPUS_ALL_REGIONS' exceeded. Limit: 0.0 globally.")
        kind = f"gcp:{each['kind'].replace('.', '/')}" if "." in each["kind"] else "pulumi:providers:gcp"
        made = {"currentStatus": "RUNNING"} if each["kind"] == "compute.Instance" else {}
        rows.append(row(each["name"], kind, **made, address="198.51.100.4"))
    write(rows)
elif command[0] == "preview":
    print(f"    + {len(json.loads(Path('resources.json').read_text())) - len(rows)} to create")
elif command[0] == "destroy":
    write(rows[:3] if fault == "left over" else [])
elif command[0] == "refresh":
    write([each for each in rows if not str(each["urn"]).endswith("::vm-2")])
else:
    fail(f"unknown command {command}")
