//! Docker's daemon.json, whose `registry-mirrors` are for Docker Hub alone. Source: Docker's documentation of dockerd.
//!
//! JSON has no comments: our only mark there is the address of the node's peer as the first mirror. It is inserted into the text
//! and taken out of it, so that every other byte stays as the administrator wrote it.

use serde::Deserialize;
use serde_json::{Value, value::RawValue};

use crate::{edit::Edit, hosts::peer_url};

pub(crate) const FILE: &str = "/etc/docker/daemon.json";
/// The only registry that Docker has mirrors for.
pub(crate) const REGISTRY: &str = "docker.io";

/// Files in which systemd and distributions keep dockerd's arguments.
pub(crate) const STARTED_BY: [&str; 5] = [
    "/etc/systemd/system/docker.service",
    "/usr/lib/systemd/system/docker.service",
    "/lib/systemd/system/docker.service",
    "/etc/default/docker",
    "/etc/sysconfig/docker",
];
/// Folders of `.conf` files that change the unit.
pub(crate) const DROP_INS: [&str; 3] = [
    "/etc/systemd/system/docker.service.d",
    "/usr/lib/systemd/system/docker.service.d",
    "/run/systemd/system/docker.service.d",
];

/// Whether an argument of dockerd's names a mirror: with one in daemon.json, too, dockerd does not start.
pub(crate) fn is_mirror_flag(argument: &str) -> bool {
    matches!(
        argument.split('=').next(),
        Some("--registry-mirror" | "-registry-mirror")
    )
}

#[derive(Deserialize)]
struct Mirrors<'a> {
    #[serde(borrow, rename = "registry-mirrors")]
    mirrors: Option<&'a RawValue>,
}

/// The edit that makes the peer Docker Hub's first mirror, in place of a mirror that an earlier port left there.
pub(crate) fn edit(port: u16, before: Option<u16>, current: Option<&str>) -> Edit {
    let (Some(before), Some(text)) = (before.filter(|before| *before != port), current) else {
        return add(port, current);
    };
    match take_back(before, text) {
        Edit::Nothing => add(port, current),
        Edit::Delete => add(port, None),
        Edit::Leave(why) => Edit::Leave(why),
        Edit::Write(without) => match add(port, Some(&without)) {
            Edit::Nothing => Edit::Write(without),
            edit => edit,
        },
    }
}

/// Whether a peer at one of these ports is in the text.
pub(crate) fn has_peer(ports: &[u16], text: &str) -> bool {
    let mirrors = place(text).map(|(_, mirrors)| mirrors).unwrap_or_default();
    ports.iter().any(|port| mirrors.contains(&peer_url(*port)))
}

fn add(port: u16, current: Option<&str>) -> Edit {
    let url = peer_url(port);
    let Some(text) = current.filter(|text| !text.trim().is_empty()) else {
        return Edit::Write(alone(&url));
    };
    let Some((place, mirrors)) = place(text) else {
        return Edit::Leave(
            "is not an object of JSON with a list as its \"registry-mirrors\"; Docker does not start with it"
                .to_owned(),
        );
    };
    if mirrors.contains(&url) {
        return Edit::Nothing;
    }
    let is_last = match place {
        Place::List(_) => mirrors.is_empty(),
        Place::Object(_) => matches!(serde_json::from_str(text), Ok(Value::Object(keys)) if keys.is_empty()),
    };
    let (before, after) = text.split_at(place.offset());
    Edit::Write(format!("{before}{}{after}", addition(&url, place, is_last)))
}

