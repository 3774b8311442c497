//! The required figures, and the table that shows them.

use crate::{
    choosers::{Kind, Settings},
    lives::Lives,
    scenarios::{Case, Clients, Scenario},
};

/// Replicas in the table.
const REPLICAS: u32 = 4;

/// A line for each of [`CLIENTS`].
pub struct Row {
    name: &'static str,
    scenario: Scenario,
    /// Seconds between polls.
    poll: u64,
    /// The index of the figure in its scenario.
    figure: usize,
    /// The largest value that meets the goal.
    goal: f64,
    unit: Unit,
}

#[derive(Clone, Copy)]
enum Unit {
    Ratio,
    Seconds,
    Percent,
}

pub const ROWS: [Row; 11] = [
    row("steady, poll 30 s: max/mean", Scenario::Steady, 30, 0, 1.002, Unit::Ratio),
    row("storm, poll 3 s: max/mean", Scenario::Storm, 3, 0, 1.01, Unit::Ratio),
    row("storm, poll 30 s: max/mean", Scenario::Storm, 30, 0, 1.05, Unit::Ratio),
    row("storm, poll 3 s: worst second/fair", Scenario::Storm, 3, 1, 1.2, Unit::Ratio),
    row("storm, poll 30 s: worst second/fair", Scenario::Storm, 30, 1, 1.2, Unit::Ratio),
    row("10 to 12 pods: time to 90 %", Scenario::ScaleOut, 3, 0, 300.0, Unit::Seconds),
    row("rollout: max/mean at its end", Scenario::Rollout, 3, 0, 1.1, Unit::Ratio),
    row("rollout: max/mean 15 min later", Scenario::Rollout, 3, 1, 1.005, Unit::Ratio),
    row("rollout: reconnects per client", Scenario::Rollout, 3, 2, 1.08, Unit::Ratio),
    row("accepts and drops: its share", Scenario::BlackHole, 3, 0, 0.02, Unit::Percent),
    row("pods 3:1: max/mean by capacity", Scenario::Weights, 3, 0, 1.01, Unit::Ratio),
];

const fn row(
    name: &'static str,
    scenario: Scenario,
    poll: u64,
    figure: usize,
    goal: f64,
    unit: Unit,
) -> Row {
    Row { name, scenario, poll, figure, goal, unit }
}

pub const CLIENTS: [(&str, Clients); 3] = [
    ("exp", Clients { lives: Lives::Exponential, past: 0.0 }),
    ("logn", Clients { lives: Lives::Lognormal, past: 0.0 }),
    ("past", Clients { lives: Lives::Exponential, past: 0.2 }),
];

const LEGEND: &str = "\
max/mean of 10 pods with 20,000 sessions of 30 min on average, placed by 4 replicas with polls of 3 s
unless the row says otherwise. exp, logn: durations; past: exp, and a fifth of the clients past the balancer.
two: the estimate with two random choices; cached: argmin of the last reports; own: least own
connections, forgotten at each change of the set; seen: argmin of the counts that replicas with
perfect knowledge of each other can see, and clients past the balancer as of the last poll; truth:
argmin of the true counts.
beyond: seen or truth misses it too: it needs more than polls report, or sessions would have to move.";

/// Returns the cases of the table: `ours` seeds of the pool, seen and truth, `theirs` of the baselines,
/// which run with all kinds of clients only if `all`.
pub fn cases(ours: u64, theirs: u64, all: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for Row { scenario, poll, .. } in &ROWS {
        for (index, (_, clients)) in CLIENTS.iter().enumerate() {
            for kind in Kind::ALL {
                let is_ours = matches!(kind, Kind::OURS | Kind::Seen | Kind::Truth);
                let seeds = if is_ours { ours } else { theirs };
                if !is_ours && !all && index > 0 {
                    continue;
                }
                for seed in 0..seeds {
                    let settings = Settings::of(kind, REPLICAS, *poll);
                    let case = Case { scenario: *scenario, settings, clients: *clients, seed };
                    // Several figures come from the same runs.
                    if !cases.contains(&case) {
                        cases.push(case);
                    }
                }
            }
        }
    }
    cases
}

/// Cases with their figures.
pub struct Results(pub Vec<(Case, Vec<f64>)>);

impl Results {
    fn mean(&self, wanted: impl Fn(&Case) -> bool, figure: usize) -> Option<f64> {
        let figures = || self.0.iter().filter(|(case, _)| wanted(case)).map(|(_, it)| it[figure]);
        (figures().count() > 0).then(|| figures().sum::<f64>() / figures().count() as f64)
    }

