//! The cost of choosing a pod among 10, 100 and 1,000, for each strategy.
//!
//!     cargo bench --bench picks [-- --assert]
//!
//! A pick here is the whole course of a session in the pool: chosen, opened, closed. Every tenth pick is
//! followed by a report, which is more than at any real rate of connections. `--assert` fails if the
//! default strategy exceeds its limit.

use std::{
    collections::VecDeque,
    env,
    hint::black_box,
    process::ExitCode,
    time::{Duration, Instant},
};

use wsbalancer::domain::{
    balance::{
        affinity::Preference,
        lease::{Lease, Purpose},
        poll::PollTarget,
        pool::Pool,
        settings::PoolSettings,
        strategy::Strategy,
    },
    fixtures,
};

/// Per strategy and number of pods.
const PICKS: usize = 1_000_000;

/// Rounds are so short that many are not interrupted. The fastest tenth counts, because other load on
/// the machine only adds time.
const ROUNDS: usize = 1_000;
const QUICKEST: usize = ROUNDS / 10;

/// Sessions per pod.
const SESSIONS: usize = 20;

const PICKS_PER_REPORT: usize = 10;

/// Virtual time from one connection to the next.
const GAP: Duration = Duration::from_micros(100);

/// The limit for a pick among the most pods.
const MOST: f64 = 2_000.0;

const STRATEGIES: [Strategy; 4] =
    [Strategy::LeastConnections, Strategy::PowerOfTwo, Strategy::RoundRobin, Strategy::Random];

fn main() -> ExitCode {
    // `cargo test --all-targets` runs this too, and must not measure.
    if env::args().all(|argument| argument != "--bench") {
        println!("nothing is measured without --bench, which `cargo bench` passes");
        return ExitCode::SUCCESS;
    }
    print!("{:>7}", "pods");
    STRATEGIES.iter().for_each(|strategy| print!("  {:>18}", format!("{strategy:?}")));
    println!();
    let mut slowest = 0.0;
    for pods in [10, 100, 1_000] {
        print!("{pods:>7}");
        for strategy in STRATEGIES {
            let took = Traffic::new(pods, strategy).nanoseconds();
            print!("  {took:>15.0} ns");
            if strategy == Strategy::LeastConnections {
                slowest = took.max(slowest);
            }
        }
        println!();
    }
    if slowest > MOST && env::args().any(|argument| argument == "--assert") {
        eprintln!("a pick takes {slowest:.0} ns, more than {MOST:.0}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// A pool with connections that open and close.
struct Traffic {
    pool: Pool,
    targets: Vec<PollTarget>,
    /// Own open sessions of this replica by pod.
    open: Vec<u64>,
    leases: VecDeque<Lease>,
    now: Instant,
    came: usize,
}

impl Traffic {
    fn new(pods: usize, strategy: Strategy) -> Self {
        // The index of a pod is its address, so that no map is needed.
        let backend = |index: usize| fixtures::backend(&index.to_string());
        let settings = PoolSettings {
            strategy,
            replicas: 2,
            stale_after: Duration::from_secs(3_600),
            ..PoolSettings::default()
        };
        let pool = Pool::new((0..pods).map(backend), settings, 1);
        let mut traffic = Self {
            targets: pool.poll_targets(),
            open: vec![0; pods],
            leases: VecDeque::new(),
            now: Instant::now(),
            came: 0,
            pool,
        };
        (0..pods * SESSIONS).for_each(|_| traffic.open());
        (0..pods).for_each(|pod| traffic.report(pod));
        traffic
    }

    /// Opens a session; every tenth time a pod reports.
    fn open(&mut self) {
        self.now += GAP;
        self.came += 1;
        let lease = self.pool.pick(Purpose::Session, &[], Preference::None, self.now);
        let mut lease = black_box(lease).expect("a pod");
        lease.establish();
        self.open[pod(&lease)] += 1;
        self.leases.push_back(lease);
        if self.came.is_multiple_of(PICKS_PER_REPORT) {
            self.report(self.came / PICKS_PER_REPORT % self.targets.len());
        }
    }

    /// Closes the oldest session.
    fn close(&mut self) {
        if let Some(lease) = self.leases.pop_front() {
            self.open[pod(&lease)] -= 1;
        }
    }

    /// The pod reports the sessions of this replica and of another one like it.
    fn report(&mut self, pod: usize) {
        let poll = self.targets[pod].start_poll(self.now);
        let report = fixtures::report(2 * self.open[pod]);
        self.pool.record(poll, Ok(report), self.now);
    }

    /// Returns the time per pick in the slowest of the fastest rounds.
    fn nanoseconds(&mut self) -> f64 {
        let mut rounds: Vec<Duration> = (0..ROUNDS).map(|_| self.round(PICKS / ROUNDS)).collect();
        rounds.sort_unstable();
        rounds[QUICKEST].as_nanos() as f64 / (PICKS / ROUNDS) as f64
    }

    fn round(&mut self, picks: usize) -> Duration {
        let start = Instant::now();
        for _ in 0..picks {
            self.open();
            self.close();
        }
        start.elapsed()
    }
}

fn pod(lease: &Lease) -> usize {
    lease.backend().address.parse().expect("an index")
}
