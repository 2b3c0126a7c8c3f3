//! Editor of containerd's config.toml: adds the one missing line, marked, and takes it out again.
//!
//! Every other byte stays, and taking the line out gives the former text; an edit that cannot promise both is left to the
//! administrator.

use toml::{Table, Value};

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
    let lines: Vec<&str> = current.split_inclusive('\n').collect();
    let candidates = [
        in_its_place(&lines, remedy),
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
fn in_its_place(lines: &[&str], remedy: &Remedy) -> Option<String> {
    let header = |line: &str| line.trim_start().starts_with('[').then(|| header_keys(line));
    let wanted = header_keys(&format!("[{}]", remedy.table));
    let start = lines.iter().position(|line| header(line).as_ref() == Some(&wanted))?;
    let in_table = &lines[start + 1..];
    let end = in_table
        .iter()
        .position(|line| header(line).is_some())
        .unwrap_or(in_table.len());
    let old = in_table[..end].iter().position(|line| {
        line.trim_start()
            .strip_prefix("config_path")
            .is_some_and(|rest| rest.trim_start().starts_with('='))
    });
    let ours = format!("{} # {REMEDY_MARK}\n", remedy.line);
    let mut text: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
    match old {
        Some(old) => {
            let line = &mut text[start + 1 + old];
            *line = format!("{REMEDY_WAS}{line}{ours}");
        }
        None => text[start] += &ours,
    }
    Some(text.concat())
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

/// The keys of a table's header, unquoted.
fn header_keys(line: &str) -> Vec<String> {
    let header = line
        .trim()
        .split(']')
        .next()
        .unwrap_or_default()
        .trim_start_matches('[');
    let parsed: Result<Table, _> = format!("{header} = 0").parse();
    let mut keys = Vec::new();
    let mut table = parsed.unwrap_or_default();
    while let Some((key, value)) = std::mem::take(&mut table).into_iter().next() {
        keys.push(key);
        if let Value::Table(inner) = value {
            table = inner;
        }
    }
    keys
}

const REMEDY_MARK: &str = "added by piecemeal node";
const REMEDY_OPEN_LINE: &str = "; the line above had no end";
const REMEDY_WAS: &str = "# piecemeal node: it was: ";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::Verdict;

    const MAIN: &str = "/etc/containerd/config.toml";
    const CERTS: &str = "/etc/containerd/certs.d";

    fn verdict(texts: &[&str]) -> Verdict {
        let files = texts.iter().map(|text| (MAIN.to_owned(), (*text).to_owned())).collect();
        let config = Config {
            files,
            ..Config::default()
        };
        config.verdict(MAIN, CERTS)
    }

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
