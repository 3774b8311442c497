//! Quantiles, printed tables, and the verdict of the run.

use std::env;

/// Returns the `q` quantile of `values`, interpolated between two of them if necessary.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let position = q * sorted.len().saturating_sub(1) as f64;
    let (below, above) = (position.floor() as usize, position.ceil() as usize);
    match (sorted.get(below), sorted.get(above)) {
        (Some(low), Some(high)) => low + (high - low) * position.fract(),
        _ => f64::NAN,
    }
}

pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// Rows of cells. The first column is printed left-aligned, the others right-aligned.
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

/// The limits to check, and whether a measurement was skipped.
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

    /// Adds a limit to check. A `figure` of `None` could not be measured, which is no failure of
    /// wsbalancer.
    pub fn limit(&mut self, name: &str, figure: Option<f64>, max: f64) {
        self.limits.push((name.into(), figure, max));
    }

    /// Prints the verdict if `assert` is set. Returns whether the run passed. In CI everything is
    /// installed, so a skipped measurement is a failure there.
    pub fn print(&self, assert: bool) -> bool {
        let mut is_exceeded = false;
        let mut skipped = self.skipped;
        if assert {
            println!();
            for (name, figure, max) in &self.limits {
                let Some(figure) = figure else {
                    println!("skipped: {name}");
                    skipped = true;
                    continue;
                };
                let is_within = figure <= max;
                let word = if is_within { "ok  " } else { "FAIL" };
                println!("{word} {name}: {figure:.2}, at most {max:.2}");
                is_exceeded |= !is_within;
            }
        }
        let in_ci = env::var_os("CI").is_some();
        let passed = !(is_exceeded || skipped && in_ci);
        if assert {
            let word = if passed { "PASS" } else { "FAIL" };
            let note = if skipped { ", but not everything was measured" } else { "" };
            println!("{word}{note}");
        }
        passed
    }
}
