//! Credentials that the mirror itself holds for an upstream, re-read while it runs.
//!
//! Invariant: an error says where the credential was looked for, and never what was read.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use serde::Deserialize;
use tokio::{io::AsyncWriteExt, process::Command, sync::Mutex};

use crate::{Credential, PullError};

/// The age up to which a credential that was read counts: a changed file takes effect within it.
const HELD_LIFE: Duration = Duration::from_secs(10);
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Source of user and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CredentialSource {
    /// A file whose first line is `user:password`.
    File(PathBuf),
    /// A Docker `config.json`, with its credential helpers.
    DockerConfig(PathBuf),
    /// A program that speaks the protocol of Docker's credential helpers.
    Helper(String),
}

/// The credentials for one upstream.
pub(crate) struct SiteCredentials {
    source: CredentialSource,
    read: Mutex<Option<ReadCredential>>,
}

/// The credential that was read last.
struct ReadCredential {
    credential: Credential,
    read_at: Instant,
}

impl ReadCredential {
    /// `None`: it is too old, and read again.
    fn fresh(&self, now: Instant) -> Option<Credential> {
        let is_fresh = now.saturating_duration_since(self.read_at) < HELD_LIFE;
        is_fresh.then(|| self.credential.clone())
    }
}

impl SiteCredentials {
    pub(crate) fn new(source: CredentialSource) -> Self {
        Self {
            source,
            read: Mutex::new(None),
        }
    }

    /// User and password for `registry`.
    ///
    /// # Errors
    /// [`PullError::Unavailable`]: what the administrator must fix. It never contains what was read.
    pub(crate) async fn credential(&self, registry: &str) -> Result<Credential, PullError> {
        let mut read = self.read.lock().await;
        if let Some(credential) = read.as_ref().and_then(|read| read.fresh(Instant::now())) {
            return Ok(credential);
        }
        let credential = self
            .source
            .read(registry)
            .await
            .map_err(|problem| PullError::Unavailable(format!("no credentials for {registry}: {problem}")))?;
        *read = Some(ReadCredential {
            credential: credential.clone(),
            read_at: Instant::now(),
        });
        Ok(credential)
    }
}

impl CredentialSource {
    async fn read(&self, registry: &str) -> Result<Credential, String> {
        match self {
            Self::File(path) => user_and_password(first_line(&read_file(path).await?))
                .ok_or_else(|| format!("the first line of {} is not user:password", path.display())),
            Self::DockerConfig(path) => {
                let config = DockerConfig::parse(&read_file(path).await?)
                    .map_err(|problem| format!("{} is no Docker config.json: {problem}", path.display()))?;
                match config.find(registry) {
                    Some(Found::Credential(credential)) => Ok(credential),
                    Some(Found::Helper(helper, server)) => {
                        ask_helper(&format!("docker-credential-{helper}"), &server).await
                    }
                    None => Err(format!("{} has none", path.display())),
                }
            }
            Self::Helper(program) => ask_helper(program, server_names(registry)[0]).await,
        }
    }
}

async fn read_file(path: &Path) -> Result<String, String> {
    let problem = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let bytes = tokio::fs::metadata(path).await.map_err(problem)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(format!("{} has {bytes} bytes", path.display()));
    }
    tokio::fs::read_to_string(path).await.map_err(problem)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default().trim()
}

fn user_and_password(text: &str) -> Option<Credential> {
    let (user, password) = text.split_once(':')?;
    (!user.is_empty()).then(|| Credential::basic(user, password))
}

