//! Loads a source's function catalogue.
//!
//! Invariant: it is loaded whole, from one snapshot, or not at all; and no more is read than
//! [`MOST_ROWS`] and [`MOST_TEXT`] allow.

use std::collections::HashMap;
use std::pin::pin;

use futures_util::TryStreamExt;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Error, Row};

use crate::sql::catalogue::graph::{self, Cast, Function, Oid, Operator, Relation, Rows, Type};
use crate::sql::catalogue::nodes::{References, references};
use crate::sql::catalogue::{Builder, Catalogue, FunctionKind, Volatility, queries};

/// Rows of all catalogs together.
const MOST_ROWS: usize = 4_000_000;
/// Bytes of stored expressions.
const MOST_TEXT: usize = 1 << 30;
/// Expressions that are fetched with one query.
const AT_ONCE: usize = 500;
/// A look that finds nothing changed is believed so often in a row; `pg_depend` and what else the probe
/// leaves out is read again then.
const PROBES: u32 = 20;

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{}", words(.0))]
    Query(#[from] Error),
    #[error("the source has more functions, tables or views than the gateway takes")]
    TooLarge,
    #[error("a view or policy of the source could not be read")]
    Incomplete,
}

/// The server's own words where there are some: the client's are "db error".
fn words(error: &Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |server| server.message().to_owned())
}

/// Loads the catalogue of one source again and again, and remembers what need not be read twice.
#[derive(Debug, Default)]
pub struct Loader {
    /// What stored expressions refer to, by kind, OID and the version of their row.
    stored: HashMap<(String, Oid, String), References>,
    probe: Option<String>,
    unchanged: u32,
}

impl Loader {
    /// The rows of the source, or `None` if nothing has changed since the last time.
    ///
    /// It runs in a transaction of its own; an ordinary role may. The caller bounds the time it takes. After
    /// an error the connection is of no more use.
    pub async fn rows(&mut self, client: &Client) -> Result<Option<Rows>, LoadError> {
        client.batch_execute(queries::BEGIN).await?;
        let probe: String = client.query_one(queries::PROBE, &[]).await?.try_get(0)?;
        if self.probe.as_ref() == Some(&probe) && self.unchanged < PROBES {
            self.unchanged += 1;
            client.batch_execute("COMMIT").await?;
            return Ok(None);
        }
        let rows = self.read(client).await?;
        client.batch_execute("COMMIT").await?;
        self.probe = Some(probe);
        self.unchanged = 0;
        Ok(Some(rows))
    }

