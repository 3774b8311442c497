//! Keeps an eye on DNS: which pods a service has, and how many replicas of the balancer there are.

use std::{
    rc::Rc,
    time::{Duration, Instant},
};

use actix::{
    Actor, ActorFutureExt as _, AsyncContext as _, Context, Handler, Message, MessageResponse,
    Recipient, Supervised, fut::wrap_future,
};

use crate::{
    domain::{
        discovery::{Answer, KnownAddresses, LookupError, Notice},
        lease::Backend,
    },
    net::resolve::{Resolver, ResolverSettings, Source},
};

/// Share of the wait by which it is lengthened at random, so that replicas do not ask in step.
const JITTER: f64 = 0.1;

/// As many replicas as can be configured.
const MAX_REPLICAS: usize = 1000;

/// The pods of a service are others than before.
#[derive(Clone, Debug, Message, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct BackendsChanged {
    /// Index of the service.
    pub service: usize,
    /// All of them, by address.
    pub backends: Vec<Backend>,
}

/// The replicas of the balancer that share a service's pods are more or fewer than before.
#[derive(Clone, Copy, Debug, Message, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct ReplicasChanged {
    /// Index of the service.
    pub service: usize,
    /// How many, 1 to 1000.
    pub replicas: u32,
}

/// Asks what DNS has said so far.
#[derive(Debug, Message)]
#[rtype(result = "Discoveries")]
pub struct Discovered;

/// Answer to [`Discovered`], in the order of the services.
#[derive(Debug, MessageResponse)]
pub struct Discoveries(pub Vec<Discovery>);

/// What DNS has said of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// What hangs on it.
    pub subject: Subject,
    /// The name, as it was configured.
    pub source: String,
    /// Addresses in the last good answer.
    pub known: usize,
    /// What is wrong with the last look-up, and since when look-ups have been going wrong that way.
    pub trouble: Option<(String, Duration)>,
}

/// What a name is looked up for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The pods of a service.
    Pods {
        /// Index of the service.
        service: usize,
        /// What they have in common: all but the address.
        pod: Backend,
    },
    /// The number of replicas that share these services' pods.
    Replicas {
        /// Indexes of the services.
        services: Vec<usize>,
    },
}

/// A name to look up, and what for.
#[derive(Clone, Debug)]
pub struct Watch {
    /// The name, as it was configured.
    pub source: String,
    /// What is asked.
    pub lookup: Source,
    /// Who is asked.
    pub resolver: ResolverSettings,
    /// What for.
    pub subject: Subject,
}

/// A name that is looked up.
struct Watched {
    watch: Watch,
    resolver: Rc<Resolver>,
    known: KnownAddresses,
    /// As they were sent last.
    replicas: u32,
}

/// Looks names up for as long as it lives, each at its own pace, and tells what has changed.
pub struct DiscoveryActor {
    watched: Vec<Watched>,
    backends: Recipient<BackendsChanged>,
    replicas: Recipient<ReplicasChanged>,
}

impl DiscoveryActor {
    /// An actor that tells `backends` and `replicas` what becomes of `watches`, beginning with no
    /// pods and one replica each.
    pub fn new(
        watches: Vec<Watch>,
        backends: Recipient<BackendsChanged>,
        replicas: Recipient<ReplicasChanged>,
    ) -> Self {
        let watched = |watch: Watch| {
            let resolver = Resolver::new(watch.lookup.clone(), watch.resolver.clone());
            let known = KnownAddresses::new(watch.resolver.bounds);
            Watched { watch, resolver: resolver.into(), known, replicas: 1 }
        };
        Self { watched: watches.into_iter().map(watched).collect(), backends, replicas }
    }

    fn look_up(&self, index: usize, ctx: &mut Context<Self>) {
        let resolver = self.watched[index].resolver.clone();
        let looked_up = wrap_future(async move { resolver.resolve().await });
        ctx.spawn(looked_up.map(move |answer, discovery: &mut Self, ctx| {
            discovery.take(index, answer, ctx);
        }));
    }

    /// Takes an answer in and sees to the next look-up.
    fn take(&mut self, index: usize, answer: Result<Answer, LookupError>, ctx: &mut Context<Self>) {
        let watched = &mut self.watched[index];
        let step = watched.known.take(answer, Instant::now());
        if let Some(notice) = &step.notice {
            watched.say(notice);
        }
        if matches!(step.notice, Some(Notice::Empty(_))) {
            watched.resolver.forget();
        }
        if step.changed {
            watched.tell(&self.backends, &self.replicas);
        }
        let wait = step.again_in.mul_f64(1.0 + JITTER * fastrand::f64());
        ctx.run_later(wait, move |discovery, ctx| discovery.look_up(index, ctx));
    }
}

impl Watched {
    /// What it is about, and what of that is counted.
    fn topic(&self) -> (String, &'static str) {
        let source = &self.watch.source;
        let is_one = self.known.addresses().len() == 1;
        match &self.watch.subject {
            Subject::Pods { pod, .. } => {
                let topic = format!("service {}, {source}", pod.service);
                (topic, if is_one { "pod" } else { "pods" })
            }
            Subject::Replicas { .. } => {
                (source.clone(), if is_one { "replica" } else { "replicas" })
            }
        }
    }

    fn say(&self, notice: &Notice) {
        let (topic, noun) = self.topic();
        let count = self.known.addresses().len();
        match notice {
            Notice::Keeps(error) => log::warn!("{topic}: keeps {count} known {noun}: {error}"),
            Notice::Doubts(absence) => log::warn!(
                "{topic}: keeps {count} known {noun} until DNS says once more that {absence}"
            ),
            Notice::Empty(absence) => log::warn!("{topic}: no {noun}: {absence}"),
            Notice::Recovered => log::info!("{topic}: answers again, {count} {noun}"),
        }
    }

    fn tell(&mut self, backends: &Recipient<BackendsChanged>, to: &Recipient<ReplicasChanged>) {
        let addresses = self.known.addresses();
        let (topic, noun) = self.topic();
        if !addresses.is_empty() {
            log::info!("{topic}: {} {noun}", addresses.len());
        }
        log::debug!("{topic}: {noun} at {addresses:?}");
        match &self.watch.subject {
            Subject::Pods { service, pod } => {
                let at =
                    |address: &_| Backend { address: ToString::to_string(address), ..pod.clone() };
                let all = addresses.iter().map(at).collect();
                backends.do_send(BackendsChanged { service: *service, backends: all });
            }
            Subject::Replicas { services } => {
                // A replica with an address of each kind is one.
                let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
                let replicas = v4.max(addresses.len() - v4).clamp(1, MAX_REPLICAS) as u32;
                if replicas != std::mem::replace(&mut self.replicas, replicas) {
                    for service in services.iter().copied() {
                        to.do_send(ReplicasChanged { service, replicas });
                    }
                }
            }
        }
    }
}

impl Actor for DiscoveryActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        (0..self.watched.len()).for_each(|index| self.look_up(index, ctx));
    }
}

impl Supervised for DiscoveryActor {}

impl Handler<Discovered> for DiscoveryActor {
    type Result = Discoveries;

    fn handle(&mut self, _: Discovered, _: &mut Self::Context) -> Discoveries {
        let now = Instant::now();
        let discovery = |watched: &Watched| Discovery {
            subject: watched.watch.subject.clone(),
            source: watched.watch.source.clone(),
            known: watched.known.addresses().len(),
            trouble: watched.known.trouble(now),
        };
        Discoveries(self.watched.iter().map(discovery).collect())
    }
}
