//! Proving to a source who we are, or letting the client prove it.
//!
//! Invariant: a password leaves in clear text only where nobody on the way can read along, and a
//! SCRAM exchange counts only when the server, too, has proved that it knows the password.

use std::future::Future;
use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::config::{self, Host, Secret, SecretFile, TlsMode};
use crate::upstream::dial::Transport;
use crate::upstream::error::{Failure, Stage};
use crate::upstream::greeting::{Greeting, MAX_MESSAGE, take_cstr};

/// Questions of one server; SCRAM takes two.
const MAX_QUESTIONS: usize = 8;

/// The client's side of an authentication that is passed through.
///
/// The caller bounds how long the client may take; the source's waits are bounded without it.
pub trait Conversation: Send {
    /// Hands the client an authentication request (the body of an `R` message) and returns the body
    /// of the `p` message that it answers with.
    fn ask(&mut self, request: &[u8]) -> impl Future<Output = io::Result<Bytes>> + Send;

    /// Hands the client an authentication message (the body of an `R` message) that needs no answer.
    /// AuthenticationOk is not among them: it is the caller's to send when the session is open.
    fn tell(&mut self, message: &[u8]) -> impl Future<Output = io::Result<()>> + Send;
}

/// Nobody to ask: the gateway's own login.
pub(super) enum Nobody {}

impl Conversation for Nobody {
    async fn ask(&mut self, _: &[u8]) -> io::Result<Bytes> {
        match *self {}
    }

    async fn tell(&mut self, _: &[u8]) -> io::Result<()> {
        match *self {}
    }
}

/// Who logs in.
pub(super) enum Login<'a, C> {
    Own { user: &'a str, password: Option<&'a SecretFile> },
    Relayed { user: &'a str, conversation: &'a mut C },
}

impl<C> Login<'_, C> {
    pub(super) fn user(&self) -> &str {
        match self {
            Login::Own { user, .. } | Login::Relayed { user, .. } => user,
        }
    }
}

/// An Authentication message (protocol chapter 54.7).
enum Request {
    Ok,
    ClearText,
    Md5([u8; 4]),
    Sasl(Vec<String>),
    SaslContinue(Bytes),
    SaslFinal(Bytes),
}

fn request(body: &Bytes) -> Result<Request, Failure> {
    let cut = Failure::Nonsense("an authentication message that is cut short");
    let Some(code) = body.get(..4).and_then(|code| code.try_into().ok()).map(i32::from_be_bytes) else {
        return Err(cut);
    };
    let data = body.slice(4..);
    Ok(match code {
        0 => Request::Ok,
        3 => Request::ClearText,
        5 => Request::Md5(data.as_ref().try_into().map_err(|_| cut)?),
        10 => {
            let mut rest = &data[..];
            let mut mechanisms = Vec::new();
            loop {
                match take_cstr(&mut rest) {
                    None => return Err(cut),
                    Some([]) => break,
                    Some(name) => mechanisms.push(String::from_utf8_lossy(name).into_owned()),
                }
            }
            Request::Sasl(mechanisms)
        }
        11 => Request::SaslContinue(data),
        12 => Request::SaslFinal(data),
        2 => return Err(Failure::UnsupportedAuthentication("Kerberos V5")),
        6 => return Err(Failure::UnsupportedAuthentication("SCM credentials")),
        7 | 8 => return Err(Failure::UnsupportedAuthentication("GSSAPI")),
        9 => return Err(Failure::UnsupportedAuthentication("SSPI")),
        _ => return Err(Failure::UnsupportedAuthentication("an unknown authentication method")),
    })
}

