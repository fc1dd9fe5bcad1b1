//! A network between two parties that does what a test says: it cuts, stalls, slows, half-closes, refuses.
//!
//! Invariant: bytes are never changed, reordered or made up; what a direction has taken it hands on, unless the
//! connection is cut. What it does is counted, so that a test waits for that and not for time to pass.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

/// How long a state that a test waits for may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// What becomes of bytes in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Pass,
    /// Nothing is taken any more; the sender notices when its buffers are full.
    Stall,
    /// So many bytes of each connection, then nothing.
    After(u64),
    /// Pieces of so many bytes, with a pause before each.
    Slow {
        bytes: usize,
        pause: Duration,
    },
}

/// What becomes of new connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dial {
    Pass,
    /// Accepted and reset.
    Reset,
    /// Accepted, and nobody answers until the weather changes.
    Silent,
}

/// What holds for all connections, old and new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// From the gateway to the source.
    pub up: Flow,
    /// From the source to the gateway.
    pub down: Flow,
    pub dial: Dial,
}

impl Weather {
    pub const FAIR: Self = Self { up: Flow::Pass, down: Flow::Pass, dial: Dial::Pass };
    /// As a cable that is pulled out: nothing arrives, and nobody is told.
    pub const DEAD: Self = Self { up: Flow::Stall, down: Flow::Stall, dial: Dial::Silent };

    pub fn both(flow: Flow) -> Self {
        Self { up: flow, down: flow, dial: Dial::Pass }
    }

    pub fn down(flow: Flow) -> Self {
        Self { down: flow, ..Self::FAIR }
    }
}

/// How the connections of now end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Both sides are reset.
    Reset,
    /// Both sides are closed.
    Close,
    /// The gateway hears that the source sends no more; what the gateway sends still arrives.
    Half,
}

#[derive(Default)]
struct Counts {
    open: AtomicU64,
    accepted: AtomicU64,
    held: AtomicU64,
    down: AtomicU64,
}

enum Order {
    /// Stops listening, so that the kernel refuses.
    Refuse(oneshot::Sender<()>),
    Listen(oneshot::Sender<()>),
}

