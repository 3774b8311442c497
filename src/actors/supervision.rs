//! Control actors outlive panics of their handlers.
//!
//! actix drops an actor whose handler panics, with its state, and its address leads nowhere from
//! then on. Here the unwinding stops at the actor's context, and the context is polled on: the
//! message that panicked is lost (its sender sees `MailboxError::Closed`), everything else stays. A
//! future that was spawned into the context and panicked must not be polled again: with it go all
//! spawned ones, and [`Actor::started`] begins them anew.
//!
//! Whoever panics again and again is broken for good: that is reported, so that the process can end.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context as TaskContext, Poll},
    time::{Duration, Instant},
};

use actix::{
    Actor, Addr, AsyncContext as _, Context, Supervised,
    dev::{ContextFut, channel},
    fut,
};
use actix_rt::ArbiterHandle;
use tokio::sync::mpsc::UnboundedSender;

/// This many panics of one actor...
const TOO_MANY: usize = 3;

/// ... within this time are too many.
const WITHIN: Duration = Duration::from_secs(60);

/// What the actors' addresses hold; messages that are sent without waiting do not count.
const MAILBOX: usize = 16;

/// Starts actors that are supervised, all on one arbiter.
#[derive(Clone, Debug)]
pub struct Supervisor {
    arbiter: ArbiterHandle,
    failures: UnboundedSender<String>,
}

impl Supervisor {
    /// Tells `failures` why an actor was given up.
    pub fn new(arbiter: ArbiterHandle, failures: UnboundedSender<String>) -> Self {
        Self { arbiter, failures }
    }

    /// Starts the actor that `make` returns; `name` is what the log calls it.
    ///
    /// After a panic its [`Supervised::restarting`] is called before anything else.
    pub fn start<A>(
        &self,
        name: &'static str,
        make: impl FnOnce(&mut Context<A>) -> A + Send + 'static,
    ) -> Addr<A>
    where
        A: Supervised + Actor<Context = Context<A>>,
    {
        let (sender, receiver) = channel::channel(MAILBOX);
        let failures = self.failures.clone();
        self.arbiter.spawn_fn(move || {
            let mut context = Context::with_receiver(receiver);
            let actor = make(&mut context);
            let context = context.into_future(actor);
            actix_rt::spawn(Guarded { name, context, panics: Vec::new(), failures });
        });
        Addr::new(sender)
    }
}

/// Makes an actor panic in its handler, for evidence.
#[cfg(feature = "fault-hooks")]
#[derive(Debug, actix::Message)]
#[rtype(result = "()")]
pub struct Panic;

/// Makes the next question for a pod panic, for evidence.
#[cfg(feature = "fault-hooks")]
#[derive(Debug, actix::Message)]
#[rtype(result = "()")]
pub struct PanicAtNextPick;

/// An actor's context that is polled on after a panic.
struct Guarded<A>
where
    A: Supervised + Actor<Context = Context<A>>,
{
    name: &'static str,
    context: ContextFut<A, Context<A>>,
    /// When the actor panicked, within the last [`WITHIN`].
    panics: Vec<Instant>,
    failures: UnboundedSender<String>,
}

impl<A> Future for Guarded<A>
where
    A: Supervised + Actor<Context = Context<A>>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<()> {
        loop {
            let context = &mut self.context;
            // The state may be half changed: what the actor cannot leave so, `restarting` mends.
            let polled = catch_unwind(AssertUnwindSafe(|| Pin::new(context).poll(cx)));
            match polled {
                Ok(polled) => return polled,
                Err(panic) if self.may_go_on(&*panic, Instant::now()) => self.resume(),
                Err(_) => return Poll::Ready(()),
            }
        }
    }
}

