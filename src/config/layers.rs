//! Layers of settings: merges defaults, file, environment and flags.

use std::{ffi::OsString, marker::PhantomData, path::PathBuf};

use clap::Command;
use toml::{Table, Value};

use super::{
    key::{Key, Raw, from_table, is_live, keys, to_table},
    problems::{ENV_PREFIX, Origin, Problems, env_name},
    raw::{RawMirror, RawNode, RawPeer, RawScheduler, RawUp, RawWebhook},
};

/// The end of the help of a key that SIGHUP applies.
const LIVE_MARK: &str = " (live)";

/// Says in the help of a command which of its settings are live.
pub(crate) fn mark_live<R: Raw>(command: Command) -> Command {
    R::LIVE.iter().fold(command, |command, key| {
        command.mut_arg(key, |arg| {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            arg.help(help + LIVE_MARK)
        })
    })
}

/// Layers that settings are read from.
#[derive(Clone, Debug)]
pub(crate) struct Layers<R> {
    pub file: Option<PathBuf>,
    pub env: Vec<(OsString, OsString)>,
    pub flags: R,
}

/// The settings of every layer as one.
#[derive(Clone, Debug)]
pub(crate) struct Settings<R> {
    table: Table,
    raw: PhantomData<R>,
}

impl<R: Raw> Settings<R> {
    pub(crate) fn raw(&self) -> R {
        from_table(self.table.clone())
    }

    /// The settings that differ in `new`.
    pub(crate) fn changes(&self, new: &Self) -> Changes {
        let mut changes = Changes::default();
        for key in keys::<R>() {
            let (old, new) = (self.table.get(&key.name), new.table.get(&key.name));
            if old == new {
                continue;
            }
            if is_live::<R>(&key.name) {
                changes
                    .live
                    .push(format!("{} {} -> {}", key.name, told(old), told(new)));
            } else {
                changes.restart.push(key.name);
            }
        }
        changes
    }

    /// Takes over the live settings of `new`, and no others: what runs once those are applied.
    pub(crate) fn take_live(&mut self, new: &Self) {
        for key in R::LIVE {
            match new.table.get(*key) {
                Some(value) => _ = self.table.insert((*key).to_owned(), value.clone()),
                None => _ = self.table.remove(*key),
            }
        }
    }
}

/// Differences of a configuration from the one that runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Each with its old and its new value. None of these is a secret.
    pub live: Vec<String>,
    /// Only names: a value may be a private URL or path.
    pub restart: Vec<String>,
}

fn told(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(texts)) if texts.is_empty() => "(none)".to_owned(),
        Some(Value::Array(texts)) => texts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        _ => "(absent)".to_owned(),
    }
}

/// Reads every layer. What cannot be read is noted and left out, so that the rest is checked all the same.
pub(crate) fn load<R: Raw>(layers: &Layers<R>, problems: &mut Problems) -> Settings<R> {
    let keys = keys::<R>();
    let defaults = R::DEFAULTS.parse().expect("the embedded defaults are TOML");
    let flags = to_table(&layers.flags);

    let mut table = Table::new();
    let mut put = |problems: &mut Problems, from: Table, origin: &Origin| {
        for (key, value) in from {
            problems.set_origin(&key, origin.clone());
            table.insert(key, value);
        }
    };
    put(problems, defaults, &Origin::Default);
    if let Some(path) = &layers.file {
        let file = read_file(path, &keys, problems);
        put(problems, file, &Origin::File(path.clone()));
    }
    let env = read_env(&layers.env, &keys, problems);
    put(problems, env, &Origin::Env);
    put(problems, flags, &Origin::Flag);
    Settings {
        table,
        raw: PhantomData,
    }
}

fn read_file(path: &PathBuf, keys: &[Key], problems: &mut Problems) -> Table {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            problems.add_general(format!("cannot read {}: {error}", path.display()));
            return Table::new();
        }
    };
    let table: Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            problems.add_general(format!("{} is not TOML: {error}", path.display()));
            return Table::new();
        }
    };
    let mut known = Table::new();
    for (name, value) in table {
        problems.set_origin(&name, Origin::File(path.clone()));
        match keys.iter().find(|key| key.name == name) {
            None => problems.add(&name, "no such key"),
            Some(key) => {
                known.extend(
                    problems
                        .check(&name, as_text(value, key.is_list))
                        .map(|value| (name, value)),
                );
            }
        }
    }
    known
}