    async fn read(&mut self, client: &Client) -> Result<Rows, LoadError> {
        let mut left = MOST_ROWS;
        let mut rows = Rows::default();
        each(client, queries::FUNCTIONS, &[], &mut left, |row| {
            let defaults: Option<&str> = row.try_get(11)?;
            rows.functions.push(Function {
                oid: row.try_get(0)?,
                schema: row.try_get(1)?,
                name: row.try_get(2)?,
                // A kind that is not known yet is judged as the one that is never called.
                kind: FunctionKind::from_letter(row.try_get(3)?).unwrap_or(FunctionKind::Procedure),
                volatility: Volatility::from_letter(row.try_get(4)?),
                arguments: row.try_get(5)?,
                types: row.try_get(6)?,
                one_argument: row.try_get(7)?,
                variadic: row.try_get(8)?,
                compiled: row.try_get(9)?,
                extension: row.try_get(10)?,
                defaults: defaults.map(references),
            });
            Ok(())
        })
        .await?;
        each(client, queries::AGGREGATES, &[], &mut left, |row| {
            rows.aggregates.push((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?));
            Ok(())
        })
        .await?;
        each(client, queries::OPERATORS, &[], &mut left, |row| {
            let kin: Vec<Oid> = row.try_get(7)?;
            rows.operators.push(Operator {
                oid: row.try_get(0)?,
                symbol: row.try_get(1)?,
                schema: row.try_get(2)?,
                left: row.try_get(3)?,
                right: row.try_get(4)?,
                result: row.try_get(5)?,
                function: row.try_get(6)?,
                kin: kin.try_into().map_err(|_| LoadError::Incomplete)?,
            });
            Ok(())
        })
        .await?;
        each(client, queries::TYPES, &[], &mut left, |row| {
            rows.types.push(Type {
                oid: row.try_get(0)?,
                schema: row.try_get(1)?,
                name: row.try_get(2)?,
                kind: letter(&row, 3)?,
                category: letter(&row, 4)?,
                base: row.try_get(5)?,
                element: row.try_get(6)?,
                attributes: row.try_get(7)?,
                readers: row.try_get(8)?,
                writers: row.try_get(9)?,
                modifiers: row.try_get(10)?,
            });
            Ok(())
        })
        .await?;
        each(client, queries::RANGES, &[], &mut left, |row| {
            rows.ranges.push((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
            Ok(())
        })
        .await?;
        each(client, queries::CASTS, &[], &mut left, |row| {
            rows.casts.push(Cast {
                source: row.try_get(0)?,
                target: row.try_get(1)?,
                function: row.try_get(2)?,
                implicit: letter(&row, 3)? == 'i',
                binary: letter(&row, 4)? == 'b',
            });
            Ok(())
        })
        .await?;
        each(client, queries::CHECKS, &[], &mut left, |row| {
            rows.checks.push((row.try_get(0)?, references(row.try_get(1)?)));
            Ok(())
        })
        .await?;
        each(client, queries::CLASSES, &[], &mut left, |row| {
            rows.classes.push((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?));
            Ok(())
        })
        .await?;
        self.relations(client, &mut left, &mut rows).await?;
        Ok(rows)
    }

    async fn relations(
        &mut self,
        client: &Client,
        left: &mut usize,
        rows: &mut Rows,
    ) -> Result<(), LoadError> {
        each(client, queries::RELATIONS, &[], left, |row| {
            rows.relations.push(Relation {
                oid: row.try_get(0)?,
                schema: row.try_get(1)?,
                name: row.try_get(2)?,
                columns: row.try_get(3)?,
                children: row.try_get(4)?,
                program: row.try_get(5)?,
                stored: Vec::new(),
                depends: Vec::new(),
            });
            Ok(())
        })
        .await?;
        let places: HashMap<Oid, usize> =
            rows.relations.iter().enumerate().map(|(at, row)| (row.oid, at)).collect();
        each(client, queries::DEPENDS, &[], left, |row| {
            if let Some(relation) =
                places.get(&row.try_get::<_, Oid>(0)?).and_then(|at| rows.relations.get_mut(*at))
            {
                relation.depends.push((row.try_get(1)?, row.try_get(2)?));
            }
            Ok(())
        })
        .await?;

        let mut wanted: Vec<((String, Oid, String), Oid)> = Vec::new();
        each(client, queries::STORED, &[], left, |row| {
            wanted.push(((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?), row.try_get(3)?));
            Ok(())
        })
        .await?;
        let mut known = std::mem::take(&mut self.stored);
        let mut stored = HashMap::new();
        let mut text = MOST_TEXT;
        for (kind, query) in queries::STORED_TEXTS {
            let mut missing: HashMap<Oid, String> = HashMap::new();
            for (key, _) in wanted.iter().filter(|(key, _)| key.0 == *kind) {
                match known.remove(key) {
                    Some(references) => drop(stored.insert(key.clone(), references)),
                    None => drop(missing.insert(key.1, key.2.clone())),
                }
            }
            let oids: Vec<Oid> = missing.keys().copied().collect();
            for oids in oids.chunks(AT_ONCE) {
                each(client, query, &[&oids], left, |row| {
                    let oid: Oid = row.try_get(0)?;
                    let expression: &str = row.try_get(1)?;
                    text = text.checked_sub(expression.len()).ok_or(LoadError::TooLarge)?;
                    if let Some(version) = missing.remove(&oid) {
                        stored.insert(((*kind).to_owned(), oid, version), references(expression));
                    }
                    Ok(())
                })
                .await?;
            }
        }
        for (key, relation) in &wanted {
            let references = stored.get(key).ok_or(LoadError::Incomplete)?;
            if let Some(relation) = places.get(relation).and_then(|at| rows.relations.get_mut(*at)) {
                relation.stored.push(references.clone());
            }
        }
        self.stored = stored;
        Ok(())
    }
}

fn letter(row: &Row, at: usize) -> Result<char, Error> {
    Ok(row.try_get::<_, &str>(at)?.chars().next().unwrap_or(' '))
}

/// Hands each row of a query on, one at a time.
async fn each(
    client: &Client,
    query: &str,
    parameters: &[&(dyn ToSql + Sync)],
    left: &mut usize,
    mut take: impl FnMut(Row) -> Result<(), LoadError>,
) -> Result<(), LoadError> {
    let mut rows = pin!(client.query_raw(query, parameters.iter().copied()).await?);
    while let Some(row) = rows.try_next().await? {
        *left = left.checked_sub(1).ok_or(LoadError::TooLarge)?;
        take(row)?;
    }
    Ok(())
}

/// Loads a catalogue once.
pub async fn load(client: &Client) -> Result<Catalogue, LoadError> {
    Ok(rows(client).await?.build())
}

/// What [`load`] builds of, for writing it down.
pub async fn rows(client: &Client) -> Result<Builder, LoadError> {
    let rows = Loader::default().rows(client).await?;
    Ok(rows.map(|rows| graph::judge(&rows)).unwrap_or_default())
}
