//! Keys of the settings, as the fields of a command's flags name them.
//!
//! Invariant: the flags of a command know all of its keys; environment and file have no others.

use clap::{ArgAction, Args, Command};
use serde::{Serialize, de::DeserializeOwned};
use toml::Table;

use super::shared::RawShared;

/// Settings as text, whose fields are the keys.
pub(crate) trait Raw: Args + Serialize + DeserializeOwned + Default {
    /// The commented file of defaults, which is the lowest layer.
    const DEFAULTS: &'static str;
    /// The keys that SIGHUP applies; every other needs a restart. Help and reload follow this list, and the comments of the
    /// defaults are tested against it. What [`crate::daemon::Daemon::apply`] does with each is tested end to end.
    const LIVE: &'static [&'static str];

    /// The settings that mirror and peer share; `None` for the other commands.
    fn shared(&self) -> Option<&RawShared> {
        None
    }

    /// The same with other shared settings.
    fn with_shared(self, _shared: RawShared) -> Self {
        self
    }
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) is_list: bool,
}

/// The keys of `R`: its flags know them all.
pub(super) fn keys<R: Args>() -> Vec<Key> {
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

/// The settings that are stated, by their keys.
pub(super) fn to_table<R: Raw>(raw: &R) -> Table {
    let mut table = Table::try_from(raw).expect("settings are text");
    table.extend(
        raw.shared()
            .into_iter()
            .flat_map(|shared| Table::try_from(shared).expect("settings are text")),
    );
    table
}

/// The settings of a table whose keys and types were checked.
pub(super) fn from_table<R: Raw>(mut table: Table) -> R {
    let has_shared = R::default().shared().is_some();
    let names = keys::<RawShared>().into_iter().filter(|_| has_shared);
    let shared: Table = names.filter_map(|key| table.remove_entry(&key.name)).collect();
    let raw: R = table.try_into().expect("every key was checked to be of its type");
    raw.with_shared(shared.try_into().expect("every key was checked to be of its type"))
}
