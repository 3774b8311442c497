//! Looks names up in DNS: the pods of services, and the number of replicas of the balancer.

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
        balance::backend::Backend,
        dns::{Answer, KnownAddresses, LookupError, LookupEvent},
        service_id::ServiceId,
    },
    net::dns::{DnsSource, Resolver, ResolverSettings},
};

/// Share of a wait by which it is lengthened at random, so that replicas do not query in step.
const JITTER: f64 = 0.1;

/// The maximum of the setting `replicas`, which holds for discovered replicas too.
const MAX_REPLICAS: usize = 1000;

/// The pods of a service have changed.
#[derive(Clone, Debug, Message, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct BackendsChanged {
    pub service: ServiceId,
    /// All backends, by address.
    pub backends: Vec<Backend>,
}

/// The number of balancer replicas that share the pods of a service has changed.
#[derive(Clone, Copy, Debug, Message, PartialEq, Eq)]
#[rtype(result = "()")]
pub struct ReplicasChanged {
    pub service: ServiceId,
    /// 1 to 1000.
    pub replicas: u32,
}

/// Replaces the names that are looked up. Lookups that stay the same continue.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct SetLookups(pub Vec<Lookup>);

/// Asks for the state of all lookups.
#[derive(Debug, Message)]
#[rtype(result = "LookupStatuses")]
pub struct GetLookups;

/// Answer to [`GetLookups`], in the order of the services.
#[derive(Debug, MessageResponse)]
pub struct LookupStatuses(pub Vec<LookupStatus>);

/// The state of one lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupStatus {
    pub target: LookupTarget,
    /// The name as configured.
    pub source: String,
    /// Number of addresses in the last good answer.
    pub addresses: usize,
    /// Why lookups fail, and for how long they have failed for this reason.
    pub failure: Option<(String, Duration)>,
}

/// What a lookup is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupTarget {
    /// The pods of a service.
    Pods {
        service: ServiceId,
        /// The pods' common properties: everything except the address.
        pod: Backend,
    },
    /// The number of replicas that share the pods of these services.
    Replicas { services: Vec<ServiceId> },
}

/// A name to look up.
#[derive(Clone, Debug)]
pub struct Lookup {
    /// The name as configured.
    pub source: String,
    /// What DNS is asked.
    pub query: DnsSource,
    /// Which name servers are asked, and how.
    pub resolver: ResolverSettings,
    pub target: LookupTarget,
}

impl Lookup {
    /// Whether `other` asks the same question, for the pods of the same service or for replicas.
    fn is_same_query(&self, other: &Self) -> bool {
        let same_target = match (&self.target, &other.target) {
            (LookupTarget::Replicas { .. }, LookupTarget::Replicas { .. }) => true,
            (one, other) => one == other,
        };
        same_target && self.query == other.query && self.resolver == other.resolver
    }
}

/// A lookup that is repeated, and the addresses known from it.
struct ActiveLookup {
    /// Unique in this actor.
    id: u64,
    lookup: Lookup,
    resolver: Rc<Resolver>,
    known: KnownAddresses,
    /// The number of replicas that was last reported.
    replicas: Option<u32>,
}

/// Repeats all lookups, each when the TTL of its last answer ends, and reports changes.
pub struct DiscoveryActor {
    lookups: Vec<ActiveLookup>,
    next_id: u64,
    backends: Recipient<BackendsChanged>,
    replicas: Recipient<ReplicasChanged>,
}

impl DiscoveryActor {
    /// Creates an actor that reports the results of `lookups` to `backends` and `replicas`. The
    /// recipients assume no pods and one replica until the first report.
    pub fn new(
        lookups: Vec<Lookup>,
        backends: Recipient<BackendsChanged>,
        replicas: Recipient<ReplicasChanged>,
    ) -> Self {
        let mut discovery = Self { lookups: Vec::new(), next_id: 0, backends, replicas };
        for lookup in lookups {
            discovery.add(lookup);
        }
        discovery
    }

    /// Adds a lookup without starting it, and returns its id.
    fn add(&mut self, lookup: Lookup) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let resolver = Resolver::new(lookup.query.clone(), lookup.resolver.clone()).into();
        let known = KnownAddresses::new(lookup.resolver.bounds);
        self.lookups.push(ActiveLookup { id, lookup, resolver, known, replicas: None });
        id
    }

    /// Performs the lookup `id`, unless it has been removed.
    fn look_up(&self, id: u64, ctx: &mut Context<Self>) {
        let Some(active) = self.lookups.iter().find(|active| active.id == id) else { return };
        let resolver = active.resolver.clone();
        let answer = wrap_future(async move { resolver.resolve().await });
        ctx.spawn(answer.map(move |answer, discovery: &mut Self, ctx| {
            discovery.handle_answer(id, answer, ctx);
        }));
    }

    /// Records an answer, reports changes, and schedules the next lookup.
    fn handle_answer(
        &mut self,
        id: u64,
        answer: Result<Answer, LookupError>,
        ctx: &mut Context<Self>,
    ) {
        let mut lookups = self.lookups.iter_mut();
        let Some(active) = lookups.find(|active| active.id == id) else { return };
        let step = active.known.update(answer, Instant::now());
        if let Some(event) = &step.event {
            active.log_event(event);
        }
        if matches!(step.event, Some(LookupEvent::Empty(_))) {
            active.resolver.forget_completed_name();
        }
        if step.changed {
            active.report(&self.backends, &self.replicas);
        }
        let wait = step.wait.mul_f64(1.0 + JITTER * fastrand::f64());
        ctx.run_later(wait, move |discovery, ctx| discovery.look_up(id, ctx));
    }
}

