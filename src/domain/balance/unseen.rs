//! Sessions on the pods that this replica has no part in, as a share of its own.
//!
//! Clients may reach pods past the balancer, or through replicas that nobody has told it of. Reports
//! tell of them, but the older a report is, the more are missing from it: of pods that are alike,
//! those that were asked longest ago look emptiest, and get what comes until they are asked again.
//! So what must be missing is added (Dahlin, "Interpreting Stale Load Information", 2000). Age counts
//! in arrivals instead of seconds: once a storm is over, nothing more goes missing.

/// Most sessions of others that are believed to come for each of our own.
const MOST: f64 = 16.0;

/// What reports have told beyond what was expected, and the arrivals that it came with.
#[derive(Clone, Debug, Default)]
pub struct Unseen {
    arrivals: u64,
    /// Both decay with each report, so that one round of polls renews them.
    surprises: f64,
    expected: f64,
}

impl Unseen {
    /// One of our own arrives.
    pub fn arrive(&mut self) {
        self.arrivals += 1;
    }

    /// Our own arrivals so far.
    pub fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// One of `pods` has reported `surprise` sessions more than expected, since a report after which
    /// `share` of our own arrivals were due to it.
    pub fn learn(&mut self, surprise: f64, share: f64, pods: usize) {
        // A pod that has restarted or is mistaken tells nothing about the others.
        let most = MOST * (share + 1.0);
        let keep = 1.0 - 1.0 / pods.max(1) as f64;
        self.surprises = self.surprises * keep + surprise.clamp(-most, most);
        self.expected = self.expected * keep + share;
    }

    /// Sessions of others, on all pods together, for each of our own arrivals: fewer than none where
    /// there are fewer than `replicas` of us.
    pub fn per_arrival(&self, replicas: u32) -> f64 {
        // A few arrivals prove nothing.
        (self.surprises / (self.expected + 1.0)).clamp(-f64::from(replicas), MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is believed after `rounds` of polls of ten pods, each with `surprise` for `share`.
    fn learnt(rounds: usize, surprise: f64, share: f64) -> f64 {
        let mut unseen = Unseen::default();
        (0..rounds * 10).for_each(|_| unseen.learn(surprise, share, 10));
        unseen.per_arrival(4)
    }

    #[test]
    fn what_is_missing_is_learnt_in_a_few_rounds_and_forgotten_in_as_many() {
        assert!((learnt(5, 30.0, 10.0) - 3.0).abs() < 0.1);
        assert!((learnt(5, -7.5, 10.0) + 0.75).abs() < 0.1, "replicas that are not there");
        let mut unseen = Unseen::default();
        (0..50).for_each(|_| unseen.learn(30.0, 10.0, 10));
        (0..50).for_each(|_| unseen.learn(0.0, 10.0, 10));
        assert!(unseen.per_arrival(4).abs() < 0.1);
    }

    #[test]
    fn little_traffic_and_mistaken_pods_do_little_harm() {
        // A session a poll more than expected, and hardly an arrival: that moves no choice.
        assert!(learnt(50, 1.0, 0.01) * 0.01 < 0.1);
        let mut unseen = Unseen::default();
        for report in 0..100 {
            let surprise = if report % 10 == 0 { -2_000.0 } else { 0.0 };
            unseen.learn(surprise, 3.0, 10);
        }
        assert!((-4.0..=0.0).contains(&unseen.per_arrival(4)));
    }
}
