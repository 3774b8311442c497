//! Settings: where they come from, what they may be.
//!
//! `config/default.toml` is compiled in and names every key; a file and the environment override
//! it. [`layers`] merges the layers and remembers where each value came from, [`model`] turns them
//! into typed, checked settings; [`diff`] tells what is different between two of them. All mistakes are reported at once. The environment is read
//! nowhere else.

pub mod diff;
mod discovery;
mod file_watch;
pub mod layers;
pub mod live;
pub mod model;
mod reader;
mod routes;
pub mod services;
mod session;
mod token;

use std::{net::SocketAddr, path::Path};

pub use self::{
    discovery::Discovery,
    file_watch::{FileChange, FileWatch},
    layers::{Layers, Problems, socket_names},
    model::{Admin, Config, LEVELS, Log, LogFormat, Server},
    services::{Affinity, Balancer, Cookie, Secure, Service},
    token::Token,
};

/// Where the admin listener of a process with the same settings is.
///
/// # Errors
/// What is wrong with the file or the key.
pub fn admin_listen_of_process(file: Option<&Path>) -> Result<SocketAddr, Problems> {
    model::admin_listen(Layers::of_process(file)?)
}

/// Reads the settings of this process: defaults, then `file`, then the environment.
///
/// # Errors
/// Every problem found, each with key, value, origin and fix.
pub fn from_process(file: Option<&Path>) -> Result<Config, Problems> {
    Config::resolve(Layers::of_process(file)?)
}
