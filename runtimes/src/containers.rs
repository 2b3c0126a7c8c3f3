//! registries.conf of containers/image, which CRI-O, podman, buildah and skopeo read. Source: containers-registries.conf(5).
//!
//! They tell a mirror no `ns=`, and show it credentials only after a ping that asks for them: so the mirror of a registry is its
//! accelerated name, where that leads to this machine. Elsewhere the registry stands in the mirror's path, and its private images are
//! pulled past the peer. They need `insecure` for plain HTTP even on loopback. Ours are drop-ins: the administrator's own files are never touched, and what those say about a registry wins.

use std::collections::BTreeSet;

use toml::{Table, Value};

use crate::{edit::Edit, mark::Mark, names::Registry};

/// The folder that drop-ins are read from, in the order of their names.
pub(crate) const DROP_INS: &str = "/etc/containers/registries.conf.d";
pub(crate) const MAIN: &str = "/etc/containers/registries.conf";
pub(crate) const ACCELERATED_FILE: &str = "50-piecemeal-accelerated.conf";
pub(crate) const ORIGINAL_FILE: &str = "50-piecemeal-mirror.conf";

/// A registry and the place of its mirror at the node's peer: `host` or `host/path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirrored {
    pub registry: Registry,
    pub mirror: String,
}

/// The mirror of a registry at the node's peer. `accelerated`: the accelerated name, where that leads to this machine.
pub(crate) fn mirror(registry: &str, port: u16, accelerated: Option<String>) -> String {
    // In a path a port is written `__5000`, since a colon has no place there.
    accelerated.unwrap_or_else(|| format!("127.0.0.1:{port}/{}", registry.replace(':', "__")))
}

/// The drop-in for accelerated names: name and registry each. Without any there is none.
pub(crate) fn edit_accelerated(names: &[(String, Mirrored)], has_peer: bool, current: Option<&str>) -> Edit {
    let mark = if has_peer { Mark::Accelerated } else { Mark::Fallback };
    let entry = |(name, at): &(String, Mirrored)| entry(name, at, &location(&at.registry), has_peer);
    edit(mark, names.iter().map(entry).collect(), current)
}

/// The drop-in for registries' own names.
pub(crate) fn edit_original(registries: &[Mirrored], has_peer: bool, current: Option<&str>) -> Edit {
    // Its own name leads to the registry without any help.
    let registries = if has_peer { registries } else { &[] };
    let entry = |at: &Mirrored| entry(&at.registry.name, at, &at.registry.name, has_peer);
    edit(Mark::Original, registries.iter().map(entry).collect(), current)
}

fn edit(mark: Mark, entries: Vec<String>, current: Option<&str>) -> Edit {
    match (entries.is_empty(), current.map(Mark::of)) {
        (true, None | Some(None)) => Edit::Nothing,
        (true, Some(Some(_))) => Edit::Delete,
        (false, Some(None)) => {
            Edit::Leave("has the name of a file of Piecemeal and was not written by it; rename it".to_owned())
        }
        (false, _) => Edit::to(format!("{}{}", mark.line(), entries.concat()), current),
    }
}

/// The way back for one drop-in.
pub(crate) fn take_back(current: &str, purge: bool) -> Edit {
    match Mark::of(current) {
        None => Edit::Nothing,
        Some(Mark::Fallback) if !purge => Edit::Nothing,
        Some(Mark::Accelerated) if !purge => without_mirrors(current).map_or(Edit::Delete, Edit::Write),
        Some(_) => Edit::Delete,
    }
}

fn without_mirrors(current: &str) -> Option<String> {
    let mut table: Table = current.parse().ok()?;
    for registry in table.get_mut("registry")?.as_array_mut()? {
        registry.as_table_mut()?.remove("mirror")?;
    }
    Some(format!("{}\n{table}", Mark::Fallback.line()))
}

fn entry(prefix: &str, at: &Mirrored, location: &str, has_peer: bool) -> String {
    let mut text = format!("\n[[registry]]\nprefix = \"{prefix}\"\nlocation = \"{location}\"\n");
    if at.registry.url.scheme() == "http" {
        text += "insecure = true\n";
    }
    if has_peer {
        text += &format!("\n[[registry.mirror]]\nlocation = \"{}\"\ninsecure = true\n", at.mirror);
    }
    text
}

