//! The wsbalancer binary as a child process.

use std::{
    net::SocketAddr,
    os::fd::OwnedFd,
    process::{ExitStatus, Stdio},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader, Lines},
    process::{Child, ChildStderr, Command},
};

use super::{eventually, within};

/// `wsbalancer run` on free ports; killed when the test ends.
pub struct Program {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    pub traffic: SocketAddr,
    pub admin: SocketAddr,
}

/// Returns a command for the binary with a clean environment.
pub fn command() -> Command {
    clean(Command::new(env!("CARGO_BIN_EXE_wsbalancer")))
}

/// Returns a command for the binary that inherits one or two `sockets` as from systemd; a shell passes
/// them from its standard input and output.
pub fn activated(sockets: &[OwnedFd], names: &str) -> Command {
    let mut shell = Command::new("sh");
    let script = "exec 3<&0 4<&1 </dev/null >/dev/null; LISTEN_PID=$$ exec \"$0\" run";
    shell.args(["-c", script, env!("CARGO_BIN_EXE_wsbalancer")]);
    let mut shell = clean(shell);
    shell.env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names);
    let mut handles = sockets.iter().map(|socket| socket.try_clone().unwrap());
    shell.stdin(Stdio::from(handles.next().unwrap()));
    if let Some(second) = handles.next() {
        shell.stdout(Stdio::from(second));
    }
    shell
}

fn clean(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WSBALANCER") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

impl Program {
    /// Starts it in front of `services`, with further `WSBALANCER__…` variables. By default it closes
    /// all sessions as soon as it receives SIGTERM.
    pub async fn run(services: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = command();
        command.arg("run").env("WSBALANCER_SERVICES", services).envs(variables.iter().copied());
        Self::start(command).await
    }

    /// Starts `command`, by default on free ports, and waits until it listens.
    pub async fn start(command: Command) -> Self {
        let mut program = Self::spawn(command);
        let line = program.logs("traffic on ").await;
        let addresses = line.split("traffic on ").nth(1).unwrap();
        let (traffic, admin) = addresses.split_once(", admin on ").unwrap();
        program.traffic = traffic.parse().unwrap();
        program.admin = admin.parse().unwrap();
        program
    }

    /// Starts `command` like [`start`](Self::start), but does not wait, so that its addresses are unknown.
    pub fn spawn(mut command: Command) -> Self {
        for (name, value) in [
            ("WSBALANCER__SERVER__LISTEN", "127.0.0.1:0"),
            ("WSBALANCER__ADMIN__LISTEN", "127.0.0.1:0"),
            ("WSBALANCER__SERVER__WORKERS", "1"),
            ("WSBALANCER__SERVER__DRAIN_DELAY", "0s"),
            ("WSBALANCER__SERVER__DRAIN_TIME", "0s"),
        ] {
            let is_set =
                command.as_std().get_envs().any(|(known, set)| known == name && set.is_some());
            if !is_set {
                command.env(name, value);
            }
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap()).lines();
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { child, log, traffic: unknown, admin: unknown }
    }

    /// Waits until `count` sessions are open: a session is registered shortly after its 101.
    pub async fn until_sessions(&self, count: usize) {
        let url = format!("http://{}/api/sessions", self.admin);
        eventually(&format!("{count} sessions"), async || {
            let mut response = awc::Client::new().get(&url).send().await.expect("a response");
            let sessions: Value = response.json().await.expect("JSON");
            sessions.as_array().expect("a list").len() == count
        })
        .await;
    }

    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("a running child").to_string();
        let sent = std::process::Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the next line of its log that contains `text`.
    pub async fn logs(&mut self, text: &str) -> String {
        until(&mut self.log, text).await
    }

    /// Waits for the end and returns the exit status and the rest of the log.
    pub async fn finish(mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        while let Some(line) = within("the end of the log", self.log.next_line()).await.unwrap() {
            log += &line;
            log.push('\n');
        }
        (within("the exit", self.child.wait()).await.unwrap(), log)
    }

    /// Returns the resident memory in bytes (`/proc/PID/smaps_rollup`).
    pub fn rss(&self) -> u64 {
        let pid = self.child.id().expect("a running child");
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = rollup.lines().find(|line| line.starts_with("Rss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

/// Waits for the next line that contains `text`.
pub async fn until<R: AsyncRead + Unpin>(lines: &mut Lines<BufReader<R>>, text: &str) -> String {
    loop {
        let line = within(text, lines.next_line()).await.unwrap().expect("more output");
        if line.contains(text) {
            return line;
        }
    }
}
