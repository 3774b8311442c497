//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

/// A WebSocket connection balancer.
///
/// Every new connection goes to the pod with the fewest connections, and bytes are relayed in both
/// directions until one side ends. Settings come from a TOML file and from WSBALANCER__SECTION__KEY
/// variables. WSBALANCER_SERVICES=http://pod-1:3001,http://pod-2:3001 is enough to start.
///
/// Exit codes: 0 after a clean stop, 64 for wrong usage or configuration, 1 for any other failure.
#[derive(Debug, Parser)]
#[command(version, subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// The command; `run` is the default.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of `run`.
    #[command(flatten)]
    pub options: ConfigOptions,
}

/// Where the settings come from.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigOptions {
    /// TOML file with the settings that differ from the defaults.
    #[arg(long, value_name = "FILE", env = "WSBALANCER_CONFIG")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until SIGTERM or SIGINT, then drain and stop. A second signal stops at once. SIGHUP
    /// reloads the settings.
    Run(ConfigOptions),
    /// Check the settings: print each with its origin, or print all problems.
    Check(ConfigOptions),
    /// Try it out: run a balancer with three embedded pods and 60 embedded clients.
    Demo(ConfigOptions),
    /// Run a sample pod: /ws echoes messages, /metric reports the number of connections. POD_NAME,
    /// POD_IP and NODE_NAME set the names in its reports.
    Pod {
        /// IP address and port to listen on.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:3001")]
        listen: SocketAddr,
    },
    /// Connect to a WebSocket, send the lines of standard input and print received messages.
    Client {
        /// URL, for example ws://127.0.0.1:8080/ws.
        url: String,
        /// Send a numbered message at this interval, for example 1s, instead of standard input.
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        every: Option<Duration>,
    },
    /// Check whether the balancer with the same settings is ready: exit code 0 or 1. For
    /// containers.
    Healthcheck(ConfigOptions),
}
