//! The clients: a closed loop per session, which sends its next message when the echo of the last
//! one is back. So the work is the same for every peer, however fast it is.

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

/// No step of a measurement takes this long unless the peer lost something.
const STALLED: Duration = Duration::from_secs(120);

/// Bytes a client reads at once: enough for small messages in one read, small enough for the
/// cache with large ones.
const READ: usize = 64 * 1024;

/// Open sessions to one peer, at most `in_flight` of them busy at a time.
pub struct Load {
    sessions: Vec<TcpStream>,
    in_flight: usize,
}

impl Load {
    /// Opens `count` sessions.
    pub async fn open(address: SocketAddr, count: usize, in_flight: usize) -> Result<Self> {
        let left = Arc::new(AtomicUsize::new(count));
        let mut workers = JoinSet::new();
        for _ in 0..in_flight {
            let left = left.clone();
            workers.spawn(async move {
                let mut opened = Vec::new();
                while take_one(&left) {
                    opened.push(connect(address).await?);
                }
                Ok(opened)
            });
        }
        let sessions = join(workers).await?;
        Ok(Self { sessions, in_flight })
    }

    /// Makes `trips` round trips of `message`, shared out as the sessions come free, so that all
    /// of them stay busy to the end.
    pub async fn run(&mut self, message: &Arc<Message>, trips: usize) -> Result<()> {
        let left = Arc::new(AtomicUsize::new(trips));
        let mut workers = JoinSet::new();
        for mut session in self.sessions.drain(..) {
            let (left, message) = (left.clone(), message.clone());
            workers.spawn(async move {
                let mut buffer = vec![0; READ];
                while take_one(&left) {
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
                let mut buffer = vec![0; READ];
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

/// Takes one of the units of work left, if any.
fn take_one(left: &AtomicUsize) -> bool {
    left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
}

/// Collects the workers' sessions; the first error ends all of them.
async fn join(mut workers: JoinSet<Result<Vec<TcpStream>>>) -> Result<Vec<TcpStream>> {
    let all = async {
        let mut sessions = Vec::new();
        while let Some(worker) = workers.join_next().await {
            sessions.extend(worker??);
        }
        Ok(sessions)
    };
    time::timeout(STALLED, all).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}

async fn connect(address: SocketAddr) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    wire::upgrade(&mut stream).await?;
    Ok(stream)
}

/// Sends the message and reads its echo, comparing as it comes: a peer that is fast because it
/// loses something measures nothing.
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
            .ok_or_else(|| invalid("the echo differs from what was sent"))?;
    }
    Ok(())
}
