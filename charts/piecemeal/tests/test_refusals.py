"""What contradicts itself or means nothing is refused, with a sentence that says what to set; and NOTES.txt warns of the rest."""

import shutil
import tempfile
import unittest
from pathlib import Path

from chart import CHART, RenderError, by_key, parse, render, with_set

# Settings as for --set, and what the refusal says.
REFUSED = [
    ("p2p.port=65002", "65002 and 65003"),
    ("p2p.plusMode.enable=false p2p.plusMode.downloadPattern=source", "webhook.enabled=false"),
    ("p2p.plusMode.downloadPattern=source scheduler.extraArgs={--log=debug}", "deploys no scheduler"),
    ("p2p.plusMode.cacheHostPath=/x mirror.persistence.enabled=true", "choose one"),
    ("keys.existingAuthoritySecret=a", "give both, or neither"),
    ("webhook.certificates.mode=certManager webhook.certificates.existingSecret=x", "mode=existingSecret"),
    ("webhook.certificates.mode=existingSecret webhook.certificates.existingSecret=x", "webhook.certificates.caBundle"),
    ("webhook.certificates.caBundle=QUJD", "leave it out"),
    ("webhook.certificates.issuerRef.name=x", "mode=certManager"),
    ("node.runtime={auto,k3s}", "auto finds every runtime"),
    ("webhook.nameStyle=mirror node.names=accelerated", "leave node.names out"),
    ("upstreams[0].name=a.io upstreams[1].name=a.io", "several urls"),
    ("upstreams[0].name=a.io upstreams[0].serveSite=true", "credentialsSecret"),
    ("upstreams[0].name=a.io upstreams[0].tokenServers[0]=auth.io", "credentialsSecret"),
    ("p2p.registryInstances=https://docker.io", "is not a registry"),
    ("p2p.registryInstances=docker.io=registry-1.docker.io", "only an instance's id has domains"),
    ("p2p.registryDomains.cri-xxx=a.io", "not among p2p.registryInstances"),
    ("pullImageInternet=true p2p.registryInstances=cri-xxx", "p2p.registryDomains.cri-xxx"),
    ("p2p.plusMode.edgeNodePools[0].name=上海", "give the pool's id"),
    ("p2p.plusMode.edgeNodePools[0].name=a p2p.plusMode.edgeNodePools[1].name=a", "is there twice"),
    ("p2p.plusMode.cacheHostPath=/", "the system's own"),
    ("peer.cacheHostPath=/etc/", "peer.cacheHostPath=/etc/"),
    ("peer.cacheHostPath=/data/../etc", "the system's own"),
    ("node.extraHostPaths={/etc/containerd}", "mounted already"),
    ("node.extraHostPaths={/usr}", "mounted already"),
    ("node.extraHostPaths={/var/lib/rancher/k3s}", "mounted already"),
    ("node.extraHostPaths={/opt/a,/opt/a}", "extraHostPaths"),
    ("node.extraHostPaths={/}", "name single folders"),
    ("node.extraHostPaths={/opt/k3s} node.allowRuntimeRestart=true", "mounted already"),
    ("service.ipFamilyPolicy=SingleStack service.ipFamilies={IPv4,IPv6}", "PreferDualStack"),
    ("commonLabels.app\\.kubernetes\\.io/name=x", "commonLabels: the label app.kubernetes.io/name"),
    ("peer.podLabels.piecemeal\\.dev/pool=x", "peer.podLabels: the label piecemeal.dev/pool"),
    ("p2p.registryInstances=reg.example.com:70000", "no port 70000"),
    ("upstreams[0].name=reg.example.com:70000", "no port 70000"),
    ("tests.image=alpine:3.20", "docker.io/library/alpine:3.20"),
    # By the schema.
    ("revoke[0]=node-7", "revoke"),
    ("addressShare=0", "addressShare"),
    ("addressShare=null", "addressShare"),
    ("p2p.port=null", "port"),
    ("p2p.ratelimit=null", "ratelimit"),
    ("p2p.plusMode.cacheTTL=0s", "cacheTTL"),
    ("upstreams[0].name=https://a.io", "upstreams"),
    ("peer.tolerations[0].operater=Exists", "operater"),
    ("peer.resources.limit.cpu=1", "limit"),
    ("p2p.prot=65001", "prot"),
    ("p2p.port=80", "1,024"),
    ("p2p.plusMode.downloadPattern=both", "downloadPattern"),
    ("p2p.plusMode.cacheTTL=a-day", "cacheTTL"),
    ("p2p.ratelimit=fast", "ratelimit"),
    ("p2p.plusMode.cacheHostPath=data", "cacheHostPath"),
    ("p2p.plusMode.edgeNodePools[0].pool=a", "pool"),
    ("webhook.replicas=0", "replicas"),
    ("peer.resource.limits.cpu=1", "resource"),
]


