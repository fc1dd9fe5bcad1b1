//! Clients that read all the time and check each answer.
//!
//! Invariant: what a client asks for names the client and the question, so that an answer of anybody else, of an
//! earlier question, out of order or cut short is known by its content; an error is kept with its SQLSTATE, and a client
//! that waits without an end is a wrong answer too.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use sha2::Digest;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, Statement};

/// Whoever waits longer for anything hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two questions of one client, so that a few dozen clients leave a small machine room to work.
const PAUSE: Duration = Duration::from_millis(3);
const FIRST_BACK_OFF: Duration = Duration::from_millis(20);
const LONGEST_BACK_OFF: Duration = Duration::from_millis(500);
/// Rows of most answers, and of the long one among them.
const FEW: u32 = 30;
const MANY: u32 = 1500;

/// Where and how to connect.
#[derive(Clone)]
pub struct Door {
    pub address: SocketAddr,
    pub user: &'static str,
    pub password: &'static str,
    pub database: &'static str,
    pub tls: Option<Arc<ClientConfig>>,
}

/// A session, and the task that drives it.
pub struct Session {
    pub client: Client,
    connection: JoinHandle<Result<(), tokio_postgres::Error>>,
    /// The gateway's, on TLS.
    pub certificate: Option<CertificateDer<'static>>,
}

/// Why there is no good answer.
#[derive(Debug)]
pub enum Trouble {
    /// It says that it is somebody else's, or not whole, or it never came.
    Wrong(String),
    Failed(tokio_postgres::Error),
    Unconnected(std::io::Error),
}

impl From<tokio_postgres::Error> for Trouble {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        Self::Unconnected(error)
    }
}

fn wrong<T>(text: impl Into<String>) -> Result<T, Trouble> {
    Err(Trouble::Wrong(text.into()))
}

async fn bounded<T>(what: &str, work: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(outcome) => outcome,
        Err(_) => wrong(format!("{what}: no answer and no error within {PATIENCE:?}")),
    }
}

/// SQLSTATE; nothing where the server did not say why.
fn state(error: &tokio_postgres::Error) -> Option<String> {
    error.as_db_error().map(|error| error.code().code().to_owned())
}

impl Door {
    pub async fn open(&self) -> Result<Session, Trouble> {
        let mut stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let mut config = tokio_postgres::Config::new();
        config.user(self.user).password(self.password).dbname(self.database);
        let Some(tls) = &self.tls else {
            let (client, connection) = config.connect_raw(stream, NoTls).await?;
            return Ok(Session { client, connection: tokio::spawn(connection), certificate: None });
        };
        stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
        if stream.read_u8().await? != b'S' {
            return wrong("the gateway declines TLS");
        }
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(tls)).connect(name, stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
        config.ssl_mode(tokio_postgres::config::SslMode::Disable);
        let (client, connection) = config.connect_raw(stream, NoTls).await?;
        Ok(Session { client, connection: tokio::spawn(connection), certificate })
    }
}

impl Session {
    /// What the gateway said last, when the session has gone.
    async fn last_word(self) -> String {
        drop(self.client);
        match tokio::time::timeout(Duration::from_secs(10), self.connection).await {
            Ok(Ok(Err(error))) => state(&error).unwrap_or_else(|| "closed".to_owned()),
            _ => "closed".to_owned(),
        }
    }

    /// Ends it as a driver does, and waits until it has ended.
    pub async fn end(self) {
        drop(self.client);
        let _ = tokio::time::timeout(PATIENCE, self.connection).await;
    }
}

/// What an answer is about.
#[derive(Clone, Copy, Debug)]
struct Question {
    client: u32,
    turn: u32,
    rows: u32,
}

/// With parameters: client, turn, rows. Each client's text is another one, whatever its driver calls it.
fn by_parameters(client: u32) -> String {
    format!(
        "SELECT $1::int AS client, $2::int AS turn, g, \
         encode(sha256(convert_to('{client}/' || $2::int::text || '/' || g::text, 'UTF8')), 'hex') AS seal \
         FROM generate_series(1, $3::int) AS g ORDER BY g"
    )
}