/// A running proxy; it goes when the handle goes.
pub struct FaultProxy {
    address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    weather: watch::Sender<Weather>,
    cuts: watch::Sender<(u64, Cut)>,
    orders: mpsc::Sender<Order>,
    counts: Arc<Counts>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl FaultProxy {
    /// In front of `target`, in fair weather.
    pub fn start(target: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("fault-proxy")
            .enable_all()
            .build()
            .expect("a runtime starts");
        let socket = bound(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let weather = watch::Sender::new(Weather::FAIR);
        let cuts = watch::Sender::new((0, Cut::Reset));
        let (orders, ordered) = mpsc::channel(8);
        let target = Arc::new(Mutex::new(target));
        let counts = Arc::new(Counts::default());
        let network = Network {
            target: Arc::clone(&target),
            weather: weather.subscribe(),
            cuts: cuts.subscribe(),
            counts: Arc::clone(&counts),
        };
        runtime.spawn(accept(socket, address, ordered, network));
        Self { address, target, weather, cuts, orders, counts, runtime: Some(runtime) }
    }

    /// `host:port`, as `hosts` of a source takes it.
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Where new connections go.
    pub fn target(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = target;
    }

    pub fn weather(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    pub fn cut(&self, how: Cut) {
        self.cuts.send_modify(|(number, last)| {
            *number += 1;
            *last = how;
        });
    }

    /// From now on the kernel refuses connections; those that are there stay.
    pub fn refuse(&self) {
        self.order(Order::Refuse);
    }

    /// The end of [`FaultProxy::refuse`].
    pub fn listen(&self) {
        self.order(Order::Listen);
    }

    fn order(&self, order: impl FnOnce(oneshot::Sender<()>) -> Order) {
        let (done, is_done) = oneshot::channel();
        assert!(self.orders.try_send(order(done)).is_ok(), "the proxy hears");
        let runtime = self.runtime.as_ref().expect("the proxy runs");
        std::thread::scope(|scope| {
            // Also where the caller is on a runtime of its own.
            scope.spawn(|| runtime.block_on(is_done).expect("the proxy obeys"));
        });
    }

    /// Connections that are there now.
    pub fn open(&self) -> u64 {
        self.counts.open.load(Ordering::SeqCst)
    }

    /// Connections that there ever were.
    pub fn accepted(&self) -> u64 {
        self.counts.accepted.load(Ordering::SeqCst)
    }

    /// Directions of connections that stand still by the weather's word.
    pub fn held(&self) -> u64 {
        self.counts.held.load(Ordering::SeqCst)
    }

    /// Bytes that the gateway was handed.
    pub fn passed_down(&self) -> u64 {
        self.counts.down.load(Ordering::SeqCst)
    }

    /// Waits for a state of the counts.
    pub fn wait_until(&self, what: &str, mut reached: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(self) {
            assert!(Instant::now() < deadline, "the network never saw {what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn bound(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

#[derive(Clone)]
struct Network {
    target: Arc<Mutex<SocketAddr>>,
    weather: watch::Receiver<Weather>,
    cuts: watch::Receiver<(u64, Cut)>,
    counts: Arc<Counts>,
}

/// One more of something that is counted, until it is dropped.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn accept(
    mut socket: Socket,
    address: SocketAddr,
    mut orders: mpsc::Receiver<Order>,
    mut network: Network,
) {
    loop {
        socket.listen(1024).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        let done = loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Refuse(done)) => break done,
                    Some(Order::Listen(done)) => drop(done.send(())),
                    None => return,
                },
                Ok((stream, _)) = listener.accept() => {
                    network.counts.accepted.fetch_add(1, Ordering::SeqCst);
                    // Cuts of before are not for it.
                    network.cuts.mark_unchanged();
                    tokio::spawn(network.clone().connection(stream));
                }
            }
        };
        drop(listener);
        // It keeps the port: bound and not listening is refused.
        socket = bound(address);
        let _ = done.send(());
        loop {
            match orders.recv().await {
                Some(Order::Listen(done)) => {
                    let _ = done.send(());
                    break;
                }
                Some(Order::Refuse(done)) => drop(done.send(())),
                None => return,
            }
        }
    }
}

impl Network {
    async fn connection(mut self, mut near: TcpStream) {
        let counts = Arc::clone(&self.counts);
        let _open = Counted::new(&counts.open);
        let reset = |stream: &TcpStream| SockRef::from(stream).set_linger(Some(Duration::ZERO));
        if self.weather.borrow().dial == Dial::Silent {
            let _held = Counted::new(&counts.held);
            if self.weather.wait_for(|weather| weather.dial != Dial::Silent).await.is_err() {
                return;
            }
        }
        let target = *self.target.lock().unwrap();
        let dial = self.weather.borrow().dial;
        let far = match dial {
            Dial::Reset => None,
            Dial::Pass | Dial::Silent => TcpStream::connect(target).await.ok(),
        };
        let Some(mut far) = far else {
            let _ = reset(&near);
            return;
        };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let how = {
            let (near_in, mut near_out) = near.split();
            let (far_in, mut far_out) = far.split();
            let up = carry(near_in, &mut far_out, self.weather.clone(), |weather| weather.up, &counts, None);
            let (half, mut halved) = watch::channel(false);
            let down = async {
                let weather = self.weather.clone();
                let passed = Some(&counts.down);
                tokio::select! {
                    done = carry(far_in, &mut near_out, weather, |weather| weather.down, &counts, passed) => {
                        return done;
                    }
                    _ = halved.wait_for(|halved| *halved) => {}
                }
                near_out.shutdown().await
            };
            let cuts = async {
                loop {
                    if self.cuts.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    match self.cuts.borrow_and_update().1 {
                        Cut::Half => drop(half.send_replace(true)),
                        how => return how,
                    }
                }
            };
            tokio::select! {
                done = async { tokio::try_join!(up, down) } => match done {
                    Ok(_) => Cut::Close,
                    // What happened to one side happens to the other.
                    Err(_) => Cut::Reset,
                },
                how = cuts => how,
            }
        };
        if how == Cut::Reset {
            let _ = (reset(&near), reset(&far));
        }
    }
}

async fn carry(
    mut from: ReadHalf<'_>,
    to: &mut WriteHalf<'_>,
    mut weather: watch::Receiver<Weather>,
    flow: fn(&Weather) -> Flow,
    counts: &Counts,
    passed: Option<&AtomicU64>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 32 * 1024];
    let mut left = 0;
    let mut fresh = true;
    loop {
        let now = flow(&weather.borrow_and_update());
        if let (Flow::After(bytes), true) = (now, fresh) {
            left = bytes;
        }
        fresh = false;
        let most = match now {
            Flow::Pass => buffer.len(),
            Flow::After(_) => buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX)),
            Flow::Stall => 0,
            Flow::Slow { bytes, pause } => {
                tokio::time::sleep(pause).await;
                bytes.min(buffer.len())
            }
        };
        if most == 0 {
            let _held = Counted::new(&counts.held);
            if weather.changed().await.is_err() {
                return Ok(());
            }
            fresh = true;
            continue;
        }
        let count = tokio::select! {
            biased;
            changed = weather.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                fresh = true;
                continue;
            }
            read = from.read(&mut buffer[..most]) => read?,
        };
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        left = left.saturating_sub(count as u64);
        if let Some(passed) = passed {
            passed.fetch_add(count as u64, Ordering::SeqCst);
        }
    }
}
