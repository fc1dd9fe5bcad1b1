//! Servers that misbehave, played over an in-memory pipe.
//!
//! Invariant: no test here opens a socket or waits for real time.

use std::future::Future;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

use super::*;
use crate::config::SecretFile;
use crate::guard::Mode;
use crate::ids::SourceName;
use crate::upstream::auth::Nobody;
use crate::upstream::error::OpenError;
use crate::upstream::greeting::{MAX_BYTES, MAX_MESSAGE};

const TIMEOUT: Duration = Duration::from_secs(5);

fn opening() -> Opening {
    Opening {
        mode: Mode::ReadOnly,
        application_name: "test".to_owned(),
        settings: vec![("TimeZone".to_owned(), "Mars/Olympus".to_owned())],
    }
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.put_u32(body.len() as u32 + 4);
    out.put_slice(body);
    out
}

fn auth(code: i32, data: &[u8]) -> Vec<u8> {
    frame(b'R', &[&code.to_be_bytes(), data].concat())
}

fn status(name: &str, value: &str) -> Vec<u8> {
    frame(b'S', format!("{name}\0{value}\0").as_bytes())
}

fn error(sqlstate: &str, message: &str) -> Vec<u8> {
    frame(b'E', format!("SFATAL\0VFATAL\0C{sqlstate}\0M{message}\0\0").as_bytes())
}

/// All that a well-behaved server of PostgreSQL 14 or later sends when it asks for nothing.
fn good() -> Vec<u8> {
    [
        auth(0, b""),
        status("server_version", "15.0"),
        status("client_encoding", "UTF8"),
        status("standard_conforming_strings", "on"),
        status("default_transaction_read_only", "on"),
        frame(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]),
        frame(b'Z', b"I"),
    ]
    .concat()
}

/// Runs a start against `server`, which gets the pipe after the StartupMessage was read from it.
async fn against_with<C, F>(
    transport: Transport,
    mut login: Login<'_, C>,
    server: impl FnOnce(DuplexStream) -> F,
) -> Result<Established<DuplexStream>, Failure>
where
    C: Conversation,
    F: Future<Output = ()>,
{
    let (near, mut far) = duplex(1 << 16);
    let startup = b"startup";
    let server = async {
        let mut seen = [0; 7];
        far.read_exact(&mut seen).await.unwrap();
        server(far).await;
    };
    let deadline = Instant::now() + TIMEOUT;
    let mut asked = false;
    let opening = opening();
    let client = establish(near, &transport, startup, &opening, &mut login, deadline, &mut asked);
    tokio::pin!(server);
    tokio::pin!(client);
    let mut serving = true;
    loop {
        tokio::select! {
            biased;
            outcome = &mut client => return outcome,
            () = &mut server, if serving => serving = false,
        }
    }
}

fn own<'a>(password: Option<&'a SecretFile>) -> Login<'a, Nobody> {
    Login::Own { user: "reader", password }
}

async fn against(bytes: Vec<u8>) -> Result<Established<DuplexStream>, Failure> {
    against_with(Transport::default(), own(None), |mut far| async move {
        let _ = far.write_all(&bytes).await;
        // Closing comes by dropping.
    })
    .await
}

async fn failure(bytes: Vec<u8>) -> Failure {
    match against(bytes).await {
        Ok(_) => panic!("a session was opened"),
        Err(failure) => failure,
    }
}

fn secret() -> (tempfile::NamedTempFile, SecretFile) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "open sesame\n").unwrap();
    let secret = SecretFile::new(file.path().to_owned());
    (file, secret)
}

/// Reads one message with a type byte.
async fn receive(far: &mut DuplexStream) -> (u8, Vec<u8>) {
    let kind = far.read_u8().await.unwrap();
    let length = far.read_u32().await.unwrap() as usize;
    let mut body = vec![0; length - 4];
    far.read_exact(&mut body).await.unwrap();
    (kind, body)
}

