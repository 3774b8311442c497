use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use crate::domain::balance::lease::Transport;

const SETTINGS: PoolSettings = PoolSettings {
    strategy: super::Strategy::LeastConnections,
    replicas: 1,
    stale_after: Duration::from_secs(30),
    max_sessions: None,
    max_sessions_per_pod: None,
    health: HealthSettings {
        eject_after: 3,
        eject_time: Duration::from_secs(30),
        eject_time_max: Duration::from_secs(600),
        cold_time: Duration::from_secs(5),
    },
    grace: Duration::from_secs(60),
    affinity_key: None,
    shares: BTreeMap::new(),
};

fn pool(size: usize) -> Pool {
    let backends = (0..size).map(|index| Backend {
        service: "default".into(),
        url: format!("http://pod-{index}:3001"),
        address: format!("pod-{index}:3001"),
        transport: Transport::Tcp,
    });
    Pool::new(backends, SETTINGS, 7)
}

fn report(connections: u64) -> Result<Report, ReportError> {
    Ok(Report { connections: Some(connections), ..Report::default() })
}

fn poll_all(pool: &mut Pool, now: Instant, answer: impl Fn(usize) -> Result<Report, ReportError>) {
    for (index, target) in pool.poll_targets().into_iter().enumerate() {
        let poll = target.begin(now);
        pool.record(poll, answer(index), now);
    }
}

fn open(pool: &mut Pool, now: Instant) -> Lease {
    let mut lease = pool.pick(Purpose::Session, &[], Preference::None, now).expect("a backend");
    lease.establish();
    lease
}

fn counts(leases: &[Lease]) -> HashMap<String, usize> {
    leases.iter().fold(HashMap::new(), |mut counts, lease| {
        *counts.entry(lease.backend().url.clone()).or_default() += 1;
        counts
    })
}

#[test]
fn the_least_loaded_by_report_gets_the_next() {
    let now = Instant::now();
    let mut pool = pool(3);
    poll_all(&mut pool, now, |index| report([5, 2, 9][index]));
    assert_eq!(
        pool.pick(Purpose::Session, &[], Preference::None, now).unwrap().backend().url,
        "http://pod-1:3001"
    );
}

#[test]
fn own_counts_decide_before_the_first_report() {
    let now = Instant::now();
    let mut pool = pool(4);
    let leases: Vec<Lease> = (0..40).map(|_| open(&mut pool, now)).collect();
    assert!(counts(&leases).values().all(|count| *count == 10), "{:?}", counts(&leases));
}

#[test]
fn ties_fall_everywhere() {
    let now = Instant::now();
    let mut pool = pool(5);
    let mut chosen = HashMap::new();
    for _ in 0..500 {
        *chosen
            .entry(
                pool.pick(Purpose::Session, &[], Preference::None, now)
                    .unwrap()
                    .backend()
                    .url
                    .clone(),
            )
            .or_insert(0) += 1;
    }
    assert_eq!(chosen.len(), 5);
    assert!(chosen.values().all(|count| (60..140).contains(count)), "{chosen:?}");
}

#[test]
fn tried_backends_are_not_given_again() {
    let now = Instant::now();
    let mut pool = pool(2);
    let first = pool.pick(Purpose::Session, &[], Preference::None, now).unwrap();
    let second =
        pool.pick(Purpose::Session, &[first.backend().clone()], Preference::None, now).unwrap();
    assert_ne!(first.backend(), second.backend());
    let tried = [first.backend().clone(), second.backend().clone()];
    assert_eq!(
        pool.pick(Purpose::Session, &tried, Preference::None, now).unwrap_err(),
        NoBackend::AllTried
    );
    assert_eq!(
        Pool::new([], SETTINGS, 1).pick(Purpose::Session, &[], Preference::None, now).unwrap_err(),
        NoBackend::Empty
    );
}

