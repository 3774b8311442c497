//! Sessions on the pods that do not come through this replica, estimated per own arrival.
//!
//! Clients may connect to pods directly, or through replicas that are not counted. Reports include
//! their sessions, but the older a report is, the more of them it misses: of pods that are alike,
//! the one that was polled longest ago looks emptiest, and gets all arrivals until its next poll. So
//! selection adds the sessions that the report must be missing (Dahlin, "Interpreting Stale Load
//! Information", 2000). The age of a report is measured in own arrivals, not in seconds: after a
//! storm, nothing more goes missing.

/// The most unseen sessions per own arrival.
const MOST: f64 = 16.0;

/// Learns from the deviations of reports how many unseen sessions come with each own arrival.
#[derive(Clone, Debug, Default)]
pub struct UnseenSessions {
    arrivals: u64,
    /// The sum of all deviations and of the arrivals in the same time. Both decay with each
    /// report, so that one round of polls replaces them.
    deviations: f64,
    expected: f64,
}

impl UnseenSessions {
    pub fn record_arrival(&mut self) {
        self.arrivals += 1;
    }

    /// Returns this replica's arrivals so far.
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// Records that one of `pods` pods has reported `deviation` sessions more than expected, while
    /// its fair share of our own arrivals was `share` sessions.
    pub fn record_deviation(&mut self, deviation: f64, share: f64, pods: usize) {
        // A large deviation is a pod that restarted or miscounts, and says nothing about others.
        let most = MOST * (share + 1.0);
        let keep = 1.0 - 1.0 / pods.max(1) as f64;
        self.deviations = self.deviations * keep + deviation.clamp(-most, most);
        self.expected = self.expected * keep + share;
    }

    /// Returns the unseen sessions on all pods together per own arrival. Negative if there are fewer
    /// than `replicas` replicas.
    pub fn per_arrival(&self, replicas: u32) -> f64 {
        // The added 1 keeps the quotient small while there are few arrivals.
        (self.deviations / (self.expected + 1.0)).clamp(-f64::from(replicas), MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the estimate after `rounds` of polls of ten pods, each with `deviation` and `share`.
    fn estimate_after(rounds: usize, deviation: f64, share: f64) -> f64 {
        let mut unseen = UnseenSessions::default();
        (0..rounds * 10).for_each(|_| unseen.record_deviation(deviation, share, 10));
        unseen.per_arrival(4)
    }

    #[test]
    fn unseen_sessions_are_learnt_and_forgotten_within_a_few_rounds() {
        assert!((estimate_after(5, 30.0, 10.0) - 3.0).abs() < 0.1);
        assert!(
            (estimate_after(5, -7.5, 10.0) + 0.75).abs() < 0.1,
            "fewer replicas than configured"
        );
        let mut unseen = UnseenSessions::default();
        (0..50).for_each(|_| unseen.record_deviation(30.0, 10.0, 10));
        (0..50).for_each(|_| unseen.record_deviation(0.0, 10.0, 10));
        assert!(unseen.per_arrival(4).abs() < 0.1);
    }

    #[test]
    fn little_traffic_and_miscounting_pods_hardly_change_the_estimate() {
        // One unexpected session per poll and nearly no arrivals: too little to change a choice.
        assert!(estimate_after(50, 1.0, 0.01) * 0.01 < 0.1);
        let mut unseen = UnseenSessions::default();
        for report in 0..100 {
            let deviation = if report % 10 == 0 { -2_000.0 } else { 0.0 };
            unseen.record_deviation(deviation, 3.0, 10);
        }
        assert!((-4.0..=0.0).contains(&unseen.per_arrival(4)));
    }
}
