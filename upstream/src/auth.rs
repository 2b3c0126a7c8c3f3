//! The Bearer token flow: what a `WWW-Authenticate` challenge asks, and where. Whose secret may go there is said in `home.rs`, and
//! whether the address may be connected to in `reachable.rs`.
//!
//! Source: distribution's token authentication specification; RFC 9110, section 11.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;
use serde::Deserialize;
use url::Url;

/// The life of a token whose server states none. Source: the token specification's default.
const TOKEN_LIFE_DEFAULT: Duration = Duration::from_secs(60);
/// Tokens are given up this much before their end, so that none expires on the way.
const TOKEN_LIFE_MARGIN: Duration = Duration::from_secs(10);
/// The most tokens kept: one a repository.
const TOKENS_MAX: NonZeroUsize = NonZeroUsize::new(2048).expect("more than none");
/// A longer one is used, and not kept.
const TOKEN_KEPT_BYTES_MAX: usize = 16 * 1024;

/// A Bearer challenge: `Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="…"`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub realm: String,
    pub service: Option<String>,
    pub scope: Option<String>,
}

impl Challenge {
    /// Reads the value of `WWW-Authenticate`; `None` when it is not a Bearer challenge with a realm.
    pub(crate) fn parse(header: &str) -> Option<Self> {
        let (scheme, rest) = header.trim().split_once([' ', '\t'])?;
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let mut parameters: HashMap<String, String> = parameters(rest).collect();
        Some(Self {
            realm: parameters.remove("realm")?,
            service: parameters.remove("service"),
            scope: parameters.remove("scope"),
        })
    }

    /// Whether a token for it is one for `scope`, of one repository and one action, as well.
    pub(crate) fn covers(&self, scope: &str) -> bool {
        let Some(asked) = &self.scope else { return true };
        asked == scope
            || scope.rsplit_once(':').is_some_and(|(resource, action)| {
                asked.split_whitespace().any(|asked| {
                    asked.rsplit_once(':').is_some_and(|(asked, actions)| {
                        asked == resource && actions.split(',').any(|granted| granted == action)
                    })
                })
            })
    }

    /// The URL of the token: over TLS, unless the registry itself has none.
    pub(crate) fn token_url(&self, registry: &Url, scope: &str) -> Option<Url> {
        let mut realm = Url::parse(&self.realm).ok()?;
        if realm.scheme() != "https" && !(realm.scheme() == "http" && registry.scheme() == "http") {
            return None;
        }
        // What stands before the host would be sent as a user and a password.
        realm.set_username("").ok()?;
        realm.set_password(None).ok()?;
        // A ping asks for no scope.
        let scope = Some(self.scope.as_deref().unwrap_or(scope)).filter(|scope| !scope.is_empty());
        realm
            .query_pairs_mut()
            .extend_pairs(self.service.as_ref().map(|service| ("service", &**service)))
            .extend_pairs(scope.map(|scope| ("scope", scope)));
        Some(realm)
    }
}

/// `key=value` and `key="value"`, separated by commas; a backslash escapes within quotes.
fn parameters(text: &str) -> impl Iterator<Item = (String, String)> + '_ {
    let mut rest = text.trim_start();
    std::iter::from_fn(move || {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted),
            None => {
                let end = after.find(',').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        rest = after.trim_start_matches([',', ' ', '\t']);
        Some((key.trim().to_ascii_lowercase(), value))
    })
}

/// The text up to the closing quote, and what follows it.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return (value, &text[index + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
}

/// The answer of a token server.
#[derive(Deserialize)]
pub(crate) struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Tokens by holder and scope.
pub(crate) struct Tokens(Mutex<LruCache<String, (String, Instant)>>);

impl Default for Tokens {
    fn default() -> Self {
        Self(Mutex::new(LruCache::sparse(TOKENS_MAX)))
    }
}

impl Tokens {
    /// The token for `scope`, unless it is about to expire.
    pub(crate) fn get(&self, scope: &str, now: Instant) -> Option<String> {
        let mut tokens = self.0.lock();
        tokens
            .get(scope)
            .filter(|(_, until)| now < *until)
            .map(|(token, _)| token.clone())
    }

    /// Keeps a token server's answer, and returns the token. `scope`: the scope it is valid for; `None` when it is not the
    /// requested one: the token is not kept.
    pub(crate) fn put(&self, scope: Option<&str>, answer: TokenAnswer, now: Instant) -> Option<String> {
        let token = answer.token.or(answer.access_token)?;
        let Some(scope) = scope.filter(|_| token.len() <= TOKEN_KEPT_BYTES_MAX) else {
            return Some(token);
        };
        let life = answer.expires_in.map_or(TOKEN_LIFE_DEFAULT, Duration::from_secs);
        let until = now
            + life
                .saturating_sub(TOKEN_LIFE_MARGIN)
                .min(Duration::from_secs(24 * 3600));
        let mut tokens = self.0.lock();
        tokens.put(scope.to_owned(), (token.clone(), until));
        Some(token)
    }

