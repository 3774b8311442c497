//! Discovery of pods and replicas in DNS, with a name server on loopback.

use std::time::Duration;

use actix::{Actor, Addr, Context, Handler};
use hickory_proto::{op::ResponseCode, rr::RecordType};
use tokio::sync::mpsc;
use wsbalancer::{
    actors::discovery::{
        BackendsChanged, DiscoveryActor, GetLookups, Lookup, LookupStatus, LookupTarget,
        ReplicasChanged, SetLookups,
    },
    domain::{
        balance::backend::{Backend, Transport},
        dns::{Absence, Answer, LookupError, Missing, TtlBounds},
        service_id::{ServiceId, ServiceIds},
    },
    net::dns::{DnsSource, HostName, NameServers, Resolver, ResolverSettings},
};

use crate::support::{
    Balancer,
    dns::{DnsReply, NameServer, addresses, services},
    eventually,
    program::Program,
    within,
};

const A: RecordType = RecordType::A;
const AAAA: RecordType = RecordType::AAAA;
const SERVFAIL: DnsReply = DnsReply::Code(ResponseCode::ServFail);
const NXDOMAIN: DnsReply = DnsReply::Code(ResponseCode::NXDomain);

const SECOND: Duration = Duration::from_secs(1);

/// A timeout that no test reaches.
const PATIENT: Duration = Duration::from_secs(30);

fn host(name: &str) -> DnsSource {
    DnsSource::Host { name: HostName::parse(name).unwrap(), port: 3001 }
}

fn service(name: &str) -> DnsSource {
    DnsSource::Srv(HostName::parse(name).unwrap())
}

fn settings(servers: &[&NameServer], timeout: Duration) -> ResolverSettings {
    let addresses = servers.iter().map(|server| server.address).collect();
    let servers = Some(NameServers { addresses, ..Default::default() });
    ResolverSettings { servers, timeout, bounds: TtlBounds { min: SECOND, max: 30 * SECOND } }
}

/// Returns the addresses and the seconds until the next lookup.
fn found(answer: Result<Answer, LookupError>) -> (Vec<String>, u64) {
    match answer {
        Ok(Answer::Found { addresses, ttl, missing }) => {
            assert_eq!(missing, Missing::default());
            (addresses.iter().map(ToString::to_string).collect(), ttl.as_secs())
        }
        other => panic!("no addresses: {other:?}"),
    }
}

#[actix_rt::test]
async fn addresses_are_sorted_and_unique_with_the_shortest_ttl() {
    let dns = NameServer::start().await;
    dns.set_a("chat.", 9, &["10.0.0.9", "10.0.0.10", "10.0.0.9"]);
    dns.set("chat.", AAAA, addresses(7, &["fd00::1"]));
    let resolver = Resolver::new(host("chat"), settings(&[&dns], PATIENT));
    let all = ["10.0.0.9:3001", "10.0.0.10:3001", "[fd00::1]:3001"].map(ToOwned::to_owned);
    assert_eq!(found(resolver.resolve().await), (all.to_vec(), 7));

    dns.set("alias.", A, DnsReply::Alias(5, "chat.".to_owned()));
    dns.set("alias.", AAAA, DnsReply::Alias(5, "chat.".to_owned()));
    let resolver = Resolver::new(host("alias"), settings(&[&dns], PATIENT));
    assert_eq!(
        found(resolver.resolve().await),
        (all.to_vec(), 5),
        "the TTL of the alias counts too"
    );
}

#[actix_rt::test]
async fn the_ttl_is_bounded_and_answers_are_not_cached() {
    let dns = NameServer::start().await;
    let resolver = Resolver::new(host("chat"), settings(&[&dns], PATIENT));
    for (ttl, ip, bounded) in [(0, "10.0.0.1", 1), (86_400, "10.0.0.2", 30), (4, "10.0.0.3", 4)] {
        dns.set_a("chat.", ttl, &[ip]);
        assert_eq!(found(resolver.resolve().await), (vec![format!("{ip}:3001")], bounded));
    }
    dns.set_negative_ttl(86_400);
    dns.remove("chat.");
    let none = Answer::None { absence: Absence::NoSuchName, ttl: 30 * SECOND };
    assert_eq!(resolver.resolve().await, Ok(none));
    dns.set_a("chat.", 4, &["10.0.0.4"]);
    assert_eq!(found(resolver.resolve().await).0, ["10.0.0.4:3001"]);
}

