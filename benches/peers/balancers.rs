//! The compared balancers, each on one thread: program, configuration and start.

use std::{
    env, fmt, fs,
    io::{Error, Result},
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use tokio::time;

use crate::{clients::Clients, process::Process};

/// How long a balancer may take from its start to the first relayed session.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// A balancer in one configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Balancer {
    Haproxy,
    HaproxyTuned,
    Nginx,
    NginxTuned,
    Wsbalancer,
}

/// A balancer process that relays to the pod.
pub struct Running {
    pub process: Process,
    pub address: SocketAddr,
}

impl Balancer {
    /// All balancers in the order of their rounds.
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

    /// Returns whether it has buffers of 64 KiB. A message of 16 KiB with its header is slightly larger
    /// than HAProxy's default buffer, so that with large messages the tuned balancers are the fair
    /// comparison. With small messages the buffers make no difference.
    pub fn is_tuned(self) -> bool {
        matches!(self, Self::HaproxyTuned | Self::NginxTuned)
    }

    /// Returns the name of its program.
    pub fn program_name(self) -> &'static str {
        match self {
            Self::Haproxy | Self::HaproxyTuned => "haproxy",
            Self::Nginx | Self::NginxTuned => "nginx",
            Self::Wsbalancer => "wsbalancer",
        }
    }

    /// Returns the path of its program if it is installed.
    pub fn program(self) -> Option<PathBuf> {
        if self == Self::Wsbalancer {
            let built = || env!("CARGO_BIN_EXE_wsbalancer").into();
            return Some(env::var_os("WSBALANCER_BIN").unwrap_or_else(built).into());
        }
        // Debian installs both in a folder that only root's PATH contains.
        let path = env::var_os("PATH").unwrap_or_default();
        env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
            .map(|folder| folder.join(self.program_name()))
            .find(|file| file.is_file())
    }

    /// Returns the first line of the program's version output.
    pub fn version(self) -> Option<String> {
        let flag = if self == Self::Wsbalancer { "--version" } else { "-v" };
        let output = Command::new(self.program()?).arg(flag).output().ok()?;
        let text = [output.stdout, output.stderr].concat(); // nginx prints to stderr
        String::from_utf8_lossy(&text).lines().next().map(str::to_owned)
    }

    /// Starts it in `folder` in front of `pod`, with room for `sessions`, and waits until it relays.
    pub async fn start(self, folder: &Path, pod: SocketAddr, sessions: usize) -> Result<Running> {
        let running = self.spawn(folder, pod, sessions)?;
        let relays = async {
            while Clients::open(running.address, 1, 1).await.is_err() {
                time::sleep(Duration::from_millis(20)).await;
            }
        };
        time::timeout(START_TIMEOUT, relays).await.map_err(|_| {
            let output = running.process.output();
            Error::other(format!("it does not relay; its output:\n{output}"))
        })?;
        Ok(running)
    }

    /// Returns a function that puts the name of the balancer in front of an error.
    pub fn name_in_error(self) -> impl Fn(Error) -> Error {
        move |error| Error::new(error.kind(), format!("{self}: {error}"))
    }

    fn spawn(self, folder: &Path, pod: SocketAddr, sessions: usize) -> Result<Running> {
        let program = self.program().ok_or_else(|| Error::other("not installed"))?;
        let mut command = Command::new(program);
        // wsbalancer must not load the caller's configuration.
        command.current_dir(folder).env_remove("WSBALANCER_CONFIG");
        if self == Self::Wsbalancer {
            command
                .env("WSBALANCER_SERVICES", format!("http://{pod}"))
                .env("WSBALANCER__SERVER__LISTEN", "127.0.0.1:0")
                .env("WSBALANCER__ADMIN__LISTEN", "127.0.0.1:0")
                .env("WSBALANCER__SERVER__WORKERS", "1")
                .env("WSBALANCER__LOG__LEVEL", "info");
            let process = Process::start(&mut command)?;
            let address = process.expect(START_TIMEOUT, |line| {
                let (_, rest) = line.split_once("traffic on ")?;
                rest.split([',', ' ']).next()?.parse().ok()
            })?;
            return Ok(Running { process, address });
        }

        // HAProxy and nginx do not report a port chosen by the kernel, so pick a free one for them.
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let max_sessions = sessions + 100; // sessions of the warm-up may still be open
        let file = folder.join(format!("{self}.conf"));
        if self.program_name() == "haproxy" {
            fs::write(&file, haproxy_config(address, pod, max_sessions, self.is_tuned()))?;
            command.arg("-db").arg("-f").arg(&file);
        } else {
            fs::write(&file, nginx_config(address, pod, max_sessions, self.is_tuned()))?;
            command.arg("-e").arg("stderr").arg("-p").arg(folder).arg("-c").arg(&file);
        }
        let process = Process::start(&mut command)?;
        Ok(Running { process, address })
    }
}

impl fmt::Display for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Returns a configuration with HAProxy's defaults, except for the thread count, the time-outs that
/// it requires and `maxconn`.
fn haproxy_config(listen: SocketAddr, pod: SocketAddr, sessions: usize, tuned: bool) -> String {
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

/// Returns a configuration for nginx in one process. Without a master process, killing the process
/// leaves no worker behind.
fn nginx_config(listen: SocketAddr, pod: SocketAddr, sessions: usize, tuned: bool) -> String {
    // nginx resets new connections that have sent nothing yet when only a sixteenth of its
    // connections is free.
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
