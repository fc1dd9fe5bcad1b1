//! From a host's name to a connected socket, with TLS where it is asked for.
//!
//! Invariant: nothing is waited for beyond the deadline, and of the answer to SSLRequest exactly
//! one byte is read, so that no plaintext of before can be taken for what TLS protects.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::config::Host;
use crate::upstream::error::{Failure, Stage};
use crate::upstream::stream::Stream;
use crate::upstream::tls::server_end_point;

/// Addresses of one name that are tried.
const MAX_ADDRESSES: usize = 8;
/// A dead peer is noticed after about 60 + 3 × 10 seconds of silence.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 3;

/// One host of a source, ready to be dialled.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) host: Host,
    /// The name that TLS sends and checks; nothing without TLS.
    pub(super) server_name: Option<ServerName<'static>>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Host::Tcp { host, port } => write!(f, "{host}:{port}"),
            Host::Unix { path } => path.display().fmt(f),
        }
    }
}

/// Where a session really went, so that its CancelRequest goes there too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Tcp(SocketAddr, Option<ServerName<'static>>),
    Unix(PathBuf),
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Tcp(address, _) => address.fmt(f),
            Peer::Unix(path) => path.display().fmt(f),
        }
    }
}

/// How much TLS is asked for.
#[derive(Clone)]
pub(super) enum Wish {
    Plain,
    /// Plaintext where the server declines TLS.
    Prefer(Arc<ClientConfig>),
    Require(Arc<ClientConfig>),
}

/// What protects the connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Transport {
    pub(super) tls: bool,
    /// The `tls-server-end-point` binding, where the certificate has one.
    pub(super) end_point: Option<Vec<u8>>,
    /// Nobody on the way can read along: TLS, a Unix socket, or loopback.
    pub(super) confidential: bool,
}

pub(super) struct Dialled {
    pub(super) stream: Stream,
    pub(super) peer: Peer,
    pub(super) transport: Transport,
}

pub(super) async fn dial(target: &Target, wish: &Wish, deadline: Instant) -> Result<Dialled, Failure> {
    match &target.host {
        Host::Unix { path } => dial_peer(Peer::Unix(path.clone()), wish, deadline).await,
        Host::Tcp { host, port } => {
            let addresses: Vec<SocketAddr> = timeout_at(deadline, lookup_host((host.as_str(), *port)))
                .await
                .map_err(|_| Failure::TimedOut(Stage::Resolving))?
                .map_err(Failure::Resolve)?
                .take(MAX_ADDRESSES)
                .collect();
            let mut last = Failure::Resolve(io::Error::new(io::ErrorKind::NotFound, "no addresses"));
            for (at, address) in addresses.iter().enumerate() {
                // A silent address must leave time for those that follow it.
                let left = deadline.saturating_duration_since(Instant::now());
                let share = left / u32::try_from(addresses.len() - at).unwrap_or(1);
                match connect_tcp(*address, Instant::now() + share).await {
                    Ok(stream) => {
                        let peer = Peer::Tcp(*address, target.server_name.clone());
                        return negotiate(stream, peer, wish, deadline).await;
                    }
                    Err(failure) => last = failure,
                }
            }
            Err(last)
        }
    }
}

/// Dials the very peer that another connection went to.
pub(super) async fn dial_peer(peer: Peer, wish: &Wish, deadline: Instant) -> Result<Dialled, Failure> {
    match &peer {
        // TLS is never used on Unix sockets, whatever the mode, as in libpq.
        Peer::Unix(path) => {
            let stream = timeout_at(deadline, UnixStream::connect(path))
                .await
                .map_err(|_| Failure::TimedOut(Stage::Connecting))?
                .map_err(Failure::Connect)?;
            let transport = Transport { confidential: true, ..Transport::default() };
            Ok(Dialled { stream: Stream::Unix(stream), peer, transport })
        }
        Peer::Tcp(address, _) => {
            let stream = connect_tcp(*address, deadline).await?;
            negotiate(stream, peer, wish, deadline).await
        }
    }
}

async fn connect_tcp(address: SocketAddr, deadline: Instant) -> Result<TcpStream, Failure> {
    let stream = timeout_at(deadline, TcpStream::connect(address))
        .await
        .map_err(|_| Failure::TimedOut(Stage::Connecting))?
        .map_err(Failure::Connect)?;
    stream.set_nodelay(true).map_err(Failure::Connect)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_RETRIES);
    SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(Failure::Connect)?;
    Ok(stream)
}

async fn negotiate(
    mut stream: TcpStream,
    peer: Peer,
    wish: &Wish,
    deadline: Instant,
) -> Result<Dialled, Failure> {
    let loopback = matches!(&peer, Peer::Tcp(address, _) if address.ip().to_canonical().is_loopback());
    let plain = Transport { confidential: loopback, ..Transport::default() };
    let (config, required) = match wish {
        Wish::Plain => return Ok(Dialled { stream: Stream::Tcp(stream), peer, transport: plain }),
        Wish::Prefer(config) => (config, false),
        Wish::Require(config) => (config, true),
    };
    let answer = timeout_at(deadline, ssl_request(&mut stream))
        .await
        .map_err(|_| Failure::TimedOut(Stage::Tls))?
        .map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Failure::Closed(Stage::Tls),
            _ => Failure::Broken(Stage::Tls, error),
        })?;
    match answer {
        b'S' => {}
        b'N' if required => return Err(Failure::TlsDeclined),
        b'N' => return Ok(Dialled { stream: Stream::Tcp(stream), peer, transport: plain }),
        // Also an error: its text would come from before TLS, so it is not worth reading.
        _ => return Err(Failure::Nonsense("its answer to SSLRequest is neither S nor N")),
    }
    let Peer::Tcp(_, Some(server_name)) = &peer else {
        return Err(Failure::Tls(io::Error::new(io::ErrorKind::InvalidInput, "no name to check")));
    };
    let connect = TlsConnector::from(config.clone()).connect(server_name.clone(), stream);
    let stream = timeout_at(deadline, connect)
        .await
        .map_err(|_| Failure::TimedOut(Stage::Tls))?
        .map_err(Failure::Tls)?;
    let end_point =
        stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).and_then(server_end_point);
    let transport = Transport { tls: true, end_point, confidential: true };
    Ok(Dialled { stream: Stream::Tls(Box::new(stream)), peer, transport })
}

async fn ssl_request(stream: &mut TcpStream) -> io::Result<u8> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    stream.write_all(&request).await?;
    stream.read_u8().await
}