#[actix_rt::test]
async fn a_truncated_answer_is_repeated_over_tcp() {
    let dns = NameServer::start().await;
    let v4: Vec<String> = (1..=200).map(|host| format!("10.0.0.{host}")).collect();
    let v6: Vec<String> = (1..=200).map(|host| format!("fd00::{host:x}")).collect();
    let texts = |ips: &[String]| -> DnsReply {
        addresses(5, &ips.iter().map(String::as_str).collect::<Vec<_>>())
    };
    dns.set("chat.", A, texts(&v4));
    dns.set("chat.", AAAA, texts(&v6));
    let resolver = Resolver::new(host("chat"), settings(&[&dns], PATIENT));
    let (all, _) = found(resolver.resolve().await);
    let expected: Vec<String> = v4
        .iter()
        .map(|ip| format!("{ip}:3001"))
        .chain(v6.iter().map(|ip| format!("[{ip}]:3001")))
        .collect();
    assert_eq!(all, expected);
    assert_eq!(dns.tcp_queries(), 2);
}

#[actix_rt::test]
async fn services_have_ports_and_priorities() {
    let dns = NameServer::start().await;
    let targets = [
        (1, 9, 4001, "a.chat."),
        (2, 0, 4000, "late."),
        (1, 0, 4002, "b.chat."),
        (1, 0, 4003, "gone."),
    ];
    dns.set("_ws._tcp.chat.", RecordType::SRV, services(9, &targets));
    dns.set_a("a.chat.", 8, &["10.0.0.1"]);
    dns.set_a("b.chat.", 7, &["10.0.0.1", "10.0.0.2"]);
    dns.set("b.chat.", AAAA, addresses(6, &["fd00::2"]));
    dns.set_a("late.", 1, &["10.0.0.9"]);
    dns.set_negative_ttl(10);
    let resolver = Resolver::new(service("_ws._tcp.chat"), settings(&[&dns], PATIENT));
    let all = ["10.0.0.1:4001", "10.0.0.1:4002", "10.0.0.2:4002", "[fd00::2]:4002"];
    assert_eq!(found(resolver.resolve().await), (all.map(ToOwned::to_owned).to_vec(), 6));
    assert_eq!(dns.queries("late.", A), 0, "only targets of the first priority are looked up");

    dns.set("_ws._tcp.chat.", RecordType::SRV, services(9, &[(0, 0, 0, ".")]));
    let none = Answer::None { absence: Absence::NoRecords, ttl: 9 * SECOND };
    assert_eq!(resolver.resolve().await, Ok(none), "no such service");
}

#[actix_rt::test]
async fn an_empty_answer_differs_from_a_failed_lookup() {
    let dns = NameServer::start().await;
    dns.set_negative_ttl(3);
    let resolver = Resolver::new(host("chat"), settings(&[&dns], PATIENT));
    let none = |absence| Ok(Answer::None { absence, ttl: 3 * SECOND });
    assert_eq!(resolver.resolve().await, none(Absence::NoSuchName));
    dns.set("chat.", RecordType::TXT, DnsReply::Records(1, Vec::new()));
    assert_eq!(resolver.resolve().await, none(Absence::NoRecords));

    for (reply, expected) in [
        (SERVFAIL, "answers SERVFAIL"),
        (DnsReply::Code(ResponseCode::Refused), "answers REFUSED"),
        (DnsReply::Code(ResponseCode::NotImp), "answers NOTIMP"),
        (DnsReply::Code(ResponseCode::Unknown(3841)), "answers"),
        (DnsReply::Referral, "refers to other name servers"),
        (DnsReply::Garbage, "sent a malformed answer"),
    ] {
        dns.set_always(Some(reply));
        let error = resolver.resolve().await.unwrap_err();
        assert!(matches!(error, LookupError::Refused(_)), "{error:?}");
        let text = error.to_string();
        assert!(
            text.starts_with("chat. A: name server 127.0.0.1:") && text.contains(expected),
            "{text}"
        );
    }
}

