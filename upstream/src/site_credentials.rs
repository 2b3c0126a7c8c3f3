//! Credentials that the mirror itself holds for an upstream, re-read while it runs.
//!
//! Invariant: an error says where the credential was looked for, and never what was read.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Deserialize;
use tokio::{io::AsyncWriteExt, process::Command, sync::Mutex};

use crate::PullError;
use crate::{
    docker_config::{DockerConfig, Found, server_name, user_and_password},
    site_secret::SiteSecret,
};

/// The age up to which what was read counts: a changed file takes effect within it.
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
    read: Mutex<Option<Read>>,
}

/// What was read last.
struct Read {
    read_at: Instant,
    /// Of a [`CredentialSource::DockerConfig`].
    config: Option<DockerConfig>,
    /// By helper and server; of a source with one secret under empty names. A config names at most one for each of its keys.
    secrets: HashMap<(String, String), SiteSecret>,
}

impl Read {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.read_at) < HELD_LIFE
    }
}

impl SiteCredentials {
    pub(crate) fn new(source: CredentialSource) -> Self {
        Self {
            source,
            read: Mutex::new(None),
        }
    }

    /// The secret for a repository of `registry`.
    ///
    /// # Errors
    /// [`PullError::Unavailable`]: what the administrator must fix. It never contains what was read.
    pub(crate) async fn secret(&self, registry: &str, repository: &str) -> Result<SiteSecret, PullError> {
        let mut read = self.read.lock().await;
        let secret = async {
            let read = match read.take().filter(|read| read.is_fresh(Instant::now())) {
                Some(fresh) => read.insert(fresh),
                None => read.insert(self.source.read().await?),
            };
            self.source.secret(read, registry, repository).await
        };
        let secret = secret.await;
        secret.map_err(|problem| PullError::Unavailable(format!("no credentials for {registry}: {problem}")))
    }
}

impl CredentialSource {
    async fn read(&self) -> Result<Read, String> {
        let (mut config, mut secrets) = (None, HashMap::new());
        match self {
            Self::File(path) => {
                let secret = user_and_password(first_line(&read_file(path).await?))
                    .ok_or_else(|| format!("the first line of {} is not user:password", path.display()))?;
                secrets.insert(Default::default(), secret);
            }
            Self::DockerConfig(path) => {
                let read = DockerConfig::parse(&read_file(path).await?)
                    .map_err(|problem| format!("{} is no Docker config.json: {problem}", path.display()))?;
                config = Some(read);
            }
            Self::Helper(_) => {}
        }
        Ok(Read {
            read_at: Instant::now(),
            config,
            secrets,
        })
    }

    async fn secret(&self, read: &mut Read, registry: &str, repository: &str) -> Result<SiteSecret, String> {
        let asked = match self {
            Self::File(_) => Default::default(),
            Self::Helper(program) => (program.clone(), server_name(registry).to_owned()),
            Self::DockerConfig(path) => {
                let found = read
                    .config
                    .as_ref()
                    .and_then(|config| config.find(registry, repository));
                match found.ok_or_else(|| format!("{} has none for {repository}", path.display()))? {
                    Found::Secret(secret) => return Ok(secret),
                    Found::Helper(helper, server) => (format!("docker-credential-{helper}"), server),
                }
            }
        };
        if let Some(secret) = read.secrets.get(&asked) {
            return Ok(secret.clone());
        }
        let secret = ask_helper(&asked.0, &asked.1).await?;
        read.secrets.insert(asked, secret.clone());
        Ok(secret)
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

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// `PROGRAM get`, the server on standard input, JSON on standard output. Source: docker-credential-helpers.
async fn ask_helper(program: &str, server: &str) -> Result<SiteSecret, String> {
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
    Ok(SiteSecret::of_helper(&answer.username, &answer.secret))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Credential;

    #[test]
    fn what_was_read_counts_for_ten_seconds() {
        let read = Read {
            read_at: Instant::now(),
            config: None,
            secrets: HashMap::new(),
        };
        assert!(read.is_fresh(read.read_at + HELD_LIFE / 2));
        assert!(!read.is_fresh(read.read_at + HELD_LIFE));
    }

    #[test]
    fn the_first_line_of_a_file_is_user_and_password() {
        assert_eq!(
            user_and_password(first_line("u:p:q\n#x\n")),
            Some(SiteSecret::Password(Credential::basic("u", "p:q")))
        );
        for bad in ["", "u", ":p"] {
            assert_eq!(user_and_password(bad), None, "{bad}");
        }
    }
}
