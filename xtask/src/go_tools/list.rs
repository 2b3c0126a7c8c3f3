//! Go programs to build, and the requirements of each one's build.
//!
//! Invariant: each is built at a pinned version.

use super::versions;

/// A program and how it is built.
pub(crate) struct Tool {
    pub(crate) name: &'static str,
    /// The package of its `main`.
    pub(super) package: &'static str,
    pub(super) version: &'static str,
    pub(super) tags: &'static str,
    /// Variables that the program's own build sets, most often to its version, and their values.
    pub(super) stamps: &'static [(&'static str, &'static str)],
    pub(super) method: BuildMethod,
}

pub(super) enum BuildMethod {
    /// `go install`.
    Install,
    /// In a generated module that requires the program's. `go install` refuses a module that replaces others, and nothing of
    /// what a module replaces reaches those that require it.
    OwnModule {
        module: &'static str,
        /// The version of the modules that lie in the same source tree, where the program's module does not tell.
        siblings: Option<&'static str>,
    },
}

/// Clients and a test suite.
pub(crate) const CLIENTS: [Tool; 6] = [
    Tool {
        name: "crane",
        package: "github.com/google/go-containerregistry/cmd/crane",
        version: versions::CRANE,
        ..PLAIN
    },
    Tool {
        name: "oras",
        package: "oras.land/oras/cmd/oras",
        version: versions::ORAS,
        ..PLAIN
    },
    Tool {
        name: "regctl",
        package: "github.com/regclient/regclient/cmd/regctl",
        version: versions::REGCTL,
        ..PLAIN
    },
    Tool {
        name: "containerd",
        package: "github.com/containerd/containerd/v2/cmd/containerd",
        version: versions::CONTAINERD,
        tags: CONTAINERD_TAGS,
        ..PLAIN
    },
    Tool {
        name: "ctr",
        package: "github.com/containerd/containerd/v2/cmd/ctr",
        version: versions::CONTAINERD,
        tags: CONTAINERD_TAGS,
        ..PLAIN
    },
    Tool {
        name: "oci-conformance",
        package: "github.com/opencontainers/distribution-spec/conformance",
        version: versions::OCI_CONFORMANCE,
        ..PLAIN
    },
];

/// The parts of a cluster and its nodes, and the programs of its operators. The smallest come first, so that a machine on which Go
/// cannot build fails early.
pub(crate) const KUBERNETES: [Tool; 10] = [
    Tool {
        name: "crictl",
        package: "sigs.k8s.io/cri-tools/cmd/crictl",
        version: versions::CRICTL,
        stamps: &[("sigs.k8s.io/cri-tools/pkg/version.Version", versions::CRICTL)],
        ..PLAIN
    },
    Tool {
        name: "etcd",
        package: "go.etcd.io/etcd/server/v3",
        version: versions::ETCD,
        method: BuildMethod::OwnModule {
            module: "go.etcd.io/etcd/server/v3",
            siblings: None,
        },
        ..PLAIN
    },
    Tool {
        name: "helm",
        package: "helm.sh/helm/v3/cmd/helm",
        version: versions::HELM,
        stamps: &[("helm.sh/helm/v3/internal/version.version", versions::HELM)],
        ..PLAIN
    },
    Tool {
        name: "kubectl",
        package: "k8s.io/kubernetes/cmd/kubectl",
        ..OF_KUBERNETES
    },
    Tool {
        name: "kube-apiserver",
        package: "k8s.io/kubernetes/cmd/kube-apiserver",
        ..OF_KUBERNETES
    },
    Tool {
        name: "kube-controller-manager",
        package: "k8s.io/kubernetes/cmd/kube-controller-manager",
        ..OF_KUBERNETES
    },
    Tool {
        name: "kube-scheduler",
        package: "k8s.io/kubernetes/cmd/kube-scheduler",
        ..OF_KUBERNETES
    },
    Tool {
        name: "kubelet",
        package: "k8s.io/kubernetes/cmd/kubelet",
        ..OF_KUBERNETES
    },
    Tool {
        name: "kube-proxy",
        package: "k8s.io/kubernetes/cmd/kube-proxy",
        ..OF_KUBERNETES
    },
    Tool {
        name: "coredns",
        package: "github.com/coredns/coredns",
        version: versions::COREDNS,
        ..PLAIN
    },
];

const PLAIN: Tool = Tool {
    name: "",
    package: "",
    version: "",
    tags: "",
    stamps: &[],
    method: BuildMethod::Install,
};

const OF_KUBERNETES: Tool = Tool {
    version: versions::KUBERNETES,
    // Unstamped it calls itself v0.0.0, and charts that ask for a version refuse it.
    stamps: &[
        ("k8s.io/component-base/version.gitVersion", versions::KUBERNETES),
        ("k8s.io/component-base/version.gitMajor", "1"),
        ("k8s.io/component-base/version.gitMinor", "35"),
    ],
    method: BuildMethod::OwnModule {
        module: "k8s.io/kubernetes",
        siblings: Some("v0.35.4"),
    },
    ..PLAIN
};

/// Without the snapshotters that need devices or C libraries.
const CONTAINERD_TAGS: &str = "no_btrfs,no_devmapper,no_zfs";
