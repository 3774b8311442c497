//! The clients. Each session sends its next message when it has received the echo of the previous
//! one, so the work is the same for every balancer, however fast it is.

use std::{
    io::{ErrorKind, Result},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time,
};

use crate::wire::{self, Message, invalid};

/// Time-out of one step of a measurement. A step takes this long only if the balancer has lost data.
const STEP_TIMEOUT: Duration = Duration::from_secs(120);

/// Size of a client's read buffer: a small message needs one read, and with large messages the buffer
/// still fits into the processor's cache.
const READ_BUFFER: usize = 64 * 1024;

/// Open sessions to one balancer.
pub struct Clients {
    sessions: Vec<TcpStream>,
    /// How many handshakes, or single round trips, run at the same time.
    in_flight: usize,
}

impl Clients {
    /// Opens `count` sessions.
    pub async fn open(address: SocketAddr, count: usize, in_flight: usize) -> Result<Self> {
        let remaining = Arc::new(AtomicUsize::new(count));
        let mut workers = JoinSet::new();
        for _ in 0..in_flight {
            let remaining = remaining.clone();
            workers.spawn(async move {
                let mut opened = Vec::new();
                while claim_one(&remaining) {
                    opened.push(connect(address).await?);
                }
                Ok(opened)
            });
        }
        let sessions = join(workers).await?;
        Ok(Self { sessions, in_flight })
    }

    /// Makes `trips` round trips of `message`, all sessions at the same time. A session that has
    /// finished a round trip starts another one, so that all of them stay busy to the end.
    pub async fn run(&mut self, message: &Arc<Message>, trips: usize) -> Result<()> {
        let remaining = Arc::new(AtomicUsize::new(trips));
        let mut workers = JoinSet::new();
        for mut session in self.sessions.drain(..) {
            let (remaining, message) = (remaining.clone(), message.clone());
            workers.spawn(async move {
                let mut buffer = vec![0; READ_BUFFER];
                while claim_one(&remaining) {
                    round_trip(&mut session, &message, &mut buffer).await?;
                }
                Ok(vec![session])
            });
        }
        self.sessions = join(workers).await?;
        Ok(())
    }

    /// Makes one round trip on every session.
    pub async fn run_once_each(&mut self, message: &Arc<Message>) -> Result<()> {
        let share = self.sessions.len().div_ceil(self.in_flight).max(1);
        let mut workers = JoinSet::new();
        while !self.sessions.is_empty() {
            let rest = self.sessions.len().saturating_sub(share);
            let mut sessions = self.sessions.split_off(rest);
            let message = message.clone();
            workers.spawn(async move {
                let mut buffer = vec![0; READ_BUFFER];
                for session in &mut sessions {
                    round_trip(session, &message, &mut buffer).await?;
                }
                Ok(sessions)
            });
        }
        self.sessions = join(workers).await?;
        Ok(())
    }
}

/// Reduces `remaining` by one. Returns `false` if it is zero already.
fn claim_one(remaining: &AtomicUsize) -> bool {
    let decrement = |remaining: usize| remaining.checked_sub(1);
    remaining.fetch_update(Ordering::Relaxed, Ordering::Relaxed, decrement).is_ok()
}

/// Waits for all workers and returns their sessions. The first error ends all of them.
async fn join(mut workers: JoinSet<Result<Vec<TcpStream>>>) -> Result<Vec<TcpStream>> {
    let all = async {
        let mut sessions = Vec::new();
        while let Some(worker) = workers.join_next().await {
            sessions.extend(worker??);
        }
        Ok(sessions)
    };
    time::timeout(STEP_TIMEOUT, all).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    wire::upgrade(&mut stream).await?;
    Ok(stream)
}

/// Sends the message, reads its echo and compares the two: the speed of a balancer that loses data
/// would mean nothing.
async fn round_trip(stream: &mut TcpStream, message: &Message, buffer: &mut [u8]) -> Result<()> {
    stream.write_all(&message.frame).await?;
    let mut missing = message.echo.as_slice();
    while !missing.is_empty() {
        let count = stream.read(buffer).await?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        missing = missing
            .strip_prefix(&buffer[..count])
            .ok_or_else(|| invalid("the echo differs from the message"))?;
    }
    Ok(())
}