#[actix_rt::test]
async fn a_lookup_without_an_answer_is_a_failure() {
    let dns = NameServer::start().await;
    dns.set_always(Some(DnsReply::Silence));
    let silent = settings(&[&dns], Duration::from_millis(200));
    let resolver = Resolver::new(host("chat"), silent.clone());
    let error = resolver.resolve().await.unwrap_err();
    assert!(matches!(error, LookupError::TimedOut(_)), "{error:?}");
    assert!(error.to_string().contains("does not answer within 200ms"), "{error}");

    let address = dns.address;
    drop(dns);
    let unused = Some(NameServers { addresses: vec![address], ..Default::default() });
    let resolver = Resolver::new(host("chat"), ResolverSettings { servers: unused, ..silent });
    assert!(resolver.resolve().await.is_err(), "no name server listens");
}

#[actix_rt::test]
async fn a_failure_of_one_record_type_is_reported_with_the_records_of_the_other() {
    let dns = NameServer::start().await;
    dns.set_a("chat.", 5, &["10.0.0.1"]);
    dns.set("chat.", AAAA, SERVFAIL);
    let resolver = Resolver::new(host("chat"), settings(&[&dns], PATIENT));
    let Ok(Answer::Found { addresses, missing, .. }) = resolver.resolve().await else {
        panic!("no addresses")
    };
    assert_eq!(addresses, ["10.0.0.1:3001".parse().unwrap()]);
    assert_eq!(missing.v4, None);
    assert!(matches!(missing.v6, Some(LookupError::Refused(_))), "{missing:?}");
}

#[actix_rt::test]
async fn the_second_name_server_is_asked_when_the_first_fails() {
    let (first, second) = (NameServer::start().await, NameServer::start().await);
    second.set_a("chat.", 5, &["10.0.0.2"]);
    let resolver = Resolver::new(host("chat"), settings(&[&first, &second], 4 * SECOND));
    for reply in
        [SERVFAIL, DnsReply::Code(ResponseCode::Refused), DnsReply::Garbage, DnsReply::Silence]
    {
        first.set_always(Some(reply.clone()));
        assert_eq!(found(resolver.resolve().await).0, ["10.0.0.2:3001"], "{reply:?}");
    }
    first.set_always(None);
    assert!(
        matches!(resolver.resolve().await, Ok(Answer::None { .. })),
        "the first name server answers"
    );
}

/// Returns settings with the search domains of a Kubernetes pod.
fn searching(dns: &NameServer) -> ResolverSettings {
    let search = ["shop.svc.cluster.local", "svc.cluster.local", "corp.example"];
    let servers = NameServers {
        addresses: vec![dns.address],
        search: search.map(ToOwned::to_owned).to_vec(),
        ndots: 5,
    };
    ResolverSettings { servers: Some(servers), ..settings(&[dns], PATIENT) }
}

#[actix_rt::test]
async fn short_names_are_completed_with_search_domains() {
    let dns = NameServer::start().await;
    dns.set_a("chat.shop.svc.cluster.local.", 5, &["10.0.0.1"]);
    dns.set_a("web.example.", 5, &["10.0.0.2"]);
    dns.set_a("_tcp.example.", 5, &["10.0.0.3"]);
    dns.set(
        "_ws._tcp.chat.svc.cluster.local.",
        RecordType::SRV,
        services(5, &[(0, 0, 80, "web.example.")]),
    );
    let resolve = async |source| found(Resolver::new(source, searching(&dns)).resolve().await).0;
    assert_eq!(resolve(host("chat")).await, ["10.0.0.1:3001"]);
    assert_eq!(resolve(host("chat.shop.svc.cluster.local")).await, ["10.0.0.1:3001"]);
    assert_eq!(resolve(host("web.example.")).await, ["10.0.0.2:3001"]);
    assert_eq!(resolve(service("_ws._tcp.chat")).await, ["10.0.0.2:80"]);
    assert_eq!(
        dns.queries("chat.", A),
        0,
        "the first search domain with addresses ends the search"
    );

    let resolver = Resolver::new(host("web.example."), searching(&dns));
    let before = dns.all_queries();
    resolver.resolve().await.unwrap();
    assert_eq!(dns.all_queries() - before, 2, "a name with a final dot is not completed");
}

