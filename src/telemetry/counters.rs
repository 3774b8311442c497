//! What is counted, and how scrapers read it (Prometheus text format 0.0.4).

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Refused clients, by reason.
pub const REFUSALS: &str = "wsbalancer_refusals_total";

/// Sessions that were opened.
pub const SESSIONS: &str = "wsbalancer_sessions_opened_total";

/// Plain requests that were passed on.
pub const REQUESTS: &str = "wsbalancer_requests_total";

/// The counters of one process.
#[derive(Debug)]
pub struct Counters {
    refusals: Vec<(&'static str, AtomicU64)>,
    /// [`SESSIONS`]
    pub sessions: AtomicU64,
    /// [`REQUESTS`]
    pub requests: AtomicU64,
}

impl Counters {
    /// Counters at zero; refusals are counted under `reasons` only, so that labels stay few.
    pub fn new(reasons: &[&'static str]) -> Self {
        Self {
            refusals: reasons.iter().map(|reason| (*reason, AtomicU64::new(0))).collect(),
            sessions: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        }
    }

    /// One client more was refused.
    pub fn refused(&self, reason: &str) {
        if let Some((_, count)) = self.refusals.iter().find(|(known, _)| *known == reason) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// All of them as text.
    pub fn render(&self) -> String {
        let mut text = format!("# TYPE {REFUSALS} counter\n");
        for (reason, count) in &self.refusals {
            let _ = writeln!(text, "{REFUSALS}{{reason=\"{reason}\"}} {}", count.load(Relaxed));
        }
        for (name, count) in [(SESSIONS, &self.sessions), (REQUESTS, &self.requests)] {
            let _ = writeln!(text, "# TYPE {name} counter\n{name} {}", count.load(Relaxed));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_show_under_their_reason() {
        let counters = Counters::new(&["large_head", "slow_head"]);
        counters.refused("slow_head");
        counters.refused("never heard of");
        counters.sessions.fetch_add(3, Relaxed);
        let text = counters.render();
        assert!(text.contains("wsbalancer_refusals_total{reason=\"slow_head\"} 1\n"), "{text}");
        assert!(text.contains("wsbalancer_refusals_total{reason=\"large_head\"} 0\n"), "{text}");
        assert!(text.contains("\nwsbalancer_sessions_opened_total 3\n"), "{text}");
        assert!(!text.contains("never"), "{text}");
    }
}
