"""The binary takes what the chart gives it: every daemon's configuration is checked by the daemon, and every flag is one that it has."""

import os
import pathlib
import re
import subprocess
import tempfile
import unittest

from chart import CI_VALUES, by_key, configurations, containers, key, pod_spec, pods, tool, with_file, with_values

DAEMONS = ("mirror", "scheduler", "peer", "webhook")
# A pod's fields, as variables take them.
FIELDS = {"status.hostIP": "192.0.2.1", "status.podIP": "192.0.2.2", "metadata.namespace": "site"}
FIELDS_6 = {**FIELDS, "status.hostIP": "2001:db8::1", "status.podIP": "2001:db8::2"}
# A certificate authority without a use, since the daemons read the certificates that they trust.
AUTHORITY = pathlib.Path(__file__).with_name("authority.pem").read_text()


class Binary(unittest.TestCase):
    def run_binary(self, arguments, environment=None):
        kept = {name: os.environ[name] for name in ("PATH",) if name in os.environ}
        return subprocess.run([tool("binary"), *arguments], capture_output=True, text=True, env={**kept, **(environment or {})})

    def test_each_daemon_accepts_its_configuration(self):
        for path in CI_VALUES:
            documents = with_file(path)
            texts = {document["metadata"]["name"]: document["data"] for document, _, _ in configurations(documents)}
            for document, spec in pods(documents):
                container = spec["containers"][0]
                if container.get("args", [None])[0] in DAEMONS:
                    config = next(volume["configMap"]["name"] for volume in spec["volumes"] if volume["name"] == "config")
                    with self.subTest(values=path.name, object=key(document)):
                        self.check_configuration(container, texts[config])

    def check_configuration(self, container, texts):
        """With the files that a pod would have, below a folder in place of `/etc/piecemeal`."""
        with tempfile.TemporaryDirectory() as directory:
            root = pathlib.Path(directory)
            (root / "config").mkdir()
            self.assertEqual(self.run_binary(["keygen", str(root / "keys")]).returncode, 0)
            for name, text in texts.items():
                text = text.replace("/etc/piecemeal/", f"{root}/")
                (root / "config" / name).write_text(text)
                for file in re.findall(rf"{root}/upstreams/[0-9]+/[a-z.]+", text):
                    pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)
                    pathlib.Path(file).write_text(AUTHORITY)
                if (certificate := f"{root}/certificate") in text:
                    pathlib.Path(certificate).mkdir()
                    (pathlib.Path(certificate) / "tls.crt").write_text(AUTHORITY)
                    (pathlib.Path(certificate) / "tls.key").write_text("")
            fields = FIELDS_6 if any("[::]" in text for text in texts.values()) else FIELDS
            environment = {}
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    value = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
                else:
                    value = re.sub(r"\$\((\w+)\)", lambda match: environment[match[1]], variable["value"])
                environment[variable["name"]] = value.replace("/etc/piecemeal/", f"{root}/")
            arguments = [arg.replace("/etc/piecemeal/", f"{root}/") for arg in container["args"]]
            result = self.run_binary([*arguments, "--check-config"], environment)
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertNotIn("warn", (result.stdout + result.stderr).lower())

    def test_folders_that_are_there_only_because_they_are_mounted_are_no_runtime(self):
        documents = by_key(with_values({"node": {"runtime": ["auto"]}}))
        volumes = pod_spec(documents["DaemonSet/piecemeal-node"])["volumes"]
        with tempfile.TemporaryDirectory() as root:
            for volume in volumes:
                if path := volume.get("hostPath", {}).get("path"):
                    pathlib.Path(root + path).mkdir(parents=True)
            found = self.run_binary(["node", "status", "--root", root])
            self.assertIn("no container runtime found", found.stdout, found.stderr)
            (pathlib.Path(root) / "var/lib/rancher/k3s/agent").mkdir(parents=True)
            found = self.run_binary(["node", "status", "--root", root])
            self.assertIn("k3s", found.stdout, found.stderr)

    def test_every_flag_is_known(self):
        """Flags are read in their order, so that `--help` at the end is reached only past good ones."""
        seen = set()
        for path in CI_VALUES:
            for document, spec in pods(with_file(path)):
                for container in containers(spec):
                    # The pull test runs an image other than Piecemeal's.
                    arguments = tuple(container.get("args", ()))
                    if not arguments or arguments in seen:
                        continue
                    seen.add(arguments)
                    with self.subTest(values=path.name, object=key(document)):
                        result = self.run_binary([*arguments, "--help"])
                        self.assertEqual(result.returncode, 0, f"{' '.join(arguments)}\n{result.stderr}")


if __name__ == "__main__":
    unittest.main()
