//! What is counted, and how scrapers read it (Prometheus text format 0.0.4).

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Refused clients, by reason.
pub const REFUSALS: &str = "wsbalancer_refusals_total";

/// Affinity cookies that clients brought, by what came of them.
pub const COOKIES: &str = "wsbalancer_affinity_cookies_total";

/// Sessions that were opened.
pub const SESSIONS: &str = "wsbalancer_sessions_opened_total";

/// Sessions that have ended, by why.
pub const ENDINGS: &str = "wsbalancer_sessions_ended_total";

/// Plain requests that were passed on.
pub const REQUESTS: &str = "wsbalancer_requests_total";

/// Reloads, by what came of them.
pub const RELOADS: &str = "wsbalancer_reloads_total";

/// Counts by the values that one label may have.
type Labelled = Vec<(&'static str, AtomicU64)>;

/// The values that labels may have: nothing is counted under others, so that they stay few.
#[derive(Clone, Copy, Debug)]
pub struct Labels<'a> {
    /// Reasons of [`REFUSALS`].
    pub refusals: &'a [&'static str],
    /// Results of [`COOKIES`].
    pub cookies: &'a [&'static str],
    /// Results of [`RELOADS`].
    pub reloads: &'a [&'static str],
    /// Reasons of [`ENDINGS`].
    pub endings: &'a [&'static str],
}

/// The counters of one process.
#[derive(Debug)]
pub struct Counters {
    refusals: Labelled,
    cookies: Labelled,
    reloads: Labelled,
    endings: Labelled,
    /// [`SESSIONS`]
    pub sessions: AtomicU64,
    /// [`REQUESTS`]
    pub requests: AtomicU64,
}

impl Counters {
    /// Counters at zero.
    pub fn new(labels: Labels<'_>) -> Self {
        let zeros = |labels: &[&'static str]| {
            labels.iter().map(|label| (*label, AtomicU64::new(0))).collect()
        };
        Self {
            refusals: zeros(labels.refusals),
            cookies: zeros(labels.cookies),
            reloads: zeros(labels.reloads),
            endings: zeros(labels.endings),
            sessions: AtomicU64::new(0),
            requests: AtomicU64::new(0),
        }
    }

    /// One client more was refused.
    pub fn refused(&self, reason: &str) {
        count(&self.refusals, reason);
    }

    /// One affinity cookie more had this result.
    pub fn cookie(&self, result: &str) {
        count(&self.cookies, result);
    }

    /// One reload more had this result.
    pub fn reloaded(&self, result: &str) {
        count(&self.reloads, result);
    }

    /// One session more has ended, for this reason.
    pub fn ended(&self, reason: &str) {
        count(&self.endings, reason);
    }

    /// All of them as text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (name, label, counts) in [
            (REFUSALS, "reason", &self.refusals),
            (COOKIES, "result", &self.cookies),
            (RELOADS, "result", &self.reloads),
            (ENDINGS, "reason", &self.endings),
        ] {
            let _ = writeln!(text, "# TYPE {name} counter");
            for (value, count) in counts {
                let _ = writeln!(text, "{name}{{{label}=\"{value}\"}} {}", count.load(Relaxed));
            }
        }
        for (name, count) in [(SESSIONS, &self.sessions), (REQUESTS, &self.requests)] {
            let _ = writeln!(text, "# TYPE {name} counter\n{name} {}", count.load(Relaxed));
        }
        text
    }
}

fn count(counts: &Labelled, label: &str) {
    if let Some((_, count)) = counts.iter().find(|(known, _)| *known == label) {
        count.fetch_add(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_show_under_their_reason() {
        let counters = Counters::new(Labels {
            refusals: &["large_head", "slow_head"],
            cookies: &["followed"],
            reloads: &["applied"],
            endings: &["idle"],
        });
        counters.refused("slow_head");
        counters.refused("never heard of");
        counters.cookie("followed");
        counters.reloaded("applied");
        counters.ended("idle");
        counters.sessions.fetch_add(3, Relaxed);
        let text = counters.render();
        assert!(text.contains("wsbalancer_refusals_total{reason=\"slow_head\"} 1\n"), "{text}");
        assert!(text.contains("wsbalancer_refusals_total{reason=\"large_head\"} 0\n"), "{text}");
        assert!(
            text.contains("wsbalancer_affinity_cookies_total{result=\"followed\"} 1\n"),
            "{text}"
        );
        assert!(text.contains("wsbalancer_reloads_total{result=\"applied\"} 1\n"), "{text}");
        assert!(text.contains("wsbalancer_sessions_ended_total{reason=\"idle\"} 1\n"), "{text}");
        assert!(text.contains("\nwsbalancer_sessions_opened_total 3\n"), "{text}");
        assert!(!text.contains("never"), "{text}");
    }
}
