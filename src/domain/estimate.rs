//! How many connections a backend holds, as well as this replica can know.
//!
//! ```text
//!   estimate = max( reported + R × (open now − open when polled), open now ) + connecting
//! ```
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
    /// Our open sessions on the pod when the poll was sent.
    pub own_when_polled: u32,
}

/// Estimated connections on a backend.
///
/// `report` is the last fresh one; without it our own sessions stand for every replica's.
/// `replicas` (R) is how many balancers share the pods, each assumed to see the same traffic.
pub fn estimate(report: Option<Reported>, load: Load, replicas: u32) -> u64 {
    let (open, replicas) = (i128::from(load.open), i128::from(replicas));
    let known = match report {
        Some(Reported { count, own_when_polled }) => {
            i128::from(count) + replicas * (open - i128::from(own_when_polled))
        }
        None => replicas * open,
    };
    // The floor makes it positive; counts far below 2^64 make the conversion exact.
    let held = u64::try_from(known.max(open)).unwrap_or(u64::MAX);
    held.saturating_add(u64::from(load.connecting))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn load(open: u32, connecting: u32) -> Load {
        Load { open, connecting }
    }

    #[test]
    fn a_report_is_corrected_by_what_happened_since() {
        let report = Some(Reported { count: 40, own_when_polled: 10 });
        assert_eq!(estimate(report, load(12, 2), 1), 44);
        assert_eq!(estimate(report, load(12, 0), 3), 46);
        assert_eq!(estimate(report, load(7, 0), 1), 37);
    }

    #[test]
    fn a_frozen_zero_cannot_go_below_our_own_sessions() {
        let report = Some(Reported { count: 0, own_when_polled: 50 });
        assert_eq!(estimate(report, load(50, 1), 1), 51);
    }

    #[test]
    fn without_a_report_our_own_sessions_stand_for_every_replica() {
        assert_eq!(estimate(None, load(5, 1), 3), 16);
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