/// The file without the peer at this port.
pub(crate) fn take_back(port: u16, current: &str) -> Edit {
    let url = peer_url(port);
    if current == alone(&url) {
        return Edit::Delete;
    }
    let Some((at, mirrors)) = place(current) else {
        return Edit::Nothing;
    };
    if !mirrors.contains(&url) {
        return Edit::Nothing;
    }
    // What was put in stands where it would be put again, and taking it out leaves the same document without it.
    for place in [Place::Object(object_start(current)), at] {
        let ours_alone = [alone_entry(&url), format!("{},", alone_entry(&url))];
        let added = [true, false].map(|is_last| addition(&url, place, is_last));
        let from = place.offset();
        for ours in added.iter().chain(&ours_alone) {
            if current[from..].starts_with(ours.as_str()) {
                let text = format!("{}{}", &current[..from], &current[from + ours.len()..]);
                if is_without(&text, current, &url) {
                    return Edit::Write(text);
                }
            }
        }
    }
    Edit::Leave(format!(
        "has {url} in its \"registry-mirrors\" in another form than piecemeal node wrote; remove it by hand"
    ))
}

#[derive(Clone, Copy)]
enum Place {
    /// After the brace: there is no list yet.
    Object(usize),
    /// After the list's bracket.
    List(usize),
}

impl Place {
    fn offset(self) -> usize {
        match self {
            Self::Object(at) | Self::List(at) => at,
        }
    }
}

/// The place of the first mirror, and the mirrors that there are.
fn place(text: &str) -> Option<(Place, Vec<String>)> {
    let parsed: Mirrors<'_> = serde_json::from_str(text).ok()?;
    let Some(list) = parsed.mirrors else {
        return Some((Place::Object(object_start(text)), Vec::new()));
    };
    let mirrors = serde_json::from_str(list.get()).ok()?;
    // A raw value is a part of the text that it was read from.
    let at = list.get().as_ptr() as usize - text.as_ptr() as usize;
    Some((Place::List(at + 1), mirrors))
}

fn object_start(text: &str) -> usize {
    text.find('{').map_or(0, |brace| brace + 1)
}

/// `is_last`: nothing comes after it in its list or object.
fn addition(url: &str, place: Place, is_last: bool) -> String {
    match place {
        Place::List(_) if is_last => format!("\"{url}\""),
        Place::List(_) => format!("\"{url}\", "),
        // Not spaced as one that is put into a list can be: a list of theirs that is empty stays.
        Place::Object(_) => format!(
            "\n  \"registry-mirrors\": [ \"{url}\"]{}",
            if is_last { "" } else { "," }
        ),
    }
}

/// Whether `text` equals `before` without the mirror `url`. A list that becomes empty may be absent.
fn is_without(text: &str, before: &str, url: &str) -> bool {
    let (Ok(text), Ok(mut wanted)) = (
        serde_json::from_str::<Value>(text),
        serde_json::from_str::<Value>(before),
    ) else {
        return false;
    };
    let Some(mirrors) = wanted.get_mut("registry-mirrors").and_then(Value::as_array_mut) else {
        return false;
    };
    mirrors.retain(|mirror| mirror != url);
    let is_empty = mirrors.is_empty();
    if text == wanted {
        return true;
    }
    if is_empty && let Some(keys) = wanted.as_object_mut() {
        keys.remove("registry-mirrors");
    }
    text == wanted
}

/// The file where there was none.
fn alone(url: &str) -> String {
    format!("{{{}\n}}\n", alone_entry(url))
}

