//! Tokens of a registry, as its token servers answer, each kept until it expires.
//!
//! Invariant: a token is kept for the holder and the scope that it is for, and for no other.
//!
//! Source: distribution's token authentication specification.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use lru::LruCache;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;

/// The life of a token whose server states none or less. Source: the token specification; docker and containerd take less for as much.
const TOKEN_LIFE_MIN: Duration = Duration::from_secs(60);
/// The longest life that a token server is believed.
const TOKEN_LIFE_MAX: Duration = Duration::from_hours(24);
/// Tokens are given up this much before their end, so that none expires on the way.
const TOKEN_LIFE_MARGIN: Duration = Duration::from_secs(10);
/// The most tokens kept: one a repository.
const TOKENS_MAX: NonZeroUsize = NonZeroUsize::new(2048).expect("more than none");
/// A longer one is used, and not kept.
const TOKEN_KEPT_BYTES_MAX: usize = 16 * 1024;

/// The answer of a token server. Of a field that is none of what it should be, the answer has none.
#[derive(Default, Deserialize)]
pub struct TokenAnswer {
    #[serde(default)]
    token: Value,
    #[serde(default)]
    access_token: Value,
    #[serde(default)]
    expires_in: Value,
}

impl TokenAnswer {
    /// The token. Some servers send the other of the two names with an empty text.
    pub fn token(&self) -> Option<&str> {
        let texts = [&self.token, &self.access_token].into_iter().filter_map(Value::as_str);
        texts.map(str::trim).find(|text| !text.is_empty())
    }

    /// The life of the token, from a number of seconds in any form.
    fn life(&self) -> Duration {
        let seconds = match &self.expires_in {
            Value::Number(number) => number.as_f64(),
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        let life = seconds.map(|seconds: f64| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(TOKEN_LIFE_MAX));
        life.map_or(TOKEN_LIFE_MIN, |life| life.clamp(TOKEN_LIFE_MIN, TOKEN_LIFE_MAX))
    }
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

    /// Keeps a token server's answer, and returns the token; `None`: there is none in it. `scope`: the scope it is valid for; `None`
    /// when it is not the requested one: the token is not kept.
    pub(crate) fn put(&self, scope: Option<&str>, answer: &TokenAnswer, now: Instant) -> Option<String> {
        let token = answer.token()?.to_owned();
        let Some(scope) = scope.filter(|_| token.len() <= TOKEN_KEPT_BYTES_MAX) else {
            return Some(token);
        };
        let until = now + answer.life().saturating_sub(TOKEN_LIFE_MARGIN);
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

    fn answer(text: &str) -> TokenAnswer {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn an_empty_token_is_none_and_the_other_name_counts() {
        let token = |text: &str| answer(text).token().map(str::to_owned);
        for one in [
            r#"{"token":"t"}"#,
            r#"{"access_token":"t"}"#,
            r#"{"token":"","access_token":"t"}"#,
            r#"{"token":"t","access_token":""}"#,
            r#"{"token":null,"access_token":"t"}"#,
            r#"{"token":7,"access_token":"t","refresh_token":"x","scope":["a"],"issued_at":0}"#,
        ] {
            assert_eq!(token(one).as_deref(), Some("t"), "{one}");
        }
        for none in [
            "{}",
            r#"{"token":""}"#,
            r#"{"token":" ","access_token":""}"#,
            r#"{"token":null,"access_token":null}"#,
            r#"{"details":"incorrect username or password"}"#,
        ] {
            assert_eq!(token(none), None, "{none}");
        }
    }

    #[test]
    fn a_life_is_read_in_any_form_and_is_at_least_a_minute() {
        for (stated, seconds) in [
            ("300", 300),
            ("3600.5", 3600),
            ("\"3600\"", 3600),
            ("\" 3600.0 \"", 3600),
            ("1e3", 1000),
            ("0", 60),
            ("-1", 60),
            ("59", 60),
            ("-1e300", 60),
            ("null", 60),
            ("true", 60),
            ("[]", 60),
            ("\"soon\"", 60),
            ("\"NaN\"", 60),
            ("1e300", 24 * 3600),
            ("\"inf\"", 24 * 3600),
            ("18446744073709551615", 24 * 3600),
        ] {
            let answer = answer(&format!(r#"{{"token":"t","expires_in":{stated}}}"#));
            assert_eq!(answer.life().as_secs(), seconds, "{stated}");
        }
        assert_eq!(answer(r#"{"token":"t"}"#).life(), TOKEN_LIFE_MIN);
    }

    #[test]
    fn a_full_table_gives_up_its_oldest_token_alone() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        for token in 0..=TOKENS_MAX.get() {
            let answer = answer(&format!(r#"{{"token":"{token}","expires_in":100}}"#));
            tokens.put(Some(&token.to_string()), &answer, now);
        }
        assert_eq!(tokens.get("0", now), None);
        assert_eq!(tokens.get("1", now).as_deref(), Some("1"));
    }

    #[test]
    fn tokens_end_before_their_server_says() {
        let tokens = Tokens::default();
        let now = Instant::now();
        let answer = answer(r#"{"access_token":"t","expires_in":100}"#);
        assert_eq!(tokens.put(Some("s"), &answer, now).as_deref(), Some("t"));
        assert!(tokens.get("s", now + Duration::from_secs(89)).is_some());
        assert!(tokens.get("s", now + Duration::from_secs(90)).is_none());
        tokens.drop("s");
        assert!(tokens.get("s", now).is_none());
    }

    #[test]
    fn a_token_that_is_very_long_is_used_and_not_kept() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let long = "t".repeat(TOKEN_KEPT_BYTES_MAX + 1);
        let answer = answer(&format!(r#"{{"token":"{long}"}}"#));
        assert_eq!(tokens.put(Some("s"), &answer, now), Some(long));
        assert_eq!(tokens.get("s", now), None);
    }
}
