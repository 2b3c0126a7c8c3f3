//! Fields of the settings: the text of one key becomes one typed value, or a problem under that key.

use std::{
    collections::HashSet,
    env, fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use piecemeal_http::Share;
use piecemeal_proto::{NodeId, ParseKeyError};
use piecemeal_upstream::UpstreamConfig;
use tracing_subscriber::EnvFilter;
use url::Url;

use super::{problems::Problems, size::parse_size};

pub(super) type Text = Option<String>;
pub(super) type Texts = Option<Vec<String>>;

/// `ip:port` to listen on.
pub(super) fn address(problems: &mut Problems, key: &str, text: Text) -> Option<SocketAddr> {
    let text = problems.require(key, text)?;
    problems.check(key, parse_address(&text))
}

/// Addresses to listen on: at least one.
pub(super) fn addresses(problems: &mut Problems, key: &str, texts: Texts) -> Option<Vec<SocketAddr>> {
    let texts = problems.require(key, texts.filter(|texts| !texts.is_empty()))?;
    all(texts.iter().map(|text| problems.check(key, parse_address(text))))
}

/// Addresses for others to connect to: any number of them.
pub(super) fn advertised(problems: &mut Problems, key: &str, texts: Texts) -> Option<Vec<SocketAddr>> {
    all(texts.unwrap_or_default().iter().map(|text| {
        let address = problems.check(key, parse_address(text))?;
        if address.ip().is_unspecified() || address.port() == 0 {
            problems.add(
                key,
                format!("other nodes cannot connect to {address}; give an address of this machine"),
            );
            return None;
        }
        Some(address)
    }))
}

fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| format!("{text:?} is not an ip:port, such as 127.0.0.1:65001 or [::1]:65001"))
}

/// A duration of more than nothing.
pub(super) fn duration(problems: &mut Problems, key: &str, text: Text) -> Option<Duration> {
    let duration = duration_or_zero(problems, key, text)?;
    if duration.is_zero() {
        problems.add(key, "must be more than zero");
        return None;
    }
    Some(duration)
}

pub(super) fn duration_or_zero(problems: &mut Problems, key: &str, text: Text) -> Option<Duration> {
    let text = problems.require(key, text)?;
    let read = humantime::parse_duration(&text);
    problems.check(
        key,
        read.map_err(|error| format!("{text:?} is not a duration, such as 30s or 24h: {error}")),
    )
}

/// A percentage of a port's connections.
pub(super) fn share(problems: &mut Problems, key: &str, text: Text) -> Option<Share> {
    let text = problems.require(key, text)?;
    let share = text.parse().ok().and_then(Share::new);
    problems.check(
        key,
        share.ok_or_else(|| format!("{text:?} is not a percentage from 1 to 100")),
    )
}

pub(super) fn size(problems: &mut Problems, key: &str, text: Text) -> Option<u64> {
    let text = problems.require(key, text)?;
    problems.check(key, parse_size(&text).map_err(|error| format!("{text:?}: {error}")))
}

/// A size of which 0 and absence mean that there is no limit; the outer `None` is a problem.
#[expect(clippy::option_option, reason = "a problem is not the same as no limit")]
pub(super) fn limit(problems: &mut Problems, key: &str, text: Text) -> Option<Option<u64>> {
    let bytes = size(problems, key, Some(text.unwrap_or_else(|| "0".to_owned())))?;
    Some((bytes != 0).then_some(bytes))
}

/// The URL of a Piecemeal service; the outer `None` is a problem.
#[expect(clippy::option_option, reason = "a problem is not the same as an absent service")]
pub(super) fn service(problems: &mut Problems, key: &str, text: Text) -> Option<Option<Url>> {
    text.map(|text| problems.check(key, parse_origin(&text)))
        .map_or(Some(None), |url| url.map(Some))
}

/// Scheme, host and port, and nothing else.
pub(super) fn parse_origin(text: &str) -> Result<Url, String> {
    let url = parse_registry(text)?;
    if matches!(url.path(), "" | "/") {
        return Ok(url);
    }
    Err(format!("{text:?}: the URL must end after the host and port"))
}

/// Reads a registry's URL: an origin, and perhaps a path that comes before every repository's name.
pub(super) fn parse_registry(text: &str) -> Result<Url, String> {
    let url: Url = text
        .parse()
        .map_err(|error| format!("{text:?} is not a URL, such as http://10.88.0.2:65011: {error}"))?;
    let problem = if !matches!(url.scheme(), "http" | "https") {
        "the URL must start with http:// or https://"
    } else if !url.username().is_empty() || url.password().is_some() {
        // Not repeated in the message: it goes to logs.
        return Err("the URL must not carry credentials".to_owned());
    } else if url.query().is_some() || url.fragment().is_some() {
        "the URL must have neither a query nor a fragment"
    } else {
        return Ok(url);
    };
    Err(format!("{text:?}: {problem}"))
}

/// The upstream of requests that name none, which must be among `upstreams`; the outer `None` is a problem.
#[expect(clippy::option_option, reason = "a problem is not the same as an absent default")]
pub(super) fn default_upstream(
    problems: &mut Problems,
    key: &str,
    name: Text,
    upstreams: Option<&[UpstreamConfig]>,
) -> Option<Option<String>> {
    let name = name.map(|name| name.to_ascii_lowercase());
    if let (Some(name), Some(upstreams)) = (&name, upstreams)
        && !upstreams.iter().any(|upstream| upstream.name == *name)
    {
        let names: Vec<&str> = upstreams.iter().map(|upstream| &*upstream.name).collect();
        problems.add(
            key,
            format!("{name:?} is not among the upstreams: {}", names.join(", ")),
        );
        return None;
    }
    Some(name)
}