/// A Docker `config.json`. Source: docker/cli, `cli/config/configfile`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::HashMap<String, Auth>,
    #[serde(default)]
    cred_helpers: std::collections::HashMap<String, String>,
    #[serde(default)]
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Auth {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

enum Found {
    Credential(Credential),
    /// A helper's name and the server to ask it for.
    Helper(String, String),
}

impl DockerConfig {
    fn parse(text: &str) -> Result<Self, String> {
        // The error of serde_json names a place, no content.
        serde_json::from_str(text).map_err(|error| format!("line {}, column {}", error.line(), error.column()))
    }

    fn find(&self, registry: &str) -> Option<Found> {
        let names = server_names(registry);
        let of = |name: &&str| {
            self.cred_helpers
                .get(*name)
                .map(|helper| Found::Helper(helper.clone(), (*name).to_owned()))
        };
        let auth = |name: &&str| self.auths.get(*name).and_then(Auth::credential).map(Found::Credential);
        let store = self
            .creds_store
            .as_ref()
            .map(|store| Found::Helper(store.clone(), names[0].to_owned()));
        names
            .iter()
            .find_map(of)
            .or_else(|| names.iter().find_map(auth))
            .or(store)
    }
}

impl Auth {
    fn credential(&self) -> Option<Credential> {
        if !self.username.is_empty() {
            return Some(Credential::basic(&self.username, &self.password));
        }
        let decoded = String::from_utf8(BASE64.decode(self.auth.trim()).ok()?).ok()?;
        user_and_password(&decoded)
    }
}

/// The names that a registry goes by in Docker's files, the usual one first.
fn server_names(registry: &str) -> Vec<&str> {
    if registry == "docker.io" {
        vec![
            "https://index.docker.io/v1/",
            "index.docker.io",
            "registry-1.docker.io",
            "docker.io",
        ]
    } else {
        vec![registry]
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// `PROGRAM get`, the server on standard input, JSON on standard output. Source: docker-credential-helpers.
async fn ask_helper(program: &str, server: &str) -> Result<Credential, String> {
    let problem = |problem: &str| format!("{program} {problem}");
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| problem(&format!("cannot be run: {error}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that reads nothing may have ended already.
        let _ = stdin.write_all(server.as_bytes()).await;
    }
    let output = tokio::time::timeout(HELPER_TIMEOUT, child.wait_with_output())
        .await
        .map_err(|_| problem(&format!("did not answer within {} s", HELPER_TIMEOUT.as_secs())))?
        .map_err(|error| problem(&format!("failed: {error}")))?;
    if !output.status.success() {
        return Err(problem(&format!("has no credential for {server} ({})", output.status)));
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout)
        .map_err(|_| problem("answered with something other than a credential"))?;
    Ok(Credential::basic(&answer.username, &answer.secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(config: &str, registry: &str) -> Option<Result<Credential, (String, String)>> {
        Some(match DockerConfig::parse(config).unwrap().find(registry)? {
            Found::Credential(credential) => Ok(credential),
            Found::Helper(helper, server) => Err((helper, server)),
        })
    }

    #[test]
    fn what_was_read_counts_for_ten_seconds() {
        let read = ReadCredential {
            credential: Credential::basic("user", "password"),
            read_at: Instant::now(),
        };
        assert!(read.fresh(read.read_at + HELD_LIFE / 2).is_some());
        assert!(read.fresh(read.read_at + HELD_LIFE).is_none());
    }

    #[test]
    fn a_docker_config_is_read_as_docker_does() {
        let config = r#"{
            "auths": {
                "https://index.docker.io/v1/": { "auth": "aHViOnNlY3JldA==" },
                "plain.io": { "username": "u", "password": "p:q" },
                "empty.io": {}
            },
            "credHelpers": { "ecr.io": "ecr-login" }
        }"#;
        assert_eq!(found(config, "docker.io"), Some(Ok(Credential::basic("hub", "secret"))));
        assert_eq!(found(config, "plain.io"), Some(Ok(Credential::basic("u", "p:q"))));
        assert_eq!(
            found(config, "ecr.io"),
            Some(Err(("ecr-login".to_owned(), "ecr.io".to_owned())))
        );
        assert_eq!(found(config, "empty.io"), None);
        assert_eq!(found(config, "other.io"), None);
        let store = r#"{ "auths": { "a.io": {} }, "credsStore": "pass" }"#;
        assert_eq!(found(store, "a.io"), Some(Err(("pass".to_owned(), "a.io".to_owned()))));
    }

    #[test]
    fn a_broken_config_is_named_by_its_place_only() {
        let problem = DockerConfig::parse("{\n \"auths\": \"c2VjcmV0\" }").err().unwrap();
        assert!(problem.starts_with("line 2"), "{problem}");
        assert!(!problem.contains("c2VjcmV0"), "{problem}");
    }

    #[test]
    fn the_first_line_of_a_file_is_user_and_password() {
        assert_eq!(
            user_and_password(first_line("u:p:q\n#x\n")),
            Some(Credential::basic("u", "p:q"))
        );
        for bad in ["", "u", ":p"] {
            assert_eq!(user_and_password(bad), None, "{bad}");
        }
    }
}
