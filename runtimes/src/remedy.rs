//! Editor of containerd's config.toml: adds the one missing line, marked, and takes it out again.
//!
//! Every other byte stays, and taking the line out gives the former text; an edit that cannot promise both is left to the
//! administrator. The parser's spans tell where the line goes. The edit itself is one of text, since a document that is written out
//! again would lose line ends, a byte order mark and an open last line.

use toml::{Table, de::DeTable};

use crate::{containerd::Config, problem::Remedy};

/// The text of config.toml with the remedy in it, marked so that [`without_remedy`] finds it.
///
/// # Errors
/// Says why it has to be done by hand.
pub(crate) fn with_remedy(current: Option<&str>, remedy: &Remedy) -> Result<String, String> {
    let current = current.unwrap_or_default();
    let by_hand = || {
        format!(
            "[{}] of {} cannot be edited by a machine; add the line by hand",
            remedy.table, remedy.file
        )
    };
    let before: Table = current.parse().map_err(|_| by_hand())?;
    let is_set = |text: &str| {
        let read = Config {
            files: vec![(remedy.file.clone(), text.to_owned())],
            ..Config::default()
        };
        text.parse::<Table>().is_ok() && read.verdict(&remedy.file, "/").problem.is_none()
    };
    let candidates = [
        in_its_place(current, remedy),
        Some(at_the_end(current, remedy, before.is_empty())),
    ];
    let good = |text: &String| is_set(text) && without_remedy(text).as_deref() == Some(current);
    candidates.into_iter().flatten().find(good).ok_or_else(by_hand)
}

/// The text of config.toml as it was before Piecemeal's edit; none when it has no such edit.
pub(crate) fn without_remedy(text: &str) -> Option<String> {
    if !text.contains(REMEDY_MARK) {
        return None;
    }
    let mut kept = String::new();
    let mut was = None;
    for line in text.split_inclusive('\n') {
        if let Some(old) = line.strip_prefix(REMEDY_WAS) {
            was = Some(old);
        } else if !line.contains(REMEDY_MARK) {
            kept.push_str(line);
            continue;
        } else if let Some(old) = was.take() {
            kept.push_str(old);
        }
        if line.contains(REMEDY_OPEN_LINE) {
            kept.pop();
        }
    }
    Some(kept)
}

/// Instead of the empty `config_path` that containerd's own default configuration has, or as the table's first line.
fn in_its_place(current: &str, remedy: &Remedy) -> Option<String> {
    let document = DeTable::parse(current).ok()?;
    let plugin = remedy.table.strip_prefix("plugins.")?.strip_suffix(".registry")?;
    let plugins = document.get_ref().get("plugins")?.get_ref();
    let table = plugins.get(plugin.trim_matches('"'))?.get_ref().get("registry")?;
    let end_of_line = |at: usize| current[at..].find('\n').map_or(current.len(), |end| at + end + 1);
    let ours = format!("{} # {REMEDY_MARK}\n", remedy.line);
    let Some(old) = table.get_ref().get("config_path") else {
        // The span of a table is that of its header.
        let (before, after) = current.split_at(end_of_line(table.span().end));
        return Some(format!("{before}{ours}{after}"));
    };
    let start = current[..old.span().start].rfind('\n').map_or(0, |end| end + 1);
    let (before, line) = current.split_at(start);
    let (line, after) = line.split_at(end_of_line(old.span().end) - start);
    Some(format!("{before}{REMEDY_WAS}{line}{ours}{after}"))
}

fn at_the_end(current: &str, remedy: &Remedy, is_empty: bool) -> String {
    let open = if current.is_empty() || current.ends_with('\n') {
        ""
    } else {
        "\n"
    };
    let note = if open.is_empty() { "" } else { REMEDY_OPEN_LINE };
    let version = if is_empty {
        format!("version = 2 # {REMEDY_MARK}\n")
    } else {
        String::new()
    };
    format!(
        "{current}{open}{version}[{}] # {REMEDY_MARK}{note}\n{} # {REMEDY_MARK}\n",
        remedy.table, remedy.line
    )
}

const REMEDY_MARK: &str = "added by piecemeal node";
const REMEDY_OPEN_LINE: &str = "; the line above had no end";
const REMEDY_WAS: &str = "# piecemeal node: it was: ";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::testing::verdict;

    const CERTS: &str = "/etc/containerd/certs.d";

    #[test]
    fn the_line_is_added_where_it_belongs_and_taken_out_again() {
        let cases = [
            "",
            "version = 2\n",
            "version = 2",
            "version = 2\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".registry]\n      config_path = \"\"\n      [plugins.\"io.containerd.grpc.v1.cri\".registry.auths]\n",
            "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry] # here\n[debug]\nlevel = \"info\"\n",
            "oom_score = 0\n[plugins.cri.registry]\n",
        ];
        for current in cases {
            let texts: &[&str] = if current.is_empty() { &[] } else { &[current] };
            let remedy = verdict(texts)
                .problem
                .and_then(|problem| problem.remedy)
                .expect("a remedy");
            let text = with_remedy(Some(current), &remedy).unwrap_or_else(|why| panic!("{current}: {why}"));
            let after = verdict(&[&text]);
            assert_eq!((&*after.dir, after.problem), (CERTS, None), "{text}");
            assert_eq!(without_remedy(&text).as_deref(), Some(current), "{text}");
        }
        assert_eq!(without_remedy("version = 2\n"), None);
        let inline = "version = 2\nplugins = {}\n";
        let remedy = verdict(&[inline])
            .problem
            .and_then(|problem| problem.remedy)
            .expect("a remedy");
        assert!(with_remedy(Some(inline), &remedy).is_err_and(|why| why.contains("by hand")));
    }
}
