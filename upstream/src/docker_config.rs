//! Docker's `config.json`: which secret, or which helper, it has for a repository of a registry.
//!
//! Invariant: an error says where the file is wrong, and never what it says.
//!
//! Source: docker/cli, `cli/config/configfile` and `types.AuthConfig`; containers-auth.json(5) for keys of namespaces and repositories.

use std::{cmp::Reverse, collections::HashMap};

use base64::{Engine, prelude::BASE64_STANDARD as BASE64};
use serde::Deserialize;

use crate::{Credential, site_secret::SiteSecret};

/// A `config.json`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, Auth>,
    #[serde(default)]
    cred_helpers: HashMap<String, String>,
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
    #[serde(default)]
    identitytoken: String,
    #[serde(default)]
    registrytoken: String,
}

/// What the file has for a repository.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Secret(SiteSecret),
    /// A helper's name, and the server to ask it for.
    Helper(String, String),
}

impl DockerConfig {
    /// # Errors
    /// The place of the problem.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        // The error of serde_json names a place, no content.
        serde_json::from_str(text).map_err(|error| format!("line {}, column {}", error.line(), error.column()))
    }

    /// The narrowest key counts; a helper that the file names for the registry counts before what the file has itself.
    pub(crate) fn find(&self, registry: &str, repository: &str) -> Option<Found> {
        let helper = narrowest(&self.cred_helpers, registry, repository, |helper| Some(helper.clone()));
        if let Some((server, helper)) = helper {
            return Some(Found::Helper(helper, server.to_owned()));
        }
        if let Some((_, secret)) = narrowest(&self.auths, registry, repository, Auth::secret) {
            return Some(Found::Secret(secret));
        }
        // `docker login` leaves an empty entry under the name that the store knows.
        let known = narrowest(&self.auths, registry, "", |_| Some(())).map(|(server, ())| server);
        let server = known.unwrap_or(server_name(registry));
        match self.creds_store.as_ref().filter(|store| !store.is_empty()) {
            Some(store) => Some(Found::Helper(store.clone(), server.to_owned())),
            None => self
                .has_narrower(registry)
                .then_some(Found::Secret(SiteSecret::Nothing)),
        }
    }

    /// Whether the file has secrets for some repositories of the registry, so that the others are meant to be pulled without.
    fn has_narrower(&self, registry: &str) -> bool {
        let places = self.auths.keys().map(|key| Place::parse(key));
        places
            .filter(|place| !place.path.is_empty())
            .any(|place| place.host == canonical(registry))
    }
}

/// Of the keys that stand for the repository and have a value, the one of the longest path, and of those Docker's own.
fn narrowest<'a, V, T>(
    keyed: &'a HashMap<String, V>,
    registry: &str,
    repository: &str,
    value: impl Fn(&'a V) -> Option<T>,
) -> Option<(&'a str, T)> {
    let fitting = keyed.iter().filter_map(|(key, keyed)| {
        let path = Place::parse(key).path_of(registry, repository)?.len();
        Some((path, key, value(keyed)?))
    });
    let rank = |path: usize, key: &str| {
        (
            path,
            key == server_name(registry),
            key == registry,
            Reverse(key.to_owned()),
        )
    };
    let found = fitting.max_by_key(|(path, key, _)| rank(*path, key));
    found.map(|(_, key, value)| (&**key, value))
}

impl Auth {
    fn secret(&self) -> Option<SiteSecret> {
        if !self.registrytoken.is_empty() {
            return Credential::bearer(&self.registrytoken).map(SiteSecret::RegistryToken);
        }
        if !self.identitytoken.is_empty() {
            return Some(SiteSecret::IdentityToken(self.identitytoken.clone()));
        }
        if !self.username.is_empty() {
            return Some(SiteSecret::of_helper(&self.username, &self.password));
        }
        let decoded = String::from_utf8(BASE64.decode(self.auth.trim()).ok()?).ok()?;
        user_and_password(decoded.trim_end_matches('\0'))
    }
}

/// `user:password`.
pub(crate) fn user_and_password(text: &str) -> Option<SiteSecret> {
    let (user, password) = text.split_once(':')?;
    (!user.is_empty()).then(|| SiteSecret::of_helper(user, password))
}

/// The part of the world that a key stands for: a registry, or the repositories of one below a path.
struct Place {
    host: String,
    path: String,
}

impl Place {
    /// Docker writes `https://host/v1/` and reads whatever path follows a scheme as nothing; a path without a scheme is podman's.
    fn parse(key: &str) -> Self {
        let key = key.trim();
        let bare = key.split_once("://").map(|(_, rest)| rest);
        let (host, path) = bare.unwrap_or(key).split_once('/').unwrap_or((bare.unwrap_or(key), ""));
        let path = path.trim_matches('/');
        let is_whole = bare.is_some() || matches!(path, "v1" | "v2");
        Self {
            host: canonical(host),
            path: if is_whole { "" } else { path }.to_owned(),
        }
    }

    /// The path, if the place contains the repository.
    fn path_of(self, registry: &str, repository: &str) -> Option<String> {
        let rest = repository.strip_prefix(&self.path);
        let is_below = self.path.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        (self.host == canonical(registry) && is_below).then_some(self.path)
    }
}

