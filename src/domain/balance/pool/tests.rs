use std::{collections::HashMap, num::NonZeroU32, time::Duration};

use proptest::prelude::*;

use super::{pick_cache::Totals, *};
use crate::domain::{
    balance::{affinity, lease::Load, settings::Capacity, snapshot::BackendState},
    fixtures,
};

fn pool(size: usize) -> Pool {
    let backends = (0..size).map(|index| fixtures::backend(&format!("pod-{index}:3001")));
    Pool::new(backends, PoolSettings::default(), 7)
}

fn report(connections: u64) -> Result<Report, ReportError> {
    Ok(fixtures::report(connections))
}

fn poll_all(pool: &mut Pool, now: Instant, answer: impl Fn(usize) -> Result<Report, ReportError>) {
    for (index, target) in pool.poll_targets().into_iter().enumerate() {
        let poll = target.start_poll(now);
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
fn the_pod_with_the_smallest_report_is_picked() {
    let now = Instant::now();
    let mut pool = pool(3);
    poll_all(&mut pool, now, |index| report([5, 2, 9][index]));
    assert_eq!(
        pool.pick(Purpose::Session, &[], Preference::None, now).unwrap().backend().url,
        "http://pod-1:3001"
    );
}

#[test]
fn own_counts_are_used_before_the_first_report() {
    let now = Instant::now();
    let mut pool = pool(4);
    let leases: Vec<Lease> = (0..40).map(|_| open(&mut pool, now)).collect();
    assert!(counts(&leases).values().all(|count| *count == 10), "{:?}", counts(&leases));
}

#[test]
fn equal_pods_are_picked_equally_often() {
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
fn tried_backends_are_not_picked_again() {
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
        Pool::new([], PoolSettings::default(), 1)
            .pick(Purpose::Session, &[], Preference::None, now)
            .unwrap_err(),
        NoBackend::Empty
    );
}

#[test]
fn the_preferred_backend_is_picked_unless_it_is_full_or_was_tried() {
    let now = Instant::now();
    let mut pool = pool(3);
    let key = affinity::Key::random();
    let settings = PoolSettings {
        affinity_key: Some(key.clone()),
        max_sessions_per_pod: NonZeroU32::new(9),
        ..PoolSettings::default()
    };
    let backends: Vec<Backend> =
        pool.members.drain(..).map(|member| (*member.backend).clone()).collect();
    let wanted = backends[1].clone();
    let mut pool = Pool::new(backends, settings, 7);
    poll_all(&mut pool, now, |index| report([0, 6, 0][index]));

    let hash = (0..).map(Preference::Hash).find(|hash| {
        *pool.pick(Purpose::Session, &[], *hash, now).expect("a backend").backend().as_ref()
            == wanted
    });
    for preference in [
        Preference::Tag(key.tag("default", &wanted.address)),
        hash.expect("a hash that prefers the wanted backend"),
    ] {
        let mut pick =
            |tried: &[Arc<Backend>]| pool.pick(Purpose::Session, tried, preference, now).unwrap();
        let first = pick(&[]);
        assert_eq!(**first.backend(), wanted);
        assert_ne!(**pick(&[first.backend().clone()]).backend(), wanted, "it was tried");
        let held = [pick(&[]), pick(&[])];
        assert!(held.iter().all(|lease| **lease.backend() == wanted));
        assert_ne!(**pick(&[]).backend(), wanted, "it is full");
    }
    let unknown = Preference::Tag(affinity::Key::random().tag("default", &wanted.address));
    assert_ne!(**pool.pick(Purpose::Session, &[], unknown, now).unwrap().backend(), wanted);
}

#[test]
fn full_backends_are_skipped() {
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

/// Opens `count` sessions within one second. Returns the number on each backend.
fn arrive(pool: &mut Pool, start: Instant, count: u64) -> HashMap<String, usize> {
    let leases: Vec<Lease> = (0..count)
        .map(|arrival| open(pool, start + Duration::from_millis(arrival * 1_000 / count)))
        .collect();
    let counts = counts(&leases);
    std::mem::forget(leases);
    counts
}

/// With each session of ours comes an unseen one, on each pod in turn. Pods are polled in turn.
#[test]
fn unseen_sessions_do_not_make_the_pod_polled_longest_ago_look_emptiest() {
    let now = Instant::now();
    let mut pool = pool(4);
    let mut leases = Vec::new();
    let mut others = [0; 4];
    let url = |index: usize| format!("http://pod-{index}:3001");
    let mut held = [0; 4];
    for arrival in 0..1_600 {
        if arrival % 25 == 0 {
            let asked = arrival / 25 % 4;
            let poll = pool.poll_targets()[asked].start_poll(now);
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
fn an_ejected_backend_is_picked_only_if_there_is_no_other() {
    let now = Instant::now();
    let mut pool = pool(2);
    for _ in 0..3 {
        let lease = pool.pick(Purpose::Session, &[], Preference::Hash(7), now).unwrap();
        lease.record_failure("refused".to_owned());
    }
    let [PoolEvent::Ejected { backend: out, reason, .. }] = &pool.take_events()[..] else {
        let lease = pool.pick(Purpose::Session, &[], Preference::Hash(7), now).unwrap();
        let events = pool.take_events();
        assert!(matches!(&events[..], [PoolEvent::Ejected { .. }]), "{events:?}");
        assert!(pool.snapshot(now).iter().any(|pod| pod.state == BackendState::Ejected));
        let other = lease.backend().url.clone();
        assert_eq!(arrive(&mut pool, now, 50), HashMap::from([(other.clone(), 50)]));
        // Without the other one, the ejected one is picked.
        let tried = [lease.backend().clone()];
        let last = pool.pick(Purpose::Session, &tried, Preference::None, now).unwrap();
        assert_ne!(last.backend().url, other);
        return;
    };
    panic!("{out:?} was ejected before the next pick: {reason}");
}

#[test]
fn if_all_backends_are_ejected_they_are_picked_anyway() {
    let now = Instant::now();
    let mut pool = pool(2);
    for _ in 0..20 {
        let lease = pool.pick(Purpose::Session, &[], Preference::None, now).unwrap();
        lease.record_failure("refused".to_owned());
    }
    let events = pool.take_events();
    assert_eq!(
        events
            .iter()
            .filter(|event| **event == PoolEvent::AllEjected { service: "default".to_owned() })
            .count(),
        1,
        "{events:?}"
    );
    assert!(pool.snapshot(now).iter().all(|pod| pod.state == BackendState::Ejected));
}

#[test]
fn a_new_backend_gets_a_limited_share_while_cold_and_then_all_arrivals() {
    let start = Instant::now();
    let mut pool = pool(9);
    for second in 0..10 {
        arrive(&mut pool, start + Duration::from_secs(second), 1_000);
    }
    let later = start + Duration::from_secs(10);
    let mut backends: Vec<Backend> =
        pool.snapshot(later).iter().map(|pod| (*pod.backend).clone()).collect();
    let url = "http://new:3001".to_owned();
    backends.push(Backend { url: url.clone(), address: "new:3001".into(), ..backends[0].clone() });
    pool.set_backends(backends, later);
    assert_eq!(pool.snapshot(later)[9].state, BackendState::Cold);
    let first = arrive(&mut pool, later, 1_000)[&url];
    assert!((250..=400).contains(&first), "about three tenths of 1,000, not {first}");
    let warm = later + Duration::from_secs(6);
    assert_eq!(arrive(&mut pool, warm, 500)[&url], 500, "all arrivals once it is warm");
}

#[test]
fn backends_that_leave_drain_and_keep_their_state_if_they_come_back() {
    let now = Instant::now();
    let mut pool = pool(2);
    let backends: Vec<Backend> =
        pool.snapshot(now).iter().map(|pod| (*pod.backend).clone()).collect();
    let held: Vec<Lease> = (0..10).map(|_| open(&mut pool, now)).collect();
    pool.set_backends(vec![backends[0].clone()], now);
    assert_eq!(pool.snapshot(now)[1].state, BackendState::Draining);
    assert_eq!(arrive(&mut pool, now, 5).len(), 1);
    pool.set_backends(backends.clone(), now + Duration::from_secs(30));
    let back = &pool.snapshot(now + Duration::from_secs(30))[1];
    assert_eq!((back.state, back.load.open), (BackendState::Unknown, 5), "not cold, and counted");

    pool.set_backends(vec![backends[0].clone()], now + Duration::from_secs(40));
    pool.set_backends(vec![backends[0].clone()], now + Duration::from_secs(110));
    assert_eq!(pool.snapshot(now).len(), 2, "it is kept while it has sessions");
    drop(held);
    pool.set_backends(vec![backends[0].clone()], now + Duration::from_secs(111));
    assert_eq!(pool.snapshot(now).len(), 1);
    pool.set_backends(Vec::new(), now + Duration::from_secs(112));
    let none = pool.pick(Purpose::Session, &[], Preference::None, now).unwrap_err();
    assert_eq!(none, NoBackend::AllDraining);
}

#[test]
fn reported_weights_limits_and_draining_apply() {
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
    let states: Vec<BackendState> = pool.snapshot(now).iter().map(|pod| pod.state).collect();
    assert_eq!(
        states,
        [BackendState::Up, BackendState::Up, BackendState::Full, BackendState::Draining]
    );
}

#[test]
fn configured_capacities_apply_before_and_after_the_first_report() {
    let now = Instant::now();
    let capacity = |weight, max_connections| Capacity { weight, max_connections };
    let sizes = [("pod-0:3001", capacity(3.0, None)), ("pod-2:3001", capacity(1.0, Some(2)))];
    let capacities = sizes.map(|(address, capacity)| (address.to_owned(), capacity)).into();
    let backends = pool(4).members.into_iter().map(|member| (*member.backend).clone());
    let mut pool = Pool::new(backends, PoolSettings { capacities, ..PoolSettings::default() }, 7);
    let held: Vec<Lease> = (0..42).map(|_| open(&mut pool, now)).collect();
    let opens = |pool: &mut Pool| -> Vec<u32> {
        pool.snapshot(now).iter().map(|pod| pod.load.open).collect()
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
fn a_corrupted_cache_is_repaired_by_invalidating_it() {
    let now = Instant::now();
    let mut pool = pool(4);
    poll_all(&mut pool, now, |_| report(0));
    let _held = open(&mut pool, now);
    pool.cache.backends.truncate(2);
    pool.cache.totals = Totals::default();
    pool.candidates = Candidates::default();
    pool.invalidate_cache();
    let leases: Vec<Lease> = (0..39).map(|_| open(&mut pool, now)).collect();
    assert_eq!(counts(&leases).len(), 4, "{:?}", counts(&leases));
    assert!(
        counts(&leases).values().all(|count| [9, 10].contains(count)),
        "sessions are spread as before"
    );
}

#[test]
fn plain_requests_are_spread_but_count_in_no_estimate_or_limit() {
    let now = Instant::now();
    let mut pool = pool(3);
    pool.settings.max_sessions = NonZeroU32::new(3);
    pool.settings.max_sessions_per_pod = NonZeroU32::new(1);
    let sessions: Vec<Lease> = (0..3).map(|_| open(&mut pool, now)).collect();
    let mut request = || pool.pick(Purpose::Request, &[], Preference::None, now).unwrap();
    let requests: Vec<Lease> = (0..9).map(|_| request()).collect();
    assert!(counts(&requests).values().all(|count| *count == 3), "{:?}", counts(&requests));
    let snapshot = pool.snapshot(now);
    assert!(snapshot.iter().all(|pod| pod.estimate == 1), "{snapshot:?}");
    drop(sessions);
    assert!(pool.pick(Purpose::Session, &[], Preference::None, now).is_ok());
}

#[test]
fn max_sessions_limits_the_whole_service() {
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
fn an_unreadable_answer_makes_the_count_unknown_but_not_zero() {
    let now = Instant::now();
    let mut pool = pool(2);
    let held: Vec<Lease> = (0..6).map(|_| open(&mut pool, now)).collect();
    poll_all(&mut pool, now, |index| [report(4), Err(ReportError::Status(503))][index].clone());
    let snapshot = pool.snapshot(now);
    assert_eq!((snapshot[0].state, snapshot[0].estimate), (BackendState::Up, 4));
    assert_eq!((snapshot[1].state, snapshot[1].estimate), (BackendState::Unknown, 3));
    drop(held);
}

#[test]
fn without_an_answer_the_last_report_is_used_until_it_is_stale() {
    let start = Instant::now();
    let mut pool = pool(1);
    poll_all(&mut pool, start, |_| report(12));
    let later = start + Duration::from_secs(20);
    poll_all(&mut pool, later, |_| Err(ReportError::Unreachable("refused".into())));
    let snapshot = &pool.snapshot(later)[0];
    assert_eq!((snapshot.state, snapshot.estimate), (BackendState::Up, 12));
    assert!(snapshot.error.is_some());
    let snapshot = &pool.snapshot(start + Duration::from_secs(31))[0];
    assert_eq!((snapshot.state, snapshot.estimate), (BackendState::Stale, 0));
}

#[test]
fn an_answer_is_dropped_after_that_of_a_later_poll() {
    let start = Instant::now();
    let mut pool = pool(1);
    let target = pool.poll_targets().remove(0);
    let slow = target.start_poll(start);
    let quick = target.start_poll(start + Duration::from_secs(1));
    pool.record(quick, report(8), start + Duration::from_secs(1));
    pool.record(slow, report(1), start + Duration::from_secs(2));
    assert_eq!(pool.snapshot(start)[0].estimate, 8);
}

#[test]
fn an_operators_drain_survives_reports_and_absences_until_the_operator_ends_it() {
    let now = Instant::now();
    let mut pool = pool(2);
    let [first, second] = [0, 1].map(|at: usize| pool.members[at].backend.clone());
    let all = vec![(*first).clone(), (*second).clone()];
    let held: Vec<Lease> = (0..4).map(|_| open(&mut pool, now)).collect();
    assert_eq!(pool.set_operator_drain(Some("unknown:80"), true), []);
    assert_eq!(pool.set_operator_drain(Some(&second.address), true), std::slice::from_ref(&second));
    let reason = "requested by an operator";
    assert_eq!(pool.take_events(), [PoolEvent::DrainStarted { backend: second.clone(), reason }]);
    let drains = |pool: &mut Pool| {
        let of_second = &pool.snapshot(now)[1];
        of_second.state == BackendState::Draining && of_second.reason.as_deref() == Some(reason)
    };
    poll_all(&mut pool, now, |_| report(0));
    assert!(drains(&mut pool), "a report does not end the drain");
    assert_eq!(counts(&[open(&mut pool, now)]).keys().next(), Some(&first.url));
    pool.set_backends(vec![(*first).clone()], now);
    pool.set_backends(all.clone(), now);
    assert!(drains(&mut pool), "an absence does not end the drain");
    assert_eq!(pool.take_events(), [], "none of that is an event");
    pool.set_operator_drain(Some(&second.address), false);
    assert_eq!(pool.take_events(), [PoolEvent::DrainEnded { backend: second }]);
    assert_eq!(pool.snapshot(now)[1].state, BackendState::Up);
    drop(held);
}

#[test]
fn a_drained_service_includes_pods_that_join_later() {
    let now = Instant::now();
    let mut pool = pool(1);
    let known = (*pool.members[0].backend).clone();
    let late = Backend { address: "late:80".into(), ..known.clone() };
    assert_eq!(pool.set_operator_drain(None, true).len(), 1);
    pool.set_backends(vec![known, late], now);
    let pick = |pool: &mut Pool| pool.pick(Purpose::Session, &[], Preference::None, now);
    assert_eq!(pick(&mut pool).unwrap_err(), NoBackend::AllDraining);
    assert_eq!(pool.set_operator_drain(None, false).len(), 2);
    assert!(pick(&mut pool).is_ok());
}

#[test]
fn pods_that_start_or_stop_draining_cause_one_event_each() {
    let now = Instant::now();
    let mut pool = pool(2);
    let backends: Vec<Arc<Backend>> =
        pool.members.iter().map(|member| member.backend.clone()).collect();
    let reported = |draining, down: Option<&str>| {
        let down = down.map(ToOwned::to_owned);
        Ok(Report { draining, down, ..Report::default() })
    };
    let backend = backends[0].clone();
    let polled = |pool: &mut Pool, answer: Result<Report, ReportError>| {
        let poll = pool.poll_targets()[0].start_poll(now);
        pool.record(poll, answer, now);
        pool.take_events()
    };
    let drains =
        PoolEvent::DrainStarted { backend: backend.clone(), reason: "requested by the pod" };
    assert_eq!(polled(&mut pool, reported(Some(true), None)), [drains]);
    assert_eq!(polled(&mut pool, reported(Some(true), None)), []);
    let ended = PoolEvent::DrainEnded { backend: backend.clone() };
    assert_eq!(polled(&mut pool, reported(None, None)), [ended]);
    let down = PoolEvent::ReportedDown { backend: backend.clone(), reason: "disk".into() };
    assert_eq!(polled(&mut pool, reported(None, Some("disk"))), [down]);
    assert_eq!(polled(&mut pool, reported(None, Some("disk"))), []);
    pool.set_backends(vec![(*backends[1]).clone()], now);
    let reason = "no longer among the service's pods";
    assert_eq!(pool.take_events(), [PoolEvent::DrainStarted { backend: backend.clone(), reason }]);
    pool.remove_expired(now + Duration::from_secs(61));
    assert_eq!(pool.take_events(), [PoolEvent::Removed { backend }]);
}

proptest! {
    /// An unusable pod is never picked while a usable one exists, and in the end all gauges are
    /// empty.
    #[test]
    fn usable_backends_are_picked_first(steps in prop::collection::vec((0u8..8, 0usize..5, any::<prop::sample::Index>()), 1..200)) {
        let start = Instant::now();
        let mut now = start;
        let mut pool = pool(5);
        let all: Vec<Backend> =
            pool.snapshot(now).iter().map(|pod| (*pod.backend).clone()).collect();
        let mut there = all.clone();
        let mut leases: Vec<Lease> = Vec::new();
        for (step, pod, index) in steps {
            match step {
                0..=2 => {
                    let before = pool.snapshot(now);
                    let usable = |pod: &BackendSnapshot| !matches!(
                        pod.state, BackendState::Draining | BackendState::Full | BackendState::Ejected);
                    // A pick evaluates new failures first, and so may change states.
                    let picked = pool.pick(Purpose::Session, &[], Preference::None, now);
                    let after = pool.snapshot(now);
                    match picked {
                        Ok(mut lease) => {
                            let state = |list: &[BackendSnapshot]| list.iter()
                                .find(|pod| pod.backend == *lease.backend())
                                .map(usable).unwrap();
                            let others = after.iter().any(|pod| {
                                pod.backend != *lease.backend() && usable(pod)
                                    && before.iter().any(|known| known.backend == pod.backend && usable(known))
                            });
                            prop_assert!(state(&before) || state(&after) || !others);
                            for (member, cached) in pool.members.iter().zip(&pool.cache.backends) {
                                if cached.healthy_at.is_some() {
                                    let quick = cached.estimator.estimate(cached.gauge.load());
                                    prop_assert_eq!(quick, member.estimate(&pool.settings, now));
                                }
                            }
                            match step {
                                0 => { lease.establish(); leases.push(lease); }
                                1 => lease.record_failure("refused".to_owned()),
                                _ => { lease.establish(); lease.record_early_death(); }
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
                    pool.record(target.start_poll(now), result, now);
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
        let open: u32 = pool.snapshot(now).iter().map(|pod| pod.load.open).sum();
        prop_assert_eq!(open as usize, leases.len());
        drop(leases);
        let loads: Vec<Load> = pool.snapshot(now).iter().map(|pod| pod.load).collect();
        prop_assert!(loads.iter().all(|load| *load == Load::default()), "{:?}", loads);
    }

    /// A pod whose report stays zero gets no more sessions than the others, however often it is
    /// polled.
    #[test]
    fn pods_with_frozen_reports_are_filled_evenly(pods in 2usize..6, arrivals in 1usize..120, every in 1usize..30) {
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