#[test]
fn a_preferred_backend_is_given_while_it_has_room_and_has_not_failed() {
    let now = Instant::now();
    let mut pool = pool(3);
    let key = affinity::Key::random();
    let settings = PoolSettings {
        affinity_key: Some(key.clone()),
        max_sessions_per_pod: NonZeroU32::new(9),
        ..SETTINGS
    };
    let backends: Vec<Backend> =
        pool.entries.drain(..).map(|entry| (*entry.backend).clone()).collect();
    let wanted = backends[1].clone();
    let mut pool = Pool::new(backends, settings, 7);
    poll_all(&mut pool, now, |index| report([0, 6, 0][index]));

    let hash = (0..).map(Preference::Hash).find(|hash| {
        *pool.pick(Purpose::Session, &[], *hash, now).expect("a backend").backend().as_ref()
            == wanted
    });
    for preference in
        [Preference::Tag(key.tag("default", &wanted.address)), hash.expect("one of many")]
    {
        let mut pick =
            |tried: &[Arc<Backend>]| pool.pick(Purpose::Session, tried, preference, now).unwrap();
        let first = pick(&[]);
        assert_eq!(**first.backend(), wanted);
        assert_ne!(**pick(&[first.backend().clone()]).backend(), wanted, "it has failed");
        let held = [pick(&[]), pick(&[])];
        assert!(held.iter().all(|lease| **lease.backend() == wanted));
        assert_ne!(**pick(&[]).backend(), wanted, "it is full");
    }
    let stranger = Preference::Tag(affinity::Key::random().tag("default", &wanted.address));
    assert_ne!(**pool.pick(Purpose::Session, &[], stranger, now).unwrap().backend(), wanted);
}

#[test]
fn full_backends_are_passed_over() {
    let now = Instant::now();
    let mut pool = pool(2);
    pool.settings.max_sessions_per_pod = NonZeroU32::new(3);
    poll_all(&mut pool, now, |index| report([0, 2][index]));
    let leases: Vec<Lease> = (0..4).map(|_| open(&mut pool, now)).collect();
    assert_eq!(counts(&leases)["http://pod-0:3001"], 3);
    assert_eq!(
        pool.pick(Purpose::Session, &[], Preference::None, now).unwrap_err(),
        NoBackend::AllFull
    );
    drop(leases);
    assert!(pool.pick(Purpose::Session, &[], Preference::None, now).is_ok());
}

/// Arrivals of one second, told apart by backend.
fn arrive(pool: &mut Pool, start: Instant, count: u64) -> HashMap<String, usize> {
    let leases: Vec<Lease> = (0..count)
        .map(|arrival| open(pool, start + Duration::from_millis(arrival * 1_000 / count)))
        .collect();
    let counts = counts(&leases);
    std::mem::forget(leases);
    counts
}

/// For each of ours comes one of others, to each pod in turn. One pod is asked after the other.
#[test]
fn others_clients_do_not_make_those_asked_longest_ago_look_emptiest() {
    let now = Instant::now();
    let mut pool = pool(4);
    let mut leases = Vec::new();
    let mut others = [0; 4];
    let url = |index: usize| format!("http://pod-{index}:3001");
    let mut held = [0; 4];
    for arrival in 0..1_600 {
        if arrival % 25 == 0 {
            let asked = arrival / 25 % 4;
            let poll = pool.poll_targets()[asked].begin(now);
            pool.record(poll, report(held[asked]), now);
        }
        leases.push(open(&mut pool, now));
        others[arrival % 4] += 1;
        let own = counts(&leases);
        held = std::array::from_fn(|pod| {
            others[pod] + own.get(&url(pod)).copied().unwrap_or(0) as u64
        });
        if arrival > 400 {
            let mean = held.iter().sum::<u64>() / 4;
            assert!(held.iter().all(|count| count.abs_diff(mean) <= 5), "{held:?}");
        }
    }
}

#[test]
fn an_ejected_backend_gets_nothing_while_there_is_another() {
    let now = Instant::now();
    let mut pool = pool(2);
    for _ in 0..3 {
        let lease = pool.pick(Purpose::Session, &[], Preference::Hash(7), now).unwrap();
        lease.failed("refused".to_owned());
    }
    let [News::Ejected { backend: out, reason, .. }] = &pool.take_news()[..] else {
        let lease = pool.pick(Purpose::Session, &[], Preference::Hash(7), now).unwrap();
        let news = pool.take_news();
        assert!(matches!(&news[..], [News::Ejected { .. }]), "{news:?}");
        assert!(pool.snapshot(now).iter().any(|entry| entry.state == State::Ejected));
        let other = lease.backend().url.clone();
        assert_eq!(arrive(&mut pool, now, 50), HashMap::from([(other.clone(), 50)]));
        // With the other one gone too, it is better than nobody.
        let tried = [lease.backend().clone()];
        let last = pool.pick(Purpose::Session, &tried, Preference::None, now).unwrap();
        assert_ne!(last.backend().url, other);
        return;
    };
    panic!("{out:?} was judged before the next pick: {reason}");
}

