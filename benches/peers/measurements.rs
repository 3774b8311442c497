//! The measurements: the order in which the balancers get load, and the figures read before and
//! after it.

use std::{
    io::{Error, Result},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time;

use crate::{
    balancers::{Balancer, Running},
    clients::Clients,
    options::Options,
    report::{median, quantile},
    syscalls::{Counter, Counts, Tool},
    wire::Message,
};

/// Sessions that are busy at the same time while speed is measured.
pub const SPEED_SESSIONS: usize = 64;

/// Handshakes or messages in flight while memory is measured. With more of them, their peak would be
/// counted as memory of the sessions.
const IN_FLIGHT: usize = 8;

/// How often `IN_FLIGHT` sessions are opened, used and closed before memory is first read, so that
/// one-time allocations of a process are not counted. The sessions are opened in small groups because
/// the allocator reuses the memory of closed sessions: a large group would hide the memory of as many
/// measured sessions.
const WARM_UP_TURNS: usize = 6;

/// Size of the message that is sent on each idle session at the end.
pub const IDLE_MESSAGE_SIZE: usize = 16 * 1024;

/// How long to wait until a process has finished its work after a change.
const SETTLE: Duration = Duration::from_secs(1);

/// The inputs of every measurement.
pub struct Bench<'a> {
    pub options: &'a Options,
    pub folder: &'a Path,
    pub pod: SocketAddr,
    /// The selected balancers that are installed.
    pub balancers: &'a [Balancer],
}

/// The rounds of one balancer.
pub struct Rounds {
    pub balancer: Balancer,
    pub trips_per_round: usize,
    /// Microseconds of processor time per round trip, one figure per round.
    pub cpu_per_trip: Vec<f64>,
    /// Processor time divided by elapsed time, one figure per round.
    utilisation: Vec<f64>,
    running: Running,
    clients: Clients,
}

/// Memory per session in bytes.
pub struct Memory {
    pub balancer: Balancer,
    pub idle: f64,
    pub after_message: f64,
}

impl Bench<'_> {
    /// Measures the processor time per round trip of `size` bytes. In each round, every balancer has
    /// one turn.
    pub async fn measure_speed(&self, size: usize) -> Result<Vec<Rounds>> {
        let message = Arc::new(Message::new(size));
        let mut contenders = Vec::new();
        for &balancer in self.balancers {
            // Larger buffers make no difference to a message that fits into the default ones.
            if balancer.is_tuned() && size < IDLE_MESSAGE_SIZE {
                continue;
            }
            let rounds = self.prepare(balancer, &message).await;
            contenders.push(rounds.map_err(balancer.name_in_error())?);
        }
        for _ in 0..self.options.rounds {
            for contender in &mut contenders {
                let round = contender.run_round(&message).await;
                round.map_err(contender.balancer.name_in_error())?;
            }
        }
        Ok(contenders)
    }

    /// Starts `balancer`, opens its sessions and finds the length of its rounds.
    async fn prepare(&self, balancer: Balancer, message: &Arc<Message>) -> Result<Rounds> {
        let running = balancer.start(self.folder, self.pod, SPEED_SESSIONS).await?;
        let clients = Clients::open(running.address, SPEED_SESSIONS, IN_FLIGHT).await?;
        let mut rounds = Rounds {
            balancer,
            trips_per_round: 0,
            cpu_per_trip: Vec::new(),
            utilisation: Vec::new(),
            running,
            clients,
        };
        rounds.calibrate(message, self.options.cpu_per_round).await?;
        Ok(rounds)
    }

    /// Measures resident memory per session, in a new process of each balancer.
    pub async fn measure_memory(&self) -> Result<Vec<Memory>> {
        let mut all = Vec::new();
        for &balancer in self.balancers.iter().filter(|balancer| !balancer.is_tuned()) {
            all.push(self.memory_of(balancer).await.map_err(balancer.name_in_error())?);
        }
        Ok(all)
    }

    async fn memory_of(&self, balancer: Balancer) -> Result<Memory> {
        let sessions = self.options.sessions;
        let message = Arc::new(Message::new(IDLE_MESSAGE_SIZE));
        let running = balancer.start(self.folder, self.pod, sessions).await?;
        for _ in 0..WARM_UP_TURNS {
            let mut warm_up = Clients::open(running.address, IN_FLIGHT, IN_FLIGHT).await?;
            warm_up.run_once_each(&message).await?;
            drop(warm_up);
            time::sleep(SETTLE / 10).await;
        }
        time::sleep(SETTLE).await;

        let before = running.process.rss()? as f64;
        let per_session = |rss: u64| (rss as f64 - before) / sessions as f64;
        let mut clients = Clients::open(running.address, sessions, IN_FLIGHT).await?;
        time::sleep(SETTLE).await;
        let idle = per_session(running.process.rss()?);
        clients.run_once_each(&message).await?;
        time::sleep(SETTLE).await;
        let after_message = per_session(running.process.rss()?);
        Ok(Memory { balancer, idle, after_message })
    }
}

impl Rounds {
    /// Finds how many round trips take `cpu_per_round` of processor time. This also warms up the
    /// balancer.
    async fn calibrate(&mut self, message: &Arc<Message>, cpu_per_round: Duration) -> Result<()> {
        let mut trips = SPEED_SESSIONS;
        loop {
            let before = self.running.process.cpu()?;
            self.clients.run(message, trips).await?;
            let spent = self.running.process.cpu()? - before;
            if spent >= cpu_per_round / 8 {
                let needed = trips as f64 * cpu_per_round.as_secs_f64() / spent.as_secs_f64();
                self.trips_per_round = needed as usize;
                return Ok(());
            }
            trips *= 2;
        }
    }

    /// Runs one round and records its figures.
    async fn run_round(&mut self, message: &Arc<Message>) -> Result<()> {
        let start = Instant::now();
        let before = self.running.process.cpu()?;
        self.clients.run(message, self.trips_per_round).await?;
        let spent = self.running.process.cpu()? - before;
        self.cpu_per_trip.push(spent.as_secs_f64() * 1e6 / self.trips_per_round as f64);
        self.utilisation.push(spent.as_secs_f64() / start.elapsed().as_secs_f64());
        Ok(())
    }

    /// Returns the ratio to `reference` in each round.
    pub fn ratios_to(&self, reference: &Self) -> Vec<f64> {
        let pairs = self.cpu_per_trip.iter().zip(&reference.cpu_per_trip);
        pairs.map(|(own, reference)| own / reference).collect()
    }

    pub fn first_quartile(&self) -> f64 {
        quantile(&self.cpu_per_trip, 0.25)
    }

    pub fn median_utilisation(&self) -> f64 {
        median(&self.utilisation)
    }

    /// Runs one more round and counts its system calls.
    pub async fn count_syscalls(
        &mut self,
        size: usize,
        tool: Tool,
        folder: &Path,
    ) -> Result<Counts> {
        let message = Arc::new(Message::new(size));
        let counter = Counter::start(tool, self.running.process.pid(), folder)?;
        self.clients.run(&message, self.trips_per_round).await?;
        let counts = counter.finish()?;
        if counts.total == 0 {
            return Err(Error::other("no system calls counted"));
        }
        Ok(counts)
    }

    /// Returns the process identifier of the measured process.
    pub fn pid(&self) -> u32 {
        self.running.process.pid()
    }
}
