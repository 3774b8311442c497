//! The real binary as a child process.

use std::{
    net::SocketAddr,
    process::{ExitStatus, Stdio},
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader, Lines},
    process::{Child, ChildStderr, Command},
};

use super::within;

/// `wsbalancer run` on free ports; killed with the test.
pub struct Program {
    child: Child,
    log: Lines<BufReader<ChildStderr>>,
    pub traffic: SocketAddr,
    pub admin: SocketAddr,
}

/// The binary with a clean environment.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wsbalancer"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("WSBALANCER") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

impl Program {
    /// Starts it in front of `services`, with further `WSBALANCER__…` variables. Unless these say
    /// otherwise, it closes all sessions as soon as it is told to end.
    pub async fn run(services: &str, variables: &[(&str, &str)]) -> Self {
        let mut child = command()
            .env("WSBALANCER_SERVICES", services)
            .env("WSBALANCER__SERVER__LISTEN", "127.0.0.1:0")
            .env("WSBALANCER__ADMIN__LISTEN", "127.0.0.1:0")
            .env("WSBALANCER__SERVER__WORKERS", "1")
            .env("WSBALANCER__SERVER__DRAIN_DELAY", "0s")
            .env("WSBALANCER__SERVER__DRAIN_TIME", "0s")
            .envs(variables.iter().copied())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = until(&mut log, "traffic on ").await;
        let addresses = line.split("traffic on ").nth(1).unwrap();
        let (traffic, admin) = addresses.split_once(", admin on ").unwrap();
        let (traffic, admin) = (traffic.parse().unwrap(), admin.parse().unwrap());
        Self { child, log, traffic, admin }
    }

    pub fn terminate(&self) {
        let pid = self.child.id().expect("a running child").to_string();
        let sent = std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// The next line of its log that contains `text`.
    pub async fn logs(&mut self, text: &str) -> String {
        until(&mut self.log, text).await
    }

    /// Its exit status and everything it logged since the start.
    pub async fn finish(mut self) -> (ExitStatus, String) {
        let mut log = String::new();
        while let Some(line) = within("the end of the log", self.log.next_line()).await.unwrap() {
            log += &line;
            log.push('\n');
        }
        (within("the exit", self.child.wait()).await.unwrap(), log)
    }

    /// Resident memory in bytes (`/proc/PID/smaps_rollup`).
    pub fn rss(&self) -> u64 {
        let pid = self.child.id().expect("a running child");
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
        let line = rollup.lines().find(|line| line.starts_with("Rss:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

/// The next line that contains `text`.
pub async fn until<R: AsyncRead + Unpin>(lines: &mut Lines<BufReader<R>>, text: &str) -> String {
    loop {
        let line = within(text, lines.next_line()).await.unwrap().expect("more output");
        if line.contains(text) {
            return line;
        }
    }
}