/// Spaced as nothing that is added to a file is, so that the two can be told apart.
fn alone_entry(url: &str) -> String {
    format!("\n  \"registry-mirrors\": [ \"{url}\" ]")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_peer_becomes_the_first_mirror_and_every_other_byte_stays() {
        let cases = [
            ("{}", vec!["http://127.0.0.1:65001"]),
            (
                "{ \"debug\" : true,\n\n \"hosts\": [\"a\"] }",
                vec!["http://127.0.0.1:65001"],
            ),
            ("{\"registry-mirrors\": []}", vec!["http://127.0.0.1:65001"]),
            ("{\n  \"registry-mirrors\": []}", vec!["http://127.0.0.1:65001"]),
            (
                "{\"debug\": true, \"registry-mirrors\" : [ \"https://m\" ],\"x\": {\"registry-mirrors\": 1}}\n",
                vec!["http://127.0.0.1:65001", "https://m"],
            ),
        ];
        for (theirs, mirrors) in cases {
            let Edit::Write(text) = edit(65001, None, Some(theirs)) else {
                panic!("{theirs}")
            };
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(value["registry-mirrors"], serde_json::json!(mirrors), "{text}");
            assert_eq!(edit(65001, None, Some(&text)), Edit::Nothing, "{text}");
            assert_eq!(take_back(65001, &text), Edit::Write(theirs.to_owned()), "{text}");
        }
    }

    #[test]
    fn a_file_that_we_made_goes_and_one_without_us_stays() {
        let Edit::Write(text) = edit(65001, None, None) else {
            panic!()
        };
        assert_eq!(take_back(65001, &text), Edit::Delete);
        assert_eq!(take_back(65002, &text), Edit::Nothing);
        let edited = text.replace(" ]", " ],\n  \"debug\": true");
        assert_eq!(
            take_back(65001, &edited),
            Edit::Write("{\n  \"debug\": true\n}\n".to_owned())
        );
        assert_eq!(take_back(65001, "{\"debug\": true}"), Edit::Nothing);
        assert!(matches!(edit(65001, None, Some("[")), Edit::Leave(_)));
        assert!(matches!(
            edit(65001, None, Some("{\"registry-mirrors\": 1}")),
            Edit::Leave(_)
        ));
        assert!(matches!(
            take_back(65001, "{\"registry-mirrors\": [\"x\", \"http://127.0.0.1:65001\"]}"),
            Edit::Leave(_)
        ));
    }

    #[test]
    fn a_port_that_was_changed_leaves_nothing_of_the_old_one() {
        for theirs in [
            None,
            Some("{\"debug\": true}"),
            Some("{\"registry-mirrors\": [\"https://m\"]}"),
        ] {
            let Edit::Write(old) = edit(65001, None, theirs) else {
                panic!()
            };
            let Edit::Write(new) = edit(65009, Some(65001), Some(&old)) else {
                panic!()
            };
            assert_eq!(edit(65009, None, theirs), Edit::Write(new.clone()));
            assert_eq!(edit(65009, Some(65009), Some(&new)), Edit::Nothing);
            assert!(has_peer(&[1, 65009], &new) && !has_peer(&[65001], &new));
        }
    }

    #[test]
    fn a_mirror_that_is_a_flag_is_known_however_it_is_written() {
        for argument in [
            "--registry-mirror",
            "--registry-mirror=https://m",
            "-registry-mirror=https://m",
        ] {
            assert!(is_mirror_flag(argument));
        }
        assert!(!is_mirror_flag("--registry-mirrors-are-nice"));
    }

    /// Documents as people and programs write them, with white space anywhere.
    fn theirs() -> impl Strategy<Value = String> {
        let space = || proptest::string::string_regex("[ \n\t]{0,3}").expect("a pattern");
        let entry = prop_oneof![
            Just("\"debug\":true".to_owned()),
            Just("\"log-opts\": {\"registry-mirrors\": [\"https://no\"]}".to_owned()),
            Just("\"hosts\": [ \"unix://\" ]".to_owned()),
            space().prop_map(|space| format!("\"registry-mirrors\"{space}: [{space}]")),
            space().prop_map(|space| format!("\"registry-mirrors\":{space}[{space}\"https://m\", \"https://n\"]")),
        ];
        (proptest::collection::vec((space(), entry, space()), 0..4), space()).prop_map(|(entries, space)| {
            let entries: Vec<String> = entries
                .into_iter()
                .map(|(before, entry, after)| before + &entry + &after)
                .collect();
            format!("{{{}{space}}}{space}", entries.join(","))
        })
    }

    proptest! {
        #[test]
        fn whatever_we_add_to_is_given_back_byte_for_byte(theirs in theirs()) {
            if let Edit::Write(text) = edit(65001, None, Some(&theirs)) {
                let value: Value = serde_json::from_str(&text).expect("JSON");
                prop_assert_eq!(&value["registry-mirrors"][0], "http://127.0.0.1:65001");
                prop_assert_eq!(edit(65001, None, Some(&text)), Edit::Nothing);
                prop_assert_eq!(take_back(65001, &text), Edit::Write(theirs));
            }
        }
    }
}
