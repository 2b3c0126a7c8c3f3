//! Pull secrets as the kubelet reads them: which entry counts for which image.
//!
//! Source: the kubelet's `credentialprovider` package. An entry's key is a registry, with an optional scheme, an optional path and
//! shell patterns in the labels of its host. Of several that match, the greatest key comes first: `reg.io/team` before `reg.io`.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Map, Value};

/// Docker Hub as its own clients have always called it.
const HUB_KEY: &str = "index.docker.io";

/// The two forms of a pull secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// `kubernetes.io/dockerconfigjson`: the entries are under `auths`.
    ConfigJson,
    /// `kubernetes.io/dockercfg`: the entries are all that there is.
    Config,
}

impl Form {
    /// The form that a secret's type tells; none for a secret of any other type, which the kubelet ignores too.
    fn of(secret_type: &str) -> Option<Self> {
        match secret_type {
            "kubernetes.io/dockerconfigjson" => Some(Self::ConfigJson),
            "kubernetes.io/dockercfg" => Some(Self::Config),
            _ => None,
        }
    }

    pub(crate) fn secret_type(self) -> &'static str {
        match self {
            Self::ConfigJson => "kubernetes.io/dockerconfigjson",
            Self::Config => "kubernetes.io/dockercfg",
        }
    }

    /// The field of `data` that has the content.
    pub(crate) fn field(self) -> &'static str {
        match self {
            Self::ConfigJson => ".dockerconfigjson",
            Self::Config => ".dockercfg",
        }
    }
}

/// Why a secret counts for no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoKeyringError {
    #[error("it is of type {0:?}, and no pull secret")]
    Type(String),
    #[error("its {0} is missing or does not match its type")]
    Content(&'static str),
}

/// The entries of one pull secret.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Keyring {
    pub form: Form,
    /// As written, credentials and all: never to be logged.
    entries: Map<String, Value>,
}

/// The registry, or a part of it, that one entry is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// `host` or `host:port`, maybe with patterns.
    pub host: String,
    /// Empty, or from its slash on.
    pub path: String,
}

impl Keyring {
    /// Reads a Secret object.
    pub(crate) fn of(secret: &Value) -> Result<Self, NoKeyringError> {
        let secret_type = secret["type"].as_str().unwrap_or_default();
        let form = Form::of(secret_type).ok_or_else(|| NoKeyringError::Type(secret_type.to_owned()))?;
        let wrong = || NoKeyringError::Content(form.field());
        let text = secret["data"][form.field()].as_str().ok_or_else(wrong)?;
        let bytes = BASE64_STANDARD.decode(text).map_err(|_| wrong())?;
        let Ok(Value::Object(mut content)) = serde_json::from_slice(&bytes) else {
            return Err(wrong());
        };
        let entries = match form {
            Form::Config => content,
            Form::ConfigJson => match content.remove("auths") {
                Some(Value::Object(entries)) => entries,
                None => Map::new(),
                Some(_) => return Err(wrong()),
            },
        };
        Ok(Self { form, entries })
    }

    /// Whether the kubelet would take an entry of this secret for the image `registry/repository`.
    pub(crate) fn is_for(&self, registry: &str, repository: &str) -> bool {
        let path = format!("/{repository}");
        self.ranked().any(|(key, _)| key.is_for(registry, &path))
    }

    /// The entries that may count for images of `registry`, the first one to be tried first.
    pub(crate) fn entries_for(&self, registry: &str) -> impl Iterator<Item = (Key, &Value)> {
        self.ranked().filter(move |(key, _)| key.is_for_host(registry))
    }

    pub(crate) fn entries(&self) -> &Map<String, Value> {
        &self.entries
    }

    /// The old name of Docker Hub is only looked at when nothing else fits.
    fn ranked(&self) -> impl Iterator<Item = (Key, &Value)> {
        let by_key: BTreeMap<Key, &Value> = self
            .entries
            .iter()
            .map(|(key, entry)| (Key::parse(key), entry))
            .collect();
        let (hub, others): (Vec<_>, Vec<_>) = by_key.into_iter().rev().partition(|(key, _)| key.host == HUB_KEY);
        others.into_iter().chain(hub)
    }
}

