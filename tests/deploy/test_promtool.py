"""deploy/prometheus and the text of /metrics, checked by promtool."""

from __future__ import annotations

import re

import httpx
import pytest

from tests.deploy.prometheus_parts import RULES, RULES_TEST

pytestmark = pytest.mark.slow


def test_rules_are_valid(programs):
    """Each has a name of its own, and an expression that Prometheus takes."""
    said = programs.check("check", "rules", RULES)
    assert said.returncode == 0, said.stdout
    assert f"SUCCESS: {RULES.read_text().count('- alert:')} rules found" in said.stdout


def test_alerts_fire_when_they_should(programs):
    """The cases of alerts_test.yml, with the real durations."""
    said = programs.check("test", "rules", RULES_TEST)
    assert said.returncode == 0, said.stdout


def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    """An alert without them could be wrong for ever."""
    cases = RULES_TEST.read_text()
    alerts = sorted(re.findall(r"- alert: (\w+)", RULES.read_text()))
    silent = re.findall(r"alertname: (\w+), eval_time: \w+, exp_alerts: \[\]", cases)
    fires = re.findall(r"alertname: (\w+)\n +eval_time: \w+\n +exp_alerts:\n +- exp_labels", cases)
    assert alerts == sorted(set(silent)) == sorted(fires)


def test_metrics_have_nothing_that_promtool_minds_but_the_prefix(programs, synthetic_server):
    """Dashboards for vLLM need one substitution because of the colon. All else is as Prometheus wants it."""
    for _ in range(2):  # the second answer counts the first one
        text = httpx.get(f"{synthetic_server.url}/metrics").text
    families = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    said = programs.check("check", "metrics", given=text)
    accepted = [f"{name} metric names should not contain ':'" for name in families]
    assert sorted(said.stdout.splitlines()) == sorted(accepted)
