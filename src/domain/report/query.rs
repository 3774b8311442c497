//! How pods are asked for a report.

use std::sync::Arc;

use super::reader::Reader;

/// What a pod is asked.
#[derive(Clone, Debug)]
pub enum Question {
    /// What is on its metric route, by HTTP.
    Metric {
        /// With its leading slash.
        path: String,
        /// Who understands the answer.
        reader: Arc<dyn Reader>,
    },
    /// What its agent says, by TCP alone (HAProxy's `agent-check`).
    Agent(Arc<dyn Reader>),
    /// Whether this path answers 2xx; its count stays unknown.
    Health(String),
    /// Whether it takes a connection; its count stays unknown.
    Connect,
}

impl PartialEq for Question {
    /// Readers are the same where they are one and the same.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Metric { path, reader }, Self::Metric { path: other, reader: other_reader }) => {
                path == other && Arc::ptr_eq(reader, other_reader)
            }
            (Self::Agent(one), Self::Agent(other)) => Arc::ptr_eq(one, other),
            (Self::Health(one), Self::Health(other)) => one == other,
            (Self::Connect, Self::Connect) => true,
            _ => false,
        }
    }
}
