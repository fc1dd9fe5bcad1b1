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
        let mut parts = BTreeMap::new();
        let client = postgres.superuser_client("postgres").await;
        for (name, sql) in SHARED_PARTS {
            parts.insert((*name).to_owned(), first_column(&client, sql).await.concat());
        }
        let databases = "SELECT datname FROM pg_catalog.pg_database WHERE datallowconn ORDER BY 1";
        for database in first_column(&client, databases).await {
            let client = postgres.superuser_client(&database).await;
            let catalogues =
                CATALOGUES.iter().map(|name| catalogue_digest(name)).collect::<Vec<_>>().join(" UNION ALL ");
            let relations = first_column(&client, RELATIONS).await;
            let contents =
                relations.iter().map(|name| contents_digest(name)).collect::<Vec<_>>().join(" UNION ALL ");
            for sql in [catalogues, contents] {
                for row in rows(&client, &sql).await {
                    let [part, digest] = row.as_slice() else { panic!("a digest has two columns") };
                    parts.insert(format!("{database}: {part}"), digest.clone());
                }
            }
        }
        Self(parts)
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

const CATALOGUES: &[&str] = &[
    "pg_aggregate",
    "pg_am",
    "pg_attrdef",
    "pg_attribute",
    "pg_cast",
    "pg_class",
    "pg_collation",
    "pg_constraint",
    "pg_conversion",
    "pg_default_acl",
    "pg_depend",
    "pg_description",
    "pg_enum",
    "pg_event_trigger",
    "pg_extension",
    "pg_foreign_data_wrapper",
    "pg_foreign_server",
    "pg_foreign_table",
    "pg_index",
    "pg_inherits",
    "pg_init_privs",
    "pg_language",
    "pg_largeobject",
    "pg_largeobject_metadata",
    "pg_namespace",
    "pg_opclass",
    "pg_operator",
    "pg_partitioned_table",
    "pg_policy",
    "pg_proc",
    "pg_publication",
    "pg_publication_rel",
    "pg_range",
    "pg_rewrite",
    "pg_seclabel",
    "pg_sequence",
    "pg_statistic_ext",
    "pg_transform",
    "pg_trigger",
    "pg_ts_config",
    "pg_ts_dict",
    "pg_type",
    "pg_user_mapping",
];

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
    (
        "comments and labels on shared objects",
        "SELECT (SELECT count(*) FROM pg_catalog.pg_shdescription) || ' ' || (SELECT count(*) FROM pg_catalog.pg_shseclabel)",
    ),
    ("subscriptions", "SELECT count(*) FROM pg_catalog.pg_subscription"),
    (
        "replication slots",
        "SELECT string_agg(slot_name, ' ' ORDER BY 1) FROM pg_catalog.pg_replication_slots",
    ),
    ("replication origins", "SELECT count(*) FROM pg_catalog.pg_replication_origin"),
    ("prepared transactions", "SELECT string_agg(gid, ' ' ORDER BY gid) FROM pg_catalog.pg_prepared_xacts"),
    ("advisory locks", "SELECT count(*) FROM pg_catalog.pg_locks WHERE locktype = 'advisory'"),
    // Read-only transactions take no id; a write takes one even when it is rolled back.
    ("next transaction id", "SELECT pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())"),
];

/// Each change of a catalogue's row gives it a new version with the transaction's id; statistics and
/// housekeeping, which overwrite rows in place, do not count.
fn catalogue_digest(catalogue: &str) -> String {
    format!(
        "SELECT '{catalogue}', count(*) || ' rows, versions ' || coalesce(sum(xmin::text::bigint), 0) || ' ' || \
         coalesce(max(ctid)::text, '') FROM pg_catalog.{catalogue}"
    )
}

/// A sub-select, because a sequence has no row type of its own.
fn contents_digest(relation: &str) -> String {
    format!(
        "SELECT 'contents of ' || {}, count(*) || ' ' || coalesce(md5(string_agg(t::text, E'\\n' ORDER BY t::text \
         COLLATE \"C\")), '') FROM (SELECT * FROM {relation}) AS t",
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