    /// Forgets a token that was not accepted.
    pub(crate) fn drop(&self, scope: &str) {
        self.0.lock().pop(scope);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bearer_challenges_are_read() {
        let challenge =
            Challenge::parse(r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#).unwrap();
        assert_eq!(challenge.realm, "https://auth.docker.io/token");
        assert_eq!(challenge.scope.as_deref(), Some("repository:a/b:pull,push"));
        assert_eq!(
            Challenge::parse("bearer realm=https://x.io/t , service=a")
                .unwrap()
                .service
                .as_deref(),
            Some("a")
        );
        assert_eq!(Challenge::parse(r#"Bearer realm="a\"b"#).unwrap().realm, "a\"b");
        for other in [
            "",
            "Basic realm=\"x\"",
            "Bearer",
            "Bearer service=\"x\"",
            "Bearer realm",
        ] {
            assert_eq!(Challenge::parse(other), None, "{other}");
        }
    }

    #[test]
    fn a_realm_is_asked_over_tls_unless_the_registry_has_none() {
        let cases = [
            (
                "https://registry-1.docker.io",
                "https://auth.docker.io/token",
                Some("https://auth.docker.io/token"),
            ),
            (
                "https://lscr.io",
                "https://ghcr.io/token",
                Some("https://ghcr.io/token"),
            ),
            (
                "http://10.0.0.1:5000",
                "http://10.0.0.1:5001/token",
                Some("http://10.0.0.1:5001/token"),
            ),
            (
                "http://10.0.0.1:5000",
                "https://auth.io/token",
                Some("https://auth.io/token"),
            ),
            ("https://a.io", "https://user:pass@b.io/t", Some("https://b.io/t")),
            ("https://ghcr.io", "http://ghcr.io/token", None),
            ("https://ghcr.io", "file:///etc/passwd", None),
            ("https://ghcr.io", "/token", None),
        ];
        for (registry, realm, expected) in cases {
            let challenge = Challenge {
                realm: realm.to_owned(),
                service: None,
                scope: None,
            };
            let url = challenge.token_url(&Url::parse(registry).unwrap(), "repository:a:pull");
            let expected = expected.map(|url| format!("{url}?scope=repository%3Aa%3Apull"));
            assert_eq!(url.map(String::from), expected, "{registry} {realm}");
        }
    }

    #[test]
    fn a_token_for_another_repository_or_action_is_not_one_for_this() {
        let covers = |asked: Option<&str>| {
            let challenge = Challenge {
                realm: "https://a.io/token".to_owned(),
                service: None,
                scope: asked.map(str::to_owned),
            };
            challenge.covers("repository:a/b:pull")
        };
        let good = [
            "repository:a/b:pull",
            "repository:a/b:pull,push",
            "repository:x:push repository:a/b:push,pull",
        ];
        for asked in good {
            assert!(covers(Some(asked)), "{asked}");
        }
        assert!(covers(None), "what is wanted is what is asked for");
        let bad = [
            "",
            "repository:a/c:pull",
            "repository:a/b:push",
            "registry:catalog:*",
            "repository:a:b:pull",
            "pull",
        ];
        for asked in bad {
            assert!(!covers(Some(asked)), "{asked}");
        }
    }

    #[test]
    fn a_full_table_gives_up_its_oldest_token_alone() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let answer = |token: usize| TokenAnswer {
            token: Some(token.to_string()),
            access_token: None,
            expires_in: Some(100),
        };
        for token in 0..=TOKENS_MAX.get() {
            tokens.put(Some(&token.to_string()), answer(token), now);
        }
        assert_eq!(tokens.get("0", now), None);
        assert_eq!(tokens.get("1", now).as_deref(), Some("1"));
    }

    #[test]
    fn tokens_end_before_their_server_says() {
        let tokens = Tokens::default();
        let now = Instant::now();
        let answer = TokenAnswer {
            token: None,
            access_token: Some("t".to_owned()),
            expires_in: Some(100),
        };
        assert_eq!(tokens.put(Some("s"), answer, now).as_deref(), Some("t"));
        assert!(tokens.get("s", now + Duration::from_secs(89)).is_some());
        assert!(tokens.get("s", now + Duration::from_secs(90)).is_none());
        tokens.drop("s");
        assert!(tokens.get("s", now).is_none());
    }
}
