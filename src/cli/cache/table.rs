//! Tables of the cache's content, and the ages in them.
//!
//! Invariant: a column is as wide as its widest cell, the head included.

/// An age, in the largest unit that is not less than one.
pub(super) fn ago(seconds: u64) -> String {
    let (count, unit) = match seconds {
        0..60 => (seconds, "s"),
        60..3600 => (seconds / 60, "min"),
        3600..86_400 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("{count} {unit} ago")
}

pub(super) fn ago_or_never(seconds: Option<u64>) -> String {
    seconds.map_or_else(|| "-".to_owned(), ago)
}

/// Rows in columns as wide as they need to be; the first row is the head.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let line = |row: &Vec<String>| {
        let padded = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:<width$}"));
        format!("{}\n", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

pub(super) fn head(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_one_unit() {
        for (seconds, text) in [
            (0, "0 s ago"),
            (59, "59 s ago"),
            (60, "1 min ago"),
            (7199, "1 h ago"),
            (86_400 * 3, "3 d ago"),
        ] {
            assert_eq!(ago(seconds), text);
        }
        assert_eq!(ago_or_never(None), "-");
    }

    #[test]
    fn columns_line_up_and_end_without_blanks() {
        let rows = [head(&["NAME", "SIZE"]), head(&["a-long-one", ""]), head(&["b", "1 B"])];
        assert_eq!(columns(&rows), "NAME        SIZE\na-long-one\nb           1 B\n");
    }
}
