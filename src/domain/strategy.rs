//! Ways to choose between backends that are equally fit: the estimate, and others to compare with.

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

/// What is compared: the estimate for its weight, then plain requests under way.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(super) struct Rank(pub f64, pub u32);

impl Strategy {
    /// The position among `candidates` (in the pool's order, never empty) that gets the next
    /// connection. `turn` counts the picks so far.
    pub(super) fn choose(self, candidates: &[Rank], turn: usize, rng: &mut fastrand::Rng) -> usize {
        let any = |rng: &mut fastrand::Rng| rng.usize(0..candidates.len());
        match self {
            Self::LeastConnections => least(candidates, rng),
            Self::Random => any(rng),
            Self::RoundRobin => turn % candidates.len(),
            Self::PowerOfTwo => {
                let (one, other) = (any(rng), any(rng));
                if candidates[other] < candidates[one] { other } else { one }
            }
        }
    }
}

/// The smallest; ties fall at random.
fn least(candidates: &[Rank], rng: &mut fastrand::Rng) -> usize {
    let mut best = 0;
    let mut ties = 1;
    for (at, rank) in candidates.iter().enumerate().skip(1) {
        if *rank < candidates[best] {
            best = at;
            ties = 1;
        } else if *rank == candidates[best] {
            // Reservoir sampling: the n-th of n equals replaces the choice once in n times.
            ties += 1;
            if rng.u32(0..ties) == 0 {
                best = at;
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(strategy: Strategy, candidates: &[Rank]) -> Vec<u32> {
        let mut rng = fastrand::Rng::with_seed(3);
        let mut counts = vec![0; candidates.len()];
        for turn in 0..9_000 {
            counts[strategy.choose(candidates, turn, &mut rng)] += 1;
        }
        counts
    }

    #[test]
    fn each_strategy_has_its_own_way() {
        let candidates = [Rank(2.0, 0), Rank(1.0, 5), Rank(1.0, 0)];
        assert_eq!(counts(Strategy::LeastConnections, &candidates), [0, 0, 9_000]);
        assert_eq!(counts(Strategy::RoundRobin, &candidates), [3_000; 3]);
        let random = counts(Strategy::Random, &candidates);
        assert!(random.iter().all(|count| (2_800..3_200).contains(count)), "{random:?}");
        // The largest wins only against itself, the smallest against everyone.
        let two = counts(Strategy::PowerOfTwo, &candidates);
        assert!((900..1_100).contains(&two[0]) && (4_800..5_200).contains(&two[2]), "{two:?}");
        let ties = counts(Strategy::LeastConnections, &[Rank(1.0, 0); 3]);
        assert!(ties.iter().all(|count| (2_800..3_200).contains(count)), "{ties:?}");
    }
}