impl ActiveLookup {
    /// How log lines begin: the service, if there is one, and the name.
    fn topic(&self) -> String {
        let source = &self.lookup.source;
        match &self.lookup.target {
            LookupTarget::Pods { pod, .. } => format!("service {}: {source}", pod.service),
            LookupTarget::Replicas { .. } => format!("replicas: {source}"),
        }
    }

    /// The number of known addresses with its noun, such as `1 pod` or `3 replicas`.
    fn count(&self) -> String {
        let count = self.known.addresses().len();
        let noun = match &self.lookup.target {
            LookupTarget::Pods { .. } => "pod",
            LookupTarget::Replicas { .. } => "replica",
        };
        format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
    }

    fn log_event(&self, event: &LookupEvent) {
        let (topic, count) = (self.topic(), self.count());
        match event {
            LookupEvent::Failed(error) => {
                log::warn!("{topic}: lookup failed, keeping {count}: {error}");
            }
            LookupEvent::FirstEmpty(absence) => {
                log::warn!("{topic}: keeping {count} until a second answer confirms: {absence}")
            }
            LookupEvent::Empty(absence) => log::warn!("{topic}: {count}: {absence}"),
            LookupEvent::Recovered => log::info!("{topic}: lookup works again, {count}"),
        }
    }

    /// Reports the known addresses to the control actor that needs them.
    fn report(&mut self, backends: &Recipient<BackendsChanged>, to: &Recipient<ReplicasChanged>) {
        let addresses = self.known.addresses();
        if !addresses.is_empty() {
            log::info!("{}: {}", self.topic(), self.count());
        }
        log::debug!("{}: addresses {addresses:?}", self.topic());
        match &self.lookup.target {
            LookupTarget::Pods { service, pod } => {
                let backend =
                    |address: &_| Backend { address: ToString::to_string(address), ..pod.clone() };
                let all = addresses.iter().map(backend).collect();
                backends.do_send(BackendsChanged { service: *service, backends: all });
            }
            LookupTarget::Replicas { .. } => {
                // A dual-stack replica has one address of each kind.
                let v4 = addresses.iter().filter(|address| address.is_ipv4()).count();
                let replicas = v4.max(addresses.len() - v4).clamp(1, MAX_REPLICAS) as u32;
                if self.replicas.replace(replicas) != Some(replicas) {
                    self.report_replicas(to);
                }
            }
        }
    }

    /// Reports the number of replicas, if it is known, for each service that they share.
    fn report_replicas(&self, to: &Recipient<ReplicasChanged>) {
        if let (LookupTarget::Replicas { services }, Some(replicas)) =
            (&self.lookup.target, self.replicas)
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
        self.lookups.iter().for_each(|active| self.look_up(active.id, ctx));
    }
}

impl Supervised for DiscoveryActor {}

impl Handler<SetLookups> for DiscoveryActor {
    type Result = ();

    fn handle(&mut self, SetLookups(lookups): SetLookups, ctx: &mut Self::Context) {
        let mut before = std::mem::take(&mut self.lookups);
        for lookup in lookups {
            match before.iter().position(|known| known.lookup.is_same_query(&lookup)) {
                Some(at) => {
                    let mut known = before.swap_remove(at);
                    known.lookup = lookup;
                    known.report_replicas(&self.replicas);
                    self.lookups.push(known);
                }
                None => {
                    let id = self.add(lookup);
                    self.look_up(id, ctx);
                }
            }
        }
    }
}

impl Handler<GetLookups> for DiscoveryActor {
    type Result = LookupStatuses;

    fn handle(&mut self, _: GetLookups, _: &mut Self::Context) -> LookupStatuses {
        let now = Instant::now();
        let status = |active: &ActiveLookup| LookupStatus {
            target: active.lookup.target.clone(),
            source: active.lookup.source.clone(),
            addresses: active.known.addresses().len(),
            failure: active.known.problem(now),
        };
        LookupStatuses(self.lookups.iter().map(status).collect())
    }
}
