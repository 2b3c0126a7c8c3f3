"""What holds for every object, with every file of ci/."""

import functools
import re
import unittest

import jsonschema
import referencing
from kubernetes_validate import utils

from chart import CI_VALUES, KUBERNETES, REPOSITORY, by_key, configurations, containers, key, pods, render, with_file, with_values

# Objects of operators, of which Kubernetes has no schema.
OPERATORS = ("monitoring.coreos.com/", "cert-manager.io/", "grafana.integreatly.org/")
# Pods that touch the node; the others have to satisfy the standard `restricted`.
ON_NODES = ("peer", "node", "clean")


@functools.cache
def validator(version, kind, api_version):
    """The strict schema of a kind: kubernetes_validate's own, but read once and not for each object."""
    definitions = functools.cache(utils.schema_contents)(f"kubernetes-json-schema/v{version}-local-strict/_definitions.json", version)
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    schema = utils.schema_contents(f"kubernetes-json-schema/v{version}-local-strict/{kind.lower()}-{group}.json", version)
    registry = referencing.Resource.from_contents(definitions) @ referencing.Registry()
    return jsonschema.Draft202012Validator(schema, registry=registry)


class Objects(unittest.TestCase):
    def test_every_object_satisfies_the_strict_schema_of_every_kubernetes(self):
        for version in KUBERNETES:
            self.assertIn(version, utils.all_versions(), "kubernetes-validate has no schema of it")
            for path in CI_VALUES:
                for document in with_file(path, kubernetes=version):
                    if document["apiVersion"].startswith(OPERATORS):
                        continue
                    errors = validator(version, document["kind"], document["apiVersion"]).iter_errors(document)
                    self.assertEqual([f"{error.json_path}: {error.message}" for error in errors], [], f"{path.name} {version} {key(document)}")

    def test_an_upgrade_with_the_same_values_changes_nothing(self):
        for path in CI_VALUES:
            first = render("--values", str(path))
            self.assertEqual(first, render.__wrapped__("--values", str(path)), path.name)
            self.assertEqual(first, render("--values", str(path), "--is-upgrade"), path.name)

    def test_nothing_is_left_of_the_templates(self):
        for path in CI_VALUES:
            text = render("--values", str(path))
            self.assertNotRegex(text, r"(?m)[ \t]+$", path.name)
            self.assertNotRegex(text, r"<no value>|<nil>|%!|\{\{[^}]*\.Values", path.name)

    def test_names_are_of_one_object_and_fit(self):
        for path in CI_VALUES:
            documents = with_file(path)
            places = {(key(document), document["metadata"].get("namespace")) for document in documents}
            self.assertEqual(len(places), len(documents), path.name)
            for document in documents:
                # A StatefulSet's pods have a label with its name and a hash of ten characters.
                most = {"StatefulSet": 52, "Service": 63}.get(document["kind"], 63)
                self.assertLessEqual(len(document["metadata"]["name"]), most, key(document))

    def test_containers_are_hardened(self):
        for path in CI_VALUES:
            for document, spec in pods(with_file(path)):
                component = document["metadata"]["labels"]["app.kubernetes.io/component"]
                self.assertFalse(spec["enableServiceLinks"], key(document))
                for container in containers(spec):
                    security = container["securityContext"]
                    self.assertTrue(security["readOnlyRootFilesystem"], key(document))
                    self.assertIn("memory", container["resources"]["limits"], key(document))
                    self.assertNotIn("privileged", security, key(document))
                    self.assertFalse(security["allowPrivilegeEscalation"], key(document))
                    self.assertEqual(security["capabilities"]["drop"], ["ALL"], key(document))
                self.assertEqual(spec["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"}, key(document))
                if component not in (*ON_NODES, "test"):
                    self.assertTrue(spec["securityContext"]["runAsNonRoot"], key(document))
                    self.assertNotIn("hostNetwork", spec, key(document))
                    on_host = [volume for volume in spec.get("volumes", []) if "hostPath" in volume]
                    self.assertTrue(not on_host or component == "mirror", key(document))

    def test_only_who_asks_the_api_server_has_a_token(self):
        for path in CI_VALUES:
            documents = with_file(path)
            bound = {subject["name"] for document in documents for subject in document.get("subjects", [])}
            for document, spec in pods(documents):
                has_token = spec.get("automountServiceAccountToken", True)
                self.assertEqual(has_token, spec["serviceAccountName"] in bound and not document["metadata"]["name"].endswith("-clean"), key(document))

    def test_services_select_pods_and_name_their_ports(self):
        for path in CI_VALUES:
            documents = with_file(path)
            templates = [(document["spec"]["template"]["metadata"]["labels"], spec) for document, spec in pods(documents) if document["kind"] != "Pod"]
            for service in (document for document in documents if document["kind"] == "Service"):
                selected = [spec for labels, spec in templates if service["spec"]["selector"].items() <= labels.items()]
                self.assertEqual(len(selected), 1, f"{path.name} {key(service)}")
                ports = {port["name"]: port["containerPort"] for port in selected[0]["containers"][0]["ports"]}
                for port in service["spec"]["ports"]:
                    self.assertIn(port["targetPort"], ports, key(service))

    def test_the_webhook_is_asked_where_it_answers(self):
        source = (REPOSITORY / "webhook/src/review/server.rs").read_text()
        pod, namespace = (re.search(rf'{name}: &str = "([^"]+)"', source)[1] for name in ("POD_PATH", "NAMESPACE_PATH"))
        labels = ["piecemeal.dev/mode", "k8s.aliyun.com/image-accelerate-mode"]
        asked = by_key(with_values({}))["MutatingWebhookConfiguration/piecemeal-webhook"]["webhooks"]
        paths = [entry["clientConfig"]["service"]["path"] for entry in asked]
        self.assertEqual(paths, [pod, pod, *(namespace + label for label in labels)])

    def test_what_is_mounted_is_there(self):
        for path in CI_VALUES:
            documents = with_file(path)
            config_maps, claims = (
                {document["metadata"]["name"] for document in documents if document["kind"] == kind} for kind in ("ConfigMap", "PersistentVolumeClaim")
            )
            for document, spec in pods(documents):
                volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
                for container in containers(spec):
                    for mount in container.get("volumeMounts", []):
                        self.assertIn(mount["name"], volumes, key(document))
                for volume in volumes.values():
                    if "configMap" in volume:
                        self.assertIn(volume["configMap"]["name"], config_maps, key(document))
                    if "persistentVolumeClaim" in volume:
                        self.assertIn(volume["persistentVolumeClaim"]["claimName"], claims, key(document))

    def test_every_name_is_known_to_mirrors_peers_and_nodes_alike(self):
        for path in CI_VALUES:
            documents = with_file(path)
            told = [table["upstream"] for _, name, table in configurations(documents) if name in ("mirror.toml", "peer.toml")]
            for document, spec in pods(documents):
                args = spec["containers"][0].get("args", [])
                if args[:2] == ["node", "run"]:
                    told.append([arg.removeprefix("--upstream=") for arg in args if arg.startswith("--upstream=")])
            for upstreams in told:
                self.assertEqual(upstreams, told[0], path.name)

    def test_a_change_restarts_only_the_component_that_it_concerns(self):
        def checksums(values):
            return {
                document["metadata"]["labels"]["app.kubernetes.io/component"]: document["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
                for document, _ in pods(with_values(values))
                if "checksum/config" in document["spec"].get("template", {}).get("metadata", {}).get("annotations", {})
            }

        before = checksums({})
        self.assertEqual(set(before), {"peer", "mirror", "scheduler", "webhook"})
        for values, changed in [
            ({"p2p": {"plusMode": {"cacheTTL": "72h"}}}, {"mirror"}),
            ({"p2p": {"ratelimit": "9M"}}, {"peer"}),
            ({"webhook": {"secretsKeep": "1h"}}, {"webhook"}),
            ({"webhook": {"replicas": 3}}, set()),
            ({"p2p": {"registryInstances": "docker.io,ghcr.io"}}, {"peer", "mirror", "webhook"}),
            ({"revoke": ["0123456789abcdef0123456789abcdef"]}, {"mirror", "scheduler"}),
            ({"addressShare": 100}, {"peer", "mirror", "scheduler"}),
        ]:
            after = checksums(values)
            self.assertEqual({component for component in before if before[component] != after[component]}, changed, values)


if __name__ == "__main__":
    unittest.main()
