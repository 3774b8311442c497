//! The demo's clients: a constant number of them connect, send messages and leave.

use std::time::Duration;

use actix::Arbiter;
use actix_rt::time::{sleep, timeout};
use awc::{Client, ws};
use futures_util::{SinkExt as _, StreamExt as _};

/// Number of clients at any time.
pub(super) const SIZE: usize = 60;

/// How long a client stays connected, in milliseconds.
const STAY: std::ops::Range<u64> = 5_000..40_000;

/// Time between two messages of a client, in milliseconds.
const PAUSE: std::ops::Range<u64> = 300..2_000;

/// Starts the clients on a thread of their own; stopping the arbiter ends them.
pub fn start(url: String) -> Arbiter {
    let arbiter = Arbiter::new();
    arbiter.spawn(async move {
        for number in 0..SIZE {
            actix_rt::spawn(run_clients(url.clone(), number));
        }
    });
    arbiter
}

/// Runs one client after the other. `number` spreads the first ones over time.
async fn run_clients(url: String, number: usize) {
    sleep(Duration::from_millis(40 * number as u64)).await;
    loop {
        let stay = Duration::from_millis(fastrand::u64(STAY));
        // A failed client is replaced like one that leaves.
        let _ = timeout(stay, chat(&url)).await;
        sleep(Duration::from_millis(fastrand::u64(PAUSE))).await;
    }
}

async fn chat(url: &str) -> Option<()> {
    let (_, mut socket) = Client::new().ws(url).connect().await.ok()?;
    for number in 1u64.. {
        socket.send(ws::Message::Text(format!("message {number}").into())).await.ok()?;
        socket.next().await?.ok()?;
        sleep(Duration::from_millis(fastrand::u64(PAUSE))).await;
    }
    None
}
