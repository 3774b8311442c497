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
        balance::lease::Backend,
        dns::{Answer, KnownAddresses, LookupError, Notice},
    },
    net::dns::{DnsSource, Resolver, ResolverSettings},
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

/// Other names to look up from now on. Those that were looked up before, in the same way, go on.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct SetWatches(pub Vec<Watch>);

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
    pub lookup: DnsSource,
    /// Who is asked.
    pub resolver: ResolverSettings,
    /// What for.
    pub subject: Subject,
}

impl Watch {
    /// Whether it looks the same up as `other`, for pods of the same service or for replicas.
    fn is_like(&self, other: &Self) -> bool {
        let for_same = match (&self.subject, &other.subject) {
            (Subject::Replicas { .. }, Subject::Replicas { .. }) => true,
            (one, other) => one == other,
        };
        for_same && self.lookup == other.lookup && self.resolver == other.resolver
    }
}

/// A name that is looked up.
struct Watched {
    /// Never another name's.
    id: u64,
    watch: Watch,
    resolver: Rc<Resolver>,
    known: KnownAddresses,
    /// As they were sent last.
    replicas: Option<u32>,
}

/// Looks names up for as long as it lives, each at its own pace, and tells what has changed.
pub struct DiscoveryActor {
    watched: Vec<Watched>,
    next_id: u64,
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
        let mut discovery = Self { watched: Vec::new(), next_id: 0, backends, replicas };
        for watch in watches {
            discovery.begin(watch);
        }
        discovery
    }

    /// A name that has yet to be looked up, by its identifier.
    fn begin(&mut self, watch: Watch) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let resolver = Resolver::new(watch.lookup.clone(), watch.resolver.clone()).into();
        let known = KnownAddresses::new(watch.resolver.bounds);
        self.watched.push(Watched { id, watch, resolver, known, replicas: None });
        id
    }

    /// Looks up the name with this identifier, unless nobody wants to know any more.
    fn look_up(&self, id: u64, ctx: &mut Context<Self>) {
        let Some(watched) = self.watched.iter().find(|watched| watched.id == id) else { return };
        let resolver = watched.resolver.clone();
        let looked_up = wrap_future(async move { resolver.resolve().await });
        ctx.spawn(looked_up.map(move |answer, discovery: &mut Self, ctx| {
            discovery.take(id, answer, ctx);
        }));
    }

    /// Takes an answer in and sees to the next look-up.
    fn take(&mut self, id: u64, answer: Result<Answer, LookupError>, ctx: &mut Context<Self>) {
        let mut all = self.watched.iter_mut();
        let Some(watched) = all.find(|watched| watched.id == id) else { return };
        let step = watched.known.take(answer, Instant::now());
        if let Some(notice) = &step.notice {
            watched.say(notice);
        }
        if matches!(step.notice, Some(Notice::Empty(_))) {
            watched.resolver.forget_completed_name();
        }
        if step.changed {
            watched.tell(&self.backends, &self.replicas);
        }
        let wait = step.again_in.mul_f64(1.0 + JITTER * fastrand::f64());
        ctx.run_later(wait, move |discovery, ctx| discovery.look_up(id, ctx));
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
            Subject::Replicas { .. } => {
                // A replica with an address of each kind is one.
                let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
                let replicas = v4.max(addresses.len() - v4).clamp(1, MAX_REPLICAS) as u32;
                if self.replicas.replace(replicas) != Some(replicas) {
                    self.tell_replicas(to);
                }
            }
        }
    }

    /// Tells the services that share them how many replicas are known, if that is known.
    fn tell_replicas(&self, to: &Recipient<ReplicasChanged>) {
        if let (Subject::Replicas { services }, Some(replicas)) =
            (&self.watch.subject, self.replicas)
        {
            for service in services.iter().copied() {
                to.do_send(ReplicasChanged { service, replicas });
            }
        }
    }
}

impl Actor for DiscoveryActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.watched.iter().for_each(|watched| self.look_up(watched.id, ctx));
    }
}

impl Supervised for DiscoveryActor {}

impl Handler<SetWatches> for DiscoveryActor {
    type Result = ();

    fn handle(&mut self, SetWatches(watches): SetWatches, ctx: &mut Self::Context) {
        let mut before = std::mem::take(&mut self.watched);
        for watch in watches {
            match before.iter().position(|known| known.watch.is_like(&watch)) {
                Some(at) => {
                    let mut known = before.swap_remove(at);
                    known.watch = watch;
                    known.tell_replicas(&self.replicas);
                    self.watched.push(known);
                }
                None => {
                    let id = self.begin(watch);
                    self.look_up(id, ctx);
                }
            }
        }
    }
}

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
