//! The balancers compared, each on one thread: where its program is, how it is configured, how
//! one knows that it relays.

use std::{
    env, fmt, fs,
    io::{Error, Result},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tokio::time;

use crate::{load::Load, process::Process};

/// How long a peer may take until it relays.
const READY: Duration = Duration::from_secs(15);

/// A balancer in one configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    Haproxy,
    HaproxyTuned,
    Nginx,
    NginxTuned,
    Wsbalancer,
}

/// A peer that relays to the pod.
pub struct Running {
    pub process: Process,
    pub address: SocketAddr,
}

impl Peer {
    /// In the order of their rounds; the first is the 1.00.
    pub const ALL: [Self; 5] =
        [Self::Haproxy, Self::HaproxyTuned, Self::Nginx, Self::NginxTuned, Self::Wsbalancer];

    pub fn name(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::HaproxyTuned => "haproxy-tuned",
            Self::Nginx => "nginx",
            Self::NginxTuned => "nginx-tuned",
            Self::Wsbalancer => "wsbalancer",
        }
    }

    /// Whether it has 64 KiB buffers. A message of 16 KiB just misses HAProxy's default buffer, so
    /// that with large messages the tuned peers are the honest ones; with small ones nothing
    /// changes.
    pub fn is_tuned(self) -> bool {
        matches!(self, Self::HaproxyTuned | Self::NginxTuned)
    }

    /// The name of its program.
    pub fn program_name(self) -> &'static str {
        match self {
            Self::Haproxy | Self::HaproxyTuned => "haproxy",
            Self::Nginx | Self::NginxTuned => "nginx",
            Self::Wsbalancer => "wsbalancer",
        }
    }

    /// Its program, if it is installed.
    pub fn program(self) -> Option<PathBuf> {
        if self == Self::Wsbalancer {
            let built = || env!("CARGO_BIN_EXE_wsbalancer").into();
            return Some(env::var_os("WSBALANCER_BIN").unwrap_or_else(built).into());
        }
        // Debian puts both where only root's PATH looks.
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
            .map(|folder| folder.join(self.program_name()))
            .find(|file| file.is_file())
    }

    /// The first line in which the program states its version.
    pub fn version(self) -> Option<String> {
        let flag = if self == Self::Wsbalancer { "--version" } else { "-v" };
        let output = Command::new(self.program()?).arg(flag).output().ok()?;
        let text = [output.stdout, output.stderr].concat(); // nginx prints to stderr
        String::from_utf8_lossy(&text).lines().next().map(str::to_owned)
    }

    /// Starts it in `folder` before `pod`, ready for `sessions`, and waits until it relays.
    pub async fn start(self, folder: &Path, pod: SocketAddr, sessions: usize) -> Result<Running> {
        let running = self.spawn(folder, pod, sessions)?;
        let relays = async {
            while Load::open(running.address, 1, 1).await.is_err() {
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        time::timeout(READY, relays).await.map_err(|_| {
            let output = running.process.output();
            Error::other(format!("it does not relay. It said:\n{output}"))
        })?;
        Ok(running)
    }

    /// Names the peer in an error.
    pub fn blame(self) -> impl Fn(Error) -> Error {
        move |error| Error::new(error.kind(), format!("{self}: {error}"))
    }

    fn spawn(self, folder: &Path, pod: SocketAddr, sessions: usize) -> Result<Running> {
        let program = self.program().ok_or_else(|| Error::other("not installed"))?;
        let mut command = Command::new(program);
        // No configuration of the caller's may be found.
        command.current_dir(folder).env_remove("WSBALANCER_CONFIG");
        if self == Self::Wsbalancer {
            command
                .env("WSBALANCER_SERVICES", format!("http://{pod}"))
                .env("WSBALANCER__SERVER__LISTEN", "127.0.0.1:0")
                .env("WSBALANCER__ADMIN__LISTEN", "127.0.0.1:0")
                .env("WSBALANCER__SERVER__WORKERS", "1")
                .env("WSBALANCER__LOG__LEVEL", "info");
            let process = Process::start(&mut command)?;
            let address = process.expect(READY, |line| {
                let (_, rest) = line.split_once("traffic on ")?;
                rest.split([',', ' ']).next()?.parse().ok()
            })?;
            return Ok(Running { process, address });
        }

        // They cannot tell which port they got, so they get one that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let room = sessions + 100; // the warm-up may be seen to end late
        let file = folder.join(format!("{self}.conf"));
        if self.program_name() == "haproxy" {
            fs::write(&file, haproxy(address, pod, room, self.is_tuned()))?;
            command.arg("-db").arg("-f").arg(&file);
        } else {
            fs::write(&file, nginx(address, pod, room, self.is_tuned()))?;
            command.arg("-e").arg("stderr").arg("-p").arg(folder).arg("-c").arg(&file);
        }
        let process = Process::start(&mut command)?;
        Ok(Running { process, address })
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// HAProxy as Debian ships it, but for the thread, the time-outs it demands and `maxconn`.
fn haproxy(listen: SocketAddr, pod: SocketAddr, sessions: usize, tuned: bool) -> String {
    let bufsize = if tuned { "tune.bufsize 65536" } else { "" };
    format!(
        "global
    nbthread 1
    maxconn {sessions}
    {bufsize}
defaults
    mode http
    timeout connect 10s
    timeout client 30s
    timeout server 30s
    timeout tunnel 1h
frontend traffic
    bind {listen}
    default_backend pods
backend pods
    server pod {pod}
"
    )
}

/// nginx in one process: what a worker does, without the master, whose worker would live on when
/// it is killed.
fn nginx(listen: SocketAddr, pod: SocketAddr, sessions: usize, tuned: bool) -> String {
    // When a sixteenth of its connections is left, it resets new ones that have sent nothing yet.
    let connections = 2 * sessions * 9 / 8;
    let buffers = if tuned { "proxy_buffer_size 64k; proxy_buffers 8 64k;" } else { "" };
    format!(
        "daemon off;
master_process off;
worker_processes 1;
pid nginx.pid;
events {{ worker_connections {connections}; }}
http {{
    access_log off;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen {listen};
        location / {{
            proxy_pass http://{pod};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_read_timeout 1h;
            proxy_send_timeout 1h;
            {buffers}
        }}
    }}
}}
"
    )
}
