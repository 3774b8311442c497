//! Strategies for the choice between backends, and the tiers that come before them.

use std::array;

/// How the next backend is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The backend with the smallest estimate for its weight.
    #[default]
    LeastConnections,
    /// The better of two random backends (Mitzenmacher, "The Power of Two Choices", 2001).
    PowerOfTwo,
    /// One backend after the other.
    RoundRobin,
    /// A random backend.
    Random,
}

/// How good a choice a backend is, best first. A strategy chooses within the best tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tier {
    /// Nothing speaks against it.
    Usable,
    /// It is cold and has had its share of the arrivals.
    Cold,
    /// It is ejected or reports that it is down. Used only if there is no other.
    Ejected,
    /// It has reached its limit of connections.
    Full,
    /// It takes no new connections.
    Draining,
    /// It has failed for this connection.
    Tried,
}

/// The search for the smallest load compares this many at a time, so that the compiler can use
/// vector instructions.
const LANES: usize = 16;

/// The backends between which a strategy chooses.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// The loads that strategies compare, by position in the pool; infinite for backends that are
    /// not to be chosen.
    loads: Vec<f64>,
    /// The backends of a worse tier than [`Tier::Usable`].
    worse: Vec<WorseCandidate>,
    /// Backends with the same, smallest load. Kept to reuse its memory.
    equals: Vec<usize>,
}

/// A backend of a worse tier than [`Tier::Usable`].
#[derive(Clone, Copy, Debug)]
struct WorseCandidate {
    tier: Tier,
    at: usize,
    load: f64,
}

impl Candidates {
    /// Stores the loads of all backends, in the pool's order. Returns whether some have no load, so
    /// that [`Candidates::set_tier`] has to be called for them.
    pub(super) fn collect(&mut self, loads: impl Iterator<Item = Option<f64>>) -> bool {
        let mut has_unknown = false;
        self.worse.clear();
        self.loads.clear();
        self.loads.extend(loads.map(|load| {
            load.unwrap_or_else(|| {
                has_unknown = true;
                f64::INFINITY
            })
        }));
        has_unknown
    }

    pub(super) fn is_usable(&self, at: usize) -> bool {
        self.loads[at] < f64::INFINITY
    }

    /// Sets the tier and the load of the backend at this position.
    pub(super) fn set_tier(&mut self, at: usize, tier: Tier, load: f64) {
        self.loads[at] = if tier == Tier::Usable { load } else { f64::INFINITY };
        if tier != Tier::Usable {
            self.worse.push(WorseCandidate { tier, at, load });
        }
    }

    /// Returns the backends of better tiers than this one.
    pub(super) fn better_than(&self, tier: Tier) -> impl Iterator<Item = usize> {
        let usable = (0..self.loads.len()).filter(|at| self.is_usable(*at));
        let worse = self.worse.iter().filter(move |candidate| candidate.tier < tier);
        usable.chain(worse.map(|candidate| candidate.at))
    }

    /// Returns the best tier of any backend, and keeps only the backends of that tier.
    pub(super) fn narrow(&mut self) -> Option<Tier> {
        if self.worse.len() < self.loads.len() {
            return Some(Tier::Usable);
        }
        let best = self.worse.iter().map(|candidate| candidate.tier).min()?;
        self.worse.retain(|candidate| {
            if candidate.tier == best {
                self.loads[candidate.at] = candidate.load;
            }
            candidate.tier != best
        });
        Some(best)
    }

    /// Chooses a backend, if there is one. `picks` is the number of earlier choices; `requests`
    /// returns the plain requests under way, of which the fewest decide between equal loads.
    pub(super) fn choose(
        &mut self,
        strategy: Strategy,
        picks: usize,
        requests: impl Fn(usize) -> u32,
        rng: &mut fastrand::Rng,
    ) -> Option<usize> {
        let count = self.loads.len() - self.worse.len();
        if count == 0 {
            return None;
        }
        match strategy {
            Strategy::LeastConnections => {
                self.find_least();
                let fewest = self.equals.iter().map(|at| requests(*at)).min()?;
                self.equals.retain(|at| requests(*at) == fewest);
                rng.choice(self.equals.iter().copied())
            }
            Strategy::Random => self.nth(rng.usize(0..count)),
            Strategy::RoundRobin => self.nth(picks % count),
            Strategy::PowerOfTwo => {
                let one = self.nth(rng.usize(0..count))?;
                let other = self.nth(rng.usize(0..count))?;
                let rank = |at: usize| (self.loads[at], requests(at));
                Some(if rank(other) < rank(one) { other } else { one })
            }
        }
    }

