//! What a role can do at its source besides reading.
//!
//! Invariant: it asks the catalogue and nothing else; no query here touches a table's rows, takes
//! more than a time-out or answers with more than a bounded number of names.

use std::time::Duration;

use serde::Serialize;
use tokio_postgres::Client;

/// For all questions together.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// How many names a remark gives as examples.
const EXAMPLES: i64 = 5;

/// Roles that let their members change something, or reach past the database.
const PREDEFINED_ROLES: &[&str] = &[
    "pg_write_all_data",
    "pg_write_server_files",
    "pg_read_server_files",
    "pg_execute_server_program",
    "pg_signal_backend",
    "pg_signal_autovacuum_worker",
    "pg_checkpoint",
    "pg_maintain",
    "pg_create_subscription",
];

/// What was found about a role.
#[derive(Debug, Serialize)]
pub struct Grants {
    pub role: String,
    pub server_version: String,
    /// A standby takes no writes from anybody.
    pub standby: bool,
    /// In which ways the role can change something; empty: it can only read.
    pub can_write: Vec<String>,
    /// What stands behind names at the source and its owner should know of.
    pub remarks: Vec<String>,
}

/// Why a role could not be judged.
#[derive(Debug, thiserror::Error)]
pub enum GrantsError {
    #[error("the source did not answer within {} seconds", TIME_LIMIT.as_secs())]
    Timeout,
    #[error("{}", text(.0))]
    Query(#[from] tokio_postgres::Error),
}

/// The server's own words where there are some.
fn text(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |server| server.message().to_owned())
}

/// Asks the source what the role that `client` logged in as can do.
pub async fn audit(client: &Client) -> Result<Grants, GrantsError> {
    tokio::time::timeout(TIME_LIMIT, ask(client)).await.map_err(|_| GrantsError::Timeout)?
}

async fn ask(client: &Client) -> Result<Grants, GrantsError> {
    let row = client
        .query_one(
            "SELECT r.rolname::text, pg_catalog.current_setting('server_version'), pg_catalog.pg_is_in_recovery(),
                    r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication
               FROM pg_catalog.pg_roles r WHERE r.rolname = CURRENT_USER",
            &[],
        )
        .await?;
    let mut grants = Grants {
        role: row.try_get(0)?,
        server_version: row.try_get(1)?,
        standby: row.try_get(2)?,
        can_write: Vec::new(),
        remarks: Vec::new(),
    };
    if row.try_get(3)? {
        // It has every privilege there is; a list of them would say less.
        grants.can_write.push("it is a superuser".to_owned());
        return Ok(grants);
    }
    for (column, remark) in
        [(4, "it may create roles"), (5, "it may create databases"), (6, "it may start replication")]
    {
        if row.try_get(column)? {
            grants.can_write.push(remark.to_owned());
        }
    }

    // MEMBER and not USAGE: what SET ROLE would give counts.
    let members = client
        .query(
            "SELECT rolname::text FROM pg_catalog.pg_roles
              WHERE rolname = ANY ($1::text[]) AND pg_catalog.pg_has_role(oid, 'MEMBER') ORDER BY 1",
            &[&PREDEFINED_ROLES],
        )
        .await?;
    for row in members {
        grants.can_write.push(format!("it is a member of {}", row.try_get::<_, String>(0)?));
    }

    for (what, question) in QUESTIONS {
        let sql = format!(
            "WITH own AS (SELECT oid FROM pg_catalog.pg_roles WHERE pg_catalog.pg_has_role(oid, 'MEMBER')),
                  found AS ({question})
             SELECT (SELECT pg_catalog.count(*) FROM found),
                    ARRAY(SELECT name FROM found ORDER BY name LIMIT {EXAMPLES})"
        );
        let row = client.query_one(&sql, &[]).await?;
        let (count, names): (i64, Vec<String>) = (row.try_get(0)?, row.try_get(1)?);
        if count > 0 {
            let more = if count > names.len() as i64 { ", …" } else { "" };
            grants.can_write.push(format!("{what}: {count} ({}{more})", names.join(", ")));
        }
    }
    Ok(grants)
}

/// Each finds names, for the role itself and for every role that it could SET ROLE to (`own`).
///
/// PUBLIC may update pg_settings everywhere: it is SET by another name, which the guard refuses.
const QUESTIONS: &[(&str, &str)] = &[
    (
        "tables that it can change",
        "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) AS name
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_(toast|temp_)'
            AND c.oid <> 'pg_catalog.pg_settings'::pg_catalog.regclass
            AND EXISTS (SELECT FROM own
                         WHERE pg_catalog.has_table_privilege(own.oid, c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE')
                            OR pg_catalog.has_any_column_privilege(own.oid, c.oid, 'INSERT, UPDATE'))",
    ),
    (
        "sequences that it can move",
        "SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) AS name
           FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind = 'S'
            AND EXISTS (SELECT FROM own WHERE pg_catalog.has_sequence_privilege(own.oid, c.oid, 'USAGE, UPDATE'))",
    ),
    (
        "schemas that it can create in",
        "SELECT pg_catalog.quote_ident(n.nspname) AS name FROM pg_catalog.pg_namespace n
          WHERE n.nspname !~ '^pg_(toast|temp_)'
            AND EXISTS (SELECT FROM own WHERE pg_catalog.has_schema_privilege(own.oid, n.oid, 'CREATE'))",
    ),
    (
        "databases that it can create schemas in",
        "SELECT pg_catalog.quote_ident(d.datname) AS name FROM pg_catalog.pg_database d
          WHERE d.datname = pg_catalog.current_database()
            AND EXISTS (SELECT FROM own WHERE pg_catalog.has_database_privilege(own.oid, d.oid, 'CREATE'))",
    ),
];
