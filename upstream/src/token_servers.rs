//! Token servers that one upstream has named, each with its reachability.
//!
//! Invariant: whether one is there is decided by a question of the daemon's own, for a token of a repository whose name no caller knows.
//! A full table forgets the server that was asked longest ago.

use std::{num::NonZeroUsize, sync::Arc};

use lru::LruCache;
use parking_lot::Mutex;
use url::Url;

use crate::{endpoint::Endpoint, reachable::Zone};

/// The most token servers of one upstream that are remembered: a registry has one, and each that it redirects to has one.
const TOKEN_SERVERS_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("more than none");

/// The token servers, by origin and by the zone of the host that named them.
pub(crate) struct TokenServers(Mutex<LruCache<(String, Zone), Arc<Endpoint>>>);

impl Default for TokenServers {
    fn default() -> Self {
        Self(Mutex::new(LruCache::sparse(TOKEN_SERVERS_MAX)))
    }
}

impl TokenServers {
    /// The server of a token's URL. `made_up`: the repository that its question names.
    pub(crate) fn at(&self, url: &Url, from: Zone, made_up: &str) -> Arc<Endpoint> {
        let key = (url.origin().ascii_serialization(), from);
        let mut servers = self.0.lock();
        let server = servers.get_or_insert(key, || Arc::new(Endpoint::of_tokens(question(url, made_up), from)));
        Arc::clone(server)
    }
}

/// The same URL with another scope.
fn question(url: &Url, made_up: &str) -> Url {
    let mut question = url.clone();
    let others = url.query_pairs().filter(|(name, _)| name != "scope");
    question
        .query_pairs_mut()
        .clear()
        .extend_pairs(others)
        .append_pair("scope", &format!("repository:{made_up}:pull"));
    question
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn a_server_is_one_for_all_repositories_and_no_caller_chooses_its_question() {
        let servers = TokenServers::default();
        let at = |text: &str, from| servers.at(&url(text), from, "made-up/x");
        let first = at(
            "https://a.io/token?account=1&scope=repository%3Aevil%3Apull&service=a",
            Zone::Outside,
        );
        assert_eq!(
            first.url.as_str(),
            "https://a.io/token?account=1&service=a&scope=repository%3Amade-up%2Fx%3Apull"
        );
        let same = at("https://a.io:443/token?scope=repository%3Aother%3Apull", Zone::Outside);
        assert!(Arc::ptr_eq(&first, &same));
        for other in [
            at("https://b.io/token", Zone::Outside),
            at("https://a.io:8443/token", Zone::Outside),
            at("http://a.io/token", Zone::Outside),
            at("https://a.io/token", Zone::Inside),
        ] {
            assert!(!Arc::ptr_eq(&first, &other), "{}", other.url);
        }
    }

    #[test]
    fn a_full_table_forgets_the_server_that_was_asked_longest_ago_alone() {
        let servers = TokenServers::default();
        let at = |n: usize| servers.at(&url(&format!("https://t{n}.io/")), Zone::Outside, "x");
        let (first, second) = (at(0), at(1));
        at(0);
        for n in 2..=TOKEN_SERVERS_MAX.get() {
            at(n);
        }
        assert!(Arc::ptr_eq(&first, &at(0)));
        assert!(!Arc::ptr_eq(&second, &at(1)));
    }
}