/// Makes a value of the file what flags and environment give: a text, or a list of texts.
fn as_text(value: Value, is_list: bool) -> Result<Value, &'static str> {
    match (value, is_list) {
        (Value::Array(items), true) => {
            let texts: Result<_, _> = items.into_iter().map(|item| as_text(item, false)).collect();
            texts.map(Value::Array).map_err(|_| "a list of texts is needed")
        }
        (value @ (Value::String(_) | Value::Integer(_)), true) => Ok(Value::Array(vec![as_text(value, false)?])),
        (value @ Value::String(_), false) => Ok(value),
        // `cache_quota = 0` has only one meaning.
        (Value::Integer(number), false) => Ok(Value::String(number.to_string())),
        (_, true) => Err("a list of texts is needed"),
        (_, false) => Err("a text is needed"),
    }
}

/// An empty variable counts as absent; a list is separated by commas.
fn read_env(env: &[(OsString, OsString)], keys: &[Key], problems: &mut Problems) -> Table {
    let mut table = Table::new();
    for key in keys {
        let variable = env_name(&key.name);
        let Some((_, value)) = env.iter().find(|(name, value)| *name == *variable && !value.is_empty()) else {
            continue;
        };
        let Some(value) = value.to_str() else {
            problems.add_general(format!("{variable}: not UTF-8"));
            continue;
        };
        let items = || value.split(',').map(str::trim).filter(|item| !item.is_empty());
        let value = if key.is_list {
            Value::Array(items().map(Value::from).collect())
        } else {
            Value::String(value.to_owned())
        };
        table.insert(key.name.clone(), value);
    }
    for (name, _) in env {
        let Some(name) = name.to_str().filter(|name| name.starts_with(ENV_PREFIX)) else {
            continue;
        };
        if !is_known_variable(name) {
            problems.warn_general(format!("{name}: no setting has this name; the variable is ignored"));
        }
    }
    table
}

/// Whether a variable sets anything for any daemon, or is one of those that Kubernetes adds for a service of our name.
fn is_known_variable(name: &str) -> bool {
    let all = [
        keys::<RawMirror>(),
        keys::<RawScheduler>(),
        keys::<RawPeer>(),
        keys::<RawNode>(),
        keys::<RawWebhook>(),
        keys::<RawUp>(),
    ];
    let is_key = all.iter().flatten().any(|key| env_name(&key.name) == name);
    is_key || name == CONFIG_VARIABLE || name.contains("_SERVICE_") || name.contains("_PORT")
}

