//! Who plays the other side where PostgreSQL would not: broken servers, a man in the middle, a client.
//!
//! Invariant: they listen on loopback only, on ports that the kernel picks.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fedgate::config::Host;
use fedgate::upstream::Conversation;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use postgres_protocol::message::frontend;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Pair, Postgres};

/// Stands between a client and a server, with TLS of its own on both legs; gives its address.
pub async fn man_in_the_middle(postgres: &Postgres, pair: Pair) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(pair.private_key.as_bytes()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = (Ipv4Addr::LOCALHOST, postgres.port());
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let mut request = [0; 8];
                near.read_exact(&mut request).await.unwrap();
                near.write_all(b"S").await.unwrap();
                let mut near = acceptor.accept(near).await.unwrap();
                let mut far = TcpStream::connect(server).await.unwrap();
                far.write_all(&request).await.unwrap();
                assert_eq!(far.read_u8().await.unwrap(), b'S');
                let mut far = trusting_connector()
                    .connect(rustls_pki_types::ServerName::try_from("localhost").unwrap(), far)
                    .await
                    .unwrap();
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    address
}

/// Takes any certificate and any signature: an eavesdropper is not particular.
fn trusting_connector() -> tokio_rustls::TlsConnector {
    #[derive(Debug)]
    struct Anyone(rustls::crypto::WebPkiSupportedAlgorithms);

    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    impl ServerCertVerifier for Anyone {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &rustls_pki_types::ServerName<'_>,
            _: &[u8],
            _: rustls_pki_types::UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            self.0.supported_schemes()
        }
    }

    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let algorithms = provider.signature_verification_algorithms;
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone(algorithms)))
        .with_no_client_auth();
    tokio_rustls::TlsConnector::from(Arc::new(config))
}

/// Plays a broken server: each connection gets `bytes`, then is held, closed or reset.
#[derive(Clone, Copy)]
pub enum Then {
    Hold,
    Close,
    Reset,
}

pub struct Broken {
    pub port: u16,
    accepted: Arc<AtomicUsize>,
}

impl Broken {
    pub async fn start(bytes: &[u8], then: Then) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = accepted.clone();
        let bytes = bytes.to_vec();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                // Whoever closes with bytes unread resets the connection, and may lose its own answer.
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(&bytes).await;
                match then {
                    Then::Hold => held.push(stream),
                    Then::Close => drop(stream),
                    Then::Reset => {
                        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                        drop(stream);
                    }
                }
            }
        });
        Self { port, accepted }
    }

    pub fn host(&self) -> Host {
        Host::Tcp { host: "127.0.0.1".to_owned(), port: self.port }
    }

    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

/// A port that nobody listens on.
pub async fn closed_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port()
}

pub fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.put_u32(body.len() as u32 + 4);
    out.put_slice(body);
    out
}

/// All that a standby sends at the start.
pub fn standby_greeting() -> Vec<u8> {
    let status = |name: &str, value: &str| frame(b'S', format!("{name}\0{value}\0").as_bytes());
    [
        frame(b'R', &[0; 4]),
        status("in_hot_standby", "on"),
        status("client_encoding", "UTF8"),
        status("standard_conforming_strings", "on"),
        status("default_transaction_read_only", "off"),
        frame(b'K', &[0, 0, 0, 1, 0, 0, 0, 1]),
        frame(b'Z', b"I"),
    ]
    .concat()
}

/// A server before PostgreSQL 14 at the start, which does not report whether it is a standby, and its answer when it is
/// asked for that.
pub fn old_greeting(standby: bool) -> Vec<u8> {
    let status = |name: &str, value: &str| frame(b'S', format!("{name}\0{value}\0").as_bytes());
    let says = if standby { b't' } else { b'f' };
    [
        frame(b'R', &[0; 4]),
        status("client_encoding", "UTF8"),
        status("standard_conforming_strings", "on"),
        status("default_transaction_read_only", "on"),
        frame(b'K', &[0, 0, 0, 1, 0, 0, 0, 1]),
        frame(b'Z', b"I"),
        frame(b'T', &[0, 0]),
        frame(b'D', &[0, 1, 0, 0, 0, 1, says]),
        frame(b'C', b"SELECT 1\0"),
        frame(b'Z', b"I"),
    ]
    .concat()
}

/// A client that holds the password itself.
pub struct Person {
    user: &'static str,
    password: &'static str,
    /// `y,,` in place of `n,,`: on TLS with a library that could bind.
    could_bind: bool,
    scram: Option<ScramSha256>,
    pub proved: bool,
}

impl Person {
    pub fn new(user: &'static str, password: &'static str, could_bind: bool) -> Self {
        Self { user, password, could_bind, scram: None, proved: false }
    }
}

impl Conversation for Person {
    async fn ask(&mut self, mut request: &[u8]) -> std::io::Result<Bytes> {
        let mut message = BytesMut::new();
        match request.get_i32() {
            3 => frontend::password_message(self.password.as_bytes(), &mut message)?,
            5 => {
                let salt = request.try_into().unwrap();
                let hash = md5_hash(self.user.as_bytes(), self.password.as_bytes(), salt);
                frontend::password_message(hash.as_bytes(), &mut message)?;
            }
            10 => {
                assert_eq!(request, b"SCRAM-SHA-256\0\0");
                let binding = if self.could_bind {
                    ChannelBinding::unrequested()
                } else {
                    ChannelBinding::unsupported()
                };
                let scram = ScramSha256::new(self.password.as_bytes(), binding);
                frontend::sasl_initial_response("SCRAM-SHA-256", scram.message(), &mut message)?;
                self.scram = Some(scram);
            }
            11 => {
                let scram = self.scram.as_mut().unwrap();
                scram.update(request)?;
                frontend::sasl_response(scram.message(), &mut message)?;
            }
            other => panic!("request {other}"),
        }
        Ok(message.freeze().slice(5..))
    }

    async fn tell(&mut self, mut message: &[u8]) -> std::io::Result<()> {
        assert_eq!(message.get_i32(), 12);
        self.scram.take().unwrap().finish(message)?;
        self.proved = true;
        Ok(())
    }
}