#[actix_rt::test]
async fn a_failing_search_domain_is_skipped_and_its_failure_is_reported() {
    let dns = NameServer::start().await;
    dns.set_a("chat.corp.example.", 5, &["192.0.2.1"]);
    let inner = "chat.shop.svc.cluster.local.";
    let resolver = Resolver::new(host("chat"), searching(&dns));

    // The resolver goes on with the next domain, but does not settle for its name.
    dns.set(inner, A, SERVFAIL);
    assert_eq!(found(resolver.resolve().await).0, ["192.0.2.1:3001"]);
    dns.set_a(inner, 5, &["10.0.0.1"]);
    assert_eq!(found(resolver.resolve().await).0, ["10.0.0.1:3001"]);

    // The inner name is now the completed name: the other domain is not used.
    dns.set(inner, A, SERVFAIL);
    assert!(matches!(resolver.resolve().await, Err(LookupError::Refused(_))));
    dns.remove(inner);
    assert!(matches!(resolver.resolve().await, Ok(Answer::None { .. })));
    resolver.forget_completed_name();
    assert_eq!(found(resolver.resolve().await).0, ["192.0.2.1:3001"]);

    // A failed lookup does not mean that the name does not exist.
    dns.remove("chat.corp.example.");
    dns.set(inner, A, SERVFAIL);
    resolver.forget_completed_name();
    assert!(matches!(resolver.resolve().await, Err(LookupError::Refused(_))));
}

/// Passes the messages that it receives to the test.
struct Subscriber {
    backends: mpsc::UnboundedSender<BackendsChanged>,
    replicas: mpsc::UnboundedSender<ReplicasChanged>,
}

impl Actor for Subscriber {
    type Context = Context<Self>;
}

impl Handler<BackendsChanged> for Subscriber {
    type Result = ();

    fn handle(&mut self, changed: BackendsChanged, _: &mut Self::Context) {
        let _ = self.backends.send(changed);
    }
}

impl Handler<ReplicasChanged> for Subscriber {
    type Result = ();

    fn handle(&mut self, changed: ReplicasChanged, _: &mut Self::Context) {
        let _ = self.replicas.send(changed);
    }
}

/// A discovery actor and the messages that it sends.
struct Watcher {
    actor: Addr<DiscoveryActor>,
    backends: mpsc::UnboundedReceiver<BackendsChanged>,
    replicas: mpsc::UnboundedReceiver<ReplicasChanged>,
}

/// Returns the id that is issued as number `index`, counted from 0.
fn id(index: usize) -> ServiceId {
    let mut ids = ServiceIds::default();
    (0..=index).map(|index| ids.get_or_issue(&index.to_string())).last().unwrap()
}

fn pod(service: &str, url: &str, transport: Transport) -> Backend {
    let [service, url] = [service, url].map(ToOwned::to_owned);
    Backend { service, url, address: String::new(), transport }
}

impl Watcher {
    fn start(watches: Vec<Lookup>) -> Self {
        let (backends_to, backends) = mpsc::unbounded_channel();
        let (replicas_to, replicas) = mpsc::unbounded_channel();
        let subscriber = Subscriber { backends: backends_to, replicas: replicas_to }.start();
        let (to_backends, to_replicas) = (subscriber.clone().recipient(), subscriber.recipient());
        let actor = DiscoveryActor::new(watches, to_backends, to_replicas).start();
        Self { actor, backends, replicas }
    }