impl Key {
    fn parse(text: &str) -> Self {
        let text = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"))
            .unwrap_or(text);
        let (host, path) = match text.find('/') {
            Some(slash) => text.split_at(slash),
            None => (text, ""),
        };
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let path = match path {
            "/v1" | "/v2" => path,
            _ => path
                .strip_prefix("/v1")
                .or_else(|| path.strip_prefix("/v2"))
                .filter(|rest| rest.starts_with('/'))
                .unwrap_or(path),
        };
        let path = if path == "/" { "" } else { path };
        Self {
            host: host.to_owned(),
            path: path.to_owned(),
        }
    }

    fn is_for(&self, registry: &str, path: &str) -> bool {
        self.is_for_host(registry) && path.starts_with(&self.path)
    }

    fn is_for_host(&self, registry: &str) -> bool {
        if self.host == HUB_KEY {
            return registry == "docker.io" && self.path.is_empty();
        }
        let (labels, port) = split_port(&self.host);
        let (wanted_labels, wanted_port) = split_port(registry);
        let mut pairs = labels.split('.').zip(wanted_labels.split('.'));
        port == wanted_port
            && labels.split('.').count() == wanted_labels.split('.').count()
            && pairs.all(|(pattern, label)| matches_glob(pattern.as_bytes(), label.as_bytes()))
    }
}

/// The name, without the brackets of an IPv6 address, and the port.
fn split_port(host: &str) -> (&str, Option<&str>) {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    (address.unwrap_or(name), port)
}

/// Go's `filepath.Match` within one label: `*`, `?` and `[a-z]`. The secret's author chooses the pattern, so that the match
/// only backtracks to the last star, which takes one byte more each time.
fn matches_glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    let mut last_star = None;
    loop {
        if let [b'*', rest @ ..] = pattern {
            last_star = Some((rest, text));
            pattern = rest;
        } else if pattern.is_empty() && text.is_empty() {
            return true;
        } else if let Some((pattern_left, text_left)) = match_one(pattern, text) {
            (pattern, text) = (pattern_left, text_left);
        } else {
            let Some((after, [_, taken @ ..])) = last_star else {
                return false;
            };
            last_star = Some((after, taken));
            (pattern, text) = (after, taken);
        }
    }
}

/// The rest of both once the pattern's first element has matched the text's first byte.
fn match_one<'a>(pattern: &'a [u8], text: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let [byte, text @ ..] = text else {
        return None;
    };
    let (is_match, rest) = match pattern {
        [b'?', rest @ ..] => (true, rest),
        [b'[', rest @ ..] => {
            // A class holds something: the first byte is in it even when it is the bracket that ends others.
            let end = rest.iter().skip(1).position(|byte| *byte == b']')?;
            (in_class(&rest[..=end], *byte), &rest[end + 2..])
        }
        [b'\\', literal, rest @ ..] | [literal, rest @ ..] => (literal == byte, rest),
        [] => return None,
    };
    is_match.then_some((rest, text))
}