impl<A> Guarded<A>
where
    A: Supervised + Actor<Context = Context<A>>,
{
    fn may_go_on(&mut self, panic: &(dyn Any + Send), now: Instant) -> bool {
        let (name, reason) = (self.name, reason(panic));
        self.panics.retain(|at| now.duration_since(*at) < WITHIN);
        self.panics.push(now);
        if self.panics.len() < TOO_MANY {
            log::error!("{name} panicked and goes on without the message: {reason}");
            return true;
        }
        let _ = self.failures.send(format!(
            "{name} panicked {TOO_MANY} times within {}, the last time: {reason}",
            humantime::format_duration(WITHIN)
        ));
        false
    }

    fn resume(&mut self) {
        let in_a_handler = self.context.ctx().handle() == Default::default();
        if in_a_handler {
            // No message is taken while the context waits for this.
            let mend = fut::wrap_future(std::future::ready(()));
            let mend = fut::ActorFutureExt::map(mend, |(), actor: &mut A, ctx| {
                actor.restarting(ctx);
            });
            self.context.ctx().wait(mend);
        } else {
            self.context.restart();
        }
    }
}

/// What a panic says.
fn reason(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no reason given")
}

#[cfg(test)]
mod tests {
    use std::{io, panic::resume_unwind, sync::Arc};

    use actix::{Handler, Message, MessageResult};
    use actix_rt::Arbiter;
    use bytes::BytesMut;
    use tokio::{
        io::{AsyncRead, AsyncWrite, ReadBuf},
        sync::mpsc::{UnboundedReceiver, unbounded_channel},
    };

    use super::*;
    use crate::{
        actors::{
            ending::Ending,
            registry::{AwaitEmpty, CountSessions, RegistryActor, SessionInfo},
            session::{QueueWaker, SessionActor, SessionPermit, SessionRules},
        },
        domain::{
            balance::lease::{Backend, Gauge, Lease, Load, Purpose, Transport},
            session::timeouts::SessionTimeouts,
        },
        relay::{TunnelPeer, TunnelRules, close::CloseCode},
        telemetry::counters::{Counters, LabelValues},
    };

    /// Counts what it is told, and how often it was begun and mended.
    #[derive(Default)]
    struct Clerk {
        count: u32,
        started: u32,
        mended: u32,
    }

    impl Actor for Clerk {
        type Context = Context<Self>;

        fn started(&mut self, _: &mut Self::Context) {
            self.started += 1;
        }
    }

    impl Supervised for Clerk {
        fn restarting(&mut self, _: &mut Self::Context) {
            self.mended += 1;
        }
    }

    #[derive(Message)]
    #[rtype(result = "(u32, u32, u32)")]
    struct Add;

    impl Handler<Add> for Clerk {
        type Result = MessageResult<Add>;

        fn handle(&mut self, _: Add, _: &mut Self::Context) -> Self::Result {
            self.count += 1;
            MessageResult((self.count, self.started, self.mended))
        }
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Break;

    impl Handler<Break> for Clerk {
        type Result = ();

        fn handle(&mut self, _: Break, _: &mut Self::Context) {
            resume_unwind(Box::new("broken handler"));
        }
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Spawn;

    impl Handler<Spawn> for Clerk {
        type Result = ();

        fn handle(&mut self, _: Spawn, ctx: &mut Self::Context) {
            ctx.spawn(fut::wrap_future(async {
                resume_unwind(Box::new("broken future".to_owned()))
            }));
        }
    }

    fn clerk() -> (Addr<Clerk>, UnboundedReceiver<String>) {
        let (failures, failed) = unbounded_channel();
        let supervisor = Supervisor::new(Arbiter::current(), failures);
        (supervisor.start("Clerk", |_| Clerk::default()), failed)
    }

    #[actix_rt::test]
    async fn a_handler_that_panics_costs_its_message_alone() {
        let (clerk, mut failed) = clerk();
        assert_eq!(clerk.send(Add).await, Ok((1, 1, 0)));
        let (broken, next) = tokio::join!(clerk.send(Break), clerk.send(Add));
        assert!(broken.is_err());
        assert_eq!(
            next,
            Ok((2, 1, 1)),
            "counts are kept, nothing is begun anew, scratch is mended"
        );
        assert!(clerk.send(Break).await.is_err());
        assert_eq!(clerk.send(Add).await, Ok((3, 1, 2)));
        assert!(failed.try_recv().is_err());
    }

    #[actix_rt::test]
    async fn a_future_that_panics_is_not_polled_again() {
        let (clerk, mut failed) = clerk();
        assert_eq!(clerk.send(Spawn).await, Ok(()));
        let mut counts = clerk.send(Add).await.unwrap();
        while counts.2 == 0 {
            counts = clerk.send(Add).await.unwrap();
        }
        assert_eq!((counts.1, counts.2), (2, 1), "begun anew once");
        assert!(failed.try_recv().is_err());
    }