#[test]
fn when_all_are_ejected_they_are_tried_all_the_same() {
    let now = Instant::now();
    let mut pool = pool(2);
    for _ in 0..20 {
        let lease = pool.pick(Purpose::Session, &[], Preference::None, now).unwrap();
        lease.failed("refused".to_owned());
    }
    let news = pool.take_news();
    assert_eq!(news.iter().filter(|news| **news == News::FailsOpen).count(), 1, "{news:?}");
    assert!(pool.snapshot(now).iter().all(|entry| entry.state == State::Ejected));
}

#[test]
fn a_newcomer_fills_first_but_slowly_at_first() {
    let start = Instant::now();
    let mut pool = pool(9);
    for second in 0..10 {
        arrive(&mut pool, start + Duration::from_secs(second), 1_000);
    }
    let later = start + Duration::from_secs(10);
    let mut backends: Vec<Backend> =
        pool.snapshot(later).iter().map(|entry| (*entry.backend).clone()).collect();
    let url = "http://new:3001".to_owned();
    backends.push(Backend { url: url.clone(), address: "new:3001".into(), ..backends[0].clone() });
    pool.set_backends(backends, later);
    assert_eq!(pool.snapshot(later)[9].state, State::Cold);
    let first = arrive(&mut pool, later, 1_000)[&url];
    assert!((250..=400).contains(&first), "three tenths of 1,000, not {first}");
    let warm = later + Duration::from_secs(6);
    assert_eq!(arrive(&mut pool, warm, 500)[&url], 500, "all of it once it is warm");
}

#[test]
fn backends_that_leave_drain_and_are_as_they_were_when_they_come_back() {
    let now = Instant::now();
    let mut pool = pool(2);
    let backends: Vec<Backend> =
        pool.snapshot(now).iter().map(|entry| (*entry.backend).clone()).collect();
    let held: Vec<Lease> = (0..10).map(|_| open(&mut pool, now)).collect();
    pool.set_backends(vec![backends[0].clone()], now);
    assert_eq!(pool.snapshot(now)[1].state, State::Draining);
    assert_eq!(arrive(&mut pool, now, 5).len(), 1);
    pool.set_backends(backends.clone(), now + Duration::from_secs(30));
    let back = &pool.snapshot(now + Duration::from_secs(30))[1];
    assert_eq!((back.state, back.load.open), (State::Unknown, 5), "not cold, and counted");

    pool.set_backends(vec![backends[0].clone()], now + Duration::from_secs(40));
    pool.set_backends(vec![backends[0].clone()], now + Duration::from_secs(110));
    assert_eq!(pool.snapshot(now).len(), 2, "it is remembered while it has sessions");
    drop(held);
    pool.set_backends(vec![backends[0].clone()], now + Duration::from_secs(111));
    assert_eq!(pool.snapshot(now).len(), 1);
    pool.set_backends(Vec::new(), now + Duration::from_secs(112));
    let none = pool.pick(Purpose::Session, &[], Preference::None, now).unwrap_err();
    assert_eq!(none, NoBackend::AllDraining);
}

#[test]
fn weights_caps_and_draining_are_the_pods_own_words() {
    let now = Instant::now();
    let mut pool = pool(4);
    poll_all(&mut pool, now, |index| {
        Ok(Report {
            connections: Some(0),
            weight: [Some(3.0), None, None, None][index],
            max_connections: [None, None, Some(2), None][index],
            draining: [None, None, None, Some(true)][index],
            ..Report::default()
        })
    });
    let counts = arrive(&mut pool, now, 42);
    let count = |index: usize| *counts.get(&format!("http://pod-{index}:3001")).unwrap_or(&0);
    assert_eq!([count(0), count(1), count(2), count(3)], [30, 10, 2, 0]);
    let states: Vec<State> = pool.snapshot(now).iter().map(|entry| entry.state).collect();
    assert_eq!(states, [State::Up, State::Up, State::Full, State::Draining]);
}

