//! Counts the system calls of a process with perf, or with strace if perf is not available. strace
//! slows the process so much that more sockets than usual are ready at each wake-up.

use std::{
    fs,
    io::{BufRead, BufReader, Error, Read, Result, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

const TOTAL: &str = "raw_syscalls:sys_enter";
const TRACEPOINT: &str = "syscalls:sys_enter_";
const RECEIVE: [&str; 4] = ["read", "readv", "recvfrom", "recvmsg"];
const SEND: [&str; 4] = ["write", "writev", "sendto", "sendmsg"];
/// Newer architectures have no `epoll_wait` system call, only `epoll_pwait`.
const EPOLL: &[&str] = if cfg!(target_arch = "x86_64") {
    &["epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait"]
} else {
    &["epoll_ctl", "epoll_pwait", "epoll_pwait2"]
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tool {
    Perf,
    Strace,
}

/// Numbers of system calls by purpose.
#[derive(Default)]
pub struct Counts {
    pub receive: u64,
    pub send: u64,
    pub epoll: u64,
    pub total: u64,
}

/// A running count.
pub struct Counter {
    tool: Tool,
    child: Child,
    report: PathBuf,
}

impl Tool {
    /// Returns perf if it can trace process `pid`, else strace if it can, else `None`.
    pub fn choose(pid: u32, folder: &Path) -> Option<Self> {
        let works = |tool: &Self| {
            let counted = Counter::start(*tool, pid, folder).and_then(Counter::finish);
            counted.is_ok()
        };
        [Self::Perf, Self::Strace].into_iter().find(works)
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Perf => "perf stat",
            Self::Strace => "strace, which slows the balancers",
        }
    }
}

impl Counter {
    /// Starts counting the system calls of process `pid`.
    pub fn start(tool: Tool, pid: u32, folder: &Path) -> Result<Self> {
        let report = folder.join("syscalls");
        let mut command;
        if tool == Tool::Perf {
            let grouped = RECEIVE.iter().chain(&SEND).chain(EPOLL);
            let events = grouped
                .fold(TOTAL.to_owned(), |events, call| format!("{events},{TRACEPOINT}{call}"));
            command = Command::new("perf");
            // perf counts as long as its command runs. The command is a `cat`: its first output shows
            // that perf is counting, and it ends when we close its input.
            command
                .args(["stat", "-x,", "-e", &events, "-p", &pid.to_string(), "-o"])
                .arg(&report)
                .arg("cat")
                .stderr(Stdio::null());
        } else {
            command = Command::new("strace");
            command
                .args(["-c", "-f", "-p", &pid.to_string(), "-o"])
                .arg(&report)
                .stderr(Stdio::piped());
        }
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut counter = Self { tool, child, report };
        counter.wait_until_attached()?;
        Ok(counter)
    }

    /// Waits for the line that both tools print when they start counting. A tool that cannot attach
    /// ends without it.
    fn wait_until_attached(&mut self) -> Result<()> {
        let output: Option<Box<dyn Read>> = match self.tool {
            Tool::Perf => {
                self.child
                    .stdin
                    .as_ref()
                    .map_or(Ok(()), |mut cat| cat.write_all(b"ready attached\n"))?;
                self.child.stdout.take().map(|out| Box::new(out) as _)
            }
            Tool::Strace => self.child.stderr.take().map(|err| Box::new(err) as _),
        };
        let mut line = String::new();
        if let Some(output) = output {
            BufReader::new(output).read_line(&mut line)?;
        }
        if line.contains("attached") {
            return Ok(());
        }
        Err(Error::other(format!("{} cannot attach: {line}", self.tool.name())))
    }

    /// Stops counting.
    pub fn finish(mut self) -> Result<Counts> {
        drop(self.child.stdin.take());
        if self.tool == Tool::Strace {
            // strace writes its table when it is interrupted.
            let pid = self.child.id().to_string();
            Command::new("kill").args(["-INT", &pid]).status()?;
        }
        self.child.wait()?;
        let report = fs::read_to_string(&self.report)?;
        let counts = match self.tool {
            Tool::Perf => sum(report.lines().filter_map(perf_line)),
            Tool::Strace => sum(report.lines().filter_map(strace_line)),
        };
        // "<not counted>" is the figure of an idle process and no error.
        let unsupported = !report.contains(TOTAL) || report.contains("<not supported>");
        if self.tool == Tool::Perf && unsupported {
            return Err(Error::other(format!("perf does not support the events: {report}")));
        }
        Ok(counts)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn sum<'a>(calls: impl Iterator<Item = (&'a str, u64)>) -> Counts {
    let mut counts = Counts::default();
    for (call, count) in calls {
        match call {
            "total" => counts.total += count,
            call if RECEIVE.contains(&call) => counts.receive += count,
            call if SEND.contains(&call) => counts.send += count,
            call if EPOLL.contains(&call) => counts.epoll += count,
            _ => {}
        }
    }
    counts
}

/// Parses a line `COUNT,UNIT,EVENT,…`.
fn perf_line(line: &str) -> Option<(&str, u64)> {
    let mut fields = line.split(',');
    let count = fields.next()?.parse().ok()?;
    let event = fields.nth(1)?;
    let call = if event == TOTAL { "total" } else { event.strip_prefix(TRACEPOINT)? };
    Some((call, count))
}

/// Parses a line `% SECONDS USECS/CALL CALLS [ERRORS] SYSCALL`. The last line is the total.
fn strace_line(line: &str) -> Option<(&str, u64)> {
    let fields: Vec<_> = line.split_whitespace().collect();
    Some((fields.last()?, fields.get(3)?.parse().ok()?))
}
