//! Challenges of an answer: what its `WWW-Authenticate` fields ask for, in any number of fields and in any order, and where a Bearer
//! challenge gets its token. Whose secret may go there is said in `home.rs`, and whether the address may be connected to in
//! `reachable.rs`.
//!
//! Invariant: reading them is pure and bounded, and each keeps the text that was sent.
//!
//! Source: RFC 9110, sections 5.6 and 11; distribution's token authentication specification.

use std::ops::Range;

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use url::Url;

/// The most challenges of one answer that are kept and passed on, and the most bytes of their texts. Those that can be answered here
/// come first.
const CHALLENGES_MAX: usize = 16;
const CHALLENGES_BYTES_MAX: usize = 4 * 1024;

/// One challenge: `Bearer realm="https://auth.docker.io/token",service="registry.docker.io"`, `Basic realm="x"`, `Negotiate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge {
    /// In lower case.
    scheme: String,
    /// By names in lower case. A token68 is none.
    parameters: Vec<(String, String)>,
    /// As it was sent.
    pub(crate) text: String,
}

/// The challenges of an answer, in the order in which they were sent.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let fields = headers.get_all(WWW_AUTHENTICATE).iter();
    let mut all: Vec<Challenge> = fields
        .flat_map(|field| of_field(&String::from_utf8_lossy(field.as_bytes())))
        .collect();
    let mut by_rank: Vec<usize> = (0..all.len()).collect();
    by_rank.sort_by_key(|&index| all[index].rank());
    let mut bytes = 0;
    by_rank.retain(|&index| {
        let fits = bytes + all[index].text.len() <= CHALLENGES_BYTES_MAX;
        bytes += if fits { all[index].text.len() } else { 0 };
        fits
    });
    by_rank.truncate(CHALLENGES_MAX);
    let mut index = 0;
    all.retain(|_| {
        index += 1;
        by_rank.contains(&(index - 1))
    });
    all
}

/// The first Bearer challenge of an answer.
pub fn bearer_challenge(headers: &HeaderMap) -> Option<Bearer> {
    challenges(headers).iter().find_map(Challenge::bearer)
}

/// The challenges of one field. What comes before the first scheme is of none.
fn of_field(field: &str) -> Vec<Challenge> {
    let mut read: Vec<(usize, Challenge)> = Vec::new();
    for element in elements(field) {
        let text = &field[element.clone()];
        if let Some(parameter) = parameter(text) {
            if let Some((begins, challenge)) = read.last_mut() {
                challenge.parameters.push(parameter);
                field[*begins..element.end].clone_into(&mut challenge.text);
            }
        } else if let Some(challenge) = Challenge::begin(text) {
            read.push((element.start, challenge));
        }
    }
    read.into_iter().map(|(_, challenge)| challenge).collect()
}

/// The elements of a list: what stands between its commas, but for commas within quotes. None is empty.
fn elements(field: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let (mut begins, mut is_quoted, mut is_escaped) = (0, false, false);
    for (index, byte) in field.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b',' if !is_quoted => {
                found.push(begins..index);
                begins = index + 1;
            }
            _ => {}
        }
    }
    found.push(begins..field.len());
    let trimmed = found.into_iter().map(|range| {
        let text = &field[range.clone()];
        let begins = range.start + text.len() - text.trim_start().len();
        begins..begins + text.trim().len()
    });
    trimmed.filter(|range| !range.is_empty()).collect()
}

/// `name=value` and `name="value"`, with spaces around the `=` or without.
fn parameter(text: &str) -> Option<(String, String)> {
    let (name, value) = text.split_once('=')?;
    let (name, value) = (name.trim_end(), value.trim());
    // Only a token68 ends with its padding.
    let is_parameter = is_token(name) && !value.trim_start_matches('=').is_empty();
    is_parameter.then(|| (name.to_ascii_lowercase(), unquoted(value)))
}

fn is_token(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_part)
}

/// The value of a quoted string, or the text itself.
fn unquoted(text: &str) -> String {
    let Some(quoted) = text.strip_prefix('"') else {
        return text.to_owned();
    };
    let mut value = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => break,
            '\\' => value.extend(characters.next()),
            _ => value.push(character),
        }
    }
    value
}

impl Challenge {
    /// A challenge by its first element: the scheme, and what follows it.
    fn begin(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once([' ', '\t']).unwrap_or((text, ""));
        is_token(scheme).then(|| Self {
            scheme: scheme.to_ascii_lowercase(),
            parameters: parameter(rest.trim_start()).into_iter().collect(),
            text: text.to_owned(),
        })
    }

    /// The order in which challenges are answered.
    fn rank(&self) -> u8 {
        match () {
            () if self.bearer().is_some() => 0,
            () if self.is_basic() => 1,
            () => 2,
        }
    }

    pub(crate) fn is_basic(&self) -> bool {
        self.scheme == "basic"
    }

    /// `None` when it is no Bearer challenge with one realm: of two, clients may use either.
    pub(crate) fn bearer(&self) -> Option<Bearer> {
        let all = |name: &'static str| {
            let named = self.parameters.iter().filter(move |(known, _)| known == name);
            named.map(|(_, value)| value.clone())
        };
        let is_clear = self.scheme == "bearer" && all("realm").count() == 1;
        is_clear.then_some(())?;
        Some(Bearer {
            realm: all("realm").next()?,
            service: all("service").next(),
            scope: all("scope").next(),
        })
    }

    /// Whether a client that reads it in another way may find the address of a token server in it.
    pub(crate) fn names_bearer(&self) -> bool {
        self.text.to_ascii_lowercase().contains("bearer")
    }
}

