//! When a session ends because of time, when its peers are asked whether they still live, and what
//! ends it if they do not.
//!
//! Sessions are looked at now and then, and nothing is done in between: what has changed since the
//! last look has happened by now. So a time-out is late by at most two [ticks](SessionTimeouts::tick),
//! and Pings go out as much earlier, so that who does not answer is given up in time.

use std::time::Duration;

/// How often sessions are looked at, at least and at most.
const TICKS: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(2));

/// Ticks in the shortest time-out.
const TICKS_PER_TIMEOUT: u32 = 8;

/// Ticks in the shortest of the time-outs that only count at a session's end.
const TICKS_PER_END: u32 = 4;

/// The rules of a session's life; `None` is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionTimeouts {
    /// No byte either way.
    pub idle_timeout: Option<Duration>,
    /// A peer that takes nothing while there is something for it.
    pub write_timeout: Option<Duration>,
    /// No byte either way after one side has ended, or said Close.
    pub half_closed_timeout: Duration,
    /// From our own Close, or a peer's death, to the end of everything.
    pub close_timeout: Duration,
    /// How old it may get.
    pub max_age: Option<Duration>,
    /// How long the client may be silent until it gets a Ping.
    pub client_ping_interval: Option<Duration>,
    /// The same for the pod.
    pub pod_ping_interval: Option<Duration>,
    /// From a Ping to whatever the peer says next.
    pub ping_timeout: Duration,
}

impl SessionTimeouts {
    /// How often a session must be looked at.
    pub fn tick(&self) -> Duration {
        let or_never = [
            self.idle_timeout,
            self.write_timeout,
            self.max_age,
            self.client_ping_interval,
            self.pod_ping_interval,
        ];
        let pings = self.client_ping_interval.or(self.pod_ping_interval);
        let all = or_never.into_iter().chain([pings.map(|_| self.ping_timeout)]);
        let shortest = all.flatten().min().map_or(TICKS.1, |shortest| shortest / TICKS_PER_TIMEOUT);
        let end = self.half_closed_timeout.min(self.close_timeout) / TICKS_PER_END;
        shortest.min(end).clamp(TICKS.0, TICKS.1)
    }

    fn ping_interval(&self, leg: Leg) -> Option<Duration> {
        match leg {
            Leg::Client => self.client_ping_interval,
            Leg::Pod => self.pod_ping_interval,
        }
    }
}

/// One of the two connections of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leg {
    /// To the client.
    Client,
    /// To the pod.
    Pod,
}

/// What can be seen of a session at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Of the client, then of the pod.
    pub peers: [Peer; 2],
    /// One side has ended, or a Close frame has passed.
    pub is_half_closed: bool,
    /// A Close frame of ours is on its way, or one side is dead and no more comes from it: from here on
    /// `close_timeout` counts.
    pub is_closing: bool,
}

/// What can be seen of one peer. Of what only grows the last 32 bits are enough: changes count, and
/// there is one of these for each session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// Bytes from it so far, except for answers to our Pings.
    pub relayed: u32,
    /// All bytes from it.
    pub heard: u32,
    /// Bytes that it has yet to take.
    pub waiting: u32,
    /// Pings that it has got from us.
    pub pings: u32,
}

/// What is to be done about a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a Ping to this peer.
    Ping(Leg),
    /// Close both sides in good order.
    Close(Cause),
    /// This peer is as good as dead: close the other side in good order.
    GiveUp(Leg, Loss),
    /// There has been time enough for good order.
    Cut,
}

/// Why a session is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Nothing has passed for long.
    Idle,
    /// It has lived for as long as it may.
    Age,
}

/// Why a peer is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// It takes nothing.
    Stalled,
    /// It has not answered a Ping.
    Silent,
}

/// What has been seen of one session, and when.
#[derive(Debug)]
pub struct Life {
    seen: Seen,
    looked_at: Moment,
    active_at: Moment,
    closing_at: Option<Moment>,
    began_at: Moment,
    luck: f32,
    peers: [Signs; 2],
}

