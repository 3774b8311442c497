//! Compares wsbalancer with HAProxy and nginx in one run: processor time and system calls per round
//! trip, and memory per session.
//!
//! The clients and the pod run in this process. Each balancer relays between them on one thread.
//! Absolute times mean little on a shared machine, so the results are ratios: the balancers take
//! turns in short rounds, the processor time of a round is read from the kernel's accounting of
//! the balancer's process, and each round is compared with HAProxy's neighbouring round.

mod balancers;
mod clients;
mod measurements;
mod options;
mod pod;
mod process;
mod report;
mod syscalls;
mod wire;

use std::{
    env, fs,
    io::Result,
    path::{Path, PathBuf},
    process::ExitCode,
};

use tokio::signal::unix::{SignalKind, signal};

use balancers::Balancer;
use measurements::{Bench, IDLE_MESSAGE_SIZE, Memory, Rounds, SPEED_SESSIONS};
use options::{HELP, Options};
use report::{Table, Verdict, median};
use syscalls::Tool;

const SMALL: usize = 64;
const LARGE: usize = 256 * 1024;

/// The limits that `--assert` checks for wsbalancer: no more processor time than HAProxy, no more
/// memory than HAProxy, and the fewest possible system calls (two to receive, two to send) plus a
/// share of an `epoll_wait`.
const MAX_CPU_RATIO: f64 = 1.0;
const MAX_KB_PER_SESSION: f64 = 4.7;
const MAX_SYSCALLS: f64 = 4.2;

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(Some(options)) if options.bench => options,
        Ok(Some(_)) => {
            println!(
                "nothing measured: `cargo bench` passes the --bench option that starts the measurements"
            );
            return ExitCode::SUCCESS;
        }
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("{error}\n\n{HELP}");
            return ExitCode::from(64);
        }
    };
    if let Err(error) = options.check_open_files() {
        eprintln!("{error}");
        return ExitCode::FAILURE;
    }
    match run_until_signal(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the benchmark until it is finished or a signal arrives. A signal drops the measurements and
/// ends the processes that they started.
fn run_until_signal(options: &Options) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            done = run(options) => done,
            _ = terminate.recv() => Ok(false),
            interrupted = tokio::signal::ctrl_c() => interrupted.map(|()| false),
        }
    })
}

/// Measures and prints everything. Returns whether the run passed.
async fn run(options: &Options) -> Result<bool> {
    let folder = TemporaryFolder::new()?;
    let mut verdict = Verdict::default();
    let (balancers, missing): (Vec<_>, Vec<_>) =
        options.balancers.iter().partition(|balancer| balancer.program().is_some());
    print_inputs(options, &balancers);
    for balancer in missing {
        if !balancer.is_tuned() {
            verdict.skip(balancer.program_name());
        }
    }
    let bench = Bench { options, folder: &folder.0, pod: pod::start()?, balancers: &balancers };

    let sizes: &[usize] =
        if options.full { &[SMALL, 1024, IDLE_MESSAGE_SIZE, LARGE] } else { &[SMALL, LARGE] };
    for &size in sizes {
        let mut rounds = bench.measure_speed(size).await?;
        let ratio = print_speed(size, &rounds);
        if size == SMALL || size == LARGE {
            verdict.limit(
                &format!("processor time, {} / haproxy", bytes(size)),
                ratio,
                MAX_CPU_RATIO,
            );
        }
        if size == SMALL {
            let calls = count_syscalls(&mut rounds, &folder.0, &mut verdict).await?;
            verdict.limit("system calls per round trip", calls, MAX_SYSCALLS);
        }
    }
    let memory = bench.measure_memory().await?;
    print_memory(options.sessions, &memory);
    let idle = memory.iter().find(|memory| memory.balancer == Balancer::Wsbalancer);
    verdict.limit("kB per idle session", idle.map(|memory| memory.idle / 1e3), MAX_KB_PER_SESSION);

    Ok(verdict.print(options.assert))
}