/// The address of the registry itself, without a scheme.
fn location(registry: &Registry) -> String {
    let url = registry.url.as_str();
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.trim_end_matches('/').to_owned()
}

/// Registries that the administrator's files configure. Files with our mark do not count.
pub(crate) fn configured<'a>(files: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    let theirs = files.filter(|text| Mark::of(text).is_none());
    let tables = theirs.filter_map(|text| text.parse::<Table>().ok());
    let registries = tables
        .filter_map(|table| table.get("registry").and_then(Value::as_array).cloned())
        .flatten();
    let name = |registry: Value| {
        let key = |key: &str| registry.get(key).and_then(Value::as_str).map(str::to_owned);
        key("prefix").or_else(|| key("location"))
    };
    registries.filter_map(name).collect()
}

/// Whether the main file is of the first version of its format, beside which no drop-in of today is allowed.
pub(crate) fn is_first_version(main: &str) -> bool {
    let table: Table = main.parse().unwrap_or_default();
    table.get("registries").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edit::written;

    fn mirrored(name: &str, url: &str, accelerated: Option<&str>) -> Mirrored {
        Mirrored {
            mirror: mirror(name, 65001, accelerated.map(str::to_owned)),
            registry: Registry {
                name: name.to_owned(),
                url: url.parse().unwrap(),
            },
        }
    }

    #[test]
    fn an_accelerated_name_has_the_registry_as_its_location_and_the_peer_as_its_mirror() {
        let name = "reg.test.5000.piecemeal.internal:65001";
        for (accelerated, mirror) in [(None, "127.0.0.1:65001/reg.test__5000"), (Some(name), name)] {
            let names = [(
                name.to_owned(),
                mirrored("reg.test:5000", "http://10.99.0.2:5000/x/", accelerated),
            )];
            let text = written(edit_accelerated(&names, true, None));
            let expected = format!(
                "\n[[registry]]\nprefix = \"{name}\"\nlocation = \"10.99.0.2:5000/x\"\n\
                 insecure = true\n\n[[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n"
            );
            assert!(text.ends_with(&expected), "{text}");
            assert_eq!(edit_accelerated(&names, true, Some(&text)), Edit::Nothing);

            let without: Table = written(edit_accelerated(&names, false, Some(&text))).parse().unwrap();
            let left = written(take_back(&text, false));
            assert_eq!(left.parse::<Table>().unwrap(), without);
            assert_eq!(take_back(&left, false), Edit::Nothing);
            assert_eq!(take_back(&left, true), Edit::Delete);
        }
    }

    #[test]
    fn a_registry_s_own_name_stays_its_location() {
        let docker = [mirrored("docker.io", "https://registry-1.docker.io", None)];
        let text = written(edit_original(&docker, true, None));
        assert!(
            text.contains("prefix = \"docker.io\"\nlocation = \"docker.io\"\n\n[[registry.mirror]]"),
            "{text}"
        );
        assert_eq!(edit_original(&docker, false, Some(&text)), Edit::Delete);
        assert_eq!(edit_original(&[], true, Some(&text)), Edit::Delete);
        assert_eq!(take_back(&text, false), Edit::Delete);
    }

    #[test]
    fn a_file_that_is_not_ours_is_left_alone() {
        let docker = [mirrored("docker.io", "https://registry-1.docker.io", None)];
        assert!(matches!(edit_original(&docker, true, Some("# mine\n")), Edit::Leave(_)));
        assert_eq!(edit_original(&[], true, Some("# mine\n")), Edit::Nothing);
        assert_eq!(take_back("# mine\n", true), Edit::Nothing);
    }

    #[test]
    fn what_the_administrator_has_said_about_a_registry_is_known() {
        let ours = format!("{}[[registry]]\nprefix = \"ours.io\"\n", Mark::Original.line());
        let files = [
            "[[registry]]\nlocation = \"a.io\"\n",
            "[[registry]]\nprefix = \"b.io\"\nlocation = \"c.io\"\n",
            "=",
            &ours,
        ];
        let known: Vec<String> = configured(files.into_iter()).into_iter().collect();
        assert_eq!(known, ["a.io", "b.io"]);
        assert!(is_first_version("[registries.search]\nregistries = [\"docker.io\"]\n"));
        assert!(!is_first_version("unqualified-search-registries = [\"docker.io\"]\n"));
    }
}
