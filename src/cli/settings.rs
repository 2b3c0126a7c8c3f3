//! Settings of the commands that run until they are told to stop.
//!
//! Invariant: the layers are read as they are at that moment, so that a reload sees a changed file.

use std::path::PathBuf;

use clap::Args;

use crate::config::{CONFIG_VARIABLE, ConfigProblemsError, Layers, Problems, Raw, Settings, load};

/// The arguments of whatever runs until it is told to stop.
#[derive(Args, Clone, Debug)]
#[command(after_help = DAEMON_AFTER_HELP)]
pub(super) struct DaemonArgs<R: Args> {
    /// Read settings from this TOML file [env: PIECEMEAL_CONFIG]
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub(super) config: Option<PathBuf>,
    /// Only check the configuration, and name every problem
    #[arg(long, help_heading = "Configuration")]
    pub(super) check_config: bool,
    #[command(flatten)]
    pub(super) raw: R,
}

impl<R: Raw + Clone> DaemonArgs<R> {
    /// The places to read settings from, as they are now.
    pub(super) fn layers(&self) -> Layers<R> {
        let named = std::env::var_os(CONFIG_VARIABLE).filter(|path| !path.is_empty());
        let file = self.config.clone().or_else(|| named.map(PathBuf::from));
        Layers {
            file,
            env: std::env::vars_os().collect(),
            flags: self.raw.clone(),
        }
    }
}

/// Reads and checks settings.
pub(super) fn read_settings<R: Raw, T>(
    layers: &Layers<R>,
    validate: fn(R, &mut Problems) -> Option<T>,
) -> Result<(Settings<R>, T, Vec<String>), ConfigProblemsError> {
    let mut problems = Problems::default();
    let settings = load(layers, &mut problems);
    let value = validate(settings.raw(), &mut problems);
    let (value, warnings) = problems.finish(value)?;
    Ok((settings, value, warnings))
}

const DAEMON_AFTER_HELP: &str = "\
Every flag is also a key of the file (--cache-ttl: cache_ttl) and an environment variable (PIECEMEAL_CACHE_TTL; lists are
separated by commas). A flag wins over the environment, and the environment over the file; a list is replaced as a whole.
Sizes: 5M is 5,000,000 bytes, 4Gi is 4 × 1024³. Durations: 30s, 5m, 24h.
SIGHUP reads all of it again and applies what is (live) at once; with any problem, what runs stays as it is.";
