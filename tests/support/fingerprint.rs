//! Has anything changed at the source? Asked of the catalogues and the rows themselves.
//!
//! Invariant: taking a fingerprint changes nothing: it reads only, and its sessions are not logged.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use sha2::Digest;
use tokio_postgres::{Client, SimpleQueryMessage};

use super::postgres::Postgres;

/// What the server holds, part by part, so that a difference names what changed.
#[derive(Clone, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<String, String>);

impl Fingerprint {
    /// Reads it as the superuser.
    pub async fn take(postgres: &Postgres) -> Self {
        Observer::connect(postgres).await.observe().await
    }

    /// A part that the caller has looked at.
    pub fn add(&mut self, part: impl Into<String>, value: impl Into<String>) {
        self.0.insert(part.into(), value.into());
    }

    /// The parts that differ.
    pub fn difference(&self, other: &Self) -> Vec<String> {
        let keys: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        keys.into_iter().filter(|key| self.0.get(*key) != other.0.get(*key)).cloned().collect()
    }

    /// How many parts were compared.
    pub fn parts(&self) -> usize {
        self.0.len()
    }

    /// One short text for people to compare by eye.
    pub fn digest(&self) -> String {
        let mut hash = sha2::Sha256::new();
        for (part, digest) in &self.0 {
            hash.update(part.as_bytes());
            hash.update([0]);
            hash.update(digest.as_bytes());
            hash.update([0]);
        }
        hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Sessions of the harness for many fingerprints of one server, without a new connection for each.
pub struct Observer {
    shared: Client,
    databases: Vec<(String, Client, String)>,
}

impl Observer {
    /// Connects to every database that there is now; one that is made later is seen in `databases`.
    pub async fn connect(postgres: &Postgres) -> Self {
        let shared = postgres.superuser_client("postgres").await;
        let names = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn ORDER BY 1";
        let mut databases = Vec::new();
        for database in first_column(&shared, names).await {
            let client = postgres.superuser_client(&database).await;
            let catalogues = first_column(&client, CATALOGUES).await;
            let catalogues =
                catalogues.iter().map(|name| catalogue_digest(name)).collect::<Vec<_>>().join(" UNION ALL ");
            databases.push((database, client, catalogues));
        }
        Self { shared, databases }
    }

    /// The server as it is.
    pub async fn observe(&self) -> Fingerprint {
        let mut parts = BTreeMap::new();
        for (name, sql) in SHARED_PARTS {
            parts.insert((*name).to_owned(), first_column(&self.shared, sql).await.concat());
        }
        for (database, client, catalogues) in &self.databases {
            let relations = first_column(client, RELATIONS).await;
            let contents =
                relations.iter().map(|name| contents_digest(name)).collect::<Vec<_>>().join(" UNION ALL ");
            for sql in [catalogues, &contents] {
                if sql.is_empty() {
                    continue;
                }
                for row in rows(client, sql).await {
                    let [part, digest] = row.as_slice() else { panic!("a digest has two columns") };
                    parts.insert(format!("{database}: {part}"), digest.clone());
                }
            }
        }
        Fingerprint(parts)
    }

    /// One value, read by the session of the database `postgres`.
    pub async fn value(&self, sql: &str) -> String {
        first_column(&self.shared, sql).await.concat()
    }

    /// As `value`, in another database.
    pub async fn value_in(&self, database: &str, sql: &str) -> String {
        let found = self.databases.iter().find(|(name, ..)| name == database);
        first_column(&found.expect("a database of the server").1, sql).await.concat()
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter()).finish()
    }
}

/// Tables with contents of their own, sequences included; system catalogues are in `CATALOGUES`.
const RELATIONS: &str = "SELECT c.oid::regclass::text FROM pg_catalog.pg_class AS c \
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'm', 'S') AND n.nspname <> 'pg_catalog' AND n.nspname !~ '^pg_(toast|temp)' \
    AND (c.relkind <> 'm' OR c.relispopulated) ORDER BY 1";

/// All of a database's own; those that all databases share are in `SHARED_PARTS`.
const CATALOGUES: &str = "SELECT c.relname FROM pg_catalog.pg_class AS c \
    WHERE c.relkind = 'r' AND c.relnamespace = 'pg_catalog'::pg_catalog.regnamespace AND NOT c.relisshared ORDER BY 1";

const SHARED_PARTS: &[(&str, &str)] = &[
    (
        "roles",
        "SELECT md5(string_agg(to_jsonb(t)::text, E'\\n' ORDER BY oid)) FROM pg_catalog.pg_authid AS t",
    ),
    (
        "memberships",
        "SELECT md5(string_agg(to_jsonb(t)::text, E'\\n' ORDER BY to_jsonb(t)::text)) FROM pg_catalog.pg_auth_members AS t",
    ),
    (
        "databases",
        "SELECT md5(string_agg((to_jsonb(t) - '{datfrozenxid,datminmxid,datlastsysoid}'::text[])::text, E'\\n' ORDER BY oid)) FROM pg_catalog.pg_database AS t",
    ),
    (
        "settings of roles and databases",
        "SELECT md5(string_agg(to_jsonb(t)::text, E'\\n' ORDER BY to_jsonb(t)::text)) FROM pg_catalog.pg_db_role_setting AS t",
    ),
    (
        "settings of the server",
        "SELECT md5(string_agg(concat_ws('|', sourcefile, name, setting), E'\\n' ORDER BY sourcefile, seqno)) FROM pg_catalog.pg_file_settings",
    ),
    (
        "tablespaces",
        "SELECT md5(string_agg(to_jsonb(t)::text, E'\\n' ORDER BY oid)) FROM pg_catalog.pg_tablespace AS t",
    ),
    ("subscriptions", "SELECT count(*) FROM pg_catalog.pg_subscription"),
    (
        "replication slots",
        "SELECT string_agg(slot_name, ' ' ORDER BY 1) FROM pg_catalog.pg_replication_slots",
    ),
    ("replication origins", "SELECT count(*) FROM pg_catalog.pg_replication_origin"),
    ("prepared transactions", "SELECT string_agg(gid, ' ' ORDER BY gid) FROM pg_catalog.pg_prepared_xacts"),
    ("advisory locks", "SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory'"),
    (
        "security labels, shared comments and dependencies",
        "SELECT md5(string_agg(x, E'\\n' ORDER BY x)) FROM (SELECT t::text AS x FROM pg_catalog.pg_shdescription AS t \
         UNION ALL SELECT t::text FROM pg_catalog.pg_shseclabel AS t UNION ALL SELECT t::text FROM pg_catalog.pg_shdepend AS t) AS y",
    ),
    // Read-only transactions take no id; a write takes one even when it is rolled back.
    ("next transaction id", "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())"),
];

/// Each change of a catalogue's row gives it a new version with the transaction's id and another place; what
/// overwrites rows in place (statistics, hints of what a table has) does not count.
fn catalogue_digest(catalogue: &str) -> String {
    format!(
        "SELECT '{catalogue}', count(*) || ' rows, versions ' || coalesce(sum(xmin::text::bigint), 0) || ' ' || \
         coalesce(max(ctid)::text, '') FROM pg_catalog.{catalogue}"
    )
}

/// A sub-select, because a sequence has no row type of its own; ONLY, because a child may be a foreign table,
/// and reading that is not nothing.
fn contents_digest(relation: &str) -> String {
    format!(
        "SELECT 'contents of ' || {0}, pg_catalog.pg_relation_filenode({0}) || ' ' || count(*) || ' ' || coalesce(md5(string_agg(t::text, E'\\n' ORDER BY t::text \
         COLLATE \"C\")), '') FROM (SELECT * FROM ONLY {relation}) AS t",
        quoted(relation)
    )
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

async fn rows(client: &Client, sql: &str) -> Vec<Vec<String>> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|column| row.get(column).unwrap_or("").to_owned()).collect())
            }
            _ => None,
        })
        .collect()
}

async fn first_column(client: &Client, sql: &str) -> Vec<String> {
    rows(client, sql).await.into_iter().filter_map(|row| row.into_iter().next()).collect()
}
