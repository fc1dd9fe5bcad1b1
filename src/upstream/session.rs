//! From a connected socket to a pinned session.
//!
//! Invariant: an [`Established`] stands at its first ReadyForQuery, idle, with every pin confirmed by
//! the server.

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::sqlstate::SqlState;
use crate::upstream::auth::{Conversation, Login, authenticate};
use crate::upstream::dial::Transport;
use crate::upstream::error::{Failure, ServerError, Stage};
use crate::upstream::greeting::{Greeting, backend_key_data, first_column, parameter_status};
use crate::upstream::pin::{Opening, Pins};

/// Parameters that are kept of one session.
const MAX_PARAMETERS: usize = 128;

pub(super) struct Established<S> {
    pub(super) stream: S,
    pub(super) parameters: Vec<(String, String)>,
    pub(super) process: i32,
    pub(super) key: Bytes,
    pub(super) notices: Vec<Bytes>,
    pub(super) leftover: BytesMut,
}

/// `asked` is set when the server asked for proof.
pub(super) async fn establish<S, C>(
    stream: S,
    transport: &Transport,
    startup: &[u8],
    opening: &Opening,
    login: &mut Login<'_, C>,
    deadline: Instant,
    asked: &mut bool,
) -> Result<Established<S>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    C: Conversation,
{
    let mut greeting = Greeting::new(stream, deadline);
    let mut notices = Vec::new();
    let outcome = start(&mut greeting, transport, startup, opening, login, &mut notices).await;
    *asked |= greeting.asked;
    let (parameters, (process, key)) = outcome.map_err(|failure| match failure {
        Failure::Server(error) => {
            let relayed = matches!(login, Login::Relayed { .. });
            Failure::Server(judge(error, opening, relayed))
        }
        other => other,
    })?;
    let (stream, leftover) = greeting.finish();
    Ok(Established { stream, parameters, process, key, notices, leftover })
}

type Started = (Vec<(String, String)>, (i32, Bytes));

async fn start<S, C>(
    greeting: &mut Greeting<S>,
    transport: &Transport,
    startup: &[u8],
    opening: &Opening,
    login: &mut Login<'_, C>,
    notices: &mut Vec<Bytes>,
) -> Result<Started, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    C: Conversation,
{
    greeting.send(startup).await?;
    authenticate(greeting, transport, login, notices).await?;
    let mut parameters = Vec::new();
    let mut key = None;
    loop {
        let message = greeting.next(notices).await?;
        let body = message.body();
        match message.kind() {
            b'S' => report(&mut parameters, &body)?,
            b'K' => {
                let data = backend_key_data(&body).ok_or(Failure::Nonsense("a malformed BackendKeyData"))?;
                key = Some(data);
            }
            b'Z' => {
                ready(&body)?;
                break;
            }
            _ => return Err(Failure::Nonsense("a message that has no place before ReadyForQuery")),
        }
    }
    let pins = Pins::new(opening.mode);
    // Servers before PostgreSQL 14 do not report default_transaction_read_only.
    for (setting, wanted) in pins.check(&parameters)? {
        let found = show(greeting, setting, &mut parameters, notices).await?;
        if found.as_deref() != Some(wanted) {
            return Err(Failure::Pin { setting, wanted, found });
        }
        parameters.push((setting.to_owned(), wanted.to_owned()));
    }
    pins.check(&parameters)?;
    // A server without a key for the session cannot be asked to cancel; PostgreSQL always sends one.
    let key = key.ok_or(Failure::Nonsense("no BackendKeyData"))?;
    Ok((parameters, key))
}

/// Asks for one setting by SHOW, which no search_path can bend.
async fn show<S>(
    greeting: &mut Greeting<S>,
    setting: &'static str,
    parameters: &mut Vec<(String, String)>,
    notices: &mut Vec<Bytes>,
) -> Result<Option<String>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    answer_of(greeting, &format!("SHOW {setting}"), parameters, notices, first_column).await
}

/// The answer to a query of the gateway's own, of one row, on a session that is idle.
pub(super) async fn answer_of<S, T>(
    greeting: &mut Greeting<S>,
    text: &str,
    parameters: &mut Vec<(String, String)>,
    notices: &mut Vec<Bytes>,
    read: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut query = BytesMut::new();
    frontend::query(text, &mut query).map_err(|error| Failure::Broken(Stage::Starting, error))?;
    greeting.send(&query).await?;
    let mut found = None;
    loop {
        let message = greeting.next(notices).await?;
        let body = message.body();
        match message.kind() {
            b'T' | b'C' => {}
            b'D' => found = read(&body),
            b'S' => report(parameters, &body)?,
            b'Z' => {
                ready(&body)?;
                return Ok(found);
            }
            _ => return Err(Failure::Nonsense("a message that has no place in the answer to a question")),
        }
    }
}

/// Takes a ParameterStatus in; a later value of the same parameter replaces an earlier one.
fn report(parameters: &mut Vec<(String, String)>, body: &[u8]) -> Result<(), Failure> {
    let (name, value) = parameter_status(body).ok_or(Failure::Nonsense("a malformed ParameterStatus"))?;
    if let Some(known) = parameters.iter_mut().find(|(known, _)| *known == name) {
        known.1 = value;
    } else if parameters.len() < MAX_PARAMETERS {
        parameters.push((name, value));
    } else {
        return Err(Failure::Nonsense("more parameters than any server has"));
    }
    Ok(())
}

fn ready(body: &[u8]) -> Result<(), Failure> {
    match body {
        b"I" => Ok(()),
        _ => Err(Failure::Nonsense("a new session that is not idle")),
    }
}

/// Decides what of a server's error the client may see.
fn judge(mut error: ServerError, opening: &Opening, relayed: bool) -> ServerError {
    match error.stage {
        Stage::Authentication => error.relayed = relayed,
        // A value that the client chose, such as an unknown time zone, is the client's to mend.
        Stage::Starting => {
            // The server writes names its own way, such as TimeZone.
            let message = error.message.to_ascii_lowercase();
            let names_setting = opening
                .settings
                .iter()
                .any(|(name, _)| message.contains(&format!("\"{}\"", name.to_ascii_lowercase())));
            error.about_setting = match error.sqlstate.as_str() {
                "22023" => Some(SqlState::INVALID_PARAMETER_VALUE),
                "42704" => Some(SqlState::UNDEFINED_OBJECT),
                "42501" => Some(SqlState::INSUFFICIENT_PRIVILEGE),
                _ => None,
            }
            .filter(|_| names_setting);
        }
        Stage::Resolving | Stage::Connecting | Stage::Tls | Stage::Cancelling => {}
    }
    error
}

#[cfg(test)]
mod tests;
