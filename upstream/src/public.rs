//! Public manifests of one upstream, which its probes ask for.
//!
//! The first that were pulled stay, so that no later caller chooses what is asked for. They come first of all from the store: what
//! decides about an upstream does not change by a restart.

use parking_lot::Mutex;

/// The most public manifests that are remembered, one of a repository. Each question names all of them.
pub const PUBLIC_MAX: usize = 3;

/// Manifests that probes ask for: those that upstream has served without a credential, and a made-up one that does not exist.
pub(crate) struct PublicManifests {
    /// The repository and the path below it, the first that came: no later caller displaces them.
    known: Mutex<Vec<(String, String)>>,
    made_up: String,
}

impl PublicManifests {
    /// `random`: so that no caller can know the made-up name.
    pub(crate) fn new(random: u64) -> Self {
        Self {
            known: Mutex::default(),
            made_up: format!("piecemeal-{random:016x}/reach"),
        }
    }

    /// `path`: below the repository.
    pub(crate) fn note(&self, repository: &str, path: &str) {
        let mut known = self.known.lock();
        if known.len() < PUBLIC_MAX && known.iter().all(|(name, _)| name != repository) {
            known.push((repository.to_owned(), path.to_owned()));
        }
    }

    /// A repository that does not exist, by a name that no caller knows.
    pub(crate) fn made_up(&self) -> &str {
        &self.made_up
    }

    /// The manifests that a question names; none as long as no manifest is known to be public.
    pub(crate) fn questioned(&self) -> Vec<(String, String)> {
        let mut questioned = self.known.lock().clone();
        if !questioned.is_empty() {
            questioned.push((self.made_up.clone(), "manifests/reach".to_owned()));
        }
        questioned
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_public_manifests_stay_and_a_name_that_no_caller_knows_is_asked_for_too() {
        let known = PublicManifests::new(7);
        assert!(known.questioned().is_empty(), "there is `/v2/`");
        known.note("honest", "manifests/v1");
        for number in 0..20 {
            known.note("honest", &format!("manifests/v{number}"));
            known.note(&format!("strangers/{number}"), "manifests/v1");
        }
        let questioned = known.questioned();
        assert_eq!(questioned.len(), PUBLIC_MAX + 1);
        assert_eq!(questioned[0], ("honest".to_owned(), "manifests/v1".to_owned()));
        let made_up = |known: &PublicManifests| known.questioned().pop().map(|(name, _)| name);
        let other = PublicManifests::new(8);
        other.note("honest", "manifests/v1");
        assert_ne!(made_up(&known), made_up(&other));
    }
}
