//! Settings: where they come from, what they may be.
//!
//! `config/default.toml` is compiled in and names every key; a file and the environment override
//! it. [`load`] merges the layers and remembers where each value came from, [`resolve`] turns them
//! into typed, checked settings. All mistakes are reported at once. The environment is read
//! nowhere else.

pub mod load;
mod read;
pub mod resolve;

use std::path::Path;

pub use self::{
    load::{Layers, Problems},
    resolve::{Admin, Balancer, Config, Log, LogFormat, Server},
};

/// Reads the settings of this process: defaults, then `file`, then the environment.
///
/// # Errors
/// Every problem found, each with key, value, origin and fix.
pub fn from_process(file: Option<&Path>) -> Result<Config, Problems> {
    Config::resolve(Layers::of_process(file)?)
}
