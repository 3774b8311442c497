//! The measurements: what is done to each peer in which order, and what is read before and after.

use std::{
    io::{Error, Result},
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::time;

use crate::{
    load::Load,
    options::Options,
    peers::{Peer, Running},
    report::{median, quantile},
    syscalls::{Counter, Counts, Tool},
    wire::Message,
};

/// Sessions that are busy at the same time where speed is measured.
pub const BUSY: usize = 64;

/// Handshakes or messages in flight where memory is measured: more, and their peak would be
/// counted as the sessions'.
const IN_FLIGHT: usize = 8;

/// Times that `IN_FLIGHT` sessions are opened, used and closed before memory is first read, so that
/// what a process allocates once is there already. They come in turns because what closed sessions
/// leave in the allocator is reused and missing from the figure: all at once would hide as many.
const WARM_UP_TURNS: usize = 6;

/// The message each idle session gets in the end.
pub const LATE_MESSAGE: usize = 16 * 1024;

/// How long a process may take to finish what it does about a change.
const SETTLE: Duration = Duration::from_secs(1);

/// What every measurement needs to know.
pub struct Bench<'a> {
    pub options: &'a Options,
    pub folder: &'a Path,
    pub pod: SocketAddr,
    /// The wanted peers that are installed.
    pub peers: &'a [Peer],
}

/// One peer's rounds.
pub struct Rounds {
    pub peer: Peer,
    pub trips: usize,
    /// Microseconds of processor time per round trip, one per round.
    pub cost: Vec<f64>,
    /// Share of the time during which the peer ran, one per round.
    busy: Vec<f64>,
    running: Running,
    load: Load,
}

/// Memory per session in bytes.
pub struct Memory {
    pub peer: Peer,
    pub idle: f64,
    pub after_message: f64,
}

impl Bench<'_> {
    /// Processor time per round trip of `size` bytes, round after round, the peers in turn.
    pub async fn speed(&self, size: usize) -> Result<Vec<Rounds>> {
        let message = Arc::new(Message::new(size));
        let mut contenders = Vec::new();
        for &peer in self.peers {
            // Tuned is the same as not where a message fits into any buffer.
            if peer.is_tuned() && size < LATE_MESSAGE {
                continue;
            }
            let rounds = self.prepare(peer, &message).await;
            contenders.push(rounds.map_err(peer.blame())?);
        }
        for _ in 0..self.options.rounds {
            for contender in &mut contenders {
                let round = contender.round(&message).await;
                round.map_err(contender.peer.blame())?;
            }
        }
        Ok(contenders)
    }

    async fn prepare(&self, peer: Peer, message: &Arc<Message>) -> Result<Rounds> {
        let running = peer.start(self.folder, self.pod, BUSY).await?;
        let load = Load::open(running.address, BUSY, IN_FLIGHT).await?;
        let mut rounds =
            Rounds { peer, trips: 0, cost: Vec::new(), busy: Vec::new(), running, load };
        rounds.calibrate(message, self.options.work).await?;
        Ok(rounds)
    }

    /// Resident memory per session, in fresh processes.
    pub async fn memory(&self) -> Result<Vec<Memory>> {
        let mut all = Vec::new();
        for &peer in self.peers.iter().filter(|peer| !peer.is_tuned()) {
            all.push(self.memory_of(peer).await.map_err(peer.blame())?);
        }
        Ok(all)
    }

    async fn memory_of(&self, peer: Peer) -> Result<Memory> {
        let sessions = self.options.sessions;
        let message = Arc::new(Message::new(LATE_MESSAGE));
        let running = peer.start(self.folder, self.pod, sessions).await?;
        for _ in 0..WARM_UP_TURNS {
            let mut warm_up = Load::open(running.address, IN_FLIGHT, IN_FLIGHT).await?;
            warm_up.run_once_each(&message).await?;
            drop(warm_up);
            time::sleep(SETTLE / 10).await;
        }
        time::sleep(SETTLE).await;

        let before = running.process.rss()? as f64;
        let per_session = |rss: u64| (rss as f64 - before) / sessions as f64;
        let mut load = Load::open(running.address, sessions, IN_FLIGHT).await?;
        time::sleep(SETTLE).await;
        let idle = per_session(running.process.rss()?);
        load.run_once_each(&message).await?;
        time::sleep(SETTLE).await;
        let after_message = per_session(running.process.rss()?);
        Ok(Memory { peer, idle, after_message })
    }
}

impl Rounds {
    /// Finds how many round trips cost the peer `work`; the search warms it up as well.
    async fn calibrate(&mut self, message: &Arc<Message>, work: Duration) -> Result<()> {
        let mut trips = BUSY;
        loop {
            let before = self.running.process.cpu()?;
            self.load.run(message, trips).await?;
            let spent = self.running.process.cpu()? - before;
            if spent >= work / 8 {
                let needed = trips as f64 * work.as_secs_f64() / spent.as_secs_f64();
                self.trips = needed as usize;
                return Ok(());
            }
            trips *= 2;
        }
    }

    async fn round(&mut self, message: &Arc<Message>) -> Result<()> {
        let start = Instant::now();
        let before = self.running.process.cpu()?;
        self.load.run(message, self.trips).await?;
        let spent = self.running.process.cpu()? - before;
        self.cost.push(spent.as_secs_f64() * 1e6 / self.trips as f64);
        self.busy.push(spent.as_secs_f64() / start.elapsed().as_secs_f64());
        Ok(())
    }

    /// The ratio to `reference` in each round.
    pub fn against(&self, reference: &Self) -> Vec<f64> {
        let pairs = self.cost.iter().zip(&reference.cost);
        pairs.map(|(own, reference)| own / reference).collect()
    }

    pub fn first_quartile(&self) -> f64 {
        quantile(&self.cost, 0.25)
    }

    pub fn median_busy(&self) -> f64 {
        median(&self.busy)
    }

    /// System calls in one more round.
    pub async fn syscalls(&mut self, size: usize, tool: Tool, folder: &Path) -> Result<Counts> {
        let message = Arc::new(Message::new(size));
        let counter = Counter::start(tool, self.running.process.pid(), folder)?;
        self.load.run(&message, self.trips).await?;
        let counts = counter.finish()?;
        if counts.total == 0 {
            return Err(Error::other("no system calls counted"));
        }
        Ok(counts)
    }

    /// The process measured.
    pub fn pid(&self) -> u32 {
        self.running.process.pid()
    }
}