    /// Looks up the pods of one service by the name `chat`.
    fn of_pods(dns: &NameServer) -> Self {
        let url = "http://chat:3001";
        let subject = LookupTarget::Pods { service: id(0), pod: pod("talk", url, Transport::Tcp) };
        Self::start(vec![watch(dns, url, host("chat"), subject)])
    }

    /// Waits for the next set of pods and returns its addresses.
    async fn pods(&mut self) -> Vec<String> {
        let changed = within("other pods", self.backends.recv()).await.expect("a running actor");
        changed.backends.into_iter().map(|backend| backend.address).collect()
    }

    async fn lookups(&self) -> Vec<LookupStatus> {
        self.actor.send(GetLookups).await.unwrap().0
    }

    async fn until_failure(&self, text: &str) {
        eventually(text, async || {
            let lookups = self.lookups().await;
            lookups[0].failure.as_ref().is_some_and(|(failure, _)| failure.contains(text))
        })
        .await;
    }
}

/// Returns a lookup that is repeated as often as possible.
fn watch(dns: &NameServer, source: &str, query: DnsSource, target: LookupTarget) -> Lookup {
    let bounds = TtlBounds { min: SECOND / 50, max: SECOND / 10 };
    let resolver = ResolverSettings { bounds, ..settings(&[dns], PATIENT) };
    Lookup { source: source.to_owned(), query, resolver, target }
}

