//! One worker thread, and the rules that its connections go by.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use arc_swap::ArcSwap;

use super::{handshake::Worker, traffic::Traffic};

/// What all workers share, swapped whole when the settings change.
pub type Live = ArcSwap<Traffic>;

/// Gives each connection of one thread the rules of the moment. What goes by rules holds on to them
/// until it is done: a handshake, or a plain request.
pub struct Thread {
    live: Arc<Live>,
    worker: RefCell<Rc<Worker>>,
}

impl Thread {
    /// The current thread.
    pub fn new(live: Arc<Live>) -> Self {
        let worker = Worker::new(live.load_full(), &[]);
        Self { live, worker: RefCell::new(Rc::new(worker)) }
    }

    /// By the rules that hold now.
    pub fn worker(&self) -> Rc<Worker> {
        let traffic = self.live.load();
        let mut worker = self.worker.borrow_mut();
        if !Arc::ptr_eq(&worker.traffic, &traffic) {
            *worker = Rc::new(Worker::new(traffic.clone(), &worker.outlets));
        }
        worker.clone()
    }
}