def notes(*settings):
    """NOTES.txt as it is shown: `helm template` leaves it out, so it is made an object in a copy of the chart."""
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "piecemeal"
        shutil.copytree(CHART, copy)
        text = (copy / "templates/NOTES.txt").read_text()
        shown = '{{- define "notes" -}}' + text + '{{- end -}}\n---\n{kind: Notes, metadata: {name: notes}, text: {{ include "notes" . | toJson }}}\n'
        (copy / "templates/notes.yaml").write_text(shown)
        arguments = [part for setting in ("p2p.registryInstances=docker.io", *settings) for part in ("--set", setting)]
        return by_key(parse(render.__wrapped__(*arguments, chart=copy)))["Notes/notes"]["text"]


class Refusals(unittest.TestCase):
    def test_contradictions_are_refused_with_what_to_do(self):
        for settings, said in REFUSED:
            with self.subTest(settings=settings), self.assertRaises(RenderError) as refused:
                with_set(*settings.split(" "))
            self.assertIn(said, str(refused.exception), settings)

    def test_missing_registries_are_named_and_on_an_upgrade_so_is_what_forgot_them(self):
        with self.assertRaises(RenderError) as refused:
            render()
        self.assertIn("--set p2p.registryInstances=docker.io", str(refused.exception))
        self.assertNotIn("--reuse-values", str(refused.exception))
        with self.assertRaises(RenderError) as refused:
            # The vendor's own command.
            render("--set", "p2p.plusMode.cacheTTL=72h", "--is-upgrade")
        self.assertIn("--reuse-values", str(refused.exception))

    def test_an_older_kubernetes_is_refused(self):
        with self.assertRaises(RenderError) as refused:
            render("--set", "p2p.registryInstances=docker.io", kubernetes="1.29.9")
        self.assertIn("1.30", str(refused.exception))

    def test_access_keys_are_accepted_and_are_in_no_object(self):
        text = render("--set", "p2p.registryInstances=docker.io,accessKey=the-access-key,accessKeySecret=its-secret")
        self.assertNotIn("the-access-key", text)
        self.assertNotIn("its-secret", text)


class Notes(unittest.TestCase):
    def test_they_say_what_to_do_next_and_what_to_mind(self):
        plain = notes()
        for said in ("accelerated   docker.io", "helm test piecemeal", "piecemeal.dev/mode=p2p", "cache is deleted with its pod", "localhost/", "enforce=privileged"):
            self.assertIn(said, plain)
        for setting, said in [
            ("p2p.registryInstances=cri-xxx", "(cri-xxx): the first pod"),
            ("p2p.plusMode.nodeSelectorEnable=true", "k8s.aliyun.com/p2p-plus-node=true"),
            ("p2p.port=7001", "p2p.port is 7001"),
            ("webhook.nameStyle=mirror", "The label only annotates"),
            ("webhook.enabled=false", "no pod is changed"),
            ("accessKey=x", "accepted and not used"),
            ("node.enabled=false", "piecemeal node install"),
            ("p2p.plusMode.enable=false", "nothing of Piecemeal runs"),
            ("p2p.plusMode.edgeNodePools[0].name=edge", "other nodes pull from the registries"),
            ("image.registry=docker.io", "comes from docker.io, which is accelerated"),
            ("uninstall.timeout=10m", "uninstall.timeout=10m: Helm itself gives up"),
            ("mirror.persistence.enabled=true,mirror.persistence.size=10Gi", "has no room for mirror.cacheMaxSize=20Gi"),
        ]:
            self.assertNotIn(said, plain)
            self.assertIn(said, notes(setting), setting)
        self.assertNotIn("cache is deleted with", notes("p2p.plusMode.cacheHostPath=/data"))


if __name__ == "__main__":
    unittest.main()
