//! Ways to choose between backends that are equally fit: the estimate, and others to compare with.

use std::array;

use super::backend::Tier;

/// How the next backend is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Strategy {
    /// The smallest estimate for its weight.
    #[default]
    LeastConnections,
    /// The smaller of two taken at random (Mitzenmacher, "The Power of Two Choices", 2001).
    PowerOfTwo,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
}

/// Loads are looked through several at a time, which processors do at once.
const LANES: usize = 16;

/// The backends between which a strategy chooses.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// What the strategies compare, by position in the pool; infinite for those that are out.
    loads: Vec<f64>,
    /// Those of a worse tier than [`Tier::Usable`], and what their loads would be.
    worse: Vec<(Tier, usize, f64)>,
    /// Reused: those that are equally good.
    equals: Vec<usize>,
}

impl Candidates {
    /// Takes the loads of all backends in the pool's order. Says whether there are any without, which
    /// are to be ruled on.
    pub(super) fn collect(&mut self, loads: impl Iterator<Item = Option<f64>>) -> bool {
        let mut are_any_out = false;
        self.worse.clear();
        self.loads.clear();
        self.loads.extend(loads.map(|load| {
            load.unwrap_or_else(|| {
                are_any_out = true;
                f64::INFINITY
            })
        }));
        are_any_out
    }

    /// Whether nothing is known against this one.
    pub(super) fn is_usable(&self, at: usize) -> bool {
        self.loads[at] < f64::INFINITY
    }

    /// This one is of this tier, and has this load.
    pub(super) fn rule(&mut self, at: usize, tier: Tier, load: f64) {
        self.loads[at] = if tier == Tier::Usable { load } else { f64::INFINITY };
        if tier != Tier::Usable {
            self.worse.push((tier, at, load));
        }
    }

    /// Those of better tiers than this one.
    pub(super) fn better_than(&self, tier: Tier) -> impl Iterator<Item = usize> {
        let usable = (0..self.loads.len()).filter(|at| self.is_usable(*at));
        let worse = self.worse.iter().filter(move |(known, ..)| *known < tier);
        usable.chain(worse.map(|(_, at, _)| *at))
    }

    /// The best tier that there is. Only its backends are left to choose from.
    pub(super) fn narrow(&mut self) -> Option<Tier> {
        if self.worse.len() < self.loads.len() {
            return Some(Tier::Usable);
        }
        let best = self.worse.iter().map(|(tier, ..)| *tier).min()?;
        self.worse.retain(|(tier, at, load)| {
            if *tier == best {
                self.loads[*at] = *load;
            }
            *tier != best
        });
        Some(best)
    }

    /// Which one gets the next connection, if there is one. `turn` counts the picks so far; of
    /// equals the one with the fewest plain `requests` under way is chosen.
    pub(super) fn choose(
        &mut self,
        strategy: Strategy,
        turn: usize,
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
            Strategy::RoundRobin => self.nth(turn % count),
            Strategy::PowerOfTwo => {
                let one = self.nth(rng.usize(0..count))?;
                let other = self.nth(rng.usize(0..count))?;
                let rank = |at: usize| (self.loads[at], requests(at));
                Some(if rank(other) < rank(one) { other } else { one })
            }
        }
    }

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
            if chunk.iter().fold(false, |is_there, load| is_there | (*load == least)) {
                let found = (from..).zip(chunk).filter(|(_, load)| **load == least);
                equals.extend(found.map(|(at, _)| at));
            }
        }
    }

    /// The `nth` of those that are left.
    fn nth(&self, nth: usize) -> Option<usize> {
        if self.worse.is_empty() {
            return Some(nth);
        }
        let mut left = self.loads.iter().enumerate().filter(|(_, load)| load.is_finite());
        left.nth(nth).map(|(at, _)| at)
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
            candidates.rule(at, *tier, *load);
        }
        assert_eq!(candidates.narrow(), backends.iter().map(|(tier, ..)| *tier).min());
        for turn in 0..9_000 {
            let requests = |at: usize| backends[at].2;
            let chosen = candidates.choose(strategy, turn, requests, &mut rng);
            counts[chosen.expect("one of many")] += 1;
        }
        counts
    }

    #[test]
    fn each_strategy_has_its_own_way() {
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
        // The largest wins only against itself, the smallest against everyone.
        let two = counts(Strategy::PowerOfTwo, &backends);
        assert!((900..1_100).contains(&two[1]) && (4_800..5_200).contains(&two[4]), "{two:?}");
        let cold = [(Tier::Ejected, 0.0, 0), (Tier::Cold, 9.0, 0), (Tier::Cold, 9.0, 0)];
        let last = counts(Strategy::RoundRobin, &cold);
        assert_eq!(last, [0, 4_500, 4_500]);
        let ties = counts(Strategy::LeastConnections, &[(Tier::Usable, 1.0, 0); 3]);
        assert!(ties.iter().all(|count| (2_800..3_200).contains(count)), "{ties:?}");
    }
}