#[test]
fn configured_sizes_count_before_the_first_report_and_with_it() {
    let now = Instant::now();
    let share = |weight, max_connections| Share { weight, max_connections };
    let sizes = [("pod-0:3001", share(3.0, None)), ("pod-2:3001", share(1.0, Some(2)))];
    let shares = sizes.map(|(address, share)| (address.to_owned(), share)).into();
    let backends = pool(4).entries.into_iter().map(|entry| (*entry.backend).clone());
    let mut pool = Pool::new(backends, PoolSettings { shares, ..SETTINGS }, 7);
    let held: Vec<Lease> = (0..42).map(|_| open(&mut pool, now)).collect();
    let opens = |pool: &mut Pool| -> Vec<u32> {
        pool.snapshot(now).iter().map(|entry| entry.load.open).collect()
    };
    assert_eq!(opens(&mut pool), [24, 8, 2, 8]);
    drop(held);
    poll_all(&mut pool, now, |index| {
        let weight = [Some(0.5), None, None, Some(3.0)][index];
        Ok(Report { connections: Some(0), weight, ..Report::default() })
    });
    let _held: Vec<Lease> = (0..57).map(|_| open(&mut pool, now)).collect();
    assert_eq!(opens(&mut pool), [15, 10, 2, 30]);
}

#[test]
fn what_was_interrupted_anywhere_is_whole_once_mended() {
    let now = Instant::now();
    let mut pool = pool(4);
    poll_all(&mut pool, now, |_| report(0));
    let _held = open(&mut pool, now);
    pool.glances.truncate(2);
    (pool.there, pool.weights) = (0, 0.0);
    pool.candidates = Candidates::default();
    pool.mend();
    let leases: Vec<Lease> = (0..39).map(|_| open(&mut pool, now)).collect();
    assert_eq!(counts(&leases).len(), 4, "{:?}", counts(&leases));
    assert!(counts(&leases).values().all(|count| [9, 10].contains(count)), "as if nothing was");
}

#[test]
fn requests_are_no_connections_and_yet_spread() {
    let now = Instant::now();
    let mut pool = pool(3);
    pool.settings.max_sessions = NonZeroU32::new(3);
    pool.settings.max_sessions_per_pod = NonZeroU32::new(1);
    let sessions: Vec<Lease> = (0..3).map(|_| open(&mut pool, now)).collect();
    let mut request = || pool.pick(Purpose::Request, &[], Preference::None, now).unwrap();
    let requests: Vec<Lease> = (0..9).map(|_| request()).collect();
    assert!(counts(&requests).values().all(|count| *count == 3), "{:?}", counts(&requests));
    let snapshot = pool.snapshot(now);
    assert!(snapshot.iter().all(|entry| entry.estimate == 1), "{snapshot:?}");
    drop(sessions);
    assert!(pool.pick(Purpose::Session, &[], Preference::None, now).is_ok());
}

#[test]
fn the_service_has_a_limit_of_its_own() {
    let now = Instant::now();
    let mut pool = pool(3);
    pool.settings.max_sessions = NonZeroU32::new(4);
    let mut leases: Vec<Lease> = (0..3).map(|_| open(&mut pool, now)).collect();
    leases
        .push(pool.pick(Purpose::Session, &[], Preference::None, now).expect("one handshake more"));
    assert_eq!(
        pool.pick(Purpose::Session, &[], Preference::None, now).unwrap_err(),
        NoBackend::ServiceFull
    );
    leases.pop();
    assert!(pool.pick(Purpose::Session, &[], Preference::None, now).is_ok());
}

#[test]
fn an_unreadable_answer_makes_the_count_unknown_and_no_favourite() {
    let now = Instant::now();
    let mut pool = pool(2);
    let held: Vec<Lease> = (0..6).map(|_| open(&mut pool, now)).collect();
    poll_all(&mut pool, now, |index| [report(4), Err(ReportError::Status(503))][index].clone());
    let snapshot = pool.snapshot(now);
    assert_eq!((snapshot[0].state, snapshot[0].estimate), (State::Up, 4));
    assert_eq!((snapshot[1].state, snapshot[1].estimate), (State::Unknown, 3));
    drop(held);
}

#[test]
fn no_answer_leaves_the_last_report_until_it_is_stale() {
    let start = Instant::now();
    let mut pool = pool(1);
    poll_all(&mut pool, start, |_| report(12));
    let later = start + Duration::from_secs(20);
    poll_all(&mut pool, later, |_| Err(ReportError::Unreachable("refused".into())));
    let snapshot = &pool.snapshot(later)[0];
    assert_eq!((snapshot.state, snapshot.estimate), (State::Up, 12));
    assert!(snapshot.error.is_some());
    let snapshot = &pool.snapshot(start + Duration::from_secs(31))[0];
    assert_eq!((snapshot.state, snapshot.estimate), (State::Stale, 0));
}