/// Runs for hours unless somebody stops it.
const ENDLESS: &str =
    "SELECT count(*) FROM generate_series(1, 1000000) AS a, generate_series(1, 1000000) AS b";

impl Question {
    fn text(self) -> String {
        let Self { client, turn, rows } = self;
        format!(
            "SELECT {client} AS client, {turn} AS turn, g, \
             encode(sha256(convert_to('{client}/{turn}/' || g::text, 'UTF8')), 'hex') AS seal \
             FROM generate_series(1, {rows}) AS g ORDER BY g"
        )
    }

    fn seal(self, row: u32) -> String {
        let mut text = String::with_capacity(64);
        for byte in sha2::Sha256::digest(format!("{}/{}/{row}", self.client, self.turn)) {
            let _ = write!(text, "{byte:02x}");
        }
        text
    }

    fn row(self, row: u32) -> [String; 4] {
        [self.client.to_string(), self.turn.to_string(), row.to_string(), self.seal(row)]
    }

    /// Each row in its place; the first is number `first`.
    fn check_texts(self, first: u32, rows: &[Vec<Option<String>>]) -> Result<(), Trouble> {
        for (number, row) in (first..).zip(rows) {
            let wanted = self.row(number);
            if !row.iter().map(Option::as_deref).eq(wanted.iter().map(|value| Some(value.as_str()))) {
                return wrong(format!("row {number} of {self:?} is {row:?}, not {wanted:?}"));
            }
        }
        Ok(())
    }

    fn check_rows(self, first: u32, rows: &[tokio_postgres::Row]) -> Result<(), Trouble> {
        for (number, row) in (first..).zip(rows) {
            let got = (row.try_get::<_, i32>(0)?, row.try_get::<_, i32>(1)?, row.try_get::<_, i32>(2)?);
            let seal: String = row.try_get(3)?;
            let wanted = (self.client as i32, self.turn as i32, number as i32);
            if got != wanted || seal != self.seal(number) {
                return wrong(format!("row {number} of {self:?} is {got:?} {seal}"));
            }
        }
        Ok(())
    }

    fn check_count(self, count: usize) -> Result<(), Trouble> {
        if count != self.rows as usize {
            return wrong(format!("{count} rows of {self:?}, and no error"));
        }
        Ok(())
    }

    async fn simple(self, client: &Client, sql: &str, first: u32, wanted: u32) -> Result<(), Trouble> {
        let rows = texts(&client.simple_query(sql).await?);
        self.check_texts(first, &rows)?;
        Self { rows: wanted, ..self }.check_count(rows.len())
    }

    async fn extended(self, client: &Client, statement: Option<&Statement>) -> Result<(), Trouble> {
        let (asker, turn, rows) = (self.client as i32, self.turn as i32, self.rows as i32);
        let rows = match statement {
            Some(statement) => client.query(statement, &[&asker, &turn, &rows]).await?,
            None => client.query(&by_parameters(self.client), &[&asker, &turn, &rows]).await?,
        };
        self.check_rows(1, &rows)?;
        self.check_count(rows.len())
    }

    /// Fetched in portions of a portal.
    async fn portal(self, client: &mut Client) -> Result<(), Trouble> {
        let (asker, turn, wanted) = (self.client as i32, self.turn as i32, self.rows as i32);
        let transaction = client.build_transaction().read_only(true).start().await?;
        let portal = transaction.bind(&by_parameters(self.client), &[&asker, &turn, &wanted]).await?;
        let mut seen = 0;
        loop {
            let rows = transaction.query_portal(&portal, 11).await?;
            self.check_rows(seen + 1, &rows)?;
            seen += rows.len() as u32;
            if rows.len() < 11 {
                break;
            }
        }
        self.check_count(seen as usize)?;
        Ok(transaction.commit().await?)
    }

