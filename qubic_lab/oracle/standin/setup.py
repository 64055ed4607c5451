"""How a collector is pointed at the stand-in: settings for its file and for its environment."""

from typing import Any

from qubic_lab.oracle.model.timestamps import iso
from qubic_lab.oracle.standin.app import PREFIXES, StandinConfig
from qubic_lab.oracle.standin.data import WRITTEN_OF
from qubic_lab.oracle.standin.feeds import NAMES

TIMEOUT_S = 2.0
"""A hanging answer is waited for so long: far longer than a slow one takes, but none should keep a trial waiting."""


def collector_settings(config: StandinConfig, url: str) -> dict[str, Any]:
    """Return what the collector's file says, as plain values for YAML: addresses, limits, and a fast clock if any."""
    limits = {"rate": config.per_s, "window_s": 1.0, "timeout_s": TIMEOUT_S, "attempts": 6}
    forms = [(name, name.rpartition("-")[2]) for name in NAMES]
    settings: dict[str, Any] = {
        "coins": list(WRITTEN_OF),
        "sources": {name: {"base_url": f"{url}/{prefix}", **limits} for name, prefix in PREFIXES.items()},
        "feeds": [{"name": name, "url": f"{url}/feeds/{name}.{form}"} for name, form in forms],
        "backfill_days": 30,
    }
    settings["sources"]["feeds"] = dict(limits)
    if config.clock.speed != 1.0:
        settings |= {"time_scale": 1.0 / config.clock.speed, "time_origin": iso(config.clock.origin_us)}
    return settings


def collector_environment(config: StandinConfig, database: str) -> dict[str, str]:
    """Return what the collector's environment needs: keys, and a database of its own, for all here is synthetic."""
    keys = {f"QUBIC_LAB_{name.upper()}_KEY": key for name, key in config.keys.items()}
    return {**keys, "QUBIC_LAB_DATABASE_URL": database}
