//! The versions of the programs that are built by Go. A tool's file is `<tools>/bin/<name>-<version>`, so that another
//! version is another file.
//!
//! Nothing but constants: other crates that run the tools may include this file.

pub(crate) const CRANE: &str = "v0.22.1";
pub(crate) const ORAS: &str = "v1.3.6";
pub(crate) const REGCTL: &str = "v0.11.7";
/// Of `containerd` and of `ctr`.
pub(crate) const CONTAINERD: &str = "v2.4.2";
/// The suite as rewritten in April 2026 is in no release yet, hence a commit.
pub(crate) const OCI_CONFORMANCE: &str = "v0.0.0-20260831232431-97274622c111";
/// Of `kubectl`, `kubelet`, and of all that is named `kube-…`. The Go module proxy has some releases without all of
/// their parts; this one is whole.
pub(crate) const KUBERNETES: &str = "v1.35.4";
pub(crate) const ETCD: &str = "v3.6.13";
pub(crate) const HELM: &str = "v3.22.0";
pub(crate) const CRICTL: &str = "v1.34.0";
pub(crate) const COREDNS: &str = "v1.14.7";