    /// Collects the backends with the smallest load in `equals`.
    fn find_least(&mut self) {
        let Self { loads, equals, .. } = self;
        let (chunks, rest) = loads.as_chunks::<LANES>();
        let smaller = |one: f64, other: f64| if other < one { other } else { one };
        let mut lanes = [f64::INFINITY; LANES];
        for chunk in chunks {
            lanes = array::from_fn(|lane| smaller(lanes[lane], chunk[lane]));
        }
        let least = lanes.into_iter().chain(rest.iter().copied()).fold(f64::INFINITY, smaller);
        equals.clear();
        for (chunk, from) in loads.chunks(LANES).zip((0..).step_by(LANES)) {
            if chunk.iter().fold(false, |is_equal, load| is_equal | (*load == least)) {
                let found = (from..).zip(chunk).filter(|(_, load)| **load == least);
                equals.extend(found.map(|(at, _)| at));
            }
        }
    }

    /// Returns the `nth` backend of those that may be chosen.
    fn nth(&self, nth: usize) -> Option<usize> {
        if self.worse.is_empty() {
            return Some(nth);
        }
        let mut eligible = self.loads.iter().enumerate().filter(|(_, load)| load.is_finite());
        eligible.nth(nth).map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(strategy: Strategy, backends: &[(Tier, f64, u32)]) -> Vec<u32> {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut counts = vec![0; backends.len()];
        let mut candidates = Candidates::default();
        assert!(candidates.collect(backends.iter().map(|_| None)));
        for (at, (tier, load, _)) in backends.iter().enumerate() {
            candidates.set_tier(at, *tier, *load);
        }
        assert_eq!(candidates.narrow(), backends.iter().map(|(tier, ..)| *tier).min());
        for picks in 0..9_000 {
            let requests = |at: usize| backends[at].2;
            let chosen = candidates.choose(strategy, picks, requests, &mut rng);
            counts[chosen.expect("a backend")] += 1;
        }
        counts
    }

    #[test]
    fn each_strategy_chooses_as_documented() {
        let backends = [
            (Tier::Cold, 0.0, 0),
            (Tier::Usable, 2.0, 0),
            (Tier::Usable, 1.0, 5),
            (Tier::Full, 0.0, 0),
            (Tier::Usable, 1.0, 0),
        ];
        assert_eq!(counts(Strategy::LeastConnections, &backends), [0, 0, 0, 0, 9_000]);
        assert_eq!(counts(Strategy::RoundRobin, &backends), [0, 3_000, 3_000, 0, 3_000]);
        let random = counts(Strategy::Random, &backends);
        assert!([1, 2, 4].iter().all(|at| (2_800..3_200).contains(&random[*at])), "{random:?}");
        // The largest wins only against itself, the smallest against every other.
        let two = counts(Strategy::PowerOfTwo, &backends);
        assert!((900..1_100).contains(&two[1]) && (4_800..5_200).contains(&two[4]), "{two:?}");
        let cold = [(Tier::Ejected, 0.0, 0), (Tier::Cold, 9.0, 0), (Tier::Cold, 9.0, 0)];
        let last = counts(Strategy::RoundRobin, &cold);
        assert_eq!(last, [0, 4_500, 4_500]);
        let ties = counts(Strategy::LeastConnections, &[(Tier::Usable, 1.0, 0); 3]);
        assert!(ties.iter().all(|count| (2_800..3_200).contains(count)), "{ties:?}");
    }
}
