//! Identity of a user at the API server, and the credential files by which programs act as that user.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use serde_json::json;

use super::{assets::program, client::KubeClient};

/// A token, as a client and as a kubeconfig.
#[derive(Debug)]
pub struct Identity {
    client: KubeClient,
    token: String,
    kubeconfig: PathBuf,
}

impl Identity {
    /// `name` is that of the kubeconfig, in `folder`.
    pub(super) fn new(client: KubeClient, url: &str, ca_pem: &str, token: &str, folder: &Path, name: &str) -> Self {
        let kubeconfig = folder.join(format!("{name}.kubeconfig"));
        // JSON is YAML too.
        let text = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [{
                "name": "tests",
                "cluster": { "server": url, "certificate-authority-data": BASE64.encode(ca_pem) },
            }],
            "users": [{ "name": "tests", "user": { "token": token } }],
            "contexts": [{ "name": "tests", "context": { "cluster": "tests", "user": "tests" } }],
        });
        fs::write(&kubeconfig, text.to_string()).expect("writing a kubeconfig");
        Self {
            client,
            token: token.to_owned(),
            kubeconfig,
        }
    }

    pub fn client(&self) -> &KubeClient {
        &self.client
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// `kubectl` as this one.
    pub fn kubectl(&self, arguments: &[&str]) -> Command {
        self.command("kubectl", arguments)
    }

    /// `helm` as this one.
    pub fn helm(&self, arguments: &[&str]) -> Command {
        self.command("helm", arguments)
    }

    /// Home is the folder of the kubeconfig, so that nothing of the real user's is seen.
    fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let home = self.kubeconfig.parent().expect("a file lies in a folder");
        let mut command = Command::new(program(name));
        command
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", home)
            .env_remove("KUBERNETES_SERVICE_HOST");
        command
    }
}
