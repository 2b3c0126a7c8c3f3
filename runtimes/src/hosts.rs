//! containerd's hosts.toml, one for each name of a registry. Source: containerd's docs/hosts.md.
//!
//! `server` is where containerd goes last: the registry itself, so that a pull works while the peer is down. A host table is
//! always there, if only an empty one: containerd 1.6 takes a file without any for broken, and falls back to asking the name.
//!
//! A file that the administrator has written is kept byte for byte around two insertions: our first line, and our table before
//! the first of theirs, since containerd asks hosts in the order in which they stand. Taking the two out again is the way back,
//! whatever else was edited meanwhile.

use toml::{
    Spanned, Table, Value,
    de::{DeTable, DeValue},
};
use url::Url;

use crate::{
    edit::Edit,
    mark::{Mark, split_head},
    names::Registry,
};

/// Wanted content of one hosts.toml.
#[derive(Clone, Debug)]
pub(crate) struct Hosts<'a> {
    /// The name whose pulls it is about.
    pub name: &'a str,
    pub registry: &'a Registry,
    pub is_accelerated: bool,
    /// The port of the node's peer, if there is one.
    pub peer: Option<u16>,
    /// Trust settings of the registry: lines of [`trust`](crate::trust::trust).
    pub trust: &'a str,
}

impl Hosts<'_> {
    pub(crate) fn edit(&self, current: Option<&str>) -> Edit {
        let theirs = match current.map(|text| (Mark::of(text), text)) {
            None | Some((Some(Mark::Accelerated | Mark::Fallback | Mark::Original), _)) => None,
            Some((Some(Mark::Shared), text)) => match without_ours(text) {
                Some(theirs) => Some(theirs),
                None => return Edit::Leave(DAMAGED.to_owned()),
            },
            Some((None, text)) => Some(text.to_owned()),
        };
        let wanted = match (theirs, self.peer) {
            (None, _) => self.text(),
            // Their own file, without a peer: it is theirs alone.
            (Some(theirs), None) => theirs,
            (Some(theirs), Some(port)) => match with_ours(&theirs, port) {
                Ok(text) => text,
                Err(why) => return Edit::Leave(why),
            },
        };
        Edit::to(wanted, current)
    }

    fn text(&self) -> String {
        let mark = match (self.is_accelerated, self.peer) {
            (true, Some(_)) => Mark::Accelerated,
            (true, None) => Mark::Fallback,
            (false, _) => Mark::Original,
        };
        let about = if self.is_accelerated {
            format!("# {} stands for {}.\n", self.name, self.registry.name)
        } else {
            format!("# {}\n", self.name)
        };
        let server = server(&self.registry.url);
        // With an authority to trust, containerd would try TLS at a registry of plain HTTP.
        let trust = if self.registry.url.scheme() == "https" {
            self.trust
        } else {
            ""
        };
        let table = self.peer.map_or_else(|| EMPTY_TABLE.to_owned(), peer_table);
        format!("{}{about}{server}{trust}\n{table}", mark.line())
    }
}

/// The way back for one hosts.toml. An accelerated name keeps its way to the registry, for pods that still have the name,
/// unless `purge` says otherwise.
pub(crate) fn take_back(current: &str, purge: bool) -> Edit {
    match Mark::of(current) {
        None => Edit::Nothing,
        Some(Mark::Fallback) if !purge => Edit::Nothing,
        Some(Mark::Accelerated) if !purge => fallback(current).map_or(Edit::Delete, Edit::Write),
        Some(Mark::Accelerated | Mark::Fallback | Mark::Original) => Edit::Delete,
        Some(Mark::Shared) => without_ours(current).map_or_else(|| Edit::Leave(DAMAGED.to_owned()), Edit::Write),
    }
}

/// One of our files with the peer taken out; none when it no longer says where the registry is.
fn fallback(current: &str) -> Option<String> {
    let mut table: Table = current.parse().ok()?;
    table.get("server")?;
    table.remove("host");
    let about = current.lines().nth(1).filter(|line| line.starts_with('#'))?;
    Some(format!("{}{about}\n{table}\n{EMPTY_TABLE}", Mark::Fallback.line()))
}