    async fn cursor(self, client: &Client) -> Result<(), Trouble> {
        client.batch_execute(&format!("BEGIN; DECLARE c CURSOR FOR {}", self.text())).await?;
        let half = self.rows / 2;
        self.simple(client, &format!("FETCH {half} FROM c"), 1, half).await?;
        self.simple(client, "FETCH ALL FROM c", half + 1, self.rows - half).await?;
        Ok(client.batch_execute("CLOSE c; COMMIT").await?)
    }

    /// Both reads are of one transaction, which has one time.
    async fn transaction(self, client: &Client) -> Result<(), Trouble> {
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ").await?;
        let time = "SELECT extract(epoch FROM now())::text";
        let began = texts(&client.simple_query(time).await?);
        self.extended(client, None).await?;
        self.simple(client, &self.text(), 1, self.rows).await?;
        let now = texts(&client.simple_query(time).await?);
        client.batch_execute("COMMIT").await?;
        if began != now || began.len() != 1 {
            return wrong(format!("one transaction, and two times: {began:?}, {now:?}"));
        }
        Ok(())
    }

    /// By SQL, under a name that all clients use for texts of their own.
    async fn prepared_by_sql(self, client: &Client, fresh: bool) -> Result<(), Trouble> {
        if fresh {
            client
                .batch_execute(&format!("PREPARE mine (int, int, int) AS {}", by_parameters(self.client)))
                .await?;
        }
        let execute = format!("EXECUTE mine ({}, {}, {})", self.client, self.turn, self.rows);
        self.simple(client, &execute, 1, self.rows).await
    }

    /// Its own statement ends, and nobody else's.
    async fn cancelled(self, client: &Client, gateway: SocketAddr) -> Result<(), Trouble> {
        let token = client.cancel_token();
        let query = format!("{ENDLESS} /* {self:?} */");
        let mut running = std::pin::pin!(client.simple_query(&query));
        loop {
            tokio::select! {
                ended = &mut running => return match ended {
                    Err(error) if state(&error).as_deref() == Some("57014") => Ok(()),
                    Err(error) => Err(error.into()),
                    Ok(_) => wrong("an endless statement has come to an end"),
                },
                // A cancel that comes before the statement has begun is lost.
                () = tokio::time::sleep(Duration::from_millis(40)) => {
                    // Where nobody hears it, the statement has its own end.
                    let Ok(mut stream) = TcpStream::connect(gateway).await else { continue };
                    if token.cancel_query_raw(&mut stream, NoTls).await.is_ok() {
                        // The gateway closes when the source has it: none is on its way to the next question.
                        let _ = stream.read(&mut [0; 8]).await;
                    }
                }
            }
        }
    }

    async fn copy(self, client: &Client) -> Result<(), Trouble> {
        let stream = client.copy_out(&format!("COPY ({}) TO STDOUT", self.text())).await?;
        let mut stream = std::pin::pin!(stream);
        let mut text = Vec::new();
        while let Some(piece) = stream.next().await {
            text.extend_from_slice(&piece?);
        }
        let text = String::from_utf8_lossy(&text);
        let rows: Vec<Vec<Option<String>>> =
            text.lines().map(|line| line.split('\t').map(|value| Some(value.to_owned())).collect()).collect();
        self.check_texts(1, &rows)?;
        self.check_count(rows.len())
    }

    /// Three at a time, none waiting for another.
    async fn pipeline(self, client: &Client, statement: &Statement) -> Result<(), Trouble> {
        let [two, three] = [1, 2].map(|more| Self { rows: self.rows + more, ..self });
        let (one, two, three) = tokio::join!(
            self.extended(client, Some(statement)),
            two.extended(client, Some(statement)),
            three.extended(client, None)
        );
        one.and(two).and(three)
    }
}

