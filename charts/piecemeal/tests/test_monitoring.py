"""Alerts and dashboards: queries that can be read, of metrics that exist, and alerts that fire when they should."""

import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

import yaml

from chart import CHART, REPOSITORY, tool, with_file

DOCUMENTED = set(re.findall(r"^\| `(piecemeal_\w+)`", (REPOSITORY / "docs/metrics.md").read_text(), re.MULTILINE))


def rules():
    documents = with_file(CHART / "ci/monitoring-values.yaml")
    return next(document["spec"] for document in documents if document["kind"] == "PrometheusRule")


def dashboards():
    return {path.name: json.loads(path.read_text()) for path in sorted((CHART / "files/dashboards").glob("*.json"))}


def queries(dashboard):
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            yield panel["title"], re.sub(r"\$__\w+", "5m", target["expr"]).replace("$pool", ".*")


class Monitoring(unittest.TestCase):
    def promtool(self, *arguments):
        result = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True)
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_alerts_fire_when_they_should_and_not_otherwise(self):
        with tempfile.TemporaryDirectory() as directory:
            folder = pathlib.Path(directory)
            (folder / "alerts.yaml").write_text(yaml.safe_dump(rules()))
            shutil.copy(CHART / "tests/alerts_test.yaml", folder)
            self.promtool("check", "rules", str(folder / "alerts.yaml"))
            self.promtool("test", "rules", str(folder / "alerts_test.yaml"))

    def test_every_alert_is_tested_and_has_a_runbook(self):
        tests = (CHART / "tests/alerts_test.yaml").read_text()
        runbooks = re.findall(r"^## (\w+)", (REPOSITORY / "docs/alerts.md").read_text(), re.MULTILINE)
        names = [rule["alert"] for group in rules()["groups"] for rule in group["rules"]]
        self.assertEqual(sorted(runbooks), sorted(names))
        for name in names:
            self.assertRegex(tests, rf"\b{name}\b")

    def test_the_queries_of_dashboards_can_be_read(self):
        recorded = [
            {"record": f"panel:{number}", "expr": query}
            for number, query in enumerate(query for dashboard in dashboards().values() for _, query in queries(dashboard))
        ]
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "panels.yaml"
            path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": recorded}]}))
            self.promtool("check", "rules", str(path))

    def test_every_metric_is_documented(self):
        asked = {rule["alert"]: rule["expr"] for group in rules()["groups"] for rule in group["rules"]}
        for name, dashboard in dashboards().items():
            asked |= {f"{name}: {title}": query for title, query in queries(dashboard)}
        for where, query in asked.items():
            # The monitors add labels that begin with piecemeal_component.
            for metric in re.findall(r"\bpiecemeal_(?!component\b)\w+", query):
                family = re.sub(r"_(bucket|sum|count)$", "", metric)
                self.assertTrue({metric, family} & DOCUMENTED, f"{where} asks for {metric}, which docs/metrics.md does not have")

    def test_dashboards_are_all_there(self):
        documents = with_file(CHART / "ci/monitoring-values.yaml")
        shown = {name for document in documents if document["kind"] == "ConfigMap" for name in document.get("data", {}) if name.endswith(".json")}
        self.assertEqual(shown, {f"piecemeal-{name}" for name in dashboards()})


if __name__ == "__main__":
    unittest.main()
