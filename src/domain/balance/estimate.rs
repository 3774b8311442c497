//! How many connections a backend holds, as well as this replica can know.
//!
//! ```text
//!   estimate = max( reported + R × (own now − own when polled), own now )
//! ```
//!
//! Our own are the open sessions and the handshakes under way: what comes to one replica comes to
//! the others as well, and in a storm most of it is under way. Without the handshakes, the estimate
//! is what the backend *holds*.
//!
//! The report is corrected by what happened here since it was asked for, so that arrivals between
//! two polls do not all go to the same pod (Mitzenmacher, "How Useful Is Old Information?", 2000;
//! Dahlin, "Interpreting Stale Load Information", 2000). The floor of our own open sessions keeps
//! a pod whose report is frozen or too low from being filled again after every poll.

use super::lease::Load;

/// A count that a pod gave, and what this replica had open on it when it asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported {
    /// The pod's own count.
    pub count: u64,
    /// Those of our sessions on the pod that the count holds, as well as we can know.
    pub own_when_polled: u32,
}

impl Reported {
    /// Takes in a `count` that was taken at some moment between the poll's sending, when `sent`
    /// sessions were open here, and its receipt, when the load was `received`.
    ///
    /// Which of the sessions of that while it holds, nobody can tell; it may even hold handshakes
    /// that are over for the pod and not yet for us. So it is read in the way that agrees best with
    /// what was `held` before, and corrects no more than that while cannot explain. Otherwise every
    /// poll in a storm would look like a jump, and send the next arrivals astray.
    pub fn between(count: u64, sent: u32, received: Load, held: u64, replicas: u32) -> Self {
        let least = sent.min(received.open);
        let most = sent.max(received.open).saturating_add(received.connecting);
        let surprise = i128::from(count) - i128::from(held);
        let agreeing = i128::from(received.open) + surprise / i128::from(replicas);
        let own = agreeing.clamp(i128::from(least), i128::from(most));
        Self { count, own_when_polled: u32::try_from(own).unwrap_or(most) }
    }
}

/// Largest count that is reckoned with: nothing added to it overflows.
const MOST: i64 = 1 << 62;

/// What a backend holds, as far as that does not change between reports.
#[derive(Clone, Copy, Debug)]
pub struct Holding {
    /// It would hold as many without our own sessions.
    others: i64,
    replicas: u32,
}

impl Holding {
    /// By its last fresh report; without one our own sessions stand for every replica's.
    /// `replicas` (R) is how many balancers share the pods, each assumed to see the same traffic.
    pub fn new(report: Option<Reported>, replicas: u32) -> Self {
        let others = report.map_or(0, |Reported { count, own_when_polled }| {
            let count = i64::try_from(count).map_or(MOST, |count| count.min(MOST));
            count - i64::from(replicas) * i64::from(own_when_polled)
        });
        Self { others, replicas }
    }

    /// Connections on it, without the handshakes under way.
    pub fn held(&self, load: Load) -> u64 {
        self.with(load.open.into())
    }

    /// Connections on it with the handshakes under way, here and at the other replicas.
    pub fn estimate(&self, load: Load) -> u64 {
        self.with(i64::from(load.open) + i64::from(load.connecting))
    }

    /// Connections on it, of which so many are our own.
    fn with(&self, own: i64) -> u64 {
        let known = self.others + i64::from(self.replicas) * own;
        // The floor makes it positive.
        known.max(own).cast_unsigned()
    }
}

/// The [`Holding::estimate`] of a backend that gave `report`.
pub fn estimate(report: Option<Reported>, load: Load, replicas: u32) -> u64 {
    Holding::new(report, replicas).estimate(load)
}

/// The [`estimate`] without the handshakes under way.
pub fn held(report: Option<Reported>, load: Load, replicas: u32) -> u64 {
    Holding::new(report, replicas).held(load)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(open: u32, connecting: u32) -> Load {
        Load { open, connecting, requests: 7 }
    }

    #[test]
    fn a_report_is_corrected_by_what_happened_since() {
        let report = Some(Reported { count: 40, own_when_polled: 10 });
        assert_eq!(estimate(report, load(12, 2), 1), 44);
        assert_eq!(estimate(report, load(12, 0), 3), 46);
        assert_eq!(estimate(report, load(12, 2), 3), 52);
        assert_eq!(estimate(report, load(7, 0), 1), 37);
    }

    #[test]
    fn a_frozen_zero_cannot_go_below_our_own_sessions() {
        let report = Some(Reported { count: 0, own_when_polled: 50 });
        assert_eq!(estimate(report, load(50, 1), 1), 51);
    }

    #[test]
    fn a_count_from_the_midst_of_a_storm_changes_nothing_that_it_need_not() {
        // Ten sessions opened and three handshakes are under way since the poll was sent at 40.
        let received = load(50, 3);
        for (count, held, expected) in [
            (44, 50, 50), // taken early: it holds four of the ten
            (50, 50, 50),
            (53, 50, 50), // the pod counts handshakes before we do
            (60, 50, 57), // seven are others'
            (30, 50, 50), // ten fewer than can be explained, but these are ours
            (88, 86, 86), // others' clients, known before
        ] {
            let report = Reported::between(count, 40, received, held, 1);
            assert_eq!(super::held(Some(report), received, 1), expected, "{count}");
        }
        let report = Reported::between(60, 40, received, 50, 1);
        assert_eq!(estimate(Some(report), load(55, 0), 1), 62, "and goes on from there");
    }

    #[test]
    fn a_count_from_a_quiet_while_is_taken_as_it_is() {
        let report = Reported::between(70, 20, load(20, 0), 20, 1);
        assert_eq!(report, Reported { count: 70, own_when_polled: 20 });
    }

    #[test]
    fn without_a_report_our_own_sessions_stand_for_every_replica() {
        assert_eq!(estimate(None, load(5, 1), 3), 18);
    }

    proptest! {
        #[test]
        fn a_fresh_report_and_the_right_number_of_replicas_give_the_true_count(
            others in 0u64..100_000, at_poll in 0u32..10_000, now in 0u32..10_000,
        ) {
            // One replica and pods with `others` of their own clients.
            let report = Reported { count: others + u64::from(at_poll), own_when_polled: at_poll };
            prop_assert_eq!(estimate(Some(report), load(now, 0), 1), others + u64::from(now));
        }

        #[test]
        fn never_below_our_own(count in any::<u64>(), polled in any::<u32>(), open in any::<u32>(), connecting in any::<u32>(), replicas in 1u32..64) {
            let report = Some(Reported { count, own_when_polled: polled });
            let floor = u64::from(open) + u64::from(connecting);
            prop_assert!(estimate(report, load(open, connecting), replicas) >= floor);
            prop_assert!(estimate(None, load(open, connecting), replicas) >= floor);
        }
    }
}
