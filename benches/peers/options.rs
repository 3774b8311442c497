//! The command line. `cargo bench --bench peers -- --help` prints [`HELP`].

use std::{fs, time::Duration};

use crate::peers::Peer;

/// Descriptors this process needs besides those of its sessions.
const SPARE_FILES: usize = 200;

pub const HELP: &str = "\
Measures wsbalancer beside HAProxy and nginx, one thread each, in interleaved rounds.

cargo bench --bench peers -- [options]
  --rounds N      rounds per peer and message size (default 5)
  --sessions N    idle sessions whose memory is measured (default 4500)
  --peers A,B,…   of haproxy, haproxy-tuned, nginx, nginx-tuned, wsbalancer (default all)
  --full          1 KiB and 16 KiB messages too
  --short         for CI: 3 shorter rounds, 500 sessions
  --assert        check the limits, print PASS or FAIL
Environment: WSBALANCER_BIN names another wsbalancer; CI makes what is skipped a failure.";

pub struct Options {
    pub rounds: usize,
    /// Processor time a round is to cost its peer: many ticks of the kernel's clock.
    pub work: Duration,
    pub sessions: usize,
    pub peers: Vec<Peer>,
    pub full: bool,
    pub assert: bool,
    /// cargo says so to `cargo bench`'s programs only: `cargo test --all-targets` runs them too,
    /// and shall not measure.
    pub bench: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rounds: 5,
            work: Duration::from_millis(1700),
            sessions: 4500,
            peers: Peer::ALL.into(),
            full: false,
            assert: false,
            bench: false,
        }
    }
}

impl Options {
    /// `None` when help is wanted; an error names the argument at fault.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Option<Self>, String> {
        let mut options = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                "--bench" => options.bench = true,
                "--full" => options.full = true,
                "--assert" => options.assert = true,
                "--short" => {
                    options.rounds = 3;
                    options.work = Duration::from_millis(700);
                    options.sessions = 500;
                }
                "--rounds" => options.rounds = number(&argument, &value()?)?,
                "--sessions" => options.sessions = number(&argument, &value()?)?,
                "--peers" => options.peers = peers(&value()?)?,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown argument {argument:?}")),
            }
        }
        Ok(Some(options))
    }

    /// An error tells how to allow as many open files as `sessions` need here: two each, for a
    /// client and the pod. The peers need as many and inherit what we may.
    pub fn check_files(&self) -> Result<(), String> {
        let needed = 2 * self.sessions + SPARE_FILES;
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let soft = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        match soft {
            Some(soft) if needed > soft => Err(format!(
                "{} sessions need {needed} open files and {soft} are allowed: \
                 `ulimit -n {needed}` or fewer --sessions",
                self.sessions
            )),
            _ => Ok(()),
        }
    }
}

fn number(argument: &str, value: &str) -> Result<usize, String> {
    let number = value.parse().ok().filter(|number| *number > 0);
    number.ok_or(format!("{argument}: {value:?} is no number above 0"))
}

fn peers(value: &str) -> Result<Vec<Peer>, String> {
    let find = |name: &str| {
        let peer = Peer::ALL.into_iter().find(|peer| peer.name() == name);
        peer.ok_or(format!("--peers: {name:?} is none of them"))
    };
    let wanted: Vec<_> = value.split(',').map(find).collect::<Result<_, _>>()?;
    let ordered = Peer::ALL.into_iter();
    Ok(ordered.filter(|peer| wanted.contains(peer)).collect())
}
