//! Figures made of many, tables made of figures, and the verdict on them.

use std::env;

/// The value below which the share `q` of `values` lies, between two of them if need be.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q * sorted.len().saturating_sub(1) as f64;
    let (below, above) = (at.floor() as usize, at.ceil() as usize);
    match (sorted.get(below), sorted.get(above)) {
        (Some(low), Some(high)) => low + (high - low) * at.fract(),
        _ => f64::NAN,
    }
}

pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Lines of cells, printed with the first column to the left and the others to the right.
pub struct Table(Vec<Vec<String>>);

impl Table {
    pub fn new<const COLUMNS: usize>(header: [&str; COLUMNS]) -> Self {
        Self(vec![header.map(str::to_owned).into()])
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.0.push(cells.into_iter().collect());
    }

    pub fn print(&self, title: &str) {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.0.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        println!("\n{title}");
        for row in &self.0 {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                line += &if column == 0 {
                    format!("  {cell:<width$}")
                } else {
                    format!("  {cell:>width$}")
                };
            }
            println!("{}", line.trim_end());
        }
    }
}

/// What was skipped and what was limited.
#[derive(Default)]
pub struct Verdict {
    skipped: bool,
    limits: Vec<(String, Option<f64>, f64)>,
}

impl Verdict {
    pub fn skip(&mut self, needs: &str) {
        println!("skipped: needs {needs}");
        self.skipped = true;
    }

    /// `None` stands for what could not be measured, which is no failure of wsbalancer.
    pub fn limit(&mut self, what: &str, figure: Option<f64>, most: f64) {
        self.limits.push((what.into(), figure, most));
    }

    /// Prints what `--assert` asks for; whether all is well. In CI everything is installed, so that
    /// a skip there is a mistake.
    pub fn print(&self, assert: bool) -> bool {
        let mut broken = false;
        let mut skipped = self.skipped;
        if assert {
            println!();
            for (what, figure, most) in &self.limits {
                let Some(figure) = figure else {
                    println!("skipped: {what}");
                    skipped = true;
                    continue;
                };
                let holds = figure <= most;
                let word = if holds { "ok  " } else { "FAIL" };
                println!("{word} {what}: {figure:.2}, at most {most:.2}");
                broken |= !holds;
            }
        }
        let in_ci = env::var_os("CI").is_some();
        let well = !(broken || skipped && in_ci);
        if assert {
            let word = if well { "PASS" } else { "FAIL" };
            let rest = if skipped { ", but not everything was measured" } else { "" };
            println!("{word}{rest}");
        }
        well
    }
}
