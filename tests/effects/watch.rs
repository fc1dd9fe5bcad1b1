//! A scratch server, and everything by which an effect on it can be seen.
//!
//! Invariant: a server that is only read and left alone looks the same; what it changes by itself is switched
//! off where it can be, and left out here with its reason where it cannot.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::Digest;

use crate::raw::{Message, Raw, Whom, message};
use crate::support::fingerprint::{Fingerprint, Observer};
use crate::support::hostile::RAN;
use crate::support::{Options, Postgres, SUPERUSER, SUPERUSER_PASSWORD};

/// The role without rights but SELECT.
pub const READER: &str = "reader";
pub const READER_PASSWORD: &str = "a reader for tests";

/// What the server would do of its own accord, switched off; what would flood its log; what bounds a statement.
const QUIET: &[(&str, &str)] = &[
    ("wal_level", "logical"), // slots can be made, so that one that was made shows
    ("max_prepared_transactions", "10"),
    ("checkpoint_timeout", "1d"),
    ("max_wal_size", "20GB"),
    ("log_statement", "none"),
    ("log_min_duration_statement", "-1"),
    ("log_min_messages", "log"), // what is planted speaks at this level; errors are below it
    ("log_min_error_statement", "panic"),
    ("log_connections", "off"),
    ("log_disconnections", "off"),
    ("log_replication_commands", "off"),
    ("log_checkpoints", "on"),
    ("temp_file_limit", "200MB"),
    ("max_parallel_workers_per_gather", "0"),
    ("max_stack_depth", "2MB"),
];

/// Channels that somebody listens on.
const CHANNELS: &[&str] = &["a", "b", "c", "x", "t", "s", "jobs", "chat", "ch", "test"];

/// Kinds of WAL records that a reader, or nobody, causes; all others are a write's.
const NOISE: &[(&str, &str)] = &[
    ("Standby/RUNNING_XACTS", "the background writer notes who runs, once after other records"),
    ("XLOG/CHECKPOINT_ONLINE", "a checkpoint of the server's own"),
    ("XLOG/FPI_FOR_HINT", "a hint bit on a page, where pages have checksums; it says nothing new"),
    ("Heap2/PRUNE", "dead versions are taken off a page by whoever reads it"),
    ("Heap2/PRUNE_ON_ACCESS", "the same, as version 17 calls it"),
];

/// Below the data folder, what is not looked at.
const OWN_FILES: &[(&str, &str)] = &[
    ("pg_wal", "compared by its position and its records"),
    ("pg_stat_tmp", "statistics on their way"),
    ("pg_stat", "statistics"),
    ("pg_internal.init", "a cache that the next session builds anew"),
    ("pgsql_tmp", "sorts that do not fit into memory; gone with the statement"),
];

pub struct Scratch {
    pub server: Postgres,
    pub version: u32,
    observer: Observer,
    resets: String,
    listeners: Vec<Raw>,
    heard: Vec<String>,
    bystanders: Vec<u32>,
    _busy: Raw,
    _idle: Raw,
    log_mark: usize,
    base: PathBuf,
    out: tempfile::TempDir,
}

