//! The masks that a policy document starts with, for Trino and for PostgreSQL.
//!
//! Invariant: both texts of a mask give the same characters for the same value: hex in upper case, NULL for
//! NULL, and a column of `varchar(n)` keeps its type.

/// A mask of the shipped library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shipped {
    pub name: &'static str,
    /// `{column}`, `{type}` and `{key}` stand for the column, its type and the key of keyed masks.
    pub trino: &'static str,
    /// The same, and `{ipad}`, `{opad}` for the key as RFC 2104 pads it, 64 bytes each, in hexadecimal.
    pub postgres: &'static str,
    pub strength: u32,
}

/// Strongest first.
pub const SHIPPED: &[Shipped] = &[
    Shipped { name: "null", trino: "CAST(NULL AS {type})", postgres: "NULL::{type}", strength: 100 },
    Shipped {
        name: "redact",
        trino: "CAST(CASE WHEN {column} IS NOT NULL THEN '****' END AS {type})",
        postgres: "(CASE WHEN {column} IS NOT NULL THEN '****' END)::{type}",
        strength: 80,
    },
    Shipped {
        name: "hmac_sha256",
        trino: "CAST(to_hex(hmac_sha256(to_utf8({column}), from_hex('{key}'))) AS {type})",
        // PostgreSQL has no HMAC without an extension, but all that it is made of.
        postgres: "pg_catalog.upper(pg_catalog.encode(pg_catalog.sha256(pg_catalog.decode('{opad}', 'hex') \
                   OPERATOR(pg_catalog.||) pg_catalog.sha256(pg_catalog.decode('{ipad}', 'hex') \
                   OPERATOR(pg_catalog.||) pg_catalog.convert_to({column}::pg_catalog.text, 'UTF8'))), \
                   'hex'))::{type}",
        strength: 70,
    },
    Shipped {
        name: "sha256",
        trino: "CAST(to_hex(sha256(to_utf8({column}))) AS {type})",
        postgres: "pg_catalog.upper(pg_catalog.encode(pg_catalog.sha256(\
                   pg_catalog.convert_to({column}::pg_catalog.text, 'UTF8')), 'hex'))::{type}",
        strength: 60,
    },
    Shipped {
        name: "md5",
        trino: "CAST(to_hex(md5(to_utf8({column}))) AS {type})",
        postgres: "pg_catalog.upper(pg_catalog.md5(\
                   pg_catalog.convert_to({column}::pg_catalog.text, 'UTF8')))::{type}",
        strength: 50,
    },
    Shipped {
        name: "partial_last4",
        trino: "CAST(CASE WHEN length({column}) > 8 THEN concat('****', substr({column}, -4)) \
                WHEN {column} IS NOT NULL THEN '****' END AS {type})",
        postgres: "(CASE WHEN pg_catalog.length({column}::pg_catalog.text) OPERATOR(pg_catalog.>) 8 \
                   THEN '****' OPERATOR(pg_catalog.||) pg_catalog.right({column}::pg_catalog.text, 4) \
                   WHEN {column} IS NOT NULL THEN '****' END)::{type}",
        strength: 20,
    },
    Shipped { name: "identity", trino: "{column}", postgres: "{column}", strength: 0 },
];

/// The shipped mask of a name.
pub fn shipped(name: &str) -> Option<&'static Shipped> {
    SHIPPED.iter().find(|mask| mask.name == name)
}

/// `mask_library` of a document that starts with the shipped masks.
pub fn to_json() -> serde_json::Map<String, serde_json::Value> {
    SHIPPED
        .iter()
        .map(|mask| {
            let entry =
                serde_json::json!({"trino": mask.trino, "postgres": mask.postgres, "strength": mask.strength});
            (mask.name.to_owned(), entry)
        })
        .collect()
}
