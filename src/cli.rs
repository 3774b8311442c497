//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

/// A WebSocket connection balancer.
///
/// Every new connection goes to the pod with the fewest live ones; bytes are relayed both ways
/// until either side ends. Settings come from a TOML file and from WSBALANCER__SECTION__KEY
/// variables; WSBALANCER_SERVICES=http://pod-1:3001,http://pod-2:3001 alone is enough.
///
/// Exit codes: 0 clean stop, 64 wrong usage or configuration, 1 anything else.
#[derive(Debug, Parser)]
#[command(version, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// What to do; `run` unless said otherwise.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The settings of `run`.
    #[command(flatten)]
    pub settings: Settings,
}

/// Where settings come from.
#[derive(Args, Clone, Debug, Default)]
pub struct Settings {
    /// TOML file with settings that differ from the defaults.
    #[arg(long, value_name = "FILE", env = "WSBALANCER_CONFIG")]
    pub config: Option<PathBuf>,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until SIGTERM or SIGINT, and drain then; a second one ends it at once.
    Run(Settings),
    /// Print the resolved settings with their origins, or every problem in them.
    Check(Settings),
    /// Serve with three embedded pods and a crowd of embedded clients.
    Demo(Settings),
    /// Run a sample pod: /ws echoes, /metric reports. POD_NAME, POD_IP and NODE_NAME name it.
    Pod {
        /// IP address and port to listen on.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3001")]
        listen: SocketAddr,
    },
    /// Connect, send the lines of standard input, print what comes.
    Client {
        /// Such as ws://127.0.0.1:8080/ws
        url: String,
        /// Send a numbered message this often instead, such as 1s.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        every: Option<Duration>,
    },
    /// Ask the running balancer whether it is ready; exit code 0 or 1, for containers.
    Healthcheck(Settings),
}
