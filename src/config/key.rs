//! Keys of the settings, as the fields of a command's flags name them.

use clap::{ArgAction, Args, Command};
use serde::{Serialize, de::DeserializeOwned};

/// Settings as text, whose fields are the keys.
pub(crate) trait Raw: Args + Serialize + DeserializeOwned + Default {
    /// The commented file of defaults, which is the lowest layer.
    const DEFAULTS: &'static str;
    /// The keys that SIGHUP applies; every other needs a restart. Help and reload follow this list, and the comments of the
    /// defaults are tested against it. What [`crate::daemon::Daemon::apply`] does with each is tested end to end.
    const LIVE: &'static [&'static str];
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) is_list: bool,
}

/// The keys of `R`: its flags know them all.
pub(super) fn keys<R: Raw>() -> Vec<Key> {
    let command = R::augment_args(Command::new(""));
    let key = |arg: &clap::Arg| Key {
        name: arg.get_id().to_string(),
        is_list: matches!(arg.get_action(), ArgAction::Append),
    };
    command.get_arguments().map(key).collect()
}

pub(super) fn is_live<R: Raw>(key: &str) -> bool {
    R::LIVE.contains(&key)
}