    #[actix_rt::test]
    async fn the_third_panic_within_a_minute_is_one_too_many() {
        let (clerk, mut failed) = clerk();
        for _ in 0..3 {
            assert!(clerk.send(Break).await.is_err());
        }
        let reason = failed.recv().await.unwrap();
        assert_eq!(reason, "Clerk panicked 3 times within 1m, the last time: broken handler");
        assert!(clerk.send(Add).await.is_err(), "it is gone");
    }

    #[actix_rt::test]
    async fn panics_that_are_long_past_do_not_count() {
        let (failures, mut failed) = unbounded_channel();
        let context = Context::new().into_future(Clerk::default());
        let mut guarded = Guarded { name: "Clerk", context, panics: Vec::new(), failures };
        let start = Instant::now();
        for minutes in 0..5 {
            assert!(guarded.may_go_on(&"now and then", start + minutes * WITHIN));
        }
        let later = start + 4 * WITHIN;
        assert!(guarded.may_go_on(&"again", later));
        assert!(!guarded.may_go_on(&"and again", later));
        assert!(failed.try_recv().is_ok());
    }

    /// A socket that nobody should use.
    struct Trap;

    impl AsyncRead for Trap {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut TaskContext<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            resume_unwind(Box::new("trapped"))
        }
    }

    impl AsyncWrite for Trap {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut TaskContext<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Ok(bytes.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// Nobody looks after sessions: they are many, and each has nothing but its own.
    #[actix_rt::test]
    async fn a_session_that_panics_ends_alone_and_gives_everything_back() {
        let registry = Arc::new(RegistryActor::default().start());
        let endings = &Ending::ALL.map(Ending::label);
        let labels = LabelValues { refusals: &[], cookies: &[], reloads: &[], endings };
        let counters = Arc::new(Counters::new(labels));
        let gauge = Arc::<Gauge>::default();
        let backend = Arc::new(Backend {
            service: "default".into(),
            url: "http://pod:1".into(),
            address: "pod:1".into(),
            transport: Transport::Tcp,
        });
        let timeouts = SessionTimeouts {
            idle_timeout: None,
            write_timeout: None,
            half_closed_timeout: WITHIN,
            close_timeout: WITHIN,
            max_age: None,
            client_ping_interval: None,
            pod_ping_interval: None,
            ping_timeout: WITHIN,
        };
        let close_code = CloseCode::SERVICE_RESTART;
        let rules = Arc::new(SessionRules { timeouts, tunnel: TunnelRules::default(), close_code });
        let start = |client: TunnelPeer, pod: TunnelPeer| {
            let lease = Lease::new(backend.clone(), gauge.clone(), Purpose::Session);
            let permit = SessionPermit { lease, ticket: None, queue_waker: QueueWaker(None) };
            let info = SessionInfo::new([127, 0, 0, 1].into(), backend.clone(), close_code);
            let told = (registry.clone(), counters.clone());
            SessionActor::start(client, pod, info, permit, told, &rules);
        };
        let peer = || {
            let (far, near) = tokio::io::duplex(64);
            (TunnelPeer::new(near, BytesMut::new()), far)
        };
        let ((well, _client), (pod, _pod)) = (peer(), peer());
        start(well, pod);
        for client_is_trapped in [true, false] {
            let (other, mut far) = peer();
            let trap = TunnelPeer::new(Trap, BytesMut::new());
            match client_is_trapped {
                true => start(trap, other),
                false => start(other, trap),
            }
            let mut rest = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut far, &mut rest).await.unwrap();
            assert!(rest.is_empty(), "the other side is let go: {rest:?}");
        }
        while registry.send(CountSessions).await != Ok(1) || gauge.load().open != 1 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gauge.load(), Load { open: 1, connecting: 0, requests: 0 });
        drop((_client, _pod));
        assert_eq!(registry.send(AwaitEmpty).await, Ok(()));
        assert_eq!(gauge.load(), Load::default());
        let counted = counters.render();
        for counts in ["{reason=\"cut\"} 2\n", "{reason=\"client_lost\"} 1\n"] {
            assert!(counted.contains(counts), "{counted}");
        }
    }
}