/// The variable that names the file.
pub(crate) const CONFIG_VARIABLE: &str = "PIECEMEAL_CONFIG";

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::{RawMirror, RawNode, RawPeer, RawScheduler, RawUp},
        *,
    };

    fn read(file: &str, env: &[(&str, &str)], flags: RawPeer) -> (RawPeer, Problems) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("peer.toml");
        fs::write(&path, file).unwrap();
        let env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let layers = Layers {
            file: Some(path),
            env,
            flags,
        };
        let mut problems = Problems::default();
        (load(&layers, &mut problems).raw(), problems)
    }

    fn flags(ratelimit: &str, upstreams: &[&str]) -> RawPeer {
        RawPeer {
            ratelimit: Some(ratelimit.to_owned()),
            upstream: Some(upstreams.iter().map(|text| (*text).to_owned()).collect()),
            ..RawPeer::default()
        }
    }

    #[test]
    fn each_layer_overrides_the_one_below_and_leaves_the_rest() {
        let file = "ratelimit = 1\ncache_ttl = \"1h\"\nzone = \"file\"\nupstream = \"a=http://file\"";
        let env = [
            ("PIECEMEAL_RATELIMIT", "2"),
            ("PIECEMEAL_ZONE", "env"),
            ("PIECEMEAL_UPSTREAM", "a=http://env, b=http://env,"),
        ];
        let (raw, problems) = read(file, &env, RawPeer::default());
        assert_eq!(
            raw.upstream.as_deref(),
            Some(&["a=http://env".to_owned(), "b=http://env".to_owned()][..])
        );
        assert_eq!(
            (raw.ratelimit.as_deref(), raw.shared.zone.as_deref()),
            (Some("2"), Some("env"))
        );
        assert_eq!(
            (raw.shared.cache_ttl.as_deref(), raw.cache_quota.as_deref()),
            (Some("1h"), Some("4Gi"))
        );
        assert!(problems.finish(Some(())).is_ok_and(|(_, warnings)| warnings.is_empty()));

        let (raw, _) = read(file, &env, flags("3", &["c=http://flag"]));
        assert_eq!(raw.upstream.as_deref(), Some(&["c=http://flag".to_owned()][..]));
        assert_eq!(
            (raw.ratelimit.as_deref(), raw.shared.zone.as_deref()),
            (Some("3"), Some("env"))
        );
    }

    #[test]
    fn what_changed_is_named() {
        let load = |flags: RawPeer| {
            let layers = Layers {
                file: None,
                env: Vec::new(),
                flags,
            };
            load(&layers, &mut Problems::default())
        };
        let mut running = load(flags("1", &["a=http://a"]));
        assert_eq!(running.changes(&running), Changes::default());
        let new = load(flags("2", &["b=http://b"]));
        let restart = vec!["upstream".to_owned()];
        let live = vec!["ratelimit 1 -> 2".to_owned()];
        let expected = Changes {
            live,
            restart: restart.clone(),
        };
        assert_eq!(running.changes(&new), expected);

        // Once the live ones are applied, the others still wait for a restart.
        running.take_live(&new);
        let expected = Changes {
            live: Vec::new(),
            restart,
        };
        assert_eq!(running.changes(&new), expected);
    }

    /// The comment that the line which `is_it` has above it.
    fn comment_above(text: &str, is_it: impl Fn(&str) -> bool) -> String {
        let above: Vec<&str> = text.lines().take_while(|line| !is_it(line)).collect();
        let is_prose = |line: &&str| line.starts_with("# ") && !line.contains(" = ");
        let comment: Vec<&str> = above.into_iter().rev().take_while(is_prose).collect();
        comment.into_iter().rev().collect::<Vec<_>>().join(" ")
    }

    fn assert_described<R: Raw>() {
        let mut problems = Problems::default();
        let layers = Layers {
            file: None,
            env: Vec::new(),
            flags: R::default(),
        };
        let settings = load(&layers, &mut problems);
        settings.raw();
        let keys = keys::<R>();
        for key in settings.table.keys() {
            assert!(keys.iter().any(|known| known.name == *key), "{key} is no setting");
        }
        for key in keys {
            let stands = |line: &str| line.trim_start_matches("# ").starts_with(&format!("{} = ", key.name));
            assert!(R::DEFAULTS.lines().any(stands), "{} is not in the defaults", key.name);
            assert_eq!(
                comment_above(R::DEFAULTS, stands).ends_with(" Live."),
                is_live::<R>(&key.name),
                "{}: the comment in the defaults says otherwise",
                key.name
            );
        }
        // A default is told in the help as it stands in the file.
        let command = mark_live::<R>(R::augment_args(Command::new("")));
        for arg in command.get_arguments() {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let unmarked = help.strip_suffix(LIVE_MARK);
            assert_eq!(unmarked.is_some(), is_live::<R>(arg.get_id().as_str()), "{help:?}");
            let help = unmarked.unwrap_or(&help);
            if let Some(value) = settings.table.get(arg.get_id().as_str()).and_then(Value::as_str) {
                assert!(
                    help.ends_with(&format!("[{value}]")),
                    "{}: {help:?} and {value:?}",
                    arg.get_id()
                );
            }
        }
    }

    #[test]
    fn every_setting_is_described_in_its_defaults_and_its_help() {
        assert_described::<RawMirror>();
        assert_described::<RawScheduler>();
        assert_described::<RawPeer>();
        assert_described::<RawNode>();
        assert_described::<RawUp>();
    }
}