/// Hundredths of a second since any fixed moment. They begin anew after 497 days, so that moments
/// can be told apart by their age alone, and only up to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Moment(u32);

impl Moment {
    fn new(since: Duration) -> Self {
        Self((since.as_millis() / 10) as u32)
    }

    fn age(self, now: Self) -> Duration {
        // What one thread sees of time never goes back.
        Duration::from_millis(10) * now.0.wrapping_sub(self.0)
    }

    fn is_over(self, limit: Duration, now: Self) -> bool {
        self.age(now) >= limit
    }
}

/// The last signs of life of one peer.
#[derive(Debug)]
struct Signs {
    heard_at: Moment,
    taken_at: Moment,
    ping: Ping,
}

/// How far our question has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ping {
    /// Nothing is asked.
    None,
    /// It waits for the end of a frame, or for its turn.
    Asked,
    /// The peer has it since then.
    Sent(Moment),
}

impl Life {
    /// A session that begins `now`. `luck`, from 0 to 1, shortens its greatest age by up to a
    /// tenth, so that sessions which began together do not end together.
    pub fn new(luck: f32, now: Duration) -> Self {
        let at = Moment::new(now);
        let signs = || Signs { heard_at: at, taken_at: at, ping: Ping::None };
        Self {
            seen: Seen::default(),
            looked_at: at,
            active_at: at,
            closing_at: None,
            began_at: at,
            luck,
            peers: [signs(), signs()],
        }
    }

    /// What is to be done, now that this is `seen`. `now` counts from any fixed moment.
    pub fn look(&mut self, seen: Seen, rules: &SessionTimeouts, now: Duration) -> Option<Action> {
        let now = Moment::new(now);
        self.take_in(seen, now);
        if let Some(closing_at) = self.closing_at {
            return closing_at.is_over(rules.close_timeout, now).then_some(Action::Cut);
        }
        for leg in [Leg::Client, Leg::Pod] {
            let taken_at = self.peers[leg as usize].taken_at;
            let stalls = |limit| taken_at.is_over(limit, now);
            if rules.write_timeout.is_some_and(stalls) {
                return Some(Action::GiveUp(leg, Loss::Stalled));
            }
        }
        let is_too_old = rules.max_age.is_some_and(|age| {
            self.began_at.is_over(age.mul_f64(1.0 - f64::from(self.luck) / 10.0), now)
        });
        if seen.is_half_closed {
            if is_too_old {
                // The end may have begun just now: there is time to answer it.
                self.closing_at = Some(now);
            }
            let is_over = self.active_at.is_over(rules.half_closed_timeout, now);
            return is_over.then_some(Action::Cut);
        }
        if rules.idle_timeout.is_some_and(|limit| self.active_at.is_over(limit, now)) {
            return Some(Action::Close(Cause::Idle));
        }
        if is_too_old {
            return Some(Action::Close(Cause::Age));
        }
        [Leg::Client, Leg::Pod].into_iter().find_map(|leg| self.question(leg, rules, now))
    }

    /// How long nothing has passed `now`, as far as has been seen.
    pub fn idle(&self, now: Duration) -> Duration {
        self.active_at.age(Moment::new(now))
    }

    fn take_in(&mut self, seen: Seen, now: Moment) {
        let mut is_taken = false;
        for (at, other) in [(0, 1), (1, 0)] {
            let (before, peer) = (&self.seen.peers[at], &seen.peers[at]);
            // What a peer says waits for the opposite one, and what waits for it is from there.
            let (opposite_before, opposite) = (&self.seen.peers[other], &seen.peers[other]);
            let signs = &mut self.peers[at];
            // While the opposite one has yet to take what this one has said, it is not listened to.
            if peer.heard != before.heard || opposite.waiting > 0 {
                // Or a little later: nobody is asked too late.
                signs.heard_at = self.looked_at;
                signs.ping = Ping::None;
            }
            let opposite_went_on = opposite.relayed != opposite_before.relayed;
            if peer.waiting == 0 || peer.waiting != before.waiting || opposite_went_on {
                signs.taken_at = now;
            }
            if peer.pings != before.pings && signs.ping == Ping::Asked {
                signs.ping = Ping::Sent(self.looked_at);
            }
            if peer.relayed != before.relayed || peer.waiting != before.waiting {
                self.active_at = now;
            }
            // The rest of what was under way is being taken.
            is_taken |= peer.waiting < before.waiting && !opposite_went_on;
        }
        if seen.is_half_closed && !self.seen.is_half_closed {
            self.active_at = now;
        }
        if seen.is_closing && (self.closing_at.is_none() || is_taken) {
            self.closing_at = Some(now);
        }
        self.seen = seen;
        self.looked_at = now;
    }