#[test]
fn an_overtaken_answer_is_dropped() {
    let start = Instant::now();
    let mut pool = pool(1);
    let target = pool.poll_targets().remove(0);
    let slow = target.begin(start);
    let quick = target.begin(start + Duration::from_secs(1));
    pool.record(quick, report(8), start + Duration::from_secs(1));
    pool.record(slow, report(1), start + Duration::from_secs(2));
    assert_eq!(pool.snapshot(start)[0].estimate, 8);
}

#[test]
fn an_operators_drain_survives_reports_and_absences_and_ends_with_his_word() {
    let now = Instant::now();
    let mut pool = pool(2);
    let [first, second] = [0, 1].map(|at: usize| pool.entries[at].backend.clone());
    let all = vec![(*first).clone(), (*second).clone()];
    let held: Vec<Lease> = (0..4).map(|_| open(&mut pool, now)).collect();
    assert_eq!(pool.drain(Some("nobody:80"), true), []);
    assert_eq!(pool.drain(Some(&second.address), true), std::slice::from_ref(&second));
    let reason = "an operator drains it";
    assert_eq!(pool.take_news(), [News::Drains { backend: second.clone(), reason }]);
    let drains = |pool: &mut Pool| {
        let of_second = &pool.snapshot(now)[1];
        of_second.state == State::Draining && of_second.reason.as_deref() == Some(reason)
    };
    poll_all(&mut pool, now, |_| report(0));
    assert!(drains(&mut pool), "reports say nothing against it");
    assert_eq!(counts(&[open(&mut pool, now)]).keys().next(), Some(&first.url));
    pool.set_backends(vec![(*first).clone()], now);
    pool.set_backends(all.clone(), now);
    assert!(drains(&mut pool), "it has been away");
    assert_eq!(pool.take_news(), [], "nothing changed by all that");
    pool.drain(Some(&second.address), false);
    assert_eq!(pool.take_news(), [News::DrainsNoMore { backend: second }]);
    assert_eq!(pool.snapshot(now)[1].state, State::Up);
    drop(held);
}

#[test]
fn a_service_that_drains_does_so_with_pods_that_are_yet_to_come() {
    let now = Instant::now();
    let mut pool = pool(1);
    let known = (*pool.entries[0].backend).clone();
    let late = Backend { address: "late:80".into(), ..known.clone() };
    assert_eq!(pool.drain(None, true).len(), 1);
    pool.set_backends(vec![known, late], now);
    let pick = |pool: &mut Pool| pool.pick(Purpose::Session, &[], Preference::None, now);
    assert_eq!(pick(&mut pool).unwrap_err(), NoBackend::AllDraining);
    assert_eq!(pool.drain(None, false).len(), 2);
    assert!(pick(&mut pool).is_ok());
}

#[test]
fn it_is_told_when_pods_begin_and_cease_to_drain_by_their_own_word_or_by_leaving() {
    let now = Instant::now();
    let mut pool = pool(2);
    let backends: Vec<Arc<Backend>> =
        pool.entries.iter().map(|entry| entry.backend.clone()).collect();
    let said = |draining, down: Option<&str>| {
        let down = down.map(ToOwned::to_owned);
        Ok(Report { draining, down, ..Report::default() })
    };
    let backend = backends[0].clone();
    let polled = |pool: &mut Pool, answer: Result<Report, ReportError>| {
        let poll = pool.poll_targets()[0].begin(now);
        pool.record(poll, answer, now);
        pool.take_news()
    };
    let drains = News::Drains { backend: backend.clone(), reason: "it says so" };
    assert_eq!(polled(&mut pool, said(Some(true), None)), [drains]);
    assert_eq!(polled(&mut pool, said(Some(true), None)), []);
    let no_more = News::DrainsNoMore { backend: backend.clone() };
    assert_eq!(polled(&mut pool, said(None, None)), [no_more]);
    let down = News::Down { backend: backend.clone(), reason: "disk".into() };
    assert_eq!(polled(&mut pool, said(None, Some("disk"))), [down]);
    assert_eq!(polled(&mut pool, said(None, Some("disk"))), []);
    pool.set_backends(vec![(*backends[1]).clone()], now);
    let reason = "it is not among the service's pods any more";
    assert_eq!(pool.take_news(), [News::Drains { backend: backend.clone(), reason }]);
    pool.forget(now + Duration::from_secs(61));
    assert_eq!(pool.take_news(), [News::Forgotten { backend }]);
}

