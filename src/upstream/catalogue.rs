//! Loads a source's function catalogue.
//!
//! Invariant: it is loaded whole, from one snapshot, or not at all.

use tokio_postgres::{Client, Error};

use crate::sql::catalogue::{
    Builder, Catalogue, FunctionKind, FunctionRow, OperatorRow, TypeRow, Volatility, queries,
};

/// Reads `pg_proc`, `pg_operator` and `pg_type` in a transaction of its own; an ordinary role may.
///
/// The caller bounds the time it takes. After an error the connection is of no more use.
pub async fn load(client: &Client) -> Result<Catalogue, Error> {
    Ok(rows(client).await?.build())
}

/// The rows of [`load`], for writing them down.
pub async fn rows(client: &Client) -> Result<Builder, Error> {
    client.batch_execute(queries::BEGIN).await?;
    let mut builder = Catalogue::builder();
    for row in client.query(queries::FUNCTIONS, &[]).await? {
        // A kind that is not known yet is judged as the one that is never called.
        let kind = FunctionKind::from_letter(row.try_get(2)?).unwrap_or(FunctionKind::Procedure);
        builder.function(FunctionRow {
            schema: row.try_get(0)?,
            name: row.try_get(1)?,
            kind,
            volatility: Volatility::from_letter(row.try_get(3)?),
            one_argument: row.try_get(4)?,
        });
    }
    for row in client.query(queries::OPERATORS, &[]).await? {
        builder.operator(OperatorRow {
            symbol: row.try_get(0)?,
            function_schema: row.try_get(1)?,
            function: row.try_get(2)?,
            volatility: Volatility::from_letter(row.try_get(3)?),
        });
    }
    for row in client.query(queries::TYPES, &[]).await? {
        builder.r#type(TypeRow {
            oid: row.try_get(0)?,
            schema: row.try_get(1)?,
            name: row.try_get(2)?,
            parts: row.try_get(3)?,
            volatile_function: row.try_get(4)?,
            checks: row.try_get(5)?,
        });
    }
    client.batch_execute("COMMIT").await?;
    Ok(builder)
}
