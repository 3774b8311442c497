//! A steady crowd of clients that come, talk and go.

use std::time::Duration;

use actix::Arbiter;
use actix_rt::time::{sleep, timeout};
use awc::{Client, ws};
use futures_util::{SinkExt as _, StreamExt as _};

/// Clients at any time.
const SIZE: usize = 60;

/// How long a client stays, in milliseconds.
const STAY: std::ops::Range<u64> = 5_000..40_000;

/// From one message of a client to its next, in milliseconds.
const PAUSE: std::ops::Range<u64> = 300..2_000;

/// Starts the crowd on a thread of its own; stopping the arbiter ends it.
pub fn start(url: String) -> Arbiter {
    let arbiter = Arbiter::new();
    arbiter.spawn(async move {
        for seat in 0..SIZE {
            actix_rt::spawn(keep_seat_taken(url.clone(), seat));
        }
    });
    arbiter
}

/// One client after the other.
async fn keep_seat_taken(url: String, seat: usize) {
    sleep(Duration::from_millis(40 * seat as u64)).await;
    loop {
        let stay = Duration::from_millis(fastrand::u64(STAY));
        // Whatever ends a client, the next one takes its seat.
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