#[tokio::test(start_paused = true)]
async fn a_good_start_gives_a_session() {
    let notice = frame(b'N', b"SWARNING\0C01000\0Mcollation version mismatch\0\0");
    let session = against([good(), notice.clone()].concat()).await.unwrap();
    assert_eq!(session.process, 7);
    assert_eq!(&session.key[..], [1, 2, 3, 4]);
    assert!(session.parameters.contains(&("server_version".to_owned(), "15.0".to_owned())));
    assert_eq!(&session.leftover[..], notice);

    let session = against([notice.clone(), good()].concat()).await.unwrap();
    assert_eq!(session.notices, [Bytes::from(notice)]);
    assert!(session.leftover.is_empty());
}

#[tokio::test(start_paused = true)]
async fn long_cancel_keys_are_taken() {
    let key: Vec<u8> = [&[0, 0, 0, 9][..], &[7; 256]].concat();
    let ready = |key: &[u8]| {
        let mut all = good();
        all.truncate(all.len() - 13 - 6);
        [all, frame(b'K', key), frame(b'Z', b"I")].concat()
    };
    assert_eq!(against(ready(&key)).await.unwrap().key.len(), 256);
    for wrong in [&key[..7], &[&key[..], &[1]].concat()] {
        assert!(matches!(failure(ready(wrong)).await, Failure::Nonsense(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_none_is_told_apart() {
    for bytes in [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        b"SSH-2.0-OpenSSH_9.2\r\n".to_vec(),
        vec![0; 64],
        vec![0xff; 64],
        b"R\xff\xff\xff\xff....".to_vec(),
        b"R\0\0\0\x03....".to_vec(),
        b"R\x7f\xff\xff\xff....".to_vec(),
        [b"R".to_vec(), (MAX_MESSAGE as u32 + 1).to_be_bytes().to_vec()].concat(),
        auth(5, b"abc"),
        auth(10, b"SCRAM-SHA-256"),
        frame(b'R', b"\0\0"),
        frame(b'R', b""),
        frame(b'Z', b"I"),
        [auth(0, b""), frame(b'S', b"no end")].concat(),
        [auth(0, b""), frame(b'Z', b"")].concat(),
        [auth(0, b""), frame(b'D', b"\0\0")].concat(),
        [auth(0, b""), auth(0, b"")].concat(),
    ] {
        let failure = failure(bytes.clone()).await;
        assert!(matches!(failure, Failure::Nonsense(_)), "{bytes:?}: {failure}");
        assert!(failure.fails_over());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_given_up() {
    let began = Instant::now();
    let outcome = against_with(Transport::default(), own(None), |far| async move {
        let _far = far;
        std::future::pending().await
    })
    .await;
    assert!(matches!(outcome.err(), Some(Failure::TimedOut(Stage::Authentication))));
    assert_eq!(began.elapsed(), TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_trickles_is_given_up() {
    let outcome = against_with(Transport::default(), own(None), |mut far| async move {
        for byte in good().into_iter().cycle() {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if far.write_all(&[byte]).await.is_err() {
                break;
            }
        }
    })
    .await;
    assert!(matches!(outcome.err(), Some(Failure::TimedOut(Stage::Starting))));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_floods_is_given_up() {
    let notice = frame(b'N', b"SNOTICE\0C00000\0Mhello\0\0");
    let large = frame(b'N', &vec![b'x'; MAX_MESSAGE - 4]);
    let parameters: Vec<u8> = (0..500).flat_map(|n| status(&format!("p{n}"), "v")).collect();
    for flood in
        [notice.repeat(5000), large.repeat(MAX_BYTES / MAX_MESSAGE + 1), [auth(0, b""), parameters].concat()]
    {
        assert!(matches!(failure(flood).await, Failure::Nonsense(_)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_close_anywhere_is_an_error_and_no_more() {
    let good = good();
    for length in 0..good.len() {
        let failure = failure(good[..length].to_vec()).await;
        assert!(matches!(failure, Failure::Closed(_)), "after {length} bytes: {failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_methods_are_refused() {
    for (code, data) in
        [(2, &b""[..]), (6, b""), (7, b""), (8, b"token"), (9, b""), (77, b""), (10, b"OAUTHBEARER\0\0")]
    {
        let failure = failure(auth(code, data)).await;
        assert!(matches!(failure, Failure::UnsupportedAuthentication(_)), "{code}: {failure}");
        assert!(!failure.fails_over());
    }
    assert!(matches!(failure(auth(5, b"salt")).await, Failure::NoPassword));
}

#[tokio::test(start_paused = true)]
async fn clear_text_needs_a_connection_that_nobody_reads() {
    let (_file, secret) = secret();
    let outcome = against_with(Transport::default(), own(Some(&secret)), |mut far| async move {
        far.write_all(&auth(3, b"")).await.unwrap();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
    })
    .await;
    assert!(matches!(outcome.err(), Some(Failure::ClearText)));

    let transport = Transport { confidential: true, ..Transport::default() };
    let outcome = against_with(transport, own(Some(&secret)), |mut far| async move {
        far.write_all(&auth(3, b"")).await.unwrap();
        assert_eq!(receive(&mut far).await, (b'p', b"open sesame\0".to_vec()));
        far.write_all(&good()).await.unwrap();
    })
    .await;
    assert!(outcome.is_ok());
}

/// Plays SCRAM up to the client's proof and ends with `last`.
async fn scram_that_ends_with(last: Vec<u8>, iterations: &str) -> Failure {
    let (_file, secret) = secret();
    let outcome = against_with(Transport::default(), own(Some(&secret)), |mut far| async move {
        far.write_all(&auth(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")).await.unwrap();
        let (_, body) = receive(&mut far).await;
        let text = String::from_utf8_lossy(&body).into_owned();
        assert!(text.starts_with("SCRAM-SHA-256\0"), "{text:?}");
        assert!(text.contains("n,,"), "{text:?}");
        let (_, nonce) = text.split_once("r=").unwrap();
        let first = format!("r={nonce}more,s=c2FsdHNhbHQ=,i={iterations}");
        far.write_all(&auth(11, first.as_bytes())).await.unwrap();
        if iterations == "4096" {
            receive(&mut far).await;
        }
        let _ = far.write_all(&last).await;
    })
    .await;
    outcome.err().unwrap()
}

#[tokio::test(start_paused = true)]
async fn scram_counts_only_with_the_servers_own_proof() {
    let failure = scram_that_ends_with(good(), "4096").await;
    assert!(matches!(failure, Failure::Nonsense(_)), "{failure}");
    let forged = auth(12, b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=");
    let failure = scram_that_ends_with([forged, good()].concat(), "4096").await;
    assert!(matches!(failure, Failure::Scram(_)), "{failure}");
    let failure = scram_that_ends_with(auth(12, b"e=other-error"), "4096").await;
    assert!(matches!(failure, Failure::Scram(_)), "{failure}");
    let failure = scram_that_ends_with(error("28P01", "wrong"), "4096").await;
    assert!(matches!(failure, Failure::Server(_)), "{failure}");
    // An iteration count that would keep a core busy for minutes.
    let failure = scram_that_ends_with(Vec::new(), "2000000000").await;
    assert!(matches!(failure, Failure::Scram(_)), "{failure}");
}

#[tokio::test(start_paused = true)]
async fn a_second_method_is_refused() {
    let (_file, secret) = secret();
    let transport = Transport { confidential: true, ..Transport::default() };
    let outcome = against_with(transport, own(Some(&secret)), |mut far| async move {
        far.write_all(&auth(10, b"SCRAM-SHA-256\0\0")).await.unwrap();
        receive(&mut far).await;
        far.write_all(&auth(3, b"")).await.unwrap();
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"");
    })
    .await;
    assert!(matches!(outcome.err(), Some(Failure::Nonsense(_))));
}

#[tokio::test(start_paused = true)]
async fn endless_questions_are_given_up() {
    let mut script = Script { answers: vec![Bytes::from_static(b"answer"); 100], ..Script::default() };
    let login = Login::Relayed { user: "alice", conversation: &mut script };
    let outcome = against_with(Transport::default(), login, |mut far| async move {
        far.write_all(&auth(10, b"SCRAM-SHA-256\0\0")).await.unwrap();
        while far.write_all(&auth(11, b"more")).await.is_ok() {}
    })
    .await;
    assert!(matches!(outcome.err(), Some(Failure::Nonsense(_))));
    assert!(script.seen.len() < 10);
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_pins_do_not_hold_is_not_used() {
    for (name, value) in [
        ("default_transaction_read_only", "off"),
        ("standard_conforming_strings", "off"),
        ("client_encoding", "SJIS"),
    ] {
        // The last report counts, as with a login trigger that changes a setting.
        let mut all = good();
        all.truncate(all.len() - 6);
        let failure = failure([all, status(name, value), frame(b'Z', b"I")].concat()).await;
        assert!(matches!(failure, Failure::Pin { setting, .. } if setting == name), "{failure}");
        assert!(!failure.fails_over());
    }
    for state in [b"T", b"E"] {
        let mut all = good();
        all.truncate(all.len() - 6);
        let failure = failure([all, frame(b'Z', state)].concat()).await;
        assert!(matches!(failure, Failure::Nonsense(_)), "{failure}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_an_old_server_does_not_report_is_asked() {
    for (answer, holds) in [("on", true), ("off", false)] {
        let outcome = against_with(Transport::default(), own(None), |mut far| async move {
            let start = [
                auth(0, b""),
                status("client_encoding", "UTF8"),
                status("standard_conforming_strings", "on"),
                frame(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]),
                frame(b'Z', b"I"),
            ];
            far.write_all(&start.concat()).await.unwrap();
            assert_eq!(receive(&mut far).await, (b'Q', b"SHOW default_transaction_read_only\0".to_vec()));
            let mut row = BytesMut::new();
            row.put_i16(1);
            row.put_i32(answer.len() as i32);
            row.put_slice(answer.as_bytes());
            let reply = [frame(b'T', b"\0\0"), frame(b'D', &row), frame(b'C', b"SHOW\0"), frame(b'Z', b"I")];
            far.write_all(&reply.concat()).await.unwrap();
        })
        .await;
        match outcome {
            Ok(session) => {
                assert!(holds);
                let asked = ("default_transaction_read_only".to_owned(), "on".to_owned());
                assert!(session.parameters.contains(&asked));
            }
            Err(failure) => {
                assert!(!holds && matches!(failure, Failure::Pin { .. }), "{failure}");
            }
        }
    }
}

fn shown(failure: Failure) -> (String, String) {
    let error = OpenError::one(&SourceName::new("climscore"), "db.example:5432".to_owned(), failure);
    let client = error.client_error();
    (client.sqlstate.to_string(), format!("{} {:?} {:?}", client.message, client.detail, client.hint))
}

#[tokio::test(start_paused = true)]
async fn errors_of_the_server_are_told_in_general_words() {
    for (sqlstate, message, over, words) in [
        (
            "28P01",
            "password authentication failed for user \"reader\"",
            false,
            "authentication at the source",
        ),
        ("28000", "no pg_hba.conf entry for host \"10.0.0.9\"", false, "authentication at the source"),
        ("3D000", "database \"secret_db\" does not exist", false, "the database does not exist there"),
        ("53300", "sorry, too many clients already", true, "too many connections"),
        ("57P03", "the database system is starting up", true, "starting up"),
        ("42501", "permission denied for database \"secret_db\"", false, "it refused the session"),
    ] {
        for start in [Vec::new(), auth(0, b"")] {
            let failure = failure([start, error(sqlstate, message)].concat()).await;
            assert_eq!(failure.fails_over(), over, "{failure}");
            assert!(failure.to_string().contains(message));
            let (code, text) = shown(failure);
            assert_eq!(code, "57P03");
            let named = "source \"climscore\" is not available";
            assert!(text.contains(words) && text.contains(named), "{text}");
            for secret in ["reader", "10.0.0.9", "secret_db", "db.example"] {
                assert!(!text.contains(secret), "{text}");
            }
        }
    }
    // What the client chose is the client's to mend.
    let wrong = "invalid value for parameter \"TimeZone\": \"Mars/Olympus\"";
    let failure = failure([auth(0, b""), error("22023", wrong)].concat()).await;
    assert!(!failure.fails_over());
    assert_eq!(shown(failure), ("22023".to_owned(), format!("{wrong} None None")));
}

#[tokio::test(start_paused = true)]
async fn an_error_cannot_forge_a_line_of_the_log_or_fill_it() {
    let failure = failure(error("28000", &format!("a\nb\x1b[31m{}", "x".repeat(20_000)))).await;
    let text = failure.to_string();
    assert!(text.len() < 600 && !text.contains(['\n', '\x1b']), "{text}");
}

/// A client in a relayed authentication, from a list of answers.
#[derive(Default)]
struct Script {
    answers: Vec<Bytes>,
    seen: Vec<Vec<u8>>,
    takes: Duration,
}

impl Conversation for Script {
    async fn ask(&mut self, request: &[u8]) -> std::io::Result<Bytes> {
        tokio::time::sleep(self.takes).await;
        self.seen.push(request.to_vec());
        if self.answers.is_empty() {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.answers.remove(0))
    }

    async fn tell(&mut self, message: &[u8]) -> std::io::Result<()> {
        self.seen.push(message.to_vec());
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_relayed_login_passes_through_without_channel_binding() {
    let mut script = Script {
        answers: vec![Bytes::from_static(b"first"), Bytes::from_static(b"second")],
        // Longer than the source would be waited for.
        takes: TIMEOUT * 3,
        ..Script::default()
    };
    let login = Login::Relayed { user: "alice", conversation: &mut script };
    let outcome = against_with(Transport::default(), login, |mut far| async move {
        far.write_all(&auth(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")).await.unwrap();
        assert_eq!(receive(&mut far).await, (b'p', b"first".to_vec()));
        far.write_all(&auth(11, b"continue")).await.unwrap();
        assert_eq!(receive(&mut far).await, (b'p', b"second".to_vec()));
        far.write_all(&[auth(12, b"final"), good()].concat()).await.unwrap();
    })
    .await;
    assert!(outcome.is_ok());
    let body = |code: i32, data: &[u8]| [&code.to_be_bytes(), data].concat();
    assert_eq!(script.seen, [body(10, b"SCRAM-SHA-256\0\0"), body(11, b"continue"), body(12, b"final")]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_of_the_source_is_relayed_as_it_is() {
    let mut script = Script { answers: vec![Bytes::from_static(b"wrong")], ..Script::default() };
    let login = Login::Relayed { user: "alice", conversation: &mut script };
    let refusal = error("28P01", "password authentication failed for user \"alice\"");
    let sent = refusal.clone();
    let outcome = against_with(Transport::default(), login, |mut far| async move {
        far.write_all(&auth(5, b"salt")).await.unwrap();
        receive(&mut far).await;
        far.write_all(&sent).await.unwrap();
    })
    .await;
    let error = OpenError::one(&SourceName::new("s"), "h".to_owned(), outcome.err().unwrap());
    assert_eq!(error.relayed().map(|frame| frame.to_vec()), Some(refusal));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_answers_too_much_or_nothing_ends_a_relayed_login() {
    for answers in [vec![Bytes::from(vec![0; MAX_MESSAGE])], Vec::new()] {
        let mut script = Script { answers, ..Script::default() };
        let login = Login::Relayed { user: "alice", conversation: &mut script };
        let outcome = against_with(Transport::default(), login, |mut far| async move {
            far.write_all(&auth(5, b"salt")).await.unwrap();
            let mut rest = Vec::new();
            far.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"");
        })
        .await;
        assert!(matches!(outcome.err(), Some(Failure::Conversation(_))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever comes, in place of a part of a good start or all of it: an answer, and never a panic.
    #[test]
    fn any_bytes_end_in_an_answer(
        at in 0usize..200,
        cut in 0usize..40,
        junk in proptest::collection::vec(any::<u8>(), 0..80),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut bytes = good();
            let at = at.min(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, junk);
            if let Ok(session) = against(bytes).await {
                let read_only = ("default_transaction_read_only".to_owned(), "on".to_owned());
                prop_assert!(session.parameters.contains(&read_only));
            }
            Ok(())
        })?;
    }
}
