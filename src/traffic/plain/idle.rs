//! Open connections to pods, kept for the next plain request.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::Rc,
    time::{Duration, Instant},
};

use hyper::client::conn::http1::SendRequest;

use super::request_body::RequestBody;

/// Maximum number of idle connections per pod and worker thread.
const MAX_IDLE: usize = 64;

/// Time that a connection is kept. Common servers keep theirs longer, so they rarely close first.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

type Sender = SendRequest<RequestBody>;

/// Connections by the address of the pod, each with the time of its last use.
type Connections = HashMap<String, Vec<(Sender, Instant)>>;

/// The idle connections of one worker thread.
#[derive(Clone, Default)]
pub struct IdleConnections(Rc<RefCell<Connections>>);

impl IdleConnections {
    /// Takes the connection to `address` that was used last, if one is still open.
    pub fn take(&self, address: &str) -> Option<Sender> {
        let mut pods = self.0.borrow_mut();
        let idle = pods.get_mut(address)?;
        while let Some((sender, since)) = idle.pop() {
            if sender.is_ready() && since.elapsed() < IDLE_TIMEOUT {
                return Some(sender);
            }
        }
        None
    }

    /// Keeps `sender` for the next request to `address` when its last answer is complete.
    pub fn keep(&self, address: String, mut sender: Sender) {
        let idle = self.clone();
        actix_rt::spawn(async move {
            if sender.ready().await.is_err() {
                return;
            }
            let now = Instant::now();
            {
                let mut pods = idle.0.borrow_mut();
                let kept = pods.entry(address.clone()).or_default();
                if kept.len() < MAX_IDLE {
                    kept.push((sender, now));
                }
            }
            actix_rt::time::sleep(IDLE_TIMEOUT).await;
            idle.drop_older_than(&address, now);
        });
    }

    /// Drops the connections to `address` that were last used at `since` or before.
    fn drop_older_than(&self, address: &str, since: Instant) {
        let mut pods = self.0.borrow_mut();
        if let Some(kept) = pods.get_mut(address) {
            kept.retain(|(_, kept_since)| *kept_since > since);
            if kept.is_empty() {
                pods.remove(address);
            }
        }
    }
}
