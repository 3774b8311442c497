//! A peer's process: started, watched, always ended, and asked the kernel about.

use std::{
    fs,
    io::{BufRead, BufReader, Error, Read, Result},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

/// `/proc` counts processor time in this unit on every architecture we run on (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// A child that ends with this value, also when a panic unwinds.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Starts `command` and collects what it prints.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let (sender, lines) = mpsc::channel();
        let streams: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|out| Box::new(out) as _),
            child.stderr.take().map(|err| Box::new(err) as _),
        ];
        for stream in streams.into_iter().flatten() {
            let sender = sender.clone();
            // Reads on when nobody listens any more: a full pipe would stop the peer.
            thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    let _ = sender.send(line);
                }
            });
        }
        Ok(Self { child, lines })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line from which `find` makes something.
    pub fn expect<T>(&self, patience: Duration, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(patience) {
            if let Some(found) = find(&line) {
                return Ok(found);
            }
            seen.push(line);
        }
        Err(Error::other(format!("it did not say that it is ready, but:\n{}", seen.join("\n"))))
    }

    /// What it printed and nobody has taken yet.
    pub fn output(&self) -> String {
        self.lines.try_iter().collect::<Vec<_>>().join("\n")
    }

    /// Processor time of all its threads, user and system (proc(5), `utime` and `stime`).
    pub fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The name in parentheses may hold anything; the fields after it are plain, `state` first.
        let ticks = stat.rsplit_once(") ").map(|(_, fields)| {
            let fields = fields.split(' ').skip(11).take(2);
            fields.flat_map(str::parse::<u32>).sum::<u32>()
        });
        let ticks = ticks.ok_or_else(|| Error::other("unreadable /proc/PID/stat"))?;
        Ok(TICK * ticks)
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> Result<u64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()))?;
        rollup
            .lines()
            .find_map(|line| line.strip_prefix("Rss:")?.strip_suffix("kB")?.trim().parse().ok())
            .map(|kib: u64| kib * 1024)
            .ok_or_else(|| Error::other("no Rss in /proc/PID/smaps_rollup"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Either fails only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
