//! Settings: where they come from, what they may be.
//!
//! `config/default.toml` is compiled in and names every key; a file and the environment override
//! it. [`load`] merges the layers and remembers where each value came from, [`resolve`] turns them
//! into typed, checked settings; [`reload`] tells what is different between two of them. All mistakes are reported at once. The environment is read
//! nowhere else.

mod discovery;
mod life;
pub mod load;
mod read;
pub mod reload;
pub mod resolve;
mod routes;
pub mod services;
mod token;
mod watch;

use std::{net::SocketAddr, path::Path};

pub use self::{
    discovery::Discovery,
    load::{Layers, Problems, socket_names},
    resolve::{Admin, Config, LEVELS, Log, LogFormat, Server},
    services::{Affinity, Balancer, Cookie, Secure, Service},
    token::Token,
    watch::{FileChange, FileWatch},
};

/// Where the admin listener of a process with the same settings is.
///
/// # Errors
/// What is wrong with the file or the key.
pub fn admin_listen_of_process(file: Option<&Path>) -> Result<SocketAddr, Problems> {
    resolve::admin_listen(Layers::of_process(file)?)
}

/// Reads the settings of this process: defaults, then `file`, then the environment.
///
/// # Errors
/// Every problem found, each with key, value, origin and fix.
pub fn from_process(file: Option<&Path>) -> Result<Config, Problems> {
    Config::resolve(Layers::of_process(file)?)
}
