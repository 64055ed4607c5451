"""Rows of environment and network, from the plan of the cloud and from what test beds have shown."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qubic_lab.launch_plan import costs, network
from qubic_lab.launch_plan.resources import Ref, bootstrap, cluster
from qubic_lab.launch_plan.site import Site
from qubic_lab.runs.collect_week import read_beds
from qubic_lab.runs.language import language, translated_text
from qubic_lab.studies.cloud import BedRecords, KeptScan, KeptTrial, judge_plan, plan_row

SCAN = KeptScan("2026-12-01", 9_000, {"vm-1": {"vm-2": [22]}, "vm-2": {"vm-1": [22]}}, [])
TRIAL = KeptTrial("2026-12-01", "replicas", "vm-2", "vm-3", 200, 0, 0, 0)


def rows(scan: KeptScan | None = None, *trials: KeptTrial, site: Site | None = None) -> dict[str, tuple[str, str]]:
    return {row.id: (row.verdict, row.measured) for row in judge_plan(BedRecords(scan, trials), site)}


def test_without_a_test_bed_the_plan_alone_is_judged_and_never_passes_for_machines() -> None:
    found = rows()
    assert [verdict for verdict, _ in found.values()] == ["partial", "pass", "partial", "not measured here"]
    assert found["9.1"][1].endswith(
        "0 planned twice, 0 missing that others refer to, 0 left when the cluster is removed"
    )
    assert "a budget of 700 USD with mails at 80\N{NO-BREAK SPACE}%, 90\N{NO-BREAK SPACE}%" in found["9.1"][1]


@pytest.mark.parametrize("change", ["twice", "missing", "stays"])
def test_a_plan_with_a_fault_fails(change: str) -> None:
    site = Site()
    resources = [*bootstrap(site), *cluster(site, "")]
    last = resources[-1]
    resources += {
        "twice": [last],
        "missing": [replace(last, name="vm-9", properties=dict(last.properties) | {"zone": [Ref("nowhere")]})],
        "stays": [replace(last, name="vm-9", properties=dict(last.properties) | {"deletion_protection": True})],
    }[change]
    assert plan_row(site, resources).verdict == "fail"


def test_the_cost_stands_beside_the_budget_with_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    over = rows()["9.2"][1]
    asked = costs.estimate(Site(), 1.0)
    assert over.startswith(f"{asked.monthly_usd:,.0f} USD a month, over the budget of 700 USD; as first said 840 USD; ")
    spot = costs.estimate(Site(provisioning="spot"), 1.0)
    assert f"3 machines spot at {spot.monthly_usd:,.0f} USD" in over
    assert "within the budget of 1,000 USD" in rows(site=Site(budget_usd=1_000))["9.2"][1]
    dear = {name: replace(price, usd=100 * price.usd) for name, price in costs.PRICES.items()}
    monkeypatch.setattr(costs, "PRICES", dear)
    assert rows()["9.2"][0] == "fail"


def test_ports_pass_by_a_scan_and_fail_by_a_wrong_one_or_by_a_rule_for_no_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    verdict, measured = rows(SCAN)["9.3"]
    assert verdict == "pass" and "a scan of 2 machines of a test bed on 2026-12-01" in measured
    assert "asked 9,000 ports: 0 are not as planned" in measured
    assert rows(replace(SCAN, wrong=[{"port": 23}]))["9.3"][0] == "fail"
    known = {name: each for name, each in network.SERVICES.items() if name != "redis"}
    monkeypatch.setattr("qubic_lab.studies.cloud.SERVICES", known)
    assert rows(SCAN)["9.3"][0] == "fail" and "1 for no service" in rows(SCAN)["9.3"][1]


def test_a_trial_counts_for_the_set_up_as_far_as_hosts_without_a_gpu_can() -> None:
    assert rows(None, TRIAL)["9.4"][0] == "partial"
    assert rows(None, TRIAL, replace(TRIAL, cluster="pipeline", lost=1))["9.4"][0] == "fail"


def test_kept_files_are_read_and_others_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def write(name: str, **values: Any) -> None:
        (tmp_path / name).write_text(json.dumps(values))

    write("scan.json", day="2026-12-01", asked=9, open={}, wrong=[], commit="abc", machine="one")
    write("trial-replicas.json", **vars(TRIAL), longest_s=20.0)
    write("trial-old.json", asked=3)
    found = read_beds(tmp_path)
    assert found.scan is not None and found.scan.asked == 9 and list(found.trials) == [TRIAL]
    assert "trial-old.json is left out" in caplog.text
    assert read_beds(tmp_path / "none") == BedRecords(None, [])


def test_the_rows_are_told_in_chinese() -> None:
    with language("zh-TW"):
        for row in judge_plan(BedRecords(SCAN, (TRIAL,))):
            for text in (row.what, row.target, row.measured, row.reason):
                assert not text or translated_text(text) != text, text