/// The name of a pool or zone: what a Kubernetes label's value may be.
pub(super) fn label(problems: &mut Problems, key: &str, text: Text) -> Option<String> {
    let text = problems.require(key, text)?;
    let ends_well = |text: &str| text.starts_with(alphanumeric) && text.ends_with(alphanumeric);
    let inner = |character: char| alphanumeric(character) || matches!(character, '-' | '_' | '.');
    if text.len() > LABEL_BYTES_MAX || !ends_well(&text) || !text.chars().all(inner) {
        let rule = "is not 1 to 63 of letters, digits, '-', '_' and '.', with a letter or digit at both ends";
        problems.add(key, format!("{text:?} {rule}"));
        return None;
    }
    Some(text)
}

fn alphanumeric(character: char) -> bool {
    character.is_ascii_alphanumeric()
}

/// One of a few words.
pub(super) fn choice<T: Copy>(problems: &mut Problems, key: &str, text: Text, choices: &[(&str, T)]) -> Option<T> {
    let text = problems.require(key, text)?;
    let chosen = choices.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    if chosen.is_none() {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        problems.add(key, format!("{text:?} is not {}", words.join(" or ")));
    }
    chosen
}

/// A folder that is there or can be made. Empty: a temporary one.
pub(super) fn folder(problems: &mut Problems, key: &str, text: Text) -> Option<PathBuf> {
    let path = PathBuf::from(problems.require(key, text)?);
    if path.exists() && !path.is_dir() {
        problems.add(key, format!("{} is not a folder", path.display()));
        return None;
    }
    Some(path)
}

/// Reads a key file. One that others can read is a warning: the key may be known by now.
pub(super) fn key_file<K: FromStr<Err = ParseKeyError>>(problems: &mut Problems, key: &str, text: Text) -> Option<K> {
    let path = PathBuf::from(problems.require(key, text)?);
    let read = fs::read_to_string(&path).map_err(|error| format!("cannot read {}: {error}", path.display()));
    let text = problems.check(key, read)?;
    let read = text.parse().map_err(|error| format!("{}: {error}", path.display()));
    let value = problems.check(key, read)?;
    if is_readable_by_others(&path) {
        problems.warn(
            key,
            format!("{} can be read by other users; run chmod 600 on it", path.display()),
        );
    }
    Some(value)
}

/// Ids of nodes, or files of them with one a line and comments after `#`.
pub(super) fn nodes(problems: &mut Problems, key: &str, texts: Texts) -> Option<HashSet<NodeId>> {
    let texts = texts.unwrap_or_default();
    let nodes = all(texts.iter().map(|text| {
        let Some(path) = text.strip_prefix("file:") else {
            return problems.check(key, parse_node(text)).map(|node| vec![node]);
        };
        let read = fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"));
        let read = problems.check(key, read)?;
        let lines = read
            .lines()
            .map(|line| line.split('#').next().unwrap_or_default().trim());
        let nodes = lines.filter(|line| !line.is_empty()).map(|line| {
            let node = parse_node(line).map_err(|error| format!("{path}: {error}"));
            problems.check(key, node)
        });
        all(nodes)
    }))?;
    Some(nodes.into_iter().flatten().collect())
}

fn parse_node(text: &str) -> Result<NodeId, String> {
    text.parse()
        .map_err(|error| format!("{text:?}: {error}, as `piecemeal status` shows it"))
}

fn is_readable_by_others(path: &Path) -> bool {
    // systemd hands a credential to one user by an access list, whose mask stands where the group's rights are.
    let credentials = env::var_os("CREDENTIALS_DIRECTORY").filter(|dir| !dir.is_empty());
    let by_systemd = credentials.is_some_and(|dir| path.starts_with(dir));
    let others = if by_systemd { 0o007 } else { 0o077 };
    fs::metadata(path).is_ok_and(|metadata| metadata.mode() & others != 0)
}

/// A filter of log lines, as in `RUST_LOG`.
pub(super) fn log_filter(problems: &mut Problems, key: &str, text: Text) -> Option<String> {
    let text = problems.require(key, text)?;
    let read = EnvFilter::try_new(&text).map_err(|error| format!("{text:?} is not a filter, such as info: {error}"));
    problems.check(key, read).map(|_| text)
}

/// Notes every pair of settings that would bind one port twice. Port 0 is a new port each time.
pub(super) fn no_port_twice(problems: &mut Problems, bound: &[(&str, &[SocketAddr])]) {
    let all: Vec<(&str, SocketAddr)> = bound
        .iter()
        .flat_map(|(key, addresses)| addresses.iter().map(|address| (*key, *address)))
        .collect();
    for (index, (key, address)) in all.iter().enumerate() {
        if let Some((other_key, other)) = all[..index].iter().find(|(_, other)| overlap(address, other)) {
            problems.add(key, format!("{address} is taken by {other_key} {other}"));
        }
    }
}

fn overlap(one: &SocketAddr, other: &SocketAddr) -> bool {
    let same_family = one.is_ipv4() == other.is_ipv4();
    let same_ip = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
    one.port() == other.port() && one.port() != 0 && same_family && same_ip
}

/// Every value, or nothing; each item is looked at in any case, so that each problem is noted.
fn all<T>(values: impl Iterator<Item = Option<T>>) -> Option<Vec<T>> {
    let values: Vec<Option<T>> = values.collect();
    values.into_iter().collect()
}

const LABEL_BYTES_MAX: usize = 63;