/// The administrator's file with our two insertions.
///
/// # Errors
/// Says why it has to be done by hand.
fn with_ours(theirs: &str, port: u16) -> Result<String, String> {
    let url = peer_url(port);
    let parsed: Table = theirs
        .parse()
        .map_err(|error: toml::de::Error| format!("is not TOML, so that containerd ignores it: {}", error.message()))?;
    let hosts = parsed.get("host").and_then(Value::as_table);
    if hosts.is_some_and(|hosts| hosts.contains_key(&url)) {
        return Err(format!("already leads to {url}, by a setting of yours"));
    }
    let (before, after) = theirs.split_at(first_host(theirs));
    let begin = if before.is_empty() || before.ends_with('\n') {
        BEGIN.to_owned()
    } else {
        format!("\n{BEGIN_AFTER_OPEN_LINE}")
    };
    let (head, before) = split_head(before);
    let text = format!(
        "{head}{}{before}{begin}{}{END}{after}",
        Mark::Shared.line(),
        peer_table(port)
    );
    // A host that is written as a key of its own, and not as a table, is before any table.
    let has_none_before = !before.parse::<Table>().is_ok_and(|before| has_hosts(&before));
    if has_none_before && adds_only(&text, &parsed, &url) && without_ours(&text).as_deref() == Some(theirs) {
        Ok(text)
    } else {
        Err(format!(
            "cannot be extended automatically; add this before its first host:\n{}",
            peer_table(port)
        ))
    }
}

fn has_hosts(table: &Table) -> bool {
    table
        .get("host")
        .and_then(Value::as_table)
        .is_some_and(|hosts| !hosts.is_empty())
}

/// Whether `text` equals `theirs` with the host `url` added.
fn adds_only(text: &str, theirs: &Table, url: &str) -> bool {
    let Ok(mut table) = text.parse::<Table>() else {
        return false;
    };
    let is_there = table
        .get_mut("host")
        .and_then(Value::as_table_mut)
        .and_then(|hosts| hosts.remove(url));
    if !theirs.contains_key("host") && !has_hosts(&table) {
        table.remove("host");
    }
    is_there.is_some() && table == *theirs
}

/// The beginning of the line with the first table of a host; the end when there is none.
fn first_host(text: &str) -> usize {
    let document = DeTable::parse(text).ok();
    let hosts = document.as_ref().and_then(|document| document.get_ref().get("host"));
    let hosts = hosts.and_then(|hosts| hosts.get_ref().as_table());
    let first = hosts.into_iter().flat_map(DeTable::values).map(first_header).min();
    first.map_or(text.len(), |at| text[..at].rfind('\n').map_or(0, |end| end + 1))
}

/// The beginning of a host's first header: its own, or that of a table in it, which may stand before.
fn first_header(host: &Spanned<DeValue<'_>>) -> usize {
    let inner = host.get_ref().as_table().into_iter().flat_map(DeTable::values);
    inner
        .map(|table| table.span().start)
        .fold(host.span().start, usize::min)
}

/// The administrator's file as it was; none when our insertions are not whole any more.
fn without_ours(text: &str) -> Option<String> {
    let (head, text) = split_head(text);
    let (_, rest) = text.split_once('\n')?;
    let (before, rest) = rest.split_once(BEGIN_WORDS)?;
    let (about, rest) = rest.split_once('\n')?;
    let (_, after) = rest.split_once(END)?;
    let before = if about == AFTER_OPEN_LINE {
        before.strip_suffix('\n')?
    } else {
        before
    };
    Some(format!("{head}{before}{after}"))
}

/// The key `server`. A path of an upstream comes before the repository's name, which containerd has to be told.
fn server(url: &Url) -> String {
    let at = url.origin().ascii_serialization();
    match url.path().trim_end_matches('/') {
        "" => format!("server = \"{at}\"\n"),
        path => format!("server = \"{at}/v2{path}\"\noverride_path = true\n"),
    }
}

fn peer_table(port: u16) -> String {
    format!(
        "[host.\"{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
        peer_url(port)
    )
}

