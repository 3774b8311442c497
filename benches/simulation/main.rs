//! Simulates the serving code (`domain::pool`) in virtual time: storms, rollouts, scale-outs, pods that
//! drop accepted sessions, compared with other methods to place connections.
//!
//!     cargo bench --bench simulation [-- --short] [--assert]
//!
//! Seeds are fixed, so that the same code always gives the same table.

mod agenda;
mod choosers;
mod clients;
mod lives;
mod scenarios;
mod table;
mod world;

use std::{
    env,
    num::NonZeroUsize,
    process::ExitCode,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};

use scenarios::Case;
use table::{Results, grid};

const HELP: &str = "\
Simulates how connections are placed. Seeds are fixed.

cargo bench --bench simulation -- [options]
  --short   fewer runs: the baselines with exponential durations only, no grid
  --assert  exit with 1 when one of our goals is missed";

fn main() -> ExitCode {
    let (mut is_short, mut asserts, mut is_bench) = (false, false, false);
    for argument in env::args().skip(1) {
        match argument.as_str() {
            "--short" => is_short = true,
            "--assert" => asserts = true,
            "--bench" => is_bench = true,
            "--help" | "-h" => {
                println!("{HELP}");
                return ExitCode::SUCCESS;
            }
            _ => {
                eprintln!("unknown argument {argument:?}\n\n{HELP}");
                return ExitCode::from(64);
            }
        }
    }
    if !is_bench {
        println!("nothing is simulated without --bench, which `cargo bench` passes");
        return ExitCode::SUCCESS;
    }
    let cases = if is_short { table::cases(2, 1, false) } else { table::cases(8, 2, true) };
    let missed = run(cases).print();
    if !is_short {
        grid::print(&run(grid::cases(2)));
    }
    match missed {
        0 => ExitCode::SUCCESS,
        _ => {
            println!("\ngoals missed: {missed}");
            if asserts { ExitCode::FAILURE } else { ExitCode::SUCCESS }
        }
    }
}

/// Runs each case, as many at once as there are processors.
fn run(cases: Vec<Case>) -> Results {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(case) = cases.get(next.fetch_add(1, Relaxed)) {
            done.push((*case, case.run()));
        }
        done
    };
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().map(|worker| worker.join().expect("a run without panic"));
        // Sums of floating-point numbers depend on their order.
        let mut results: Vec<(Case, Vec<f64>)> = done.flatten().collect();
        results.sort_by_key(|(case, _)| case.seed);
        Results(results)
    })
}