    /// Prints the table and returns the number of missed goals.
    pub fn print(&self) -> usize {
        println!("{LEGEND}\n");
        print!("{:<35} {:<4}", "", "");
        for name in ["random", "robin", "two", "cached", "own", "seen", "truth", "ours", "goal"] {
            print!(" {name:>7}");
        }
        println!();
        ROWS.iter().map(|row| self.print_row(row)).sum()
    }

    fn print_row(&self, row: &Row) -> usize {
        let mut missed = 0;
        for (index, (name, clients)) in CLIENTS.iter().enumerate() {
            let figure = |kind: Kind| {
                let settings = Settings::of(kind, REPLICAS, row.poll);
                let wanted = |case: &Case| {
                    let Case { scenario, settings: its, clients: whose, .. } = case;
                    (*scenario, *its, whose) == (row.scenario, settings, clients)
                };
                self.mean(wanted, row.figure)
            };
            print!("{:<35} {name:<4}", if index == 0 { row.name } else { "" });
            Kind::ALL.iter().for_each(|kind| print!(" {:>7}", row.unit.show(figure(*kind))));
            let keeps = |kind: Kind| figure(kind).is_some_and(|figure| figure <= row.goal);
            let verdict = match (keeps(Kind::OURS), keeps(Kind::Seen) && keeps(Kind::Truth)) {
                (true, _) => "ok",
                (false, false) => "beyond",
                (false, true) => {
                    missed += 1;
                    "MISSED"
                }
            };
            println!(" {:>7}  {verdict}", row.unit.show(Some(row.goal)));
        }
        missed
    }
}

impl Unit {
    fn show(self, figure: Option<f64>) -> String {
        match (self, figure) {
            (_, None) => "-".to_owned(),
            (Self::Ratio, Some(figure)) if figure < 2.0 => format!("{figure:.4}"),
            (Self::Ratio, Some(figure)) => format!("{figure:.2}"),
            (Self::Seconds, Some(figure)) => format!("{figure:.0} s"),
            (Self::Percent, Some(figure)) => format!("{:.2} %", 100.0 * figure),
        }
    }
}

/// The pool with other numbers of replicas and other poll intervals.
pub mod grid {
    use super::{CLIENTS, Case, Kind, Results, Scenario, Settings};

    const POLLS: [u64; 4] = [1, 3, 10, 30];
    const SCENARIOS: [Scenario; 2] = [Scenario::Storm, Scenario::Steady];

    /// The number of replicas, and the number that they assume.
    const REPLICAS: [(u32, u32); 5] = [(1, 1), (2, 2), (4, 4), (8, 8), (4, 1)];

    fn settings((count, assumed_replicas): (u32, u32), poll: u64) -> Settings {
        Settings { assumed_replicas, ..Settings::of(Kind::OURS, count, poll) }
    }

    pub fn cases(seeds: u64) -> Vec<Case> {
        let case = |scenario, replicas, poll, seed| {
            let settings = settings(replicas, poll);
            Case { scenario, settings, clients: CLIENTS[0].1, seed }
        };
        let mut cases = Vec::new();
        for scenario in SCENARIOS {
            for replicas in REPLICAS {
                for poll in POLLS {
                    cases.extend((0..seeds).map(|seed| case(scenario, replicas, poll, seed)));
                }
            }
        }
        cases
    }

    pub fn print(results: &Results) {
        println!("\n{:<20}{:^32}  {:^32}", "ours, exp: max/mean", "after a storm", "steady");
        print!("{:<20}", "R \\ poll");
        for _ in SCENARIOS {
            POLLS.iter().for_each(|poll| print!("{:>8}", format!("{poll} s")));
            print!("  ");
        }
        println!();
        for replicas in REPLICAS {
            let (count, assumed_replicas) = replicas;
            let note = if count == assumed_replicas { "" } else { ", assumed 1" };
            print!("{:<20}", format!("{count}{note}"));
            for scenario in SCENARIOS {
                for poll in POLLS {
                    let settings = settings(replicas, poll);
                    let wanted =
                        |case: &Case| case.scenario == scenario && case.settings == settings;
                    print!("{:>8.4}", results.mean(wanted, 0).unwrap_or(f64::NAN));
                }
                print!("  ");
            }
            println!();
        }
    }
}
