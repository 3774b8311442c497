//! The command line. `cargo bench --bench peers -- --help` prints [`HELP`].

use std::{fs, time::Duration};

use crate::balancers::Balancer;

/// File descriptors that this process needs in addition to those of its sessions.
const SPARE_FILES: usize = 200;

pub const HELP: &str = "\
Compares wsbalancer with HAProxy and nginx, one thread each, in interleaved rounds.

cargo bench --bench peers -- [options]
  --rounds N      rounds per balancer and message size (default 5)
  --sessions N    idle sessions to measure memory with (default 4500)
  --peers A,B,…   some of haproxy, haproxy-tuned, nginx, nginx-tuned, wsbalancer (default all)
  --full          also measure 1 KiB and 16 KiB messages
  --short         for CI: 3 shorter rounds, 500 sessions
  --assert        check the limits, print PASS or FAIL
Environment: WSBALANCER_BIN is the wsbalancer binary to measure; with CI set, a skipped
measurement is a failure.";

pub struct Options {
    pub rounds: usize,
    /// Processor time that a balancer is to spend in one round: many ticks of the kernel's clock.
    pub cpu_per_round: Duration,
    pub sessions: usize,
    pub balancers: Vec<Balancer>,
    pub full: bool,
    pub assert: bool,
    /// Whether to measure at all. `cargo bench` passes `--bench`; `cargo test --all-targets` runs
    /// this program without it, and must not measure.
    pub bench: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            rounds: 5,
            cpu_per_round: Duration::from_millis(1700),
            sessions: 4500,
            balancers: Balancer::ALL.into(),
            full: false,
            assert: false,
            bench: false,
        }
    }
}

impl Options {
    /// Parses the arguments. Returns `None` if they ask for help.
    ///
    /// # Errors
    /// Names the invalid argument.
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
                    options.cpu_per_round = Duration::from_millis(700);
                    options.sessions = 500;
                }
                "--rounds" => options.rounds = number(&argument, &value()?)?,
                "--sessions" => options.sessions = number(&argument, &value()?)?,
                "--peers" => options.balancers = balancers(&value()?)?,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown argument {argument:?}")),
            }
        }
        Ok(Some(options))
    }

    /// Checks that this process may open enough files: two for each of `sessions`, one in the client
    /// and one in the pod. The balancers need as many and inherit our limit.
    ///
    /// # Errors
    /// Says how to raise the limit.
    pub fn check_open_files(&self) -> Result<(), String> {
        let needed = 2 * self.sessions + SPARE_FILES;
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let soft = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        match soft {
            Some(soft) if needed > soft => Err(format!(
                "{} sessions need {needed} open files, but the limit is {soft}: \
                 run `ulimit -n {needed}` or pass fewer --sessions",
                self.sessions
            )),
            _ => Ok(()),
        }
    }
}

fn number(argument: &str, value: &str) -> Result<usize, String> {
    let number = value.parse().ok().filter(|number| *number > 0);
    number.ok_or(format!("{argument}: {value:?} is not a number above 0"))
}

/// Parses the value of `--peers`. The order of the result is that of [`Balancer::ALL`].
fn balancers(value: &str) -> Result<Vec<Balancer>, String> {
    let find = |name: &str| {
        let balancer = Balancer::ALL.into_iter().find(|balancer| balancer.name() == name);
        balancer.ok_or(format!("--peers: unknown balancer {name:?}"))
    };
    let wanted: Vec<_> = value.split(',').map(find).collect::<Result<_, _>>()?;
    let ordered = Balancer::ALL.into_iter();
    Ok(ordered.filter(|balancer| wanted.contains(balancer)).collect())
}