impl Scratch {
    /// A server with the databases of `schemas`, frozen, so that reading leaves not even a hint behind.
    /// `{out}` in a schema is a folder that the server may write to.
    pub async fn start(schemas: &[(&str, String)]) -> Self {
        let out = tempfile::Builder::new().prefix("fedgate-out-").tempdir().expect("a folder");
        fs::set_permissions(out.path(), fs::Permissions::from_mode(0o777)).expect("a folder for all");
        let mut options = Options::default();
        for (name, value) in QUIET {
            options = options.setting(name, value);
        }
        let server = Postgres::start(options);
        let number = server.value("postgres", "SELECT current_setting('server_version_num')::int / 10000");
        let version = number.and_then(|number| number.parse().ok()).expect("a version");
        server.execute("postgres", &format!("CREATE ROLE {READER} LOGIN PASSWORD '{READER_PASSWORD}'"));
        for (database, schema) in schemas {
            server.execute("postgres", &format!("CREATE DATABASE {database}"));
            server.execute(database, &schema.replace("{out}", &out.path().display().to_string()));
            server.execute(database, &format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {READER}"));
        }
        if version >= 15 {
            server.execute("postgres", "CREATE EXTENSION pg_walinspect");
        }
        for database in schemas.iter().map(|(name, _)| *name).chain(["postgres", "template1"]) {
            server.execute(database, "VACUUM (FREEZE, ANALYZE)");
        }
        let watched = server.superuser_client("postgres").await;
        let resets = watched
            .query_one(
                "SELECT string_agg(format('SELECT %L || string_agg(stats_reset::text, '' '' ORDER BY stats_reset) FROM pg_catalog.%I', \
                 c.relname, c.relname), ' UNION ALL ') FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid \
                 WHERE c.relnamespace = 'pg_catalog'::regnamespace AND a.attname = 'stats_reset' AND c.relkind = 'v'",
                &[],
            )
            .await
            .unwrap()
            .get(0);
        let observer = Observer::connect(&server).await;
        let whom = superuser(&server, "postgres");
        let mut listeners = Vec::new();
        // A notification stays in its database.
        for (database, _) in schemas {
            let (mut listener, _) = superuser(&server, database).connect();
            for channel in CHANNELS {
                listener.query(&format!("LISTEN {channel}"));
            }
            listeners.push(listener);
        }
        let (idle, _) = reader(&server, "postgres").connect();
        let (mut busy, _) = whom.connect();
        busy.write(&message("Q \"SELECT pg_sleep(1000000)\""));
        let bystanders = vec![idle.pid, busy.pid];
        let base = server.data();
        server.execute("postgres", "CHECKPOINT");
        let log_mark = server.log_mark();
        Self {
            server,
            version,
            observer,
            resets,
            listeners,
            heard: Vec::new(),
            bystanders,
            _busy: busy,
            _idle: idle,
            log_mark,
            base,
            out,
        }
    }

    /// A folder that the server may write to.
    pub fn out(&self) -> &Path {
        self.out.path()
    }

    /// The whole server as it is.
    pub async fn look(&mut self) -> Look {
        let mut print = self.observer.observe().await;
        let at = self.observer.value("SELECT pg_catalog.pg_current_wal_insert_lsn()").await;
        let bystanders = self.bystanders.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
        for (part, sql) in [
            (
                "sessions of others",
                format!(
                    "SELECT string_agg(concat_ws(' ', pid, backend_start, backend_type, query_start, state), E'\\n' ORDER BY pid) \
                     FROM pg_catalog.pg_stat_activity WHERE pid IN ({bystanders}) \
                     OR backend_type NOT IN ('client backend', 'parallel worker')"
                ),
            ),
            ("statistics reset", self.resets.clone()),
            ("configuration loaded", "SELECT pg_catalog.pg_conf_load_time()".to_owned()),
            ("server started", "SELECT pg_catalog.pg_postmaster_start_time()".to_owned()),
            ("last checkpoint", "SELECT checkpoint_lsn || ' ' || checkpoint_time FROM pg_catalog.pg_control_checkpoint()".to_owned()),
            ("settings in force", "SELECT md5(string_agg(name || '=' || setting, E'\\n' ORDER BY name COLLATE \"C\")) FROM pg_catalog.pg_settings".to_owned()),
            (
                "advisory locks held",
                "SELECT string_agg(concat_ws(' ', pid, classid, objid, mode), ' ' ORDER BY pid, objid) FROM pg_catalog.pg_locks \
                 WHERE locktype = 'advisory'".to_owned(),
            ),
            ("notifications waiting", "SELECT pg_catalog.pg_notification_queue_usage()".to_owned()),
            ("snapshots exported", "SELECT count(*) FROM pg_catalog.pg_ls_dir('pg_snapshots')".to_owned()),
            (
                "slots",
                "SELECT string_agg(concat_ws(' ', slot_name, plugin, active, restart_lsn, confirmed_flush_lsn), ' ') \
                 FROM pg_catalog.pg_replication_slots".to_owned(),
            ),
        ] {
            print.add(part, self.observer.value(&sql).await);
        }
        for listener in &mut self.listeners {
            let answers = listener.ask("Q \"SELECT 1\"");
            self.heard.extend(answers.iter().filter(|one| one.kind == b'A').map(Message::full));
        }
        print.add("notifications heard", self.heard.join(" "));
        let planted = self.server.statement_log_since(self.log_mark);
        self.log_mark += planted.len();
        let said: Vec<String> = planted.lines().map(str::to_owned).collect();
        for (path, what) in self.files() {
            print.add(format!("file {}", path.display()), what);
        }
        Look { print, wal: at, said }
    }

    /// What differs, in words; nothing when the server is as it was.
    pub async fn differences(&self, before: &Look, after: &Look) -> Vec<String> {
        let mut found = after.print.difference(&before.print);
        found.extend(after.said.iter().filter(|line| line.contains(RAN)).cloned());
        if before.wal != after.wal {
            let kinds = self.wal(&before.wal, &after.wal).await;
            let writes: Vec<String> = kinds
                .into_iter()
                .filter(|(kind, _)| !NOISE.iter().any(|(noise, _)| noise == kind))
                .map(|(kind, count)| format!("{count} {kind}"))
                .collect();
            if !writes.is_empty() {
                found.push(format!("WAL: {}", writes.join(", ")));
            }
        }
        found
    }

    /// The kinds of records between two positions.
    async fn wal(&self, from: &str, to: &str) -> BTreeMap<String, usize> {
        // What is not flushed yet cannot be read.
        let flushed = "SELECT pg_catalog.pg_current_wal_flush_lsn()";
        while self.observer.value(&format!("SELECT ({flushed}) >= '{to}'")).await != "t" {
            tokio::task::yield_now().await;
        }
        if self.version < 15 {
            return records(&self.base.join("pg_wal"), position(from), position(to));
        }
        let sql = format!(
            "SELECT string_agg(resource_manager || '/' || record_type, ' ') \
             FROM pg_get_wal_records_info('{from}', '{to}') WHERE start_lsn < '{to}'"
        );
        let mut kinds = BTreeMap::new();
        for kind in self.observer.value(&sql).await.split(' ') {
            *kinds.entry(kind.split('+').next().unwrap_or_default().to_owned()).or_default() += 1;
        }
        kinds
    }

    /// Size of what is stored in blocks, contents of everything else.
    fn files(&self) -> Vec<(PathBuf, String)> {
        let mut found = Vec::new();
        walk(&self.base, &self.base, &mut found);
        // The folder of the socket.
        for entry in fs::read_dir(self.server.socket_dir()).into_iter().flatten().flatten() {
            found.push((entry.path(), "is there".to_owned()));
        }
        for entry in fs::read_dir(self.out()).into_iter().flatten().flatten() {
            let meta = entry.metadata().map(|meta| format!("{} {:?}", meta.len(), meta.modified().ok()));
            found.push((PathBuf::from("out").join(entry.file_name()), meta.unwrap_or_default()));
        }
        found
    }
}

fn position(text: &str) -> u64 {
    let (high, low) = text.split_once('/').expect("a position");
    u64::from_str_radix(high, 16).expect("hex") << 32 | u64::from_str_radix(low, 16).expect("hex")
}

/// The kinds of WAL records by their headers, for version 14, which has no function to tell them: pages of 8 KiB with
/// a header each (of 40 bytes where a segment of 16 MiB begins, else 24), records of a length, at multiples of 8.
fn records(folder: &Path, from: u64, to: u64) -> BTreeMap<String, usize> {
    const PAGE: u64 = 8192;
    const SEGMENT: u64 = 16 << 20;
    let mut kinds = BTreeMap::new();
    let mut segment = (u64::MAX, Vec::new());
    let mut at = from;
    while at < to {
        let (mut header, mut length, mut taken) = ([0; 24], 24, 0);
        while taken < length {
            if at % PAGE == 0 {
                at += if at % SEGMENT == 0 { 40 } else { 24 };
            }
            if segment.0 != at / SEGMENT {
                let name = format!("00000001{:08X}{:08X}", at >> 32, (at & 0xffff_ffff) / SEGMENT);
                segment = (at / SEGMENT, fs::read(folder.join(name)).unwrap_or_default());
            }
            let here = (length - taken).min(PAGE - at % PAGE);
            for offset in 0..here {
                if let Some(byte) = header.get_mut((taken + offset) as usize) {
                    *byte = segment.1.get((at % SEGMENT + offset) as usize).copied().unwrap_or_default();
                }
            }
            (taken, at) = (taken + here, at + here);
            if taken >= 24 {
                length = u64::from(u32::from_le_bytes(header[..4].try_into().expect("four bytes"))).max(24);
            }
        }
        at = at.div_ceil(8) * 8;
        let kind = match (header[17], header[16] & 0xf0) {
            (0, 0x10) => "XLOG/CHECKPOINT_ONLINE".to_owned(),
            (0, 0xa0) => "XLOG/FPI_FOR_HINT".to_owned(),
            (8, 0x10) => "Standby/RUNNING_XACTS".to_owned(),
            (9, 0x10) => "Heap2/PRUNE".to_owned(),
            (manager, info) => format!("resource manager {manager}, record {info:#x}"),
        };
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

fn walk(base: &Path, folder: &Path, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if OWN_FILES.iter().any(|(own, _)| *own == name) {
            continue;
        }
        let Ok(meta) = entry.metadata() else { continue };
        if meta.is_dir() {
            walk(base, &path, found);
            continue;
        }
        let below = path.strip_prefix(base).unwrap_or(&path).to_owned();
        let stored = below.starts_with("base") || below.starts_with("global") || meta.len() > 1 << 20;
        let what = match stored && name != "pg_control" {
            true => format!("{} bytes", meta.len()),
            false => {
                let digest = sha2::Sha256::digest(fs::read(&path).unwrap_or_default());
                digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
            }
        };
        found.push((below, what));
    }
}

/// What was seen at one time.
pub struct Look {
    print: Fingerprint,
    wal: String,
    said: Vec<String>,
}

impl Look {
    pub fn parts(&self) -> usize {
        self.print.parts()
    }
}

fn address(server: &Postgres) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], server.port()))
}

/// Straight to the server, able to write.
pub fn superuser(server: &Postgres, database: &str) -> Whom {
    Whom::new(address(server), SUPERUSER, SUPERUSER_PASSWORD, database)
}

/// The same without rights but SELECT.
pub fn reader(server: &Postgres, database: &str) -> Whom {
    Whom::new(address(server), READER, READER_PASSWORD, database)
}
