//! Settings: where they come from and which values they can have.
//!
//! `config/default.toml` is compiled in and names every key; a file and the environment override
//! it.
//!
//! - [`layers`] merges these layers and keeps the origin of each value.
//! - `reader` and `parse` turn the values into types and collect all problems.
//! - [`model`] reads the sections; [`services`], `session`, `tls`, `routes` and `discovery` read their
//!   parts.
//! - [`diff`] finds what differs between two configurations, `file_watch` notices changed files,
//!   and [`live`] holds the settings in use.
//!
//! Only this module reads the settings of the environment.
//!
//! # Adding a setting
//!
//! 1. Add the key with its comment to `config/default.toml`, and a row to `docs/configuration.md`.
//! 2. Add a field to the settings struct that uses it, and the line that reads it.
//! 3. If it cannot change while the process runs, add the key to `NEEDS_RESTART` in [`diff`].
//!
//! Users hold the settings struct, not copies of its fields. `wsbalancer check`, the comparison of
//! configurations and the search for unknown keys work on the keys, so that they need no change.

pub mod diff;
mod discovery;
mod file_watch;
pub mod layers;
pub mod live;
pub mod model;
mod parse;
mod reader;
mod routes;
pub mod services;
mod session;
mod tls;
mod token;

use std::{net::SocketAddr, path::Path};

pub use self::{
    discovery::DiscoverySettings,
    file_watch::{FileChange, FileWatch},
    layers::{Layers, Problems, socket_names},
    model::{AdminSettings, Config, ServerSettings},
    services::{
        BalancerSettings, HeaderChanges, ServiceSettings,
        affinity::{AffinitySettings, CookieSettings, SecureAttribute},
    },
    token::Token,
};

/// Reads only the address of the admin listener, for a process with the same settings.
///
/// # Errors
/// The file cannot be read, or the key has a problem.
pub fn load_admin_listen(file: Option<&Path>) -> Result<SocketAddr, Problems> {
    model::admin_listen(Layers::from_process(file)?)
}

/// Reads the settings of this process: defaults, then `file`, then the environment.
///
/// # Errors
/// All problems, each with key, value, origin and the expected value.
pub fn load(file: Option<&Path>) -> Result<Config, Problems> {
    Config::resolve(Layers::from_process(file)?)
}
