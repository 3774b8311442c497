//! Counters of the process, in the Prometheus text format 0.0.4.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// Refused clients, by reason.
pub const REFUSALS: &str = "wsbalancer_refusals_total";

/// Affinity cookies of clients, by result.
pub const COOKIES: &str = "wsbalancer_affinity_cookies_total";

pub const SESSIONS: &str = "wsbalancer_sessions_opened_total";

/// Ended sessions, by reason.
pub const ENDINGS: &str = "wsbalancer_sessions_ended_total";

/// Plain HTTP requests that were forwarded.
pub const REQUESTS: &str = "wsbalancer_requests_total";

/// Reloads of the settings, by result.
pub const RELOADS: &str = "wsbalancer_reloads_total";

/// One count for each value of a label.
type Labelled = Vec<(&'static str, AtomicU64)>;

/// The values of labels. Other values are not counted, so that the number of series is bounded.
#[derive(Clone, Copy, Debug)]
pub struct LabelValues<'a> {
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
    /// Counter [`SESSIONS`].
    pub sessions_opened: AtomicU64,
    /// Counter [`REQUESTS`].
    pub plain_requests: AtomicU64,
}

impl Counters {
    pub fn new(labels: LabelValues<'_>) -> Self {
        let zeros = |labels: &[&'static str]| {
            labels.iter().map(|label| (*label, AtomicU64::new(0))).collect()
        };
        Self {
            refusals: zeros(labels.refusals),
            cookies: zeros(labels.cookies),
            reloads: zeros(labels.reloads),
            endings: zeros(labels.endings),
            sessions_opened: AtomicU64::new(0),
            plain_requests: AtomicU64::new(0),
        }
    }

    pub fn count_refusal(&self, reason: &str) {
        count(&self.refusals, reason);
    }

    pub fn count_cookie(&self, result: &str) {
        count(&self.cookies, result);
    }

    pub fn count_reload(&self, result: &str) {
        count(&self.reloads, result);
    }

    pub fn count_ending(&self, reason: &str) {
        count(&self.endings, reason);
    }

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
        for (name, count) in [(SESSIONS, &self.sessions_opened), (REQUESTS, &self.plain_requests)] {
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
    fn counters_are_rendered_with_their_labels() {
        let counters = Counters::new(LabelValues {
            refusals: &["large_head", "slow_head"],
            cookies: &["followed"],
            reloads: &["applied"],
            endings: &["idle"],
        });
        counters.count_refusal("slow_head");
        counters.count_refusal("unknown reason");
        counters.count_cookie("followed");
        counters.count_reload("applied");
        counters.count_ending("idle");
        counters.sessions_opened.fetch_add(3, Relaxed);
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
        assert!(!text.contains("unknown"), "{text}");
    }
}