/// From the StartupMessage sent to AuthenticationOk.
pub(super) async fn authenticate<S, C>(
    greeting: &mut Greeting<S>,
    transport: &Transport,
    login: &mut Login<'_, C>,
    notices: &mut Vec<Bytes>,
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    C: Conversation,
{
    let mut scram: Option<ScramSha256> = None;
    // Once SCRAM has begun, only the server's own proof ends it.
    let mut unproved = false;
    for _ in 0..MAX_QUESTIONS {
        let message = greeting.next(notices).await?;
        if message.kind() != b'R' {
            return Err(Failure::Nonsense("something else where an authentication message is due"));
        }
        let body = message.body();
        let request = request(&body)?;
        if matches!(request, Request::Ok) {
            if unproved {
                return Err(Failure::Nonsense("it ends a SCRAM exchange without its own proof"));
            }
            greeting.stage = Stage::Starting;
            return Ok(());
        }
        if matches!(request, Request::ClearText | Request::Md5(_) | Request::Sasl(_)) && greeting.asked {
            // Otherwise a server that failed at SCRAM could go on to ask for the password itself.
            return Err(Failure::Nonsense("it asks by a second method"));
        }
        greeting.asked = true;
        if matches!(request, Request::ClearText) && !transport.confidential {
            return Err(Failure::ClearText);
        }
        match login {
            Login::Relayed { conversation, .. } => {
                relay(greeting, *conversation, &request, &body).await?;
            }
            Login::Own { user, password } => {
                let mut answer = BytesMut::new();
                let unusable = |error: io::Error| Failure::Scram(error);
                match request {
                    Request::ClearText => {
                        frontend::password_message(read(*password)?.expose().as_bytes(), &mut answer)
                            .map_err(unusable)?;
                    }
                    Request::Md5(salt) => {
                        let hash = md5_hash(user.as_bytes(), read(*password)?.expose().as_bytes(), salt);
                        frontend::password_message(hash.as_bytes(), &mut answer).map_err(unusable)?;
                    }
                    Request::Sasl(mechanisms) => {
                        let (mechanism, binding) = mechanism(&mechanisms, transport)?;
                        let exchange = ScramSha256::new(read(*password)?.expose().as_bytes(), binding);
                        frontend::sasl_initial_response(mechanism, exchange.message(), &mut answer)
                            .map_err(unusable)?;
                        scram = Some(exchange);
                        unproved = true;
                    }
                    Request::SaslContinue(data) => {
                        let exchange =
                            scram.as_mut().ok_or(Failure::Nonsense("a SCRAM answer to no question"))?;
                        exchange.update(&data).map_err(Failure::Scram)?;
                        frontend::sasl_response(exchange.message(), &mut answer).map_err(unusable)?;
                    }
                    Request::SaslFinal(data) => {
                        let mut exchange =
                            scram.take().ok_or(Failure::Nonsense("a SCRAM answer to no question"))?;
                        exchange.finish(&data).map_err(Failure::Scram)?;
                        unproved = false;
                    }
                    Request::Ok => {}
                }
                if !answer.is_empty() {
                    greeting.send(&answer).await?;
                }
            }
        }
    }
    Err(Failure::Nonsense("more authentication messages than any method has"))
}

/// Reads the password as it is now, so that a rotated one counts.
fn read(password: Option<&SecretFile>) -> Result<Secret, Failure> {
    let file = password.ok_or(Failure::NoPassword)?;
    file.read().map_err(|error| Failure::PasswordFile { path: file.path().to_owned(), error })
}

/// The mechanism to use and what it is bound to (RFC 5802, section 6).
fn mechanism(offered: &[String], transport: &Transport) -> Result<(&'static str, ChannelBinding), Failure> {
    let offers = |name: &str| offered.iter().any(|mechanism| mechanism == name);
    match &transport.end_point {
        Some(end_point) if offers(SCRAM_SHA_256_PLUS) => {
            Ok((SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(end_point.clone())))
        }
        // Tells the server that we could have bound, so that it notices when its offer was cut out.
        Some(_) if offers(SCRAM_SHA_256) => Ok((SCRAM_SHA_256, ChannelBinding::unrequested())),
        None if offers(SCRAM_SHA_256) => Ok((SCRAM_SHA_256, ChannelBinding::unsupported())),
        _ => Err(Failure::UnsupportedAuthentication("a SASL mechanism other than SCRAM-SHA-256")),
    }
}

async fn relay<S, C>(
    greeting: &mut Greeting<S>,
    conversation: &mut C,
    request: &Request,
    body: &[u8],
) -> Result<(), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    C: Conversation,
{
    let began = Instant::now();
    let offer;
    let answer = match request {
        Request::SaslFinal(_) => {
            conversation.tell(body).await.map_err(Failure::Conversation)?;
            return Ok(());
        }
        Request::Sasl(mechanisms) => {
            offer = offer_without_binding(mechanisms)?;
            conversation.ask(&offer).await
        }
        _ => conversation.ask(body).await,
    }
    .map_err(Failure::Conversation)?;
    // The client's own time is not the source's.
    greeting.deadline += began.elapsed();
    let length = answer.len() + 4;
    let Some(length) = i32::try_from(length).ok().filter(|_| length <= MAX_MESSAGE) else {
        return Err(Failure::Conversation(io::Error::new(io::ErrorKind::InvalidData, "too long an answer")));
    };
    let mut message = BytesMut::with_capacity(answer.len() + 5);
    message.put_u8(b'p');
    message.put_i32(length);
    message.put_slice(&answer);
    greeting.send(&message).await
}

/// AuthenticationSASL with SCRAM-SHA-256 alone: channel binding ends at the gateway, and libpq
/// breaks off when it is offered on a connection without TLS.
fn offer_without_binding(mechanisms: &[String]) -> Result<Vec<u8>, Failure> {
    if !mechanisms.iter().any(|mechanism| mechanism == SCRAM_SHA_256) {
        return Err(Failure::UnsupportedAuthentication("a SASL mechanism other than SCRAM-SHA-256"));
    }
    let mut offer = 10i32.to_be_bytes().to_vec();
    offer.extend_from_slice(SCRAM_SHA_256.as_bytes());
    offer.extend_from_slice(&[0, 0]);
    Ok(offer)
}

/// Whether the client's own SCRAM exchange gets through to a source; md5 and clear text do always.
///
/// A client that can bind to its TLS channel says so in its proof. Where both legs use TLS, the
/// source either wants the binding to its own certificate, which the client never saw, or takes
/// the missing offer for an attack. Only clients with channel binding switched off get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelayFit {
    /// At most one leg uses TLS.
    Works,
    /// `prefer`: works unless the source offers TLS.
    UnlessSourceOffersTls,
    /// Both legs use TLS: only for clients that do not bind (`channel_binding=disable`).
    OnlyWithoutChannelBinding,
}

/// Judges `method = "relay"` for one source; `client_tls`: clients may reach the gateway by TLS.
pub fn relay_works(client_tls: bool, source: &config::Source) -> RelayFit {
    let only_unix = source.hosts.iter().all(|host| matches!(host, Host::Unix { .. }));
    if !client_tls || only_unix {
        return RelayFit::Works;
    }
    match source.tls.mode {
        TlsMode::Disable => RelayFit::Works,
        TlsMode::Prefer => RelayFit::UnlessSourceOffersTls,
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => RelayFit::OnlyWithoutChannelBinding,
    }
}