/// `a-z`, `abc`, or with a leading `^` anything else.
fn in_class(class: &[u8], byte: u8) -> bool {
    let (is_negated, mut class) = match class {
        [b'^', class @ ..] => (true, class),
        class => (false, class),
    };
    let mut is_in = false;
    while let [first, rest @ ..] = class {
        class = match rest {
            [b'-', last, rest @ ..] => {
                is_in |= (*first..=*last).contains(&byte);
                rest
            }
            _ => {
                is_in |= *first == byte;
                rest
            }
        };
    }
    is_in != is_negated
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn secret(auths: Value) -> Value {
        let content = BASE64_STANDARD.encode(json!({ "auths": auths }).to_string());
        json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": content}})
    }

    fn keyring(keys: &[&str]) -> Keyring {
        let entries: Map<String, Value> = keys
            .iter()
            .map(|key| ((*key).to_owned(), json!({"auth": "eDp5"})))
            .collect();
        Keyring::of(&secret(Value::Object(entries))).unwrap()
    }

    #[test]
    fn an_entry_counts_where_the_kubelet_says() {
        let cases = [
            ("reg.io", "reg.io", "a/b", true),
            ("https://reg.io", "reg.io", "a", true),
            ("http://reg.io/", "reg.io", "a", true),
            ("https://reg.io/v1/", "reg.io", "a", true),
            ("https://reg.io/v2/", "reg.io", "a", true),
            ("https://reg.io/v2/team", "reg.io", "team/a", true),
            ("https://reg.io/v2/team", "reg.io", "other/a", false),
            ("reg.io/v2", "reg.io", "a", false),
            ("reg.io/team", "reg.io", "team/a", true),
            ("reg.io/team", "reg.io", "teamwork/a", true),
            ("reg.io/team", "reg.io", "other/a", false),
            ("reg.io:5000", "reg.io:5000", "a", true),
            ("reg.io:5000", "reg.io", "a", false),
            ("reg.io", "reg.io:5000", "a", false),
            ("*.reg.io", "a.reg.io", "x", true),
            ("*.reg.io", "a.b.reg.io", "x", false),
            ("*.reg.io", "reg.io", "x", false),
            ("*.*.reg.io", "a.b.reg.io", "x", true),
            (
                "*.cn-hangzhou.cr.aliyuncs.com",
                "test-registry-vpc.cn-hangzhou.cr.aliyuncs.com",
                "x",
                true,
            ),
            ("reg?.io/team", "reg1.io", "team/x", true),
            ("reg[0-3].io", "reg2.io", "x", true),
            ("reg[0-3].io", "reg4.io", "x", false),
            ("reg[^0-3].io", "reg4.io", "x", true),
            ("reg[.io", "reg[.io", "x", false),
            ("https://index.docker.io/v1/", "docker.io", "library/nginx", true),
            ("index.docker.io", "docker.io", "library/nginx", true),
            ("docker.io", "docker.io", "library/nginx", true),
            ("https://index.docker.io/v1/", "quay.io", "x", false),
            ("registry-1.docker.io", "docker.io", "library/nginx", false),
            ("[::1]:5000", "[::1]:5000", "x", true),
            ("", "reg.io", "x", false),
        ];
        for (key, registry, repository, expected) in cases {
            assert_eq!(
                keyring(&[key]).is_for(registry, repository),
                expected,
                "{key:?} for {registry}/{repository}"
            );
        }
    }

    #[test]
    fn a_pattern_that_was_made_to_take_long_does_not() {
        let pattern = format!("{}b.example.com", "*a".repeat(30));
        let registry = format!("{}.example.com", "a".repeat(63));
        assert!(!keyring(&[&pattern]).is_for(&registry, "x"));
        let pattern = format!("{}*.example.com", "*a".repeat(30));
        assert!(keyring(&[&pattern]).is_for(&registry, "x"));
    }

    #[test]
    fn docker_hub_s_old_name_counts_after_every_other() {
        let keyring = keyring(&["https://index.docker.io/v1/", "docker.io"]);
        let first = keyring.entries_for("docker.io").next().map(|(key, _)| key.host);
        assert_eq!(first.as_deref(), Some("docker.io"));
    }

    #[test]
    fn the_more_particular_entry_comes_first() {
        let keyring = keyring(&["*.io", "reg.io", "reg.io/team/x", "reg.io/team", "other.io"]);
        let keys: Vec<String> = keyring
            .entries_for("reg.io")
            .map(|(key, _)| format!("{}{}", key.host, key.path))
            .collect();
        assert_eq!(keys, ["reg.io/team/x", "reg.io/team", "reg.io", "*.io"]);
    }

    #[test]
    fn the_older_form_is_read_too() {
        let content = BASE64_STANDARD.encode(json!({"reg.io": {"auth": "eDp5"}}).to_string());
        let keyring =
            Keyring::of(&json!({"type": "kubernetes.io/dockercfg", "data": {".dockercfg": content}})).unwrap();
        assert!(keyring.is_for("reg.io", "x"));
    }

    #[test]
    fn a_secret_that_is_no_pull_secret_says_why() {
        let wrong = |secret: Value| Keyring::of(&secret).unwrap_err();
        assert_eq!(
            wrong(json!({"type": "Opaque", "data": {}})),
            NoKeyringError::Type("Opaque".to_owned())
        );
        let with =
            |content: &str| json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": content}});
        for content in [
            "%%%",
            &BASE64_STANDARD.encode("[]"),
            &BASE64_STANDARD.encode(r#"{"auths": []}"#),
            "",
        ] {
            assert_eq!(
                wrong(with(content)),
                NoKeyringError::Content(".dockerconfigjson"),
                "{content}"
            );
        }
        assert_eq!(
            wrong(json!({"type": "kubernetes.io/dockercfg"})),
            NoKeyringError::Content(".dockercfg")
        );
    }

    #[test]
    fn helpers_of_a_docker_configuration_count_for_nothing() {
        let content = BASE64_STANDARD.encode(json!({"credsStore": "x", "credHelpers": {"reg.io": "x"}}).to_string());
        let secret = json!({"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": content}});
        assert!(!Keyring::of(&secret).unwrap().is_for("reg.io", "x"));
    }
}
