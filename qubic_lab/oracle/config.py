"""The market oracle's settings file, for the collector, the alerts and the coordinator: YAML over the defaults."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator

from qubic_lab.checked_yaml import check_content, read_yaml
from qubic_lab.errors import InputError, did_you_mean
from qubic_lab.oracle.ingest.collector_config import DEFAULT_ORDER, DEFAULT_SOURCES, CollectorConfig
from qubic_lab.oracle.model.records import Frequency
from qubic_lab.oracle.risk.rules import RISK, RiskConfig, read_rules
from qubic_lab.oracle.sentiment.index import WEIGHTING, Weighting
from qubic_lab.settings import settings


def _licensed(hosts: Mapping[str, str]) -> Mapping[str, str]:
    for host, licence in hosts.items():
        if not (re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", host) and licence.strip()):
            what = f"{host!r:.80} has the licence {licence!r:.80}"
            raise InputError(f"{what}: give a host in small letters, and the licence that allows to keep its articles")
    return hosts


@dataclass(frozen=True)
class OracleConfig(CollectorConfig):
    """All settings of the market oracle: what is collected, how texts weigh in an index, and the rules of risk.

    `articles`: the licence under which whole articles of a host may be kept, by host; others are not fetched.
    """

    sentiment: Weighting = WEIGHTING
    risk: RiskConfig = RISK
    articles: Annotated[Mapping[str, str], AfterValidator(_licensed)] = field(default_factory=dict)

    @property
    def frequencies(self) -> dict[str, Frequency]:
        """How often each source gives prices or texts, by its name; each feed has its own name."""
        sources = dict(self.sources) | {feed.name: self.sources["feeds"] for feed in self.feeds}
        return {name: Frequency(source.period_s, source.delay_s) for name, source in sources.items()}


def read_config(path: Path | None = None) -> OracleConfig:
    """Return the oracle's settings: the defaults, changed by a YAML file.

    The file is `path`, else the one named by QUBIC_LAB_ORACLE_CONFIG, if any.

    Raises:
        InputError: the file is missing, or has an unknown name or a wrong value.
    """
    path = path or settings().oracle_config
    if path is None:
        return OracleConfig()
    content = read_yaml(path)
    if not isinstance(content, dict):
        return OracleConfig() if content is None else check_content(OracleConfig, content, path)
    content, rules = _over_defaults(content, path), None
    if isinstance(content.get("risk"), dict):
        content["risk"] = dict(content["risk"])
        file = content["risk"].pop("rules", None)
        if not isinstance(file, str | None):
            raise InputError(f"{path}: risk: rules is {file!r}: give the name of a file")
        rules = read_rules(path.parent / file) if file else None
    config = check_content(OracleConfig, content, path)
    return config if rules is None else replace(config, risk=replace(config.risk, rules=rules))


def _over_defaults(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the file's content with the sources' settings and orders that it does not change."""
    merged = dict(content)
    sources, order = content.get("sources"), content.get("order")
    if isinstance(sources, dict):
        merged["sources"] = dict(sources)
        if unknown := [str(name) for name in sources if name not in DEFAULT_SOURCES]:
            hint = did_you_mean(unknown[0], DEFAULT_SOURCES)
            raise InputError(f"{path}: sources: unknown name {unknown[0]!r}: {hint}")
        for name, default in DEFAULT_SOURCES.items():
            changes = sources.get(name)
            if changes is None or isinstance(changes, dict):
                merged["sources"][name] = asdict(default) | (changes or {})
    if isinstance(order, dict):
        merged["order"] = dict(DEFAULT_ORDER) | order
    return merged
