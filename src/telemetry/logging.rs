//! Log lines, for people or for machines, on standard error.

use std::{io::Write as _, time::SystemTime};

use env_logger::{Builder, WriteStyle};
use log::LevelFilter;

pub use crate::config::LEVELS;
use crate::config::{Log, LogFormat};

/// Libraries that log whole DNS messages, over several lines, for each look-up.
const TALKATIVE: [&str; 2] = ["hickory_net", "hickory_resolver"];

/// Starts logging as configured; the first call in a process wins.
pub fn init(log: Log) {
    let mut builder = Builder::new();
    // The level is a gate before all filters, so that it can be moved.
    builder.filter_level(LevelFilter::Trace).write_style(WriteStyle::Never);
    for library in TALKATIVE {
        builder.filter_module(library, LevelFilter::Warn);
    }
    match log.format {
        LogFormat::Text => builder.format_target(false),
        LogFormat::Json => builder.format(|line, record| {
            let object = serde_json::json!({
                "timestamp": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
                "level": record.level().as_str().to_ascii_lowercase(),
                "target": record.target(),
                "message": record.args().to_string(),
            });
            writeln!(line, "{object}")
        }),
    };
    // Tests start several balancers in one process.
    if builder.try_init().is_ok() {
        set_level(log.level);
    }
}

/// Logs what is at `level` or graver from now on.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}
