//! /etc/hosts: the addresses of accelerated names, for runtimes that look up the host of a mirror. Source: hosts(5).
//!
//! CRI-O and podman tell a mirror which registry is meant by nothing but its host and path, and show it credentials for its host. So
//! the host of a registry's mirror is its accelerated name, which leads to this machine. The administrator's lines stay, byte for byte,
//! after ours.

use std::collections::BTreeSet;

use crate::{edit::Edit, mark::Mark};

pub(crate) const FILE: &str = "/etc/hosts";
/// The address of the node's peer.
const PEER: &str = "127.0.0.1";
/// The end of each of our lines.
const OURS: &str = " # piecemeal node";

/// The edit that leads these hosts, and no others, to the node's peer.
pub(crate) fn edit(hosts: &BTreeSet<String>, current: Option<&str>) -> Edit {
    let Some(current) = current else {
        return match hosts.is_empty() {
            true => Edit::Nothing,
            false => Edit::Leave(
                "is missing, so that no name leads to the peer; make it, with a line for localhost".to_owned(),
            ),
        };
    };
    let theirs = without_ours(current);
    let wanted = match hosts.is_empty() {
        true => theirs.to_owned(),
        false => format!("{}{}{theirs}", Mark::Shared.line(), lines(hosts)),
    };
    Edit::to(wanted, Some(current))
}

/// The way back.
pub(crate) fn take_back(current: &str) -> Edit {
    edit(&BTreeSet::new(), Some(current))
}

/// Whether the host leads to this machine.
pub(crate) fn leads_here(text: &str, host: &str) -> bool {
    text.lines().any(|line| {
        let mut fields = line.split('#').next().unwrap_or_default().split_ascii_whitespace();
        fields.next() == Some(PEER) && fields.any(|name| name == host)
    })
}

/// A line for each: some readers take a long line for broken.
fn lines(hosts: &BTreeSet<String>) -> String {
    hosts.iter().map(|host| format!("{PEER} {host}{OURS}\n")).collect()
}

fn without_ours(text: &str) -> &str {
    let Some(mut rest) = text.strip_prefix(&Mark::Shared.line()) else {
        return text;
    };
    while let Some((line, after)) = rest.split_once('\n')
        && line.ends_with(OURS)
    {
        rest = after;
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::written;

    const THEIRS: &str = "127.0.0.1 localhost\n10.0.0.1 reg.test # ours";

    fn hosts(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn our_lines_come_first_and_go_without_a_trace() {
        let both = hosts(&["a.io.piecemeal.internal", "b.io.piecemeal.internal"]);
        let text = written(edit(&both, Some(THEIRS)));
        let expected =
            "127.0.0.1 a.io.piecemeal.internal # piecemeal node\n127.0.0.1 b.io.piecemeal.internal # piecemeal node\n";
        assert_eq!(text, format!("{}{expected}{THEIRS}", Mark::Shared.line()));
        assert_eq!(edit(&both, Some(&text)), Edit::Nothing);
        assert!(leads_here(&text, "b.io.piecemeal.internal"));
        let fewer = written(edit(&hosts(&["b.io.piecemeal.internal"]), Some(&text)));
        assert!(!leads_here(&fewer, "a.io.piecemeal.internal"));
        assert_eq!(take_back(&fewer), Edit::Write(THEIRS.to_owned()));
        assert_eq!(take_back(THEIRS), Edit::Nothing);
    }

    #[test]
    fn a_node_without_the_file_is_told_and_gets_none() {
        assert!(matches!(
            edit(&hosts(&["a.io.piecemeal.internal"]), None),
            Edit::Leave(_)
        ));
        assert_eq!(edit(&BTreeSet::new(), None), Edit::Nothing);
        let empty = written(edit(&hosts(&["a"]), Some("")));
        assert_eq!(take_back(&empty), Edit::Write(String::new()));
    }

    #[test]
    fn lines_that_were_added_between_ours_stay() {
        let text = written(edit(&hosts(&["a", "b"]), Some(THEIRS)));
        let edited = text.replace(
            "127.0.0.1 b # piecemeal node\n",
            "10.0.0.9 new.test\n127.0.0.1 b # piecemeal node\n",
        );
        let left = written(take_back(&edited));
        assert!(
            left.starts_with("10.0.0.9 new.test\n") && left.ends_with(THEIRS),
            "{left}"
        );
    }

    #[test]
    fn only_a_line_of_this_machine_leads_here() {
        let text = "127.0.0.1\tlocalhost x.test\n10.0.0.1 y.test\n#127.0.0.1 z.test\n127.0.0.1 w.test#v.test\n";
        let found =
            ["localhost", "x.test", "y.test", "z.test", "w.test", "v.test", "test"].map(|host| leads_here(text, host));
        assert_eq!(found, [true, true, false, false, true, false, false]);
    }
}