/// The host as it is compared: without case, and Docker Hub under one name.
fn canonical(host: &str) -> String {
    match &*host.to_ascii_lowercase() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

/// The name by which Docker asks a helper for a registry.
pub(crate) fn server_name(registry: &str) -> &str {
    match registry {
        "docker.io" => "https://index.docker.io/v1/",
        registry => registry,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(config: &str, registry: &str, repository: &str) -> Option<Found> {
        DockerConfig::parse(config).unwrap().find(registry, repository)
    }

    fn password(user: &str, password: &str) -> Option<Found> {
        Some(Found::Secret(SiteSecret::Password(Credential::basic(user, password))))
    }

    fn helper(name: &str, server: &str) -> Option<Found> {
        Some(Found::Helper(name.to_owned(), server.to_owned()))
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
        assert_eq!(found(config, "docker.io", "library/a"), password("hub", "secret"));
        assert_eq!(found(config, "plain.io", "a"), password("u", "p:q"));
        assert_eq!(found(config, "ecr.io", "a"), helper("ecr-login", "ecr.io"));
        assert_eq!(found(config, "empty.io", "a"), None);
        assert_eq!(found(config, "other.io", "a"), None);
        let store = r#"{ "auths": { "a.io": {}, "https://b.io/v2/": {} }, "credsStore": "pass" }"#;
        assert_eq!(found(store, "a.io", "a"), helper("pass", "a.io"));
        assert_eq!(
            found(store, "b.io", "a"),
            helper("pass", "https://b.io/v2/"),
            "as it was logged in to"
        );
        assert_eq!(
            found(store, "docker.io", "a"),
            helper("pass", "https://index.docker.io/v1/")
        );
    }

    #[test]
    fn a_key_names_its_registry_with_a_scheme_a_path_of_the_api_or_capitals() {
        for key in [
            "reg.io",
            "https://reg.io",
            "http://reg.io/",
            "https://reg.io/v1/",
            "https://reg.io/v2/",
            "reg.io/v2/",
            "Reg.IO",
        ] {
            let config = format!(r#"{{"auths":{{"{key}":{{"auth":"dTpw"}}}}}}"#);
            assert_eq!(found(&config, "reg.io", "team/app"), password("u", "p"), "{key}");
            assert_eq!(found(&config, "reg.io:5000", "team/app"), None, "{key}");
            assert_eq!(found(&config, "other.io", "team/app"), None, "{key}");
        }
        for key in ["docker.io", "index.docker.io", "https://registry-1.docker.io/v2/"] {
            let config = format!(r#"{{"auths":{{"{key}":{{"auth":"dTpw"}}}}}}"#);
            assert_eq!(found(&config, "docker.io", "library/a"), password("u", "p"), "{key}");
        }
    }

    #[test]
    fn of_keys_for_namespaces_and_repositories_the_narrowest_counts() {
        let config = r#"{ "auths": {
            "reg.io": { "username": "all", "password": "p" },
            "reg.io/team": { "username": "team", "password": "p" },
            "reg.io/team/app": { "username": "app", "password": "p" },
            "docker.io/library": { "username": "library", "password": "p" }
        } }"#;
        for (registry, repository, user) in [
            ("reg.io", "team/app", Some("app")),
            ("reg.io", "team/app/part", Some("app")),
            ("reg.io", "team/apple", Some("team")),
            ("reg.io", "teams/app", Some("all")),
            ("docker.io", "library/alpine", Some("library")),
            ("docker.io", "team/app", None),
        ] {
            let expected = user.map_or(Some(Found::Secret(SiteSecret::Nothing)), |user| password(user, "p"));
            assert_eq!(found(config, registry, repository), expected, "{registry}/{repository}");
        }
        assert_eq!(
            found(config, "other.io", "team/app"),
            None,
            "a registry that the file does not know"
        );
    }

    #[test]
    fn tokens_are_told_from_passwords() {
        let identity = Some(Found::Secret(SiteSecret::IdentityToken("refresh".to_owned())));
        let registry = Credential::bearer("bearer").map(|token| Found::Secret(SiteSecret::RegistryToken(token)));
        for (auth, expected) in [
            (r#"{"auth":"MDAwOg==","identitytoken":"refresh"}"#, &identity),
            (r#"{"username":"<token>","password":"refresh"}"#, &identity),
            (r#"{"registrytoken":"bearer"}"#, &registry),
            (r#"{"registrytoken":"bearer","identitytoken":"refresh"}"#, &registry),
            (r#"{"auth":"dTpw"}"#, &password("u", "p")),
        ] {
            let config = format!(r#"{{"auths":{{"reg.io":{auth}}}}}"#);
            assert_eq!(&found(&config, "reg.io", "a"), expected, "{auth}");
        }
    }

    #[test]
    fn a_broken_config_is_named_by_its_place_only() {
        let problem = DockerConfig::parse("{\n \"auths\": \"c2VjcmV0\" }").err().unwrap();
        assert!(problem.starts_with("line 2"), "{problem}");
        assert!(!problem.contains("c2VjcmV0"), "{problem}");
    }
}
