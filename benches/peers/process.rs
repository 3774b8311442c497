//! A balancer's process: its start, its output, its end, and its figures in `/proc`.

use std::{
    fs,
    io::{BufRead, BufReader, Error, Read, Result},
    process::{Child, Command, Stdio},
    sync::mpsc::{self, Receiver},
    thread,
    time::Duration,
};

/// The unit of processor time in `/proc` on every architecture that we run on (`USER_HZ`).
const TICK: Duration = Duration::from_millis(10);

/// A child process that is killed on drop.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    /// Starts `command` and collects its output.
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
            // Keeps reading when the receiver is gone: a full pipe would block the child.
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

    /// Waits for a line of output for which `find` returns a value.
    ///
    /// # Errors
    /// Fails if no line arrives within `timeout`, or if the process ends.
    pub fn expect<T>(&self, timeout: Duration, find: impl Fn(&str) -> Option<T>) -> Result<T> {
        let mut seen = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(timeout) {
            if let Some(found) = find(&line) {
                return Ok(found);
            }
            seen.push(line);
        }
        Err(Error::other(format!(
            "the process did not report that it is ready; its output:\n{}",
            seen.join("\n")
        )))
    }

    /// Returns the output since the last call.
    pub fn output(&self) -> String {
        self.lines.try_iter().collect::<Vec<_>>().join("\n")
    }

    /// Returns the processor time of all its threads, user and system (proc(5), `utime` and `stime`).
    pub fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // The process name in parentheses may contain spaces and parentheses. The first field after it
        // is `state`.
        let ticks = stat.rsplit_once(") ").map(|(_, fields)| {
            let fields = fields.split(' ').skip(11).take(2);
            fields.flat_map(str::parse::<u32>).sum::<u32>()
        });
        let ticks = ticks.ok_or_else(|| Error::other("cannot parse /proc/PID/stat"))?;
        Ok(TICK * ticks)
    }

    /// Returns the resident memory in bytes.
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
        // Both fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
