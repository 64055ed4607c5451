"""Record what a healthy cluster shows to Prometheus, as a test of `promtool` that no alert fires on it.

`python scripts/record_healthy.py coordinator=http://127.0.0.1:5000 collector=http://127.0.0.1:5002 --minutes 60`
writes `launch/monitoring/healthy_test.yml`: all series that the rules name.
"""

import argparse
import re
import time
import urllib.error
import urllib.request
from itertools import groupby
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

FOLDER = Path(__file__).parents[1] / "launch" / "monitoring"
EVERY_S = 15
Series = dict[str, list[float | None]]


def main() -> None:
    """Scrape until the time is over, then write the test."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="+", metavar="JOB=URL")
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    wanted = frozenset(re.findall(r"\b(?:qubic_lab_\w+|up)\b", (FOLDER / "rules.yml").read_text()))
    series: Series = {}
    scrapes = round(options.minutes * 60 / EVERY_S)
    started_s = time.monotonic()
    for number in range(scrapes):
        time.sleep(max(0.0, started_s + number * EVERY_S - time.monotonic()))
        for target in options.targets:
            job, _, url = target.partition("=")
            for name, value in scrape(job, url, wanted).items():
                series.setdefault(name, [None] * number).append(value)
        for values in series.values():
            values += [None] * (number + 1 - len(values))
    (FOLDER / "healthy_test.yml").write_text(as_test(series, scrapes), encoding="utf-8")


def scrape(job: str, url: str, wanted: frozenset[str]) -> dict[str, float]:
    """Return the wanted samples of one target by the text of their series, and whether it is up."""
    own = {"job": job, "instance": urlsplit(url).netloc}
    try:
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as reply:
            text = reply.read().decode()
    except (urllib.error.URLError, TimeoutError):
        return {series_of("up", own): 0.0}
    samples = (each for family in text_string_to_metric_families(text) for each in family.samples)
    found = {series_of(each.name, own | each.labels): each.value for each in samples if each.name in wanted}
    return found | {series_of("up", own): 1.0}


def series_of(name: str, labels: dict[str, str]) -> str:
    """Return a series in Prometheus's form."""
    inside = ", ".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
    return f"{name}{{{inside}}}"


def as_test(series: Series, scrapes: int) -> str:
    """Return the test: all series, and that no alert fired at any time."""
    lines = [
        f"# {scrapes * EVERY_S // 60} minutes of a healthy local cluster, recorded by scripts/record_healthy.py.",
        "rule_files: [rules.yml]",
        f"evaluation_interval: {EVERY_S}s",
        "tests:",
        f"  - interval: {EVERY_S}s",
        "    input_series:",
    ]
    for name in sorted(series):
        lines += [f"      - series: '{name}'", f"        values: {values_of(series[name])}"]
    span_s = scrapes * EVERY_S
    lines += [
        "    promql_expr_test:",
        f'      - expr: count_over_time(ALERTS{{alertstate="firing"}}[{span_s}s])',
        f"        eval_time: {span_s}s",
        "        exp_samples: []",
        f"      - expr: count(count_over_time(up[{span_s}s]))",
        f"        eval_time: {span_s}s",
        f"        exp_samples: [{{value: {sum(name.startswith('up{') for name in series)}}}]",
    ]
    return "\n".join(lines) + "\n"


def values_of(values: list[float | None]) -> str:
    """Return values in promtool's notation, in which `5x2` is 5 5 5 and `_` is none."""
    shown = ("_" if value is None else f"{value:.6g}" for value in values)
    parts = []
    for text, same in groupby(shown):
        count = len(list(same))
        parts.append(text if count == 1 else f"{text}x{count if text == '_' else count - 1}")
    return " ".join(parts)


if __name__ == "__main__":
    main()
