//! Log lines, for people or for machines, on standard error.

use std::{io::Write as _, time::SystemTime};

use env_logger::{Builder, WriteStyle};
use log::LevelFilter;

/// Libraries that log whole DNS messages, over several lines, for each look-up.
const VERBOSE_LIBRARIES: [&str; 2] = ["hickory_net", "hickory_resolver"];

/// The levels by name, the most severe first.
pub const LEVELS: [(&str, LevelFilter); 5] = [
    ("error", LevelFilter::Error),
    ("warn", LevelFilter::Warn),
    ("info", LevelFilter::Info),
    ("debug", LevelFilter::Debug),
    ("trace", LevelFilter::Trace),
];

/// Which lines are logged, and in which format.
#[derive(Clone, Copy, Debug)]
pub struct LogSettings {
    pub level: LevelFilter,
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts logging. Only the first call in a process has an effect: tests start several balancers in
/// one.
pub fn init(settings: LogSettings) {
    let mut builder = Builder::new();
    // The filter lets everything pass, and the `log` crate's maximum decides: it can be changed
    // later.
    builder.filter_level(LevelFilter::Trace).write_style(WriteStyle::Never);
    for library in VERBOSE_LIBRARIES {
        builder.filter_module(library, LevelFilter::Warn);
    }
    match settings.format {
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
    if builder.try_init().is_ok() {
        set_level(settings.level);
    }
}

/// Sets the lowest level that is logged from now on.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}
