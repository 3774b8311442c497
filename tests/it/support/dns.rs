//! A scripted name server over UDP and TCP.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use hickory_proto::{
    op::{Message, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{CNAME, NS, SOA, SRV},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinHandle,
};

/// The answer to a query for one name and record type.
#[derive(Clone, Debug)]
pub enum DnsReply {
    /// Records with this TTL in seconds.
    Records(u32, Vec<RData>),
    /// An alias with this TTL, followed by the records of its target.
    Alias(u32, String),
    /// An error code, such as SERVFAIL or NXDOMAIN.
    Code(ResponseCode),
    /// A referral to another name server.
    Referral,
    /// A malformed message.
    Garbage,
    /// No answer.
    Silence,
}

/// Returns A or AAAA records.
pub fn addresses(ttl: u32, ips: &[&str]) -> DnsReply {
    let data = |ip: &&str| match ip.parse().unwrap() {
        IpAddr::V4(ip) => RData::A(ip.into()),
        IpAddr::V6(ip) => RData::AAAA(ip.into()),
    };
    DnsReply::Records(ttl, ips.iter().map(data).collect())
}

/// Returns SRV records of (priority, weight, port, target).
pub fn services(ttl: u32, services: &[(u16, u16, u16, &str)]) -> DnsReply {
    let data = |(priority, weight, port, target): &(u16, u16, u16, &str)| {
        RData::SRV(SRV::new(*priority, *weight, *port, name(target)))
    };
    DnsReply::Records(ttl, services.iter().map(data).collect())
}

fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

/// The answers for one name and record type: first those of the queue, once each, then the last one.
#[derive(Default)]
struct Records {
    queue: VecDeque<DnsReply>,
    current: Option<DnsReply>,
    queries: usize,
    /// The last answer, and the ID of its message.
    last: Option<(u16, DnsReply)>,
}

#[derive(Default)]
struct Zone {
    records: HashMap<(Name, RecordType), Records>,
    /// The answer to every query, if set.
    always: Option<DnsReply>,
    /// TTL of negative answers in seconds.
    negative_ttl: u32,
    queries: usize,
}

impl Zone {
    /// Answers a query: unknown names do not exist (NXDOMAIN). A retransmitted query, which has the
    /// same ID, gets the same answer and is not counted again.
    fn answer(&mut self, id: u16, query: &Query) -> DnsReply {
        let key = (query.name().to_lowercase(), query.query_type());
        let records = self.records.entry(key.clone()).or_default();
        if let Some((_, reply)) = records.last.as_ref().filter(|(last, _)| *last == id) {
            return reply.clone();
        }
        self.queries += 1;
        records.queries += 1;
        let own = records.queue.pop_front().or_else(|| records.current.clone());
        let is_there =
            self.records.iter().any(|((known, _), of)| *known == key.0 && of.current.is_some());
        let missing = if is_there {
            DnsReply::Records(0, Vec::new())
        } else {
            DnsReply::Code(ResponseCode::NXDomain)
        };
        let reply = self.always.clone().or(own).unwrap_or(missing);
        self.records.entry(key).or_default().last = Some((id, reply.clone()));
        reply
    }
}

/// A listening name server.
pub struct NameServer {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    /// Number of queries over TCP.
    tcp: Arc<AtomicUsize>,
    listening: [JoinHandle<()>; 2],
}

