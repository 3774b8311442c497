//! How pods are asked for a report.

use std::sync::Arc;

use super::reader::Reader;

/// How a pod is polled.
#[derive(Clone, Debug)]
pub enum ReportQuery {
    /// Gets a report from the metric path by HTTP.
    Metric {
        /// With a leading slash.
        path: String,
        reader: Arc<dyn Reader>,
    },
    /// Reads an agent line over plain TCP (HAProxy's `agent-check`).
    Agent(Arc<dyn Reader>),
    /// Checks that this path answers with 2xx. The count stays unknown.
    Health(String),
    /// Checks that the pod accepts a connection. The count stays unknown.
    Connect,
}

impl PartialEq for ReportQuery {
    /// Readers are equal if they are the same object.
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