    fn question(&mut self, leg: Leg, rules: &SessionTimeouts, now: Moment) -> Option<Action> {
        let interval = rules.ping_interval(leg)?.saturating_sub(2 * rules.tick());
        let peer = &mut self.peers[leg as usize];
        match peer.ping {
            Ping::None if peer.heard_at.is_over(interval, now) => {
                peer.ping = Ping::Asked;
                Some(Action::Ping(leg))
            }
            Ping::Sent(at) if at.is_over(rules.ping_timeout, now) => {
                Some(Action::GiveUp(leg, Loss::Silent))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: SessionTimeouts = SessionTimeouts {
        idle_timeout: Some(Duration::from_secs(100)),
        write_timeout: Some(Duration::from_secs(10)),
        half_closed_timeout: Duration::from_secs(30),
        close_timeout: Duration::from_secs(5),
        max_age: None,
        client_ping_interval: None,
        pod_ping_interval: None,
        ping_timeout: Duration::from_secs(8),
    };

    /// A session that is looked at once a second.
    struct Session {
        life: Life,
        rules: SessionTimeouts,
        seen: Seen,
        now: Duration,
    }

    impl Session {
        fn new(rules: SessionTimeouts) -> Self {
            let now = Duration::from_secs(1_000);
            Self { life: Life::new(0.5, now), rules, seen: Seen::default(), now }
        }

        /// The first thing to be done, and after how many seconds, if that is within `seconds`.
        fn wait(&mut self, seconds: u64) -> Option<(u64, Action)> {
            (1..=seconds).find_map(|second| {
                self.now += Duration::from_secs(1);
                let action = self.life.look(self.seen, &self.rules, self.now)?;
                Some((second, action))
            })
        }

        fn peer(&mut self, leg: Leg) -> &mut Peer {
            &mut self.seen.peers[leg as usize]
        }

        fn says(&mut self, leg: Leg) {
            let peer = self.peer(leg);
            (peer.relayed, peer.heard) = (peer.relayed + 1, peer.heard + 1);
        }
    }

    #[test]
    fn idle_is_when_neither_says_anything() {
        let mut session = Session::new(RULES);
        for leg in [Leg::Client, Leg::Pod, Leg::Client] {
            assert_eq!(session.wait(90), None);
            session.says(leg);
        }
        assert_eq!(session.wait(200), Some((101, Action::Close(Cause::Idle))));
        session.seen.is_closing = true;
        assert_eq!(session.wait(200), Some((6, Action::Cut)), "not closed in time");
        let mut endless = Session::new(SessionTimeouts { idle_timeout: None, ..RULES });
        assert_eq!(endless.wait(1_000), None);
    }

    #[test]
    fn a_peer_that_takes_nothing_is_given_up_and_a_slow_one_is_not() {
        for leg in [Leg::Client, Leg::Pod] {
            let mut session = Session::new(RULES);
            session.peer(leg).waiting = 5_000;
            for _ in 0..20 {
                assert_eq!(session.wait(9), None);
                session.peer(leg).waiting -= 1;
            }
            // All is taken and as much waits again between two looks.
            session.says([Leg::Pod, Leg::Client][leg as usize]);
            assert_eq!(session.wait(9), None);
            let stalled = Action::GiveUp(leg, Loss::Stalled);
            assert_eq!(session.wait(100), Some((2, stalled)));
        }
        let mut patient = Session::new(SessionTimeouts { write_timeout: None, ..RULES });
        patient.peer(Leg::Pod).waiting = 1;
        assert_eq!(patient.wait(99), None);
    }

    #[test]
    fn what_is_half_closed_ends_when_nothing_more_comes() {
        let mut session = Session::new(RULES);
        session.seen.is_half_closed = true;
        for _ in 0..10 {
            assert_eq!(session.wait(29), None);
            session.says(Leg::Pod);
        }
        assert_eq!(session.wait(100), Some((31, Action::Cut)));
    }

    #[test]
    fn half_closed_counts_from_the_end_of_the_one_side() {
        let mut session = Session::new(RULES);
        assert_eq!(session.wait(90), None);
        session.seen.is_half_closed = true;
        assert_eq!(session.wait(100), Some((31, Action::Cut)));
    }

    #[test]
    fn who_still_takes_the_rest_is_not_cut() {
        for (goes_on, cut_after) in [(false, 10 * 4 + 6), (true, 6)] {
            let mut session = Session::new(RULES);
            session.peer(Leg::Client).waiting = 100;
            assert_eq!(session.wait(1), None);
            session.seen.is_closing = true;
            let mut seconds = 0;
            let action = loop {
                if let Some((_, action)) = session.wait(1) {
                    break action;
                }
                seconds += 1;
                if seconds % 4 == 0 && seconds <= 40 {
                    session.peer(Leg::Client).waiting -= 1;
                }
                // A frame without end.
                if goes_on {
                    session.says(Leg::Pod);
                }
            };
            assert_eq!((seconds + 1, action), (cut_after, Action::Cut));
        }
    }

    #[test]
    fn who_half_closes_gets_no_older_than_others() {
        let rules = SessionTimeouts { max_age: Some(Duration::from_secs(100)), ..RULES };
        let mut session = Session::new(rules);
        session.seen.is_half_closed = true;
        let mut seconds = 0;
        let action = loop {
            session.says(Leg::Pod);
            seconds += 1;
            if let Some((_, action)) = session.wait(1) {
                break action;
            }
            assert!(seconds < 200, "still there");
        };
        assert_eq!((seconds, action), (95 + 5, Action::Cut), "after the time to answer");
    }

    #[test]
    fn moments_may_begin_anew() {
        let end_of_moments = Duration::from_millis(10) * u32::MAX;
        let rules = SessionTimeouts { max_age: Some(Duration::from_secs(150)), ..RULES };
        for (talks, end) in [(false, (100, Cause::Idle)), (true, (150, Cause::Age))] {
            for before in [0, 50, 120].map(Duration::from_secs) {
                let now = end_of_moments - before;
                let life = Life::new(0.0, now);
                let mut session = Session { life, rules, seen: Seen::default(), now };
                let ended = (1..=200).find_map(|second| {
                    if talks {
                        session.says(Leg::Client);
                    }
                    Some((second, session.wait(1)?.1))
                });
                assert_eq!(ended, Some((end.0, Action::Close(end.1))), "{before:?}");
            }
        }
    }

    #[test]
    fn age_is_spread_over_a_tenth() {
        let rules = SessionTimeouts { max_age: Some(Duration::from_secs(50)), ..RULES };
        let end = |luck| {
            let life = Life::new(luck, Duration::ZERO);
            let mut session = Session { life, rules, seen: Seen::default(), now: Duration::ZERO };
            session.wait(100)
        };
        assert_eq!(end(0.0), Some((50, Action::Close(Cause::Age))));
        assert_eq!(end(1.0), Some((45, Action::Close(Cause::Age))));
    }

    #[test]
    fn the_silent_are_asked_and_given_up_without_an_answer() {
        let rules =
            SessionTimeouts { client_ping_interval: Some(Duration::from_secs(20)), ..RULES };
        let mut session = Session::new(rules);
        assert_eq!(session.wait(15), None);
        session.says(Leg::Pod);
        assert_eq!(session.wait(100), Some((3, Action::Ping(Leg::Client))), "the pod is not it");
        assert_eq!(session.wait(15), None, "it has not got it yet");
        session.peer(Leg::Client).pings += 1;
        assert_eq!(session.wait(7), None);
        // Only our own business: not a byte that was relayed.
        session.peer(Leg::Client).heard += 14;
        assert_eq!(session.wait(100), Some((18, Action::Ping(Leg::Client))));
        session.peer(Leg::Client).pings += 1;
        let silent = Action::GiveUp(Leg::Client, Loss::Silent);
        assert_eq!(session.wait(100), Some((8, silent)));
    }

    #[test]
    fn whenever_it_spoke_last_who_does_not_answer_is_given_up_in_time() {
        let (interval, tick) = (Duration::from_secs(16), Duration::from_secs(1));
        let rules = SessionTimeouts { client_ping_interval: Some(interval), ..RULES };
        assert_eq!(rules.tick(), tick);
        let longest = interval + rules.ping_timeout;
        for last_word in (0..3_000).step_by(50).map(Duration::from_millis) {
            let mut session = Session::new(rules);
            let last_word = session.now + last_word;
            let given_up_at = loop {
                session.now += tick;
                if session.now > last_word {
                    (session.seen.peers[0].relayed, session.seen.peers[0].heard) = (1, 1);
                }
                match session.life.look(session.seen, &rules, session.now) {
                    Some(Action::Ping(Leg::Client)) => session.peer(Leg::Client).pings += 1,
                    Some(action) => {
                        assert_eq!(action, Action::GiveUp(Leg::Client, Loss::Silent));
                        break session.now;
                    }
                    None => {}
                }
            };
            let after = given_up_at - last_word;
            assert!(after <= longest && after >= longest - 3 * tick, "{after:?}");
        }
    }

    #[test]
    fn pongs_do_not_keep_an_idle_session() {
        let rules = SessionTimeouts { pod_ping_interval: Some(Duration::from_secs(20)), ..RULES };
        let mut session = Session::new(rules);
        let mut pings = 0;
        let end = loop {
            match session.wait(1_000).expect("an end") {
                (_, Action::Ping(Leg::Pod)) => {
                    pings += 1;
                    session.peer(Leg::Pod).pings += 1;
                    session.peer(Leg::Pod).heard += 10;
                }
                (_, end) => break end,
            }
        };
        assert_eq!((pings, end), (5, Action::Close(Cause::Idle)));
    }

    #[test]
    fn who_is_not_listened_to_is_not_asked() {
        let rules = SessionTimeouts {
            client_ping_interval: Some(Duration::from_secs(5)),
            write_timeout: None,
            ..RULES
        };
        let mut session = Session::new(rules);
        session.peer(Leg::Pod).waiting = 700;
        assert_eq!(session.wait(50), None);
        session.peer(Leg::Pod).waiting = 0;
        assert_eq!(session.wait(50), Some((3, Action::Ping(Leg::Client))));
    }

    #[test]
    fn looks_are_as_frequent_as_the_shortest_time_out_needs() {
        assert_eq!(RULES.tick(), Duration::from_millis(1_250));
        let quick = SessionTimeouts { write_timeout: Some(Duration::from_millis(200)), ..RULES };
        assert_eq!(quick.tick(), Duration::from_millis(25));
        let hurried = SessionTimeouts { close_timeout: Duration::from_millis(1), ..RULES };
        assert_eq!(hurried.tick(), Duration::from_millis(10));
        let ping = SessionTimeouts { ping_timeout: Duration::from_millis(80), ..RULES };
        assert_eq!(ping.tick(), Duration::from_millis(1_250), "nobody is asked");
        let asks = SessionTimeouts { pod_ping_interval: Some(Duration::from_secs(60)), ..ping };
        assert_eq!(asks.tick(), Duration::from_millis(10));
    }
}