fn texts(messages: &[SimpleQueryMessage]) -> Vec<Vec<Option<String>>> {
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    rows.map(|row| (0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect()).collect()
}

/// How a load behaves.
#[derive(Clone, Copy, Debug)]
pub struct Habits {
    pub clients: u32,
    /// Every other client says goodbye after so many questions and comes anew; 0: nobody does.
    pub churn: u32,
}

impl Default for Habits {
    fn default() -> Self {
        Self { clients: 9, churn: 12 }
    }
}

/// What clients have met so far.
#[derive(Default)]
struct Log {
    /// Good answers of each client.
    good: Vec<AtomicU64>,
    errors: Mutex<BTreeMap<String, u64>>,
    wrong: Mutex<Vec<String>>,
    certificates: Mutex<BTreeMap<u32, CertificateDer<'static>>>,
}

/// Clients that read until they are stopped.
pub struct Load {
    log: Arc<Log>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Load {
    pub fn start(door: &Door, habits: Habits) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("load")
            .enable_all()
            .build()
            .expect("a runtime starts");
        let good = (0..habits.clients).map(|_| AtomicU64::new(0)).collect();
        let log = Arc::new(Log { good, ..Log::default() });
        let (stop, stopped) = watch::channel(false);
        let tasks = (0..habits.clients)
            .map(|number| runtime.spawn(run(number, door.clone(), habits, Arc::clone(&log), stopped.clone())))
            .collect();
        Self { log, stop, tasks, runtime: Some(runtime) }
    }

    /// Errors so far, with how often each came.
    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.log.errors.lock().unwrap().clone()
    }

    pub fn error_count(&self) -> u64 {
        self.log.errors.lock().unwrap().values().sum()
    }

    pub fn good_count(&self) -> u64 {
        self.log.good.iter().map(|good| good.load(Ordering::SeqCst)).sum()
    }

    /// The certificate that each client was shown last.
    pub fn certificates(&self) -> BTreeMap<u32, CertificateDer<'static>> {
        self.log.certificates.lock().unwrap().clone()
    }

    /// Panics when an answer was wrong.
    pub fn check(&self) {
        let wrong = self.log.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{} wrong answers:\n{}", wrong.len(), wrong.join("\n"));
    }

    /// Waits until each client has had so many more good answers; how long that took.
    pub fn wait_for_each(&self, more: u64) -> Duration {
        let began = Instant::now();
        let goals: Vec<u64> = self.log.good.iter().map(|good| good.load(Ordering::SeqCst) + more).collect();
        self.wait_until("every client has good answers again", |load| {
            load.log.good.iter().zip(&goals).all(|(good, goal)| good.load(Ordering::SeqCst) >= *goal)
        });
        began.elapsed()
    }

    pub fn wait_until(&self, what: &str, mut reached: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(self) {
            self.check();
            let left: Vec<u64> = self.log.good.iter().map(|good| good.load(Ordering::SeqCst)).collect();
            assert!(
                Instant::now() < deadline,
                "never: {what}; good answers {left:?}, errors {:?}",
                self.errors()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Clients finish what they ask, say goodbye and go.
    pub fn end(mut self) {
        self.stop.send_replace(true);
        let tasks = std::mem::take(&mut self.tasks);
        let runtime = self.runtime.as_ref().expect("the load runs");
        runtime.block_on(async {
            for task in tasks {
                let ended = tokio::time::timeout(PATIENCE * 2, task).await;
                ended.expect("a client does not come to its end").expect("a client panicked");
            }
        });
        self.check();
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Log {
    fn error(&self, state: String) {
        *self.errors.lock().unwrap().entry(state).or_default() += 1;
    }
}

async fn run(number: u32, door: Door, habits: Habits, log: Arc<Log>, mut stop: watch::Receiver<bool>) {
    let mut turn = 0;
    let mut back_off = FIRST_BACK_OFF;
    while !*stop.borrow() {
        let begun = turn;
        let error = match bounded("the start of a session", door.open()).await {
            Ok(session) => {
                if let Some(certificate) = &session.certificate {
                    log.certificates.lock().unwrap().insert(number, certificate.clone());
                }
                live(session, &door, number, &mut turn, habits, &log, &stop).await
            }
            Err(Trouble::Failed(error)) => {
                Some(state(&error).unwrap_or_else(|| "closed at the start".to_owned()))
            }
            Err(Trouble::Unconnected(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                Some("refused".to_owned())
            }
            Err(Trouble::Unconnected(_)) => Some("closed at the start".to_owned()),
            Err(Trouble::Wrong(text)) => {
                log.wrong.lock().unwrap().push(format!("client {number}: {text}"));
                return;
            }
        };
        let Some(error) = error else { continue };
        if error == "wrong" {
            return;
        }
        log.error(error);
        if turn > begun {
            back_off = FIRST_BACK_OFF;
        }
        tokio::select! {
            () = tokio::time::sleep(back_off) => {}
            _ = stop.wait_for(|stop| *stop) => {}
        }
        back_off = (back_off * 2).min(LONGEST_BACK_OFF);
    }
}

/// One session up to an error, which is given; `None`: it was time to go.
async fn live(
    mut session: Session,
    door: &Door,
    number: u32,
    turn: &mut u32,
    habits: Habits,
    log: &Log,
    stop: &watch::Receiver<bool>,
) -> Option<String> {
    let mut statement = None;
    let mut left = if habits.churn > 0 && number % 2 == 1 { habits.churn } else { u32::MAX };
    // Each client has a zone of its own, and nobody else's.
    let zone = format!("Etc/GMT+{}", number % 12);
    let (mut zoned, mut prepared) = (false, false);
    loop {
        if *stop.borrow() || left == 0 {
            session.end().await;
            return None;
        }
        left -= 1;
        *turn += 1;
        let rows = if (*turn + number).is_multiple_of(11) { MANY } else { FEW + *turn % 7 };
        let question = Question { client: number, turn: *turn, rows };
        let client = &mut session.client;
        let kind = (*turn + number) % 11;
        let ask = async {
            if !zoned {
                client.batch_execute(&format!("SET TimeZone TO '{zone}'")).await?;
                zoned = true;
            }
            let fresh = kind == 9 && !std::mem::replace(&mut prepared, true);
            if statement.is_none() && matches!(kind, 2 | 7) {
                statement = Some(client.prepare(&by_parameters(number)).await?);
            }
            match (kind, &statement) {
                (0, _) => question.simple(client, &question.text(), 1, rows).await,
                (1, _) => question.extended(client, None).await,
                (2, Some(_)) => question.extended(client, statement.as_ref()).await,
                (3, _) => question.portal(client).await,
                (4, _) => question.cursor(client).await,
                (5, _) => question.transaction(client).await,
                (6, _) => question.copy(client).await,
                (7, Some(statement)) => question.pipeline(client, statement).await,
                (9, _) => question.prepared_by_sql(client, fresh).await,
                (10, _) => question.cancelled(client, door.address).await,
                _ => {
                    let shown = texts(&client.simple_query("SHOW TimeZone").await?);
                    if shown != [[Some(zone.clone())]] {
                        return wrong(format!("the time zone is {shown:?}, not {zone}"));
                    }
                    Ok(())
                }
            }
        };
        match bounded(&format!("{question:?}, kind {kind}"), ask).await {
            Ok(()) => {
                log.good[number as usize].fetch_add(1, Ordering::SeqCst);
            }
            Err(Trouble::Wrong(text)) => {
                log.wrong.lock().unwrap().push(format!("client {number}, kind {kind}: {text}"));
                return Some("wrong".to_owned());
            }
            Err(Trouble::Failed(error)) => {
                return Some(match state(&error) {
                    Some(state) => state,
                    None if session.client.is_closed() || error.is_closed() => session.last_word().await,
                    // Something that no client can make sense of.
                    None => format!("odd: {error:?}"),
                });
            }
            Err(Trouble::Unconnected(_)) => return Some(session.last_word().await),
        }
        tokio::time::sleep(PAUSE).await;
    }
}