#[actix_rt::test]
async fn added_and_removed_pods_are_reported() {
    let dns = NameServer::start().await;
    dns.set_a("chat.", 0, &["10.0.0.1"]);
    let url = "https://chat:3001";
    let subject = LookupTarget::Pods { service: id(3), pod: pod("talk", url, Transport::Tls) };
    let mut watcher = Watcher::start(vec![watch(&dns, url, host("chat"), subject)]);
    let reported = within("the first pod", watcher.backends.recv()).await.unwrap();
    let at =
        |address: &str| Backend { address: address.to_owned(), ..pod("talk", url, Transport::Tls) };
    assert_eq!(reported, BackendsChanged { service: id(3), backends: vec![at("10.0.0.1:3001")] });

    dns.set("chat.", AAAA, addresses(0, &["fd00::1"]));
    let backends = vec![at("10.0.0.1:3001"), at("[fd00::1]:3001")];
    let reported = within("another pod", watcher.backends.recv()).await.unwrap();
    assert_eq!(reported, BackendsChanged { service: id(3), backends });
    dns.set("chat.", AAAA, DnsReply::Records(0, Vec::new()));
    assert_eq!(watcher.pods().await, ["10.0.0.1:3001"]);
    dns.set_a("chat.", 86_400, &["10.0.0.2", "10.0.0.3"]);
    assert_eq!(watcher.pods().await, ["10.0.0.2:3001", "10.0.0.3:3001"]);
    // The TTL of a day is capped.
    dns.set_a("chat.", 0, &["10.0.0.3"]);
    assert_eq!(watcher.pods().await, ["10.0.0.3:3001"]);
    let all: Vec<String> = (1..=120).map(|host| format!("10.0.1.{host}")).collect();
    dns.set_a("chat.", 0, &all.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(watcher.pods().await.len(), 120);
}

#[actix_rt::test]
async fn an_unchanged_set_of_pods_is_reported_once() {
    let dns = NameServer::start().await;
    dns.set_a("chat.", 0, &["10.0.0.2", "10.0.0.1"]);
    let mut watcher = Watcher::of_pods(&dns);
    assert_eq!(watcher.pods().await, ["10.0.0.1:3001", "10.0.0.2:3001"]);
    dns.set_a("chat.", 1, &["10.0.0.1", "10.0.0.2"]);
    let asked = dns.queries("chat.", A);
    eventually("further lookups", async || dns.queries("chat.", A) > asked + 3).await;
    assert!(watcher.backends.try_recv().is_err());
}

#[actix_rt::test]
async fn failed_lookups_keep_the_pods_and_are_shown() {
    let dns = NameServer::start().await;
    dns.set_a("chat.", 0, &["10.0.0.1", "10.0.0.2"]);
    let mut watcher = Watcher::of_pods(&dns);
    watcher.pods().await;
    for (reply, expected) in
        [(SERVFAIL, "answers SERVFAIL"), (DnsReply::Code(ResponseCode::Refused), "answers REFUSED")]
    {
        dns.set_always(Some(reply));
        watcher.until_failure(expected).await;
        let lookups = watcher.lookups().await;
        assert_eq!((lookups[0].source.as_str(), lookups[0].addresses), ("http://chat:3001", 2));
    }
    dns.set_always(None);
    dns.set_a("chat.", 0, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let all = ["10.0.0.1:3001", "10.0.0.2:3001", "10.0.0.3:3001"];
    assert_eq!(watcher.pods().await, all, "and no other set before it");
    assert_eq!(watcher.lookups().await[0].failure, None);
}

#[actix_rt::test]
async fn lookups_without_an_answer_keep_the_pods() {
    let dns = NameServer::start().await;
    dns.set_a("chat.", 0, &["10.0.0.1"]);
    let subject =
        LookupTarget::Pods { service: id(0), pod: pod("talk", "http://chat", Transport::Tcp) };
    let mut watch = watch(&dns, "http://chat", host("chat"), subject);
    watch.resolver.timeout = SECOND;
    let mut watcher = Watcher::start(vec![watch]);
    watcher.pods().await;
    dns.set_always(Some(DnsReply::Silence));
    watcher.until_failure("does not answer within 1s").await;
    assert_eq!(watcher.lookups().await[0].addresses, 1);
    dns.set_always(None);
    dns.set_a("chat.", 0, &["10.0.0.2"]);
    assert_eq!(watcher.pods().await, ["10.0.0.2:3001"]);
}

#[actix_rt::test]
async fn pods_are_removed_after_two_empty_answers_in_a_row() {
    let dns = NameServer::start().await;
    dns.set_a("chat.", 0, &["10.0.0.1"]);
    let mut watcher = Watcher::of_pods(&dns);
    watcher.pods().await;
    let nodata = || DnsReply::Records(0, Vec::new());

    // A name server that restarts and fails in between.
    for once in [vec![NXDOMAIN], vec![nodata()], vec![NXDOMAIN, SERVFAIL, NXDOMAIN]] {
        let count = once.len();
        dns.queue("chat.", A, once);
        let asked = dns.queries("chat.", A);
        eventually("the denials", async || dns.queries("chat.", A) > asked + count).await;
    }
    dns.set_a("chat.", 0, &["10.0.0.1", "10.0.0.2"]);
    assert_eq!(watcher.pods().await, ["10.0.0.1:3001", "10.0.0.2:3001"], "no other set before it");

    for twice in [[NXDOMAIN, NXDOMAIN], [NXDOMAIN, nodata()], [nodata(), nodata()]] {
        dns.queue("chat.", A, twice);
        assert!(watcher.pods().await.is_empty());
        assert_eq!(watcher.pods().await.len(), 2);
    }
    dns.remove("chat.");
    assert!(watcher.pods().await.is_empty());
    watcher.until_failure("NXDOMAIN").await;
}

#[actix_rt::test]
async fn a_short_name_is_completed_again_when_its_pods_are_gone() {
    let dns = NameServer::start().await;
    let inner = "chat.shop.svc.cluster.local.";
    dns.set_a(inner, 0, &["10.0.0.1"]);
    dns.set_a("chat.corp.example.", 0, &["192.0.2.1"]);
    let subject =
        LookupTarget::Pods { service: id(0), pod: pod("talk", "http://chat", Transport::Tcp) };
    let mut watch = watch(&dns, "http://chat", host("chat"), subject);
    watch.resolver.servers = searching(&dns).servers;
    let mut watcher = Watcher::start(vec![watch]);
    assert_eq!(watcher.pods().await, ["10.0.0.1:3001"]);
    dns.queue(inner, A, [NXDOMAIN]);
    let asked = dns.queries(inner, A);
    eventually("the denial", async || dns.queries(inner, A) > asked + 1).await;
    assert!(watcher.backends.try_recv().is_err(), "one denial does not switch to another domain");
    dns.remove(inner);
    assert!(watcher.pods().await.is_empty());
    assert_eq!(watcher.pods().await, ["192.0.2.1:3001"]);
}

#[actix_rt::test]
async fn the_replica_count_applies_to_all_services_and_is_at_least_one() {
    let dns = NameServer::start().await;
    dns.set_a("balancers.", 0, &["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
    let subject = LookupTarget::Replicas { services: vec![id(0), id(2)] };
    let lookup = watch(&dns, "dns:balancers", host("balancers"), subject);
    let mut watcher = Watcher::start(vec![lookup]);
    let mut next = async || within("replicas", watcher.replicas.recv()).await.unwrap();
    for service in [0, 2] {
        assert_eq!(next().await, ReplicasChanged { service: id(service), replicas: 3 });
    }
    // With two addresses for each replica the count stays the same.
    dns.set("balancers.", AAAA, addresses(0, &["fd00::1", "fd00::2", "fd00::3"]));
    let asked = dns.queries("balancers.", A);
    eventually("further lookups", async || dns.queries("balancers.", A) > asked + 2).await;
    dns.set("balancers.", AAAA, addresses(0, &["fd00::1", "fd00::2", "fd00::3", "fd00::4"]));
    for service in [0, 2] {
        assert_eq!(next().await, ReplicasChanged { service: id(service), replicas: 4 });
    }
    dns.remove("balancers.");
    for service in [0, 2] {
        assert_eq!(next().await, ReplicasChanged { service: id(service), replicas: 1 });
    }
}

#[actix_rt::test]
async fn settings_determine_the_names_to_look_up() {
    let dns = NameServer::start().await;
    dns.set_a("chat.", 0, &["10.0.0.1", "10.0.0.2"]);
    dns.set("_ws._tcp.video.", RecordType::SRV, services(0, &[(0, 0, 80, "video.")]));
    dns.set_a("video.", 0, &["10.0.0.3"]);
    dns.set_a("balancers.", 0, &["10.0.0.4"]);
    let toml = format!(
        "[balancer]\nnameservers = [\"{}\"]\nreplicas = \"dns:balancers\"\n\
         discovery_min_ttl = \"100ms\"\n\
         [services.chat]\ndiscovery = {{ dns = \"http://chat:3001\" }}\n\
         [services.video]\ndiscovery = {{ srv = \"http://_ws._tcp.video\" }}\n\
         [services.web]\nbackends = [\"http://127.0.0.1:9\"]\nreplicas = 2\n\
         [[routes]]\nservice = \"chat\"\n",
        dns.address
    );
    let balancer = Balancer::from_toml(&toml).await;
    let discovery = balancer.control.discovery.clone();
    let known = async || -> Vec<(LookupTarget, String, usize)> {
        let lookups = discovery.send(GetLookups).await.unwrap().0;
        lookups.into_iter().map(|one| (one.target, one.source, one.addresses)).collect()
    };
    eventually("all found", async || known().await.iter().all(|(.., count)| *count > 0)).await;
    let template = |name: &str, url: &str, address: &str| Backend {
        address: address.to_owned(),
        ..pod(name, url, Transport::Tcp)
    };
    let chat = template("chat", "http://chat:3001", "chat:3001");
    let video = template("video", "http://_ws._tcp.video", "_ws._tcp.video:80");
    let expected = [
        (LookupTarget::Replicas { services: vec![id(0), id(1)] }, "dns:balancers".to_owned(), 1),
        (LookupTarget::Pods { service: id(0), pod: chat }, "http://chat:3001".to_owned(), 2),
        (LookupTarget::Pods { service: id(1), pod: video }, "http://_ws._tcp.video".to_owned(), 1),
    ];
    assert_eq!(known().await, expected);
}

#[actix_rt::test]
async fn a_reload_keeps_unchanged_names_and_starts_and_stops_others() {
    let dns = NameServer::start().await;
    dns.set_a("chat.", 0, &["10.0.0.1"]);
    dns.set_a("balancers.", 0, &["10.0.0.4", "10.0.0.5"]);
    let url = "http://chat:3001";
    let chat = || {
        let subject = LookupTarget::Pods { service: id(0), pod: pod("talk", url, Transport::Tcp) };
        watch(&dns, url, host("chat"), subject)
    };
    let balancers = |services: &[usize]| {
        let subject =
            LookupTarget::Replicas { services: services.iter().copied().map(id).collect() };
        watch(&dns, "dns:balancers", host("balancers"), subject)
    };
    let mut watcher = Watcher::start(vec![chat()]);
    assert_eq!(watcher.pods().await, ["10.0.0.1:3001"]);
    watcher.actor.send(SetLookups(vec![balancers(&[0]), chat()])).await.unwrap();
    let reported = within("replicas", watcher.replicas.recv()).await;
    assert_eq!(reported, Some(ReplicasChanged { service: id(0), replicas: 2 }));
    watcher.actor.send(SetLookups(vec![chat(), balancers(&[0, 1])])).await.unwrap();
    for service in [0, 1] {
        let reported = within("replicas", watcher.replicas.recv()).await;
        assert_eq!(
            reported,
            Some(ReplicasChanged { service: id(service), replicas: 2 }),
            "immediately"
        );
    }
    dns.set_a("chat.", 0, &["10.0.0.2"]);
    assert_eq!(watcher.pods().await, ["10.0.0.2:3001"], "unchanged pods are not reported again");
    watcher.actor.send(SetLookups(vec![])).await.unwrap();
    assert!(watcher.lookups().await.is_empty());
}

#[actix_rt::test]
async fn no_lookups_are_made_without_names() {
    let balancer = Balancer::from_toml("services = [\"http://127.0.0.1:9\"]").await;
    assert!(balancer.control.discovery.send(GetLookups).await.unwrap().0.is_empty());
}

#[actix_rt::test]
async fn a_lookup_failure_and_its_end_are_logged_once_each() {
    let dns = NameServer::start().await;
    dns.set_a("chat.", 0, &["10.0.0.1", "10.0.0.2"]);
    let nameserver = dns.address.to_string();
    let variables = [
        ("WSBALANCER_SERVICES", ""),
        ("WSBALANCER__SERVICES__CHAT__DISCOVERY__DNS", "http://chat:3001"),
        ("WSBALANCER__BALANCER__NAMESERVERS", nameserver.as_str()),
        ("WSBALANCER__BALANCER__DISCOVERY_MIN_TTL", "100ms"),
        ("WSBALANCER__BALANCER__DISCOVERY_MAX_TTL", "100ms"),
    ];
    let balancer = Program::run("", &variables).await;
    let look_ups = async || {
        let asked = dns.queries("chat.", A);
        eventually("lookups", async || dns.queries("chat.", A) > asked + 3).await;
    };
    look_ups().await;
    dns.set_always(Some(SERVFAIL));
    look_ups().await;
    dns.set_always(None);
    look_ups().await;
    balancer.terminate();
    let (status, log) = balancer.finish().await;
    assert!(status.success(), "{log}");
    let topic = "service chat: http://chat:3001: ";
    // For A or AAAA records, depending on the order of the queries.
    let keeps = format!("{topic}lookup failed, keeping 2 pods: chat. A");
    assert!(log.contains(&format!("{nameserver} answers SERVFAIL")), "{log}");
    for line in [&keeps, &format!("{topic}2 pods"), &format!("{topic}lookup works again, 2 pods")] {
        assert_eq!(log.matches(line.as_str()).count(), 1, "{line}\n{log}");
    }
}
