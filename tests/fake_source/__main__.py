"""`PYTHONPATH=tests python -m fake_source`: serve until Ctrl-C, and print how to point a collector at the fake."""

import argparse
import json
import sys
from pathlib import Path

import yaml

from fake_source.app import FakeConfig
from fake_source.faults import ALL
from fake_source.ledger import Ledger
from fake_source.reply import KEYS
from fake_source.server import FakeServer, collector_settings
from qubic_lab.oracle.model.timestamps import REAL, Clock, now_us


def main() -> None:
    """Read the options, write the collector's settings, print the URL and serve."""
    parser = argparse.ArgumentParser(prog="fake_source", description=sys.modules["fake_source"].__doc__)
    parser.add_argument("--faults", nargs="*", default=[], choices=("all", *ALL), help="which faults occur")
    parser.add_argument("--seed", type=int, default=0, help="of prices, texts and faults")
    parser.add_argument(
        "--limit",
        type=int,
        default=50,
        choices=range(2, 10_001),
        metavar="N",
        help="requests a second that each source allows, 2 or more",
    )
    parser.add_argument("--speed", type=float, default=1.0, help="how many times faster than real time its clock runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/fake_source"), help="of settings, ledger, database")
    options = parser.parse_args()
    clock = REAL if options.speed == 1.0 else Clock(now_us(), options.speed)
    faults = ALL if "all" in options.faults else tuple(options.faults)
    config = FakeConfig(options.seed, faults, per_s=options.limit, clock=clock)
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder / "ledger.jsonl")
    server = FakeServer(config, ledger)
    settings = folder / "collector.yaml"
    settings.write_text(yaml.safe_dump(collector_settings(config, server.url), sort_keys=False))
    time = "real" if clock == REAL else str(clock.origin_us)  # a database belongs to one seed and one time
    environment = {f"QUBIC_LAB_{name.upper()}_KEY": key for name, key in KEYS.items()}
    environment["QUBIC_LAB_DATABASE_URL"] = f"sqlite:///{folder}/seed-{options.seed}-{time}.db"
    print(json.dumps({"url": server.url, "config": str(settings), "environment": environment}), flush=True)
    variables = " ".join(f"{name}={value}" for name, value in environment.items())
    print(f"To collect from it: {variables} qubic-lab oracle collect --config {settings}", file=sys.stderr)
    server.serve_now()
    print(f"{len(ledger.entries)} requests, {len(ledger.violations)} rules broken", file=sys.stderr)


if __name__ == "__main__":
    main()