/// Plain HTTP on loopback; without `skip_verify` or `ca`, so that containerd does not try TLS first.
pub(crate) fn peer_url(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

const EMPTY_TABLE: &str = "[host]\n";
const BEGIN_WORDS: &str = "# piecemeal node begins";
const BEGIN: &str = "# piecemeal node begins\n";
const AFTER_OPEN_LINE: &str = " (the line above had no end)";
const BEGIN_AFTER_OPEN_LINE: &str = "# piecemeal node begins (the line above had no end)\n";
const END: &str = "# piecemeal node ends\n";
const DAMAGED: &str = "has edited marks of piecemeal node, which therefore cannot tell its own lines from yours; \
    remove the line and the host that name piecemeal";

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::edit::written;

    fn registry(name: &str, url: &str) -> Registry {
        Registry {
            name: name.to_owned(),
            url: url.parse().unwrap(),
        }
    }

    fn accelerated(registry: &Registry, peer: Option<u16>) -> Hosts<'_> {
        Hosts {
            name: "docker.io.piecemeal.internal:65001",
            registry,
            is_accelerated: true,
            peer,
            trust: "",
        }
    }

    #[test]
    fn a_written_file_names_the_registry_and_the_peer_and_always_has_a_host_table() {
        let docker = registry("docker.io", "https://registry-1.docker.io");
        let with_peer = written(accelerated(&docker, Some(65001)).edit(None));
        assert!(
            with_peer.ends_with(
                "# docker.io.piecemeal.internal:65001 stands for docker.io.\nserver = \"https://registry-1.docker.io\"\n\n\
                 [host.\"http://127.0.0.1:65001\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
            ),
            "{with_peer}"
        );
        let without = written(accelerated(&docker, None).edit(None));
        assert!(
            without.ends_with("server = \"https://registry-1.docker.io\"\n\n[host]\n"),
            "{without}"
        );
        // Again changes nothing, and each becomes the other.
        assert_eq!(accelerated(&docker, Some(65001)).edit(Some(&with_peer)), Edit::Nothing);
        assert_eq!(
            accelerated(&docker, None).edit(Some(&with_peer)),
            Edit::Write(without.clone())
        );
        assert_eq!(
            accelerated(&docker, Some(65001)).edit(Some(&without)),
            Edit::Write(with_peer.clone())
        );
        // Taking it back leaves the way to the registry, and purging leaves nothing.
        let left = written(take_back(&with_peer, false));
        assert_eq!(left.parse::<Table>().unwrap(), without.parse::<Table>().unwrap());
        assert_eq!(Mark::of(&left), Some(Mark::Fallback));
        assert_eq!(take_back(&left, false), Edit::Nothing);
        assert_eq!(take_back(&left, true), Edit::Delete);
        assert_eq!(take_back(&with_peer, true), Edit::Delete);
    }

    #[test]
    fn the_path_of_an_upstream_comes_before_the_repository() {
        let cases = [
            ("https://a.io", "server = \"https://a.io\"\n"),
            ("http://10.0.0.1:5000/", "server = \"http://10.0.0.1:5000\"\n"),
            (
                "https://a.io/docker.io",
                "server = \"https://a.io/v2/docker.io\"\noverride_path = true\n",
            ),
        ];
        for (url, expected) in cases {
            assert_eq!(server(&url.parse().unwrap()), expected);
        }
    }

    const MARKED: &str = "[host.\"http://127.0.0.1:65001\"]\n  capabilities = [\"pull\", \"resolve\"]\n";

    #[test]
    fn our_host_comes_before_theirs_and_their_server_stays() {
        let cases = [
            ("server = \"https://s\"\n\n", "[host.\"https://m\"]\n  ca = \"x\"\n"),
            (
                "# why\nserver = \"https://s\"\n[host]\n",
                "  [ host . \"https://m\" ]\n",
            ),
            (
                "",
                "[host.'https://m']\n[host.'https://m'.header]\nx = \"\"\"\n[host.\"no\"]\n\"\"\"\n",
            ),
            (
                "server = \"\"\"https://s\n[host.\"no\"]\n\"\"\"\n",
                "[host.\"https://m\"]",
            ),
            ("\u{feff}server = \"https://s\"\r\n", "[host.\"https://m\"]\r\n"),
            ("server = \"https://s\"", ""),
            (
                "server = \"https://s\"\n",
                "[host.'https://m'.header]\nx = \"y\"\n[host.'https://m']\n",
            ),
            (
                "# File generated by k3s. DO NOT EDIT.\n\nserver = \"https://s\"\n[host]\n",
                "[host.\"https://m\"]\n",
            ),
            ("", ""),
        ];
        for (top, hosts) in cases {
            let theirs = format!("{top}{hosts}");
            let text = with_ours(&theirs, 65001).unwrap_or_else(|why| panic!("{theirs:?}: {why}"));
            assert_eq!(Mark::of(&text), Some(Mark::Shared));
            if top.starts_with("# File generated") {
                assert_eq!(
                    text.lines().next(),
                    top.lines().next(),
                    "K3s knows its files by their first line"
                );
            }
            let (before, after) = text.split_once(MARKED).expect("our table");
            assert!(before.contains(split_head(top).1), "{text}");
            assert!(after.ends_with(hosts), "{text}");
            assert_eq!(take_back(&text, false), Edit::Write(theirs.clone()));
            let docker = registry("docker.io", "https://registry-1.docker.io");
            let hosts = Hosts {
                is_accelerated: false,
                ..accelerated(&docker, Some(65001))
            };
            assert_eq!(hosts.edit(Some(&text)), Edit::Nothing);
            assert_eq!(hosts.edit(Some(&theirs)), Edit::Write(text));
        }
    }

    #[test]
    fn what_they_edit_around_our_part_is_kept() {
        let text = with_ours("server = \"https://s\"\n[host.\"https://m\"]\n", 65001).unwrap();
        let edited = text
            .replace("https://m", "https://n")
            .replace("server", "# new\nserver");
        assert_eq!(
            take_back(&edited, true),
            Edit::Write("# new\nserver = \"https://s\"\n[host.\"https://n\"]\n".to_owned())
        );
    }

    #[test]
    fn what_cannot_be_added_to_is_left_with_a_reason() {
        let cases = [
            ("server = ", "is not TOML"),
            ("host = {}\n", "add this before its first host"),
            ("host.\"https://m\".ca = \"x\"\n", "add this before its first host"),
            ("[host.\"http://127.0.0.1:65001\"]\n", "by a setting of yours"),
        ];
        for (theirs, why) in cases {
            let said = with_ours(theirs, 65001).expect_err(theirs);
            assert!(said.contains(why), "{theirs}: {said}");
        }
        let damaged = with_ours("server = \"https://s\"\n", 65001)
            .unwrap()
            .replace("ends", "end");
        assert!(matches!(take_back(&damaged, true), Edit::Leave(_)));
    }

    /// Files as administrators write them, and malformed ones.
    fn theirs() -> impl Strategy<Value = String> {
        let line = prop_oneof![
            Just("server = \"https://s\"".to_owned()),
            Just("# piecemeal node is not mentioned".to_owned()),
            Just("skip_verify = true".to_owned()),
            Just(String::new()),
            Just("[host]".to_owned()),
            Just("  capabilities = [\"pull\",".to_owned()),
            Just("  \"resolve\"]".to_owned()),
            Just("'''".to_owned()),
            "[a-c]".prop_map(|name| format!("[host.\"https://{name}\"]")),
            "[a-c]".prop_map(|name| format!("  [host.'https://{name}'.header]")),
        ];
        let end = prop_oneof![Just("\n"), Just("\r\n"), Just("\n\n")];
        let lines = proptest::collection::vec((line, end), 0..8);
        (lines, any::<bool>()).prop_map(|(lines, is_open)| {
            let text: String = lines.into_iter().map(|(line, end)| line + end).collect();
            if is_open { text.trim_end().to_owned() } else { text }
        })
    }

    proptest! {
        #[test]
        fn whatever_we_add_to_is_restored_byte_for_byte(theirs in theirs()) {
            if let Ok(text) = with_ours(&theirs, 65001) {
                prop_assert_eq!(take_back(&text, false), Edit::Write(theirs.clone()));
                let parsed: Table = theirs.parse().unwrap();
                prop_assert!(adds_only(&text, &parsed, &peer_url(65001)));
            }
        }
    }
}