impl NameServer {
    /// Starts a name server with an empty zone.
    pub async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // Another process may use the same TCP port.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().unwrap();
        let (zone, count) = (Arc::<Mutex<Zone>>::default(), Arc::<AtomicUsize>::default());
        let (udp_zone, tcp_zone, tcp_count) = (zone.clone(), zone.clone(), count.clone());
        let over_udp = tokio::spawn(async move {
            let mut packet = [0; 4096];
            while let Ok((length, peer)) = udp.recv_from(&mut packet).await {
                if let Some(answer) = answer(&udp_zone, &packet[..length], true) {
                    udp.send_to(&answer, peer).await.unwrap();
                }
            }
        });
        let over_tcp = tokio::spawn(async move {
            while let Ok((stream, _)) = tcp.accept().await {
                tokio::spawn(serve(stream, tcp_zone.clone(), tcp_count.clone()));
            }
        });
        Self { address, zone, tcp: count, listening: [over_udp, over_tcp] }
    }

    /// Sets the answer for one name and record type; other types of the name have no records.
    pub fn set(&self, of: &str, kind: RecordType, reply: DnsReply) {
        self.records(of, kind, |records| records.current = Some(reply));
    }

    /// Sets the answers to the next queries, before the one of [`set`](Self::set).
    pub fn queue(&self, of: &str, kind: RecordType, reply: impl IntoIterator<Item = DnsReply>) {
        self.records(of, kind, |records| records.queue.extend(reply));
    }

    /// Sets A records.
    pub fn set_a(&self, of: &str, ttl: u32, ips: &[&str]) {
        self.set(of, RecordType::A, addresses(ttl, ips));
    }

    /// Removes a name: it does not exist any more.
    pub fn remove(&self, of: &str) {
        let of = name(of);
        let mut zone = self.zone.lock().unwrap();
        let all = zone.records.iter_mut().filter(|((name, _), _)| *name == of);
        all.for_each(|(_, records)| records.current = None);
    }

    /// Sets the answer to every query, until it is `None`.
    pub fn set_always(&self, reply: Option<DnsReply>) {
        self.zone.lock().unwrap().always = reply;
    }

    pub fn set_negative_ttl(&self, seconds: u32) {
        self.zone.lock().unwrap().negative_ttl = seconds;
    }

    /// Returns the number of queries for one name and record type.
    pub fn queries(&self, of: &str, kind: RecordType) -> usize {
        self.records(of, kind, |records| records.queries)
    }

    /// Returns the number of all queries.
    pub fn all_queries(&self) -> usize {
        self.zone.lock().unwrap().queries
    }

    /// Returns the number of queries over TCP.
    pub fn tcp_queries(&self) -> usize {
        self.tcp.load(SeqCst)
    }

    fn records<T>(&self, of: &str, kind: RecordType, act: impl FnOnce(&mut Records) -> T) -> T {
        act(self.zone.lock().unwrap().records.entry((name(of), kind)).or_default())
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.listening.iter().for_each(JoinHandle::abort);
    }
}

/// Serves one TCP connection: each message follows its length (RFC 1035 §4.2.2).
async fn serve(mut stream: TcpStream, zone: Arc<Mutex<Zone>>, count: Arc<AtomicUsize>) {
    while let Ok(length) = stream.read_u16().await {
        let mut packet = vec![0; length.into()];
        if stream.read_exact(&mut packet).await.is_err() {
            return;
        }
        count.fetch_add(1, SeqCst);
        if let Some(answer) = answer(&zone, &packet, false) {
            let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
            if stream.write_all(&[&length[..], &answer].concat()).await.is_err() {
                return;
            }
        }
    }
}

/// Returns the encoded answer, truncated if it is longer than a UDP packet may be.
fn answer(zone: &Mutex<Zone>, packet: &[u8], is_udp: bool) -> Option<Vec<u8>> {
    let request = Message::from_vec(packet).expect("a query");
    let query = request.queries.first().expect("a query").clone();
    let mut zone = zone.lock().unwrap();
    let mut response = Message::response(request.id, request.op_code);
    response.metadata.recursion_desired = request.recursion_desired;
    response.metadata.recursion_available = true;
    response.add_query(query.clone());
    let mut asked = query.clone();
    loop {
        let record = |ttl, data| Record::from_rdata(asked.name().clone(), ttl, data);
        match zone.answer(request.id, &asked) {
            DnsReply::Records(ttl, data) => {
                response.add_answers(data.into_iter().map(|data| record(ttl, data)));
            }
            DnsReply::Alias(ttl, target) => {
                let target = name(&target);
                response.add_answer(record(ttl, RData::CNAME(CNAME(target.clone()))));
                asked.set_name(target);
                continue;
            }
            DnsReply::Code(code) => response.metadata.response_code = code,
            DnsReply::Referral => {
                let other = RData::NS(NS(name("ns.example")));
                response.metadata.recursion_available = false;
                response.add_authority(Record::from_rdata(name("example"), 60, other));
                return Some(response.to_vec().unwrap());
            }
            DnsReply::Garbage => {
                let mut bytes = response.to_vec().unwrap();
                bytes.truncate(14);
                return Some(bytes);
            }
            DnsReply::Silence => return None,
        }
        break;
    }
    if response.answers.is_empty() {
        let ttl = zone.negative_ttl;
        let soa = SOA::new(name("ns.example"), name("admin.example"), 1, 60, 60, 60, ttl);
        response.add_authority(Record::from_rdata(Name::root(), 3600, RData::SOA(soa)));
    }
    let bytes = response.to_vec().unwrap();
    if is_udp && bytes.len() > usize::from(request.max_payload()) {
        return Some(response.truncate().to_vec().unwrap());
    }
    Some(bytes)
}