fn print_inputs(options: &Options, balancers: &[Balancer]) {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("kernel {}, {cores} cores", kernel.trim());
    for balancer in balancers.iter().filter(|balancer| !balancer.is_tuned()) {
        let version = balancer.version().unwrap_or("unknown version".into());
        println!("{balancer}: {version}");
    }
    println!(
        "{} rounds of about {:.1} s of processor time with {SPEED_SESSIONS} sessions; \
         memory measured with {} sessions",
        options.rounds,
        options.cpu_per_round.as_secs_f64(),
        options.sessions
    );
}

/// Prints the table for one message size. Returns wsbalancer's ratio to HAProxy.
fn print_speed(size: usize, all: &[Rounds]) -> Option<f64> {
    let reference = all.iter().find(|rounds| rounds.balancer == Balancer::Haproxy);
    let mut wsbalancer = None;
    let mut table = Table::new([
        "balancer",
        "median µs",
        "q1 µs",
        "/ haproxy",
        "min–max",
        "busy",
        "round trips per round",
    ]);
    for rounds in all {
        let ratios = reference.map(|reference| rounds.ratios_to(reference));
        if rounds.balancer == Balancer::Wsbalancer {
            wsbalancer = ratios.as_deref().map(median);
        }
        let (ratio, range) = ratios.map_or(("–".into(), "–".into()), |ratios| {
            let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let high = ratios.iter().copied().fold(0.0, f64::max);
            (format!("{:.2}", median(&ratios)), format!("{low:.2}–{high:.2}"))
        });
        table.row([
            rounds.balancer.to_string(),
            format!("{:.2}", median(&rounds.cpu_per_trip)),
            format!("{:.2}", rounds.first_quartile()),
            ratio,
            range,
            format!("{:.0} %", rounds.median_utilisation() * 100.0),
            rounds.trips_per_round.to_string(),
        ]);
    }
    table.print(&format!(
        "Processor time per round trip, {}, {SPEED_SESSIONS} sessions",
        bytes(size)
    ));
    wsbalancer
}

/// Counts and prints every balancer's system calls. Returns wsbalancer's count per round trip.
async fn count_syscalls(
    all: &mut [Rounds],
    folder: &Path,
    verdict: &mut Verdict,
) -> Result<Option<f64>> {
    let Some(tool) = all.first().and_then(|first| Tool::choose(first.pid(), folder)) else {
        verdict.skip("perf or strace, with permission to trace other processes");
        return Ok(None);
    };
    let mut wsbalancer = None;
    let mut table = Table::new(["balancer", "all", "receive", "send", "epoll", "other"]);
    for rounds in all {
        let counts = rounds.count_syscalls(SMALL, tool, folder).await;
        let counts = counts.map_err(rounds.balancer.name_in_error())?;
        let per_trip = |count: u64| count as f64 / rounds.trips_per_round as f64;
        let known = counts.receive + counts.send + counts.epoll;
        let other = counts.total.saturating_sub(known);
        let figures = [counts.total, counts.receive, counts.send, counts.epoll, other];
        if rounds.balancer == Balancer::Wsbalancer {
            wsbalancer = Some(per_trip(counts.total));
        }
        let figures = figures.map(|count| format!("{:.3}", per_trip(count)));
        table.row([rounds.balancer.to_string()].into_iter().chain(figures));
    }
    let size = bytes(SMALL);
    table.print(&format!(
        "System calls per round trip, {size}, {SPEED_SESSIONS} sessions, counted by {}",
        tool.name()
    ));
    Ok(wsbalancer)
}

fn print_memory(sessions: usize, all: &[Memory]) {
    let used = format!("after one {} message", bytes(IDLE_MESSAGE_SIZE));
    let mut table = Table::new(["balancer", "unused", &used]);
    for memory in all {
        let figures = [memory.idle, memory.after_message];
        let figures = figures.map(|bytes| format!("{:.2} kB", bytes / 1e3));
        table.row([memory.balancer.to_string()].into_iter().chain(figures));
    }
    table.print(&format!("Resident memory per session, {sessions} sessions"));
}

fn bytes(count: usize) -> String {
    if count < 1024 { format!("{count} B") } else { format!("{} KiB", count / 1024) }
}

/// A folder for configurations and reports, removed on drop.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn new() -> Result<Self> {
        let path = env::temp_dir().join(format!("wsbalancer-peers-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
