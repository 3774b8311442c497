//! One worker thread, and the rules that its connections go by.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use arc_swap::ArcSwap;

use super::{plain::idle::Idle, service::Service, state::Traffic, upstream::Dialer};
use crate::net::connect::ConnectSettings;

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

/// What the connections of one worker thread share that began under the same rules.
pub struct Worker {
    /// What all workers share.
    pub traffic: Arc<Traffic>,
    /// This thread's ways to the pods, in the order of the services.
    pub outlets: Vec<Rc<Outlet>>,
}

impl Worker {
    /// The current thread's ways by the rules of `traffic`; those of `before` that lead to the same
    /// pods in the same way go on, with the connections that they keep.
    pub fn new(traffic: Arc<Traffic>, before: &[Rc<Outlet>]) -> Self {
        let outlet = |service: &Arc<Service>| {
            let known = before.iter().find(|outlet| outlet.leads_to(service));
            known.cloned().unwrap_or_else(|| Rc::new(Outlet::new(service)))
        };
        Self { outlets: traffic.services.iter().map(outlet).collect(), traffic }
    }
}

/// One worker's way to the pods of one service.
pub struct Outlet {
    service: String,
    connect: ConnectSettings,
    /// Opens connections.
    pub dialer: Dialer,
    /// Connections that wait for the next plain request.
    pub idle: Idle,
}

impl Outlet {
    /// The current thread's way to the pods of `service`.
    pub fn new(service: &Service) -> Self {
        Self {
            service: service.name.clone(),
            connect: service.connect.clone(),
            dialer: Dialer::new(service.connect.clone(), service.read_timeout),
            idle: Idle::default(),
        }
    }

    /// Whether it is a way to the pods of `service`, as that wants them to be reached.
    pub fn leads_to(&self, service: &Service) -> bool {
        self.service == service.name
            && self.connect == service.connect
            && self.dialer.read_timeout == service.read_timeout
    }
}
