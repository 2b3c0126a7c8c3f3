//! Problems of the settings, collected so that one run names them all.
//!
//! Invariant: settings with a problem yield no value, and a value that is missing has left a problem.

use std::{collections::BTreeMap, fmt, path::PathBuf};

/// Origin of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Default,
    File(PathBuf),
    Env,
    Flag,
}

/// Collects problems and warnings; knows where each key's value came from, to say so.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    origins: BTreeMap<String, Origin>,
    problems: Vec<String>,
    warnings: Vec<String>,
}

impl Problems {
    /// From now on `key` is said to come from `origin`.
    pub(crate) fn set_origin(&mut self, key: &str, origin: Origin) {
        self.origins.insert(key.to_owned(), origin);
    }

    /// Whether the value of `key` was set: it is not the default.
    pub(crate) fn is_chosen(&self, key: &str) -> bool {
        !matches!(self.origins.get(key), None | Some(Origin::Default))
    }

    /// Notes what is wrong with the value of `key`.
    pub(crate) fn add(&mut self, key: &str, problem: impl fmt::Display) {
        self.problems.push(format!("{}: {problem}", self.name(key)));
    }

    /// Notes a problem that no single key has.
    pub(crate) fn add_general(&mut self, problem: impl fmt::Display) {
        self.problems.push(problem.to_string());
    }

    /// Unwraps what was read from `key`, or notes why it could not be.
    pub(crate) fn check<T, E: fmt::Display>(&mut self, key: &str, read: Result<T, E>) -> Option<T> {
        read.map_err(|error| self.add(key, error)).ok()
    }

    /// Unwraps a value that must be there.
    pub(crate) fn require<T>(&mut self, key: &str, value: Option<T>) -> Option<T> {
        if value.is_none() {
            let (flag, env) = (flag_name(key), env_name(key));
            self.add_general(format!("{key}: missing; give {flag}, {env} or the key in the file"));
        }
        value
    }

    /// Notes what is allowed and probably a mistake.
    pub(crate) fn warn(&mut self, key: &str, warning: impl fmt::Display) {
        self.warnings.push(format!("{}: {warning}", self.name(key)));
    }

    /// Notes a warning that no key of this daemon has.
    pub(crate) fn warn_general(&mut self, warning: impl fmt::Display) {
        self.warnings.push(warning.to_string());
    }

    /// `value` and the warnings, when there is no problem.
    ///
    /// # Errors
    /// Every problem that was noted.
    pub(crate) fn finish<T>(self, value: Option<T>) -> Result<(T, Vec<String>), ConfigProblemsError> {
        match value {
            Some(value) if self.problems.is_empty() => Ok((value, self.warnings)),
            _ => {
                assert!(!self.problems.is_empty(), "a value is missing without a problem");
                Err(ConfigProblemsError(self.problems))
            }
        }
    }

    fn name(&self, key: &str) -> String {
        match self.origins.get(key) {
            None | Some(Origin::Default) => key.to_owned(),
            Some(Origin::File(path)) => format!("{key} (in {})", path.display()),
            Some(Origin::Env) => format!("{key} (from {})", env_name(key)),
            Some(Origin::Flag) => format!("{key} (from {})", flag_name(key)),
        }
    }
}

/// The flag that sets `key`.
pub(crate) fn flag_name(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}

/// The environment variable that sets `key`.
pub(crate) fn env_name(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.to_uppercase())
}

/// The settings cannot be used; each line says why. Exit 64.
#[derive(Debug, thiserror::Error)]
#[error("{}", list(.0))]
pub(crate) struct ConfigProblemsError(Vec<String>);

fn list(problems: &[String]) -> String {
    let count = match problems.len() {
        1 => "1 problem".to_owned(),
        many => format!("{many} problems"),
    };
    let lines: String = problems.iter().map(|problem| format!("\n  - {problem}")).collect();
    format!("{count} with the configuration:{lines}")
}

/// The prefix of every environment variable of Piecemeal.
pub(crate) const ENV_PREFIX: &str = "PIECEMEAL_";
