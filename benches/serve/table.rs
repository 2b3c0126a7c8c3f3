//! A table in Markdown, with columns wide enough to be read as it is.

pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const N: usize>(head: [&str; N]) -> Self {
        Self {
            rows: vec![head.map(str::to_owned).to_vec()],
        }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.to_vec());
    }

    pub(crate) fn print(&self) {
        let width = |column: usize| {
            let cells = self.rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for (number, row) in self.rows.iter().enumerate() {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, &width)| format!(" {cell:width$} |"));
            println!("|{}", cells.collect::<String>());
            if number == 0 {
                let lines = widths.iter().map(|width| format!("{}|", "-".repeat(width + 2)));
                println!("|{}", lines.collect::<String>());
            }
        }
        println!();
    }
}

/// The aim, and whether the figure keeps it.
pub(crate) fn at_most(aim: f64, figure: f64, unit: &str) -> String {
    judged(&format!("≤ {aim}{unit}"), figure <= aim)
}

pub(crate) fn at_least(aim: f64, figure: f64, unit: &str) -> String {
    judged(&format!("≥ {aim}{unit}"), figure >= aim)
}

fn judged(aim: &str, met: bool) -> String {
    format!("{aim}: {}", if met { "met" } else { "**missed**" })
}