/// A Bearer challenge: `Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="…"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bearer {
    pub realm: String,
    pub service: Option<String>,
    pub scope: Option<String>,
}

impl Bearer {
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
    pub fn token_url(&self, registry: &Url, scope: &str) -> Option<Url> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(fields: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for field in fields {
            headers.append(WWW_AUTHENTICATE, field.parse().unwrap());
        }
        headers
    }

    fn texts(fields: &[&str]) -> Vec<String> {
        let all = challenges(&sent(fields)).into_iter();
        all.map(|challenge| challenge.text).collect()
    }

    fn bearer(field: &str) -> Option<Bearer> {
        challenges(&sent(&[field])).iter().find_map(Challenge::bearer)
    }

    const BEARER: &str =
        r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
    const BASIC: &str = r#"Basic realm="a, b", charset="UTF-8""#;
    const NEGOTIATE: &str = "Negotiate YII=";

    #[test]
    fn bearer_challenges_are_read() {
        let challenge = bearer(BEARER).unwrap();
        assert_eq!(challenge.realm, "https://auth.docker.io/token");
        assert_eq!(challenge.service.as_deref(), Some("registry.docker.io"));
        assert_eq!(challenge.scope.as_deref(), Some("repository:a/b:pull,push"));
        let loose = bearer("bearer realm = https://x.io/t , service=a").unwrap();
        assert_eq!((&*loose.realm, loose.service.as_deref()), ("https://x.io/t", Some("a")));
        assert_eq!(bearer(r#"Bearer realm="a\"b"#).unwrap().realm, "a\"b");
        for other in [
            "",
            "Basic realm=\"x\"",
            "Bearer",
            "Bearer service=\"x\"",
            "Bearer realm",
            "Bearer eyJhbGciOi==",
            r#"Bearer realm="https://a.io/t",realm="https://b.io/t""#,
            r#"Basic realm="x, Bearer realm=\"https://evil.io/t\"""#,
        ] {
            assert_eq!(bearer(other), None, "{other}");
        }
    }

    #[test]
    fn challenges_come_in_every_order_in_one_field_or_in_several() {
        let all = [BEARER, BASIC, NEGOTIATE, "NTLM"];
        let mut orders = vec![vec![]];
        for _ in 0..all.len() {
            let longer = orders.iter().flat_map(|order: &Vec<&str>| {
                let rest = all.iter().filter(|one| !order.contains(*one));
                rest.map(|one| [&order[..], &[*one]].concat()).collect::<Vec<_>>()
            });
            orders = longer.collect();
        }
        assert_eq!(orders.len(), 24);
        for order in orders {
            let lists = [
                vec![order.join(", ")],
                vec![order.join(" ,, ")],
                vec![order[..2].join(","), order[2..].join(",")],
                order.iter().map(|one| (*one).to_owned()).collect(),
            ];
            for fields in lists {
                let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
                assert_eq!(texts(&fields), order, "{fields:?}");
                let read = challenges(&sent(&fields));
                let bearers = read.iter().filter_map(Challenge::bearer);
                assert_eq!(bearers.collect::<Vec<_>>(), [bearer(BEARER).unwrap()], "{fields:?}");
                assert_eq!(read.iter().filter(|one| one.is_basic()).count(), 1, "{fields:?}");
            }
        }
    }

    #[test]
    fn what_no_client_could_read_is_no_challenge() {
        for (field, expected) in [
            ("", &[] as &[&str]),
            (", ,", &[]),
            (r#"realm="x""#, &[]),
            (r#""quoted", Basic realm="x""#, &[r#"Basic realm="x""#]),
            ("Negotiate", &["Negotiate"]),
            (r#"Basic realm="open, NTLM"#, &[r#"Basic realm="open, NTLM"#]),
        ] {
            assert_eq!(texts(&[field]), expected, "{field}");
        }
        let mut headers = HeaderMap::new();
        let latin1 = reqwest::header::HeaderValue::from_bytes(b"Basic realm=\"f\xfcr\"").unwrap();
        headers.append(WWW_AUTHENTICATE, latin1);
        assert!(challenges(&headers)[0].is_basic());
    }

    #[test]
    fn of_too_many_challenges_those_that_can_be_answered_stay() {
        let many = vec!["Negotiate"; CHALLENGES_MAX * 2];
        let long = format!("Negotiate {}", "a".repeat(CHALLENGES_BYTES_MAX - 10));
        for before in [&many[..], &[long.as_str()]] {
            let kept = texts(&[before, &[BASIC, BEARER]].concat());
            assert!(kept.len() <= CHALLENGES_MAX);
            assert_eq!(kept[kept.len() - 2..], [BASIC, BEARER]);
            assert!(kept.iter().map(String::len).sum::<usize>() <= CHALLENGES_BYTES_MAX);
        }
        let longer = format!("Bearer realm=\"https://a.io/{}\"", "a".repeat(CHALLENGES_BYTES_MAX));
        assert_eq!(texts(&[&longer, BASIC]), [BASIC]);
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
            let challenge = Bearer {
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
            let challenge = Bearer {
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
}
