"""The real Prometheus and promtool, and what their answers hold.

Owns the two programs, a Prometheus process and its HTTP API. Does not know rbee's metrics.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import httpx
import psutil

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yml"
RULES_TEST = RULES.with_name("alerts_test.yml")
DASHBOARD = ROOT / "deploy" / "grafana" / "rbee.json"
PATIENCE = 120.0  # seconds after which a Prometheus that does not find what a test waits for fails it

# Scrapes and evaluates twice a second, so that a test waits for little.
_CONFIG = """
global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}
rule_files: [{rules}]
scrape_configs:
  - job_name: rbee
    static_configs:
      - targets: ["{target}"]
"""


class Programs(NamedTuple):
    """The paths of the two programs."""

    prometheus: Path
    promtool: Path

    @classmethod
    def installed(cls) -> Self:
        """As `make test` has them, which this installs if they are not there yet."""
        subprocess.run(["make", "-s", "-C", ROOT, "build/prometheus/.installed"], check=True, timeout=600)
        folder = ROOT / "build" / "prometheus" / "bin"
        return cls(folder / "prometheus", folder / "promtool")

    def check(self, *arguments: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
        """What promtool says, with stderr in its stdout."""
        return subprocess.run(
            [self.promtool, *arguments],
            input=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=PATIENCE,
        )


class Prometheus:
    """A Prometheus that scrapes one server and evaluates deploy's rules; it ends with the block."""

    def __init__(self, program: Path, folder: Path, target: tuple[str, int]) -> None:
        config = folder / "prometheus.yml"
        config.write_text(_CONFIG.format(rules=RULES, target=":".join(map(str, target))))
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                ],
                cwd=folder,
                env={**os.environ, "GOMAXPROCS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._api = httpx.Client(timeout=PATIENCE)

    def __enter__(self) -> Self:
        try:
            [port] = self.until(self._ports)
            self._api.base_url = httpx.URL(f"http://127.0.0.1:{port}")
            self.until(lambda: self._api.get("/-/ready").status_code == 200)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._api.close()
        self._process.kill()
        self._process.wait()

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its HTTP API."""
        answer = self._api.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        assert "warnings" not in answer.json(), answer.text
        return answer.json()["data"]

    def query(self, expression: str) -> list[float]:
        """The values of an expression now."""
        found = self.get("query", query=expression)
        assert found["resultType"] == "vector"
        return [float(series["value"][1]) for series in found["result"]]

    def rules(self) -> dict[str, Any]:
        """Each alert rule by its name: state, health, lastEvaluation."""
        return {rule["name"]: rule for group in self.get("rules")["groups"] for rule in group["rules"]}

    def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        return {name for name, rule in self.rules().items() if rule["state"] == "firing"}

    def until(self, condition: Callable[[], Any]) -> Any:
        """The first value of the condition that is true; fails when Prometheus ends first, or takes too long."""
        last = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < last, f"it did not come true; Prometheus' log:\n{self._log.read_text()}"
            time.sleep(0.05)
        return value

    def _ports(self) -> list[int]:
        return [
            connection.laddr.port
            for connection in psutil.Process(self._process.pid).net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN
        ]


def dashboard_expressions() -> list[str]:
    """Every expression of the dashboard, for all servers and a minute, as Grafana fills it in."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [
        target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
        for panel in panels
        for target in panel["targets"]
    ]