proptest! {
    /// No unusable pod is picked while a usable one exists, whatever happens, and in the end
    /// nothing is left on any gauge.
    #[test]
    fn usable_backends_come_first(steps in prop::collection::vec((0u8..8, 0usize..5, any::<prop::sample::Index>()), 1..200)) {
        let start = Instant::now();
        let mut now = start;
        let mut pool = pool(5);
        let all: Vec<Backend> =
            pool.snapshot(now).iter().map(|entry| (*entry.backend).clone()).collect();
        let mut there = all.clone();
        let mut leases: Vec<Lease> = Vec::new();
        for (step, pod, index) in steps {
            match step {
                0..=2 => {
                    let before = pool.snapshot(now);
                    let usable = |entry: &BackendSnapshot| !matches!(
                        entry.state, State::Draining | State::Full | State::Ejected);
                    // Judging is part of picking: what is due is judged first.
                    let picked = pool.pick(Purpose::Session, &[], Preference::None, now);
                    let after = pool.snapshot(now);
                    match picked {
                        Ok(mut lease) => {
                            let state = |list: &[BackendSnapshot]| list.iter()
                                .find(|entry| entry.backend == *lease.backend())
                                .map(usable).unwrap();
                            let others = after.iter().any(|entry| {
                                entry.backend != *lease.backend() && usable(entry)
                                    && before.iter().any(|known| known.backend == entry.backend && usable(known))
                            });
                            prop_assert!(state(&before) || state(&after) || !others);
                            let seen = pool.entries.iter().zip(&pool.glances);
                            for (entry, glance) in seen.filter(|(_, glance)| glance.calm.is_some()) {
                                let quick = glance.holding.estimate(glance.gauge.load());
                                prop_assert_eq!(quick, entry.estimate(&pool.settings, now));
                            }
                            match step {
                                0 => { lease.establish(); leases.push(lease); }
                                1 => lease.failed("refused".to_owned()),
                                _ => { lease.establish(); lease.died_early(); }
                            }
                        }
                        Err(_) => prop_assert!(!before.iter().any(usable)),
                    }
                }
                3 if !leases.is_empty() => drop(leases.swap_remove(index.index(leases.len()))),
                4 => {
                    let result = [report(3), Err(ReportError::Unreachable("refused".into())),
                        Err(ReportError::Status(500)),
                        Ok(Report { draining: Some(true), ..Report::default() }),
                        Ok(Report { max_connections: Some(0), ..Report::default() })][pod].clone();
                    let target = pool.poll_targets().remove(index.index(pool.poll_targets().len()));
                    pool.record(target.begin(now), result, now);
                }
                5 => {
                    let changed = all[pod].clone();
                    match there.iter().position(|known| *known == changed) {
                        Some(at) if there.len() > 1 => drop(there.remove(at)),
                        Some(_) => {}
                        None => there.push(changed),
                    }
                    pool.set_backends(there.clone(), now);
                }
                6 => now += Duration::from_millis(index.index(2_000) as u64),
                7 => now += Duration::from_secs(index.index(90) as u64),
                _ => {}
            }
        }
        let open: u32 = pool.snapshot(now).iter().map(|entry| entry.load.open).sum();
        prop_assert_eq!(open as usize, leases.len());
        drop(leases);
        let loads: Vec<Load> = pool.snapshot(now).iter().map(|entry| entry.load).collect();
        prop_assert!(loads.iter().all(|load| *load == Load::default()), "{:?}", loads);
    }

    /// A pod frozen at zero is filled no further than the others, however often it is polled.
    #[test]
    fn frozen_reports_end_level(pods in 2usize..6, arrivals in 1usize..120, every in 1usize..30) {
        let now = Instant::now();
        let mut pool = pool(pods);
        let mut leases = Vec::new();
        for arrival in 0..arrivals {
            if arrival % every == 0 {
                poll_all(&mut pool, now, |_| report(0));
            }
            leases.push(open(&mut pool, now));
        }
        let counts = counts(&leases);
        let most = counts.values().max().copied().unwrap_or(0);
        prop_assert!(most - arrivals / pods <= 1, "{:?}", counts);
    }
}
