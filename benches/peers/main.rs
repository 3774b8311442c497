//! Measures wsbalancer beside HAProxy and nginx in one run: processor time and system calls per
//! round trip, memory per session. Clients and pod live in this process, each peer relays between
//! them on one thread.
//!
//! Absolute times mean little on a shared machine, so what counts are ratios: the peers take turns
//! in short rounds, each is charged what the kernel accounts to its process, and each round is
//! compared with HAProxy's round next to it.

mod cells;
mod echo;
mod load;
mod options;
mod peers;
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

use cells::{BUSY, Bench, LATE_MESSAGE, Memory, Rounds};
use options::{HELP, Options};
use peers::Peer;
use report::{Table, Verdict, median};
use syscalls::Tool;

const SMALL: usize = 64;
const LARGE: usize = 256 * 1024;

/// What `--assert` allows wsbalancer: HAProxy's processor time, HAProxy's memory, and the least
/// possible system calls (two to receive, two to send) with a share of one `epoll_wait`.
const MAX_RATIO: f64 = 1.0;
const MAX_KB_PER_SESSION: f64 = 4.7;
const MAX_SYSCALLS: f64 = 4.2;

fn main() -> ExitCode {
    let options = match Options::parse(env::args().skip(1)) {
        Ok(Some(options)) if options.bench => options,
        Ok(Some(_)) => {
            println!("nothing is measured without --bench, which `cargo bench` gives");
            return ExitCode::SUCCESS;
        }
        Ok(None) => {
            println!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Err(wrong) => {
            eprintln!("{wrong}\n\n{HELP}");
            return ExitCode::from(64);
        }
    };
    if let Err(too_few) = options.check_files() {
        eprintln!("{too_few}");
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

/// A signal drops the measurement, and the processes it started with it.
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

/// Measures and prints everything; whether all is well.
async fn run(options: &Options) -> Result<bool> {
    let folder = Folder::new()?;
    let mut verdict = Verdict::default();
    let (peers, missing): (Vec<_>, Vec<_>) =
        options.peers.iter().partition(|peer| peer.program().is_some());
    print_inputs(options, &peers);
    for peer in missing {
        if !peer.is_tuned() {
            verdict.skip(peer.program_name());
        }
    }
    let bench = Bench { options, folder: &folder.0, pod: echo::start()?, peers: &peers };

    let sizes: &[usize] =
        if options.full { &[SMALL, 1024, LATE_MESSAGE, LARGE] } else { &[SMALL, LARGE] };
    for &size in sizes {
        let mut rounds = bench.speed(size).await?;
        let ratio = print_speed(size, &rounds);
        if size == SMALL || size == LARGE {
            verdict.limit(&format!("processor time, {} / haproxy", bytes(size)), ratio, MAX_RATIO);
        }
        if size == SMALL {
            let calls = count_syscalls(&mut rounds, &folder.0, &mut verdict).await?;
            verdict.limit("system calls per round trip", calls, MAX_SYSCALLS);
        }
    }
    let memory = bench.memory().await?;
    print_memory(options.sessions, &memory);
    let idle = memory.iter().find(|memory| memory.peer == Peer::Wsbalancer);
    verdict.limit("kB per idle session", idle.map(|memory| memory.idle / 1e3), MAX_KB_PER_SESSION);

    Ok(verdict.print(options.assert))
}

fn print_inputs(options: &Options, peers: &[Peer]) {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("kernel {}, {cores} cores", kernel.trim());
    for peer in peers.iter().filter(|peer| !peer.is_tuned()) {
        let version = peer.version().unwrap_or("unknown version".into());
        println!("{peer}: {version}");
    }
    println!(
        "{} rounds of about {:.1} s of processor time, {BUSY} sessions; memory of {} sessions",
        options.rounds,
        options.work.as_secs_f64(),
        options.sessions
    );
}

/// Prints one size's table and returns wsbalancer's ratio.
fn print_speed(size: usize, all: &[Rounds]) -> Option<f64> {
    let reference = all.iter().find(|rounds| rounds.peer == Peer::Haproxy);
    let mut wsbalancer = None;
    let mut table = Table::new([
        "peer",
        "median µs",
        "q1 µs",
        "/ haproxy",
        "min–max",
        "busy",
        "trips per round",
    ]);
    for rounds in all {
        let ratios = reference.map(|reference| rounds.against(reference));
        if rounds.peer == Peer::Wsbalancer {
            wsbalancer = ratios.as_deref().map(median);
        }
        let (ratio, range) = ratios.map_or(("–".into(), "–".into()), |ratios| {
            let low = ratios.iter().copied().fold(f64::INFINITY, f64::min);
            let high = ratios.iter().copied().fold(0.0, f64::max);
            (format!("{:.2}", median(&ratios)), format!("{low:.2}–{high:.2}"))
        });
        table.row([
            rounds.peer.to_string(),
            format!("{:.2}", median(&rounds.cost)),
            format!("{:.2}", rounds.first_quartile()),
            ratio,
            range,
            format!("{:.0} %", rounds.median_busy() * 100.0),
            rounds.trips.to_string(),
        ]);
    }
    table.print(&format!("Processor time per round trip, {}, {BUSY} sessions", bytes(size)));
    wsbalancer
}

/// Counts and prints every peer's system calls and returns wsbalancer's.
async fn count_syscalls(
    all: &mut [Rounds],
    folder: &Path,
    verdict: &mut Verdict,
) -> Result<Option<f64>> {
    let Some(tool) = all.first().and_then(|first| Tool::choose(first.pid(), folder)) else {
        verdict.skip("perf or strace, and the right to watch other processes");
        return Ok(None);
    };
    let mut wsbalancer = None;
    let mut table = Table::new(["peer", "all", "receive", "send", "epoll", "other"]);
    for rounds in all {
        let counts = rounds.syscalls(SMALL, tool, folder).await;
        let counts = counts.map_err(rounds.peer.blame())?;
        let per_trip = |count: u64| count as f64 / rounds.trips as f64;
        let known = counts.receive + counts.send + counts.epoll;
        let other = counts.total.saturating_sub(known);
        let figures = [counts.total, counts.receive, counts.send, counts.epoll, other];
        if rounds.peer == Peer::Wsbalancer {
            wsbalancer = Some(per_trip(counts.total));
        }
        let figures = figures.map(|count| format!("{:.3}", per_trip(count)));
        table.row([rounds.peer.to_string()].into_iter().chain(figures));
    }
    let size = bytes(SMALL);
    table.print(&format!(
        "System calls per round trip, {size}, {BUSY} sessions, by {}",
        tool.name()
    ));
    Ok(wsbalancer)
}

fn print_memory(sessions: usize, all: &[Memory]) {
    let used = format!("after {} each", bytes(LATE_MESSAGE));
    let mut table = Table::new(["peer", "never used", &used]);
    for memory in all {
        let figures = [memory.idle, memory.after_message];
        let figures = figures.map(|bytes| format!("{:.2} kB", bytes / 1e3));
        table.row([memory.peer.to_string()].into_iter().chain(figures));
    }
    table.print(&format!("Resident memory per session, {sessions} sessions"));
}

fn bytes(count: usize) -> String {
    if count < 1024 { format!("{count} B") } else { format!("{} KiB", count / 1024) }
}

/// A folder for configurations and reports, gone in the end.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = env::temp_dir().join(format!("wsbalancer-peers-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
