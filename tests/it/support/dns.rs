//! A name server that says what it is told, over UDP and TCP.

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

/// What is said of a name's records of one type.
#[derive(Clone, Debug)]
pub enum Say {
    /// Records with this TTL in seconds.
    Records(u32, Vec<RData>),
    /// First that the name is an alias, with this TTL, of another one; then that one's records.
    Alias(u32, String),
    /// An error code, such as SERVFAIL or NXDOMAIN.
    Code(ResponseCode),
    /// Only that others should be asked.
    Referral,
    /// Bytes that are no answer.
    Garbage,
    /// Nothing at all.
    Silence,
}

/// Records with addresses of one kind.
pub fn addresses(ttl: u32, ips: &[&str]) -> Say {
    let data = |ip: &&str| match ip.parse().unwrap() {
        IpAddr::V4(ip) => RData::A(ip.into()),
        IpAddr::V6(ip) => RData::AAAA(ip.into()),
    };
    Say::Records(ttl, ips.iter().map(data).collect())
}

/// SRV records of (priority, weight, port, target).
pub fn services(ttl: u32, services: &[(u16, u16, u16, &str)]) -> Say {
    let data = |(priority, weight, port, target): &(u16, u16, u16, &str)| {
        RData::SRV(SRV::new(*priority, *weight, *port, name(target)))
    };
    Say::Records(ttl, services.iter().map(data).collect())
}

fn name(text: &str) -> Name {
    let mut name = Name::from_ascii(text).unwrap();
    name.set_fqdn(true);
    name
}

/// A name's records of one type: what is said first, once each, and what is said then.
#[derive(Default)]
struct Records {
    first: VecDeque<Say>,
    then: Option<Say>,
    asked: usize,
    /// What was said last, to the message with this ID.
    last: Option<(u16, Say)>,
}

#[derive(Default)]
struct Zone {
    records: HashMap<(Name, RecordType), Records>,
    /// What is said whatever is asked.
    always: Option<Say>,
    /// In seconds, of answers that there is nothing.
    negative_ttl: u32,
    asked: usize,
}

impl Zone {
    /// What has records stands there; of other names it is said that they do not exist. A question
    /// that is repeated because its answer took long is no new one.
    fn answer(&mut self, id: u16, query: &Query) -> Say {
        let key = (query.name().to_lowercase(), query.query_type());
        let records = self.records.entry(key.clone()).or_default();
        if let Some((_, say)) = records.last.as_ref().filter(|(last, _)| *last == id) {
            return say.clone();
        }
        self.asked += 1;
        records.asked += 1;
        let own = records.first.pop_front().or_else(|| records.then.clone());
        let is_there =
            self.records.iter().any(|((known, _), of)| *known == key.0 && of.then.is_some());
        let missing =
            if is_there { Say::Records(0, Vec::new()) } else { Say::Code(ResponseCode::NXDomain) };
        let say = self.always.clone().or(own).unwrap_or(missing);
        self.records.entry(key).or_default().last = Some((id, say.clone()));
        say
    }
}

/// A listening name server.
pub struct Dns {
    pub address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    /// Questions through TCP.
    tcp: Arc<AtomicUsize>,
    listening: [JoinHandle<()>; 2],
}

impl Dns {
    /// With a zone that holds nothing.
    pub async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // Somebody else may have the port for TCP.
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

    /// From now on this is said of a name's records; of its others, that there are none.
    pub fn say(&self, of: &str, kind: RecordType, say: Say) {
        self.records(of, kind, |records| records.then = Some(say));
    }

    /// The next questions are answered so, one after the other, before what is said else.
    pub fn say_first(&self, of: &str, kind: RecordType, say: impl IntoIterator<Item = Say>) {
        self.records(of, kind, |records| records.first.extend(say));
    }

    /// `say` for A records.
    pub fn a(&self, of: &str, ttl: u32, ips: &[&str]) {
        self.say(of, RecordType::A, addresses(ttl, ips));
    }

    /// From now on there is no such name.
    pub fn remove(&self, of: &str) {
        let of = name(of);
        let mut zone = self.zone.lock().unwrap();
        let all = zone.records.iter_mut().filter(|((name, _), _)| *name == of);
        all.for_each(|(_, records)| records.then = None);
    }

    /// From now on the same is said whatever is asked, until it is `None`.
    pub fn always(&self, say: Option<Say>) {
        self.zone.lock().unwrap().always = say;
    }

    pub fn set_negative_ttl(&self, seconds: u32) {
        self.zone.lock().unwrap().negative_ttl = seconds;
    }

    /// How often a name's records have been asked for.
    pub fn asked(&self, of: &str, kind: RecordType) -> usize {
        self.records(of, kind, |records| records.asked)
    }

    /// How often anything has been asked for.
    pub fn asked_at_all(&self) -> usize {
        self.zone.lock().unwrap().asked
    }

    /// How many of these questions came through TCP.
    pub fn asked_over_tcp(&self) -> usize {
        self.tcp.load(SeqCst)
    }

    fn records<T>(&self, of: &str, kind: RecordType, act: impl FnOnce(&mut Records) -> T) -> T {
        act(self.zone.lock().unwrap().records.entry((name(of), kind)).or_default())
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.listening.iter().for_each(JoinHandle::abort);
    }
}

/// Length and message, again and again (RFC 1035 §4.2.2).
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

/// The answer as it goes over the wire, cut off where it is longer than a packet may be.
fn answer(zone: &Mutex<Zone>, packet: &[u8], is_udp: bool) -> Option<Vec<u8>> {
    let request = Message::from_vec(packet).expect("a question");
    let query = request.queries.first().expect("a question").clone();
    let mut zone = zone.lock().unwrap();
    let mut response = Message::response(request.id, request.op_code);
    response.metadata.recursion_desired = request.recursion_desired;
    response.metadata.recursion_available = true;
    response.add_query(query.clone());
    let mut asked = query.clone();
    loop {
        let record = |ttl, data| Record::from_rdata(asked.name().clone(), ttl, data);
        match zone.answer(request.id, &asked) {
            Say::Records(ttl, data) => {
                response.add_answers(data.into_iter().map(|data| record(ttl, data)));
            }
            Say::Alias(ttl, target) => {
                let target = name(&target);
                response.add_answer(record(ttl, RData::CNAME(CNAME(target.clone()))));
                asked.set_name(target);
                continue;
            }
            Say::Code(code) => response.metadata.response_code = code,
            Say::Referral => {
                let other = RData::NS(NS(name("ns.example")));
                response.metadata.recursion_available = false;
                response.add_authority(Record::from_rdata(name("example"), 60, other));
                return Some(response.to_vec().unwrap());
            }
            Say::Garbage => {
                let mut bytes = response.to_vec().unwrap();
                bytes.truncate(14);
                return Some(bytes);
            }
            Say::Silence => return None,
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
