//! Estimates how many connections a backend holds.
//!
//! ```text
//!   estimate = max( reported + R × (own now − own when polled), own now )
//! ```
//!
//! `own` counts this replica's open sessions and its handshakes under way, and `R` is the number of
//! replicas, each of which is assumed to get the same traffic. Handshakes count because most of a
//! storm of connections is under way at first. Without the handshakes, the same formula gives the
//! connections that the backend *holds*.
//!
//! The report is corrected by what happened here since the poll, so that arrivals between two polls
//! do not all go to the same pod (Mitzenmacher, "How Useful Is Old Information?", 2000; Dahlin,
//! "Interpreting Stale Load Information", 2000). The estimate is never below our own sessions, so
//! that a pod whose report is frozen or too low is not filled again after every poll.

use super::lease::Load;

/// A count that a pod reported, and the part of it that this replica knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReportedCount {
    pub count: u64,
    /// The sessions of this replica that the count includes, as far as we can know.
    pub own_when_polled: u32,
}

impl ReportedCount {
    /// Interprets a `count` that the pod took at an unknown moment during the poll: `sent` sessions
    /// were open here when the poll was sent, and the load was `received` when the answer came.
    ///
    /// It is unknown which of the sessions that opened or ended during the poll the count includes.
    /// It may even include handshakes that have ended for the pod but not yet for us. So the count
    /// is interpreted in the way that agrees best with `held`, the earlier estimate: the estimate
    /// changes only by what the sessions during the poll cannot explain. Otherwise every poll in a
    /// storm would look like a jump, and the next arrivals would go to the wrong pod.
    pub fn between(count: u64, sent: u32, received: Load, held: u64, replicas: u32) -> Self {
        let least = sent.min(received.open);
        let most = sent.max(received.open).saturating_add(received.connecting);
        let deviation = i128::from(count) - i128::from(held);
        let agreeing = i128::from(received.open) + deviation / i128::from(replicas);
        let own = agreeing.clamp(i128::from(least), i128::from(most));
        Self { count, own_when_polled: u32::try_from(own).unwrap_or(most) }
    }
}

/// The largest count in calculations. Nothing that is added to it overflows.
const MOST: i64 = 1 << 62;

/// Estimates connections from one report; does not change until the next one.
#[derive(Clone, Copy, Debug)]
pub struct Estimator {
    /// The reported count without `replicas` times our own sessions; may be negative.
    others: i64,
    replicas: u32,
}

impl Estimator {
    /// Creates an estimator from the last fresh report. Without one, each replica is assumed to have
    /// as many sessions as this one.
    pub fn new(report: Option<ReportedCount>, replicas: u32) -> Self {
        let others = report.map_or(0, |ReportedCount { count, own_when_polled }| {
            let count = i64::try_from(count).map_or(MOST, |count| count.min(MOST));
            count - i64::from(replicas) * i64::from(own_when_polled)
        });
        Self { others, replicas }
    }

    /// Returns the connections on the backend without handshakes under way.
    pub fn held(&self, load: Load) -> u64 {
        self.with(load.open.into())
    }

    /// Returns the connections on the backend with the handshakes under way at all replicas.
    pub fn estimate(&self, load: Load) -> u64 {
        self.with(i64::from(load.open) + i64::from(load.connecting))
    }

    /// Returns the connections on the backend if `own` of them are this replica's.
    fn with(&self, own: i64) -> u64 {
        let estimate = self.others + i64::from(self.replicas) * own;
        // `own` is not negative, and so the maximum is not either.
        estimate.max(own).cast_unsigned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn estimate(report: Option<ReportedCount>, load: Load, replicas: u32) -> u64 {
        Estimator::new(report, replicas).estimate(load)
    }

    fn held(report: Option<ReportedCount>, load: Load, replicas: u32) -> u64 {
        Estimator::new(report, replicas).held(load)
    }

    fn load(open: u32, connecting: u32) -> Load {
        Load { open, connecting, requests: 7 }
    }

    #[test]
    fn a_report_is_corrected_by_the_sessions_since_the_poll() {
        let report = Some(ReportedCount { count: 40, own_when_polled: 10 });
        assert_eq!(estimate(report, load(12, 2), 1), 44);
        assert_eq!(estimate(report, load(12, 0), 3), 46);
        assert_eq!(estimate(report, load(12, 2), 3), 52);
        assert_eq!(estimate(report, load(7, 0), 1), 37);
    }

    #[test]
    fn a_frozen_report_of_zero_does_not_hide_our_own_sessions() {
        let report = Some(ReportedCount { count: 0, own_when_polled: 50 });
        assert_eq!(estimate(report, load(50, 1), 1), 51);
    }

    #[test]
    fn a_count_during_a_storm_changes_the_estimate_only_by_what_the_storm_cannot_explain() {
        // Ten sessions opened and three handshakes are under way since the poll was sent at 40.
        let received = load(50, 3);
        for (count, held_before, expected) in [
            (44, 50, 50), // taken early: includes four of the ten
            (50, 50, 50),
            (53, 50, 50), // the pod counts handshakes before we do
            (60, 50, 57), // seven belong to others
            (30, 50, 50), // ten fewer than the poll can explain, but never below our own
            (88, 86, 86), // clients of others, known before
        ] {
            let report = ReportedCount::between(count, 40, received, held_before, 1);
            assert_eq!(held(Some(report), received, 1), expected, "{count}");
        }
        let report = ReportedCount::between(60, 40, received, 50, 1);
        assert_eq!(estimate(Some(report), load(55, 0), 1), 62, "later sessions are added");
    }

    #[test]
    fn a_count_during_a_quiet_poll_is_used_as_it_is() {
        let report = ReportedCount::between(70, 20, load(20, 0), 20, 1);
        assert_eq!(report, ReportedCount { count: 70, own_when_polled: 20 });
    }

    #[test]
    fn without_a_report_every_replica_is_assumed_to_have_our_count() {
        assert_eq!(estimate(None, load(5, 1), 3), 18);
    }

    proptest! {
        #[test]
        fn a_fresh_report_and_the_right_replica_count_give_the_true_count(
            others in 0u64..100_000, at_poll in 0u32..10_000, now in 0u32..10_000,
        ) {
            // One replica and pods with `others` of their own clients.
            let report = ReportedCount { count: others + u64::from(at_poll), own_when_polled: at_poll };
            prop_assert_eq!(estimate(Some(report), load(now, 0), 1), others + u64::from(now));
        }

        #[test]
        fn the_estimate_is_never_below_our_own_sessions(count in any::<u64>(), polled in any::<u32>(), open in any::<u32>(), connecting in any::<u32>(), replicas in 1u32..64) {
            let report = Some(ReportedCount { count, own_when_polled: polled });
            let floor = u64::from(open) + u64::from(connecting);
            prop_assert!(estimate(report, load(open, connecting), replicas) >= floor);
            prop_assert!(estimate(None, load(open, connecting), replicas) >= floor);
        }
    }
}
