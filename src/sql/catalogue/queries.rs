//! The queries that load a [`super::Catalogue`]; an ordinary role may run them on versions 14 to 18.
//!
//! Invariant: every table is qualified, and they run in a transaction whose search_path is pg_catalog
//! alone, so that nothing in the source can stand in for what they name.

/// Opens the transaction in which the others run.
pub const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path = pg_catalog";

/// What runs a volatile function without its name standing in a text: `calls`, the functions that a
/// domain's CHECK (`t`) or a function's defaults (`f`) run, and `harmful`, all functions and types that
/// come to a volatile one by these, by their arguments' types or by what a type is made of.
///
/// Stored expressions name what they run by OID (`pg_node_tree`), implicit casts and operators included.
macro_rules! harmful {
    ($query:literal) => {
        concat!(
            "
WITH RECURSIVE calls (kind, oid, function) AS (
  SELECT 't', c.contypid, (m.id)[1]::oid
    FROM pg_catalog.pg_constraint c,
         LATERAL pg_catalog.regexp_matches(c.conbin::text, ':(?:op)?funcid ([0-9]+)', 'g') AS m (id)
   WHERE c.contypid <> 0 AND c.contype = 'c'
   UNION ALL
  SELECT 'f', p.oid, (m.id)[1]::oid
    FROM pg_catalog.pg_proc p,
         LATERAL pg_catalog.regexp_matches(p.proargdefaults::text, ':(?:op)?funcid ([0-9]+)', 'g') AS m (id)
   WHERE p.proargdefaults IS NOT NULL
), uses (kind, oid, of_kind, of_oid) AS (
  SELECT kind, oid, 'f', function FROM calls
   UNION ALL
  SELECT 'f', p.oid, 't', a.type
    FROM pg_catalog.pg_proc p, LATERAL unnest(p.proargtypes::oid[]) AS a (type)
   WHERE a.type >= 16384
   UNION ALL
  SELECT 't', t.oid, 't', part.oid
    FROM pg_catalog.pg_type t, LATERAL (VALUES (t.typbasetype), (t.typelem)) AS part (oid)
   WHERE part.oid >= 12000
   UNION ALL
  SELECT 't', r.rngtypid, 't', r.rngsubtype FROM pg_catalog.pg_range r
   UNION ALL
  SELECT 't', r.rngmultitypid, 't', r.rngtypid FROM pg_catalog.pg_range r
   UNION ALL
  SELECT 't', c.reltype, 't', a.atttypid
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
   WHERE c.reltype <> 0 AND a.attnum > 0 AND NOT a.attisdropped AND a.atttypid >= 12000
), harmful (kind, oid) AS (
  SELECT 'f', p.oid FROM pg_catalog.pg_proc p
   WHERE p.provolatile = 'v'
     AND NOT (p.oid < 16384 AND p.proname IN ('clock_timestamp', 'timeofday', 'random', 'gen_random_uuid'))
   UNION
  SELECT u.kind, u.oid FROM harmful h JOIN uses u ON u.of_kind = h.kind AND u.of_oid = h.oid
)
",
            $query
        )
    };
}

/// schema, name, kind, volatility, one argument?
///
/// An aggregate is as volatile as the worst of its components, a function as its defaults and as the
/// CHECKs of the domains that it takes. What fills a row from a document is as volatile as the worst row.
pub const FUNCTIONS: &str = harmful!(
    "SELECT DISTINCT n.nspname::text, p.proname::text, p.prokind::text,
       CASE WHEN p.provolatile <> 'v' AND p.oid IN (SELECT h.oid FROM harmful h WHERE h.kind = 'f')
              OR (p.proname ~ 'populate_record'
                  AND EXISTS (SELECT FROM harmful h JOIN pg_catalog.pg_class c ON c.reltype = h.oid
                               WHERE h.kind = 't'))
            THEN 'v'
            ELSE coalesce((SELECT max(c.provolatile::text)
                   FROM pg_catalog.pg_aggregate a
                   JOIN pg_catalog.pg_proc c ON c.oid = ANY (ARRAY[
                        a.aggtransfn::oid, a.aggfinalfn::oid, a.aggcombinefn::oid, a.aggserialfn::oid,
                        a.aggdeserialfn::oid, a.aggmtransfn::oid, a.aggminvtransfn::oid,
                        a.aggmfinalfn::oid])
                  WHERE a.aggfnoid = p.oid), p.provolatile::text)
            END,
       (p.pronargs - p.pronargdefaults <= 1 AND p.pronargs >= 1)
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace"
);

/// symbol, schema and name of its function, volatility: those that are volatile or made by somebody.
pub const OPERATORS: &str = harmful!(
    "SELECT DISTINCT o.oprname::text, n.nspname::text, p.proname::text,
       CASE WHEN p.oid IN (SELECT h.oid FROM harmful h WHERE h.kind = 'f')
              OR (p.proname ~ 'populate_record'
                  AND EXISTS (SELECT FROM harmful h JOIN pg_catalog.pg_class c ON c.reltype = h.oid
                               WHERE h.kind = 't'))
            THEN 'v' ELSE p.provolatile::text END
  FROM pg_catalog.pg_operator o
  JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
 WHERE p.provolatile = 'v' OR o.oid >= 16384"
);

/// oid, schema, name, oids of what it is made of, a volatile function that making a value runs, CHECKs
pub const TYPES: &str = harmful!(
    "SELECT t.oid, n.nspname::text, t.typname::text,
       array_remove(ARRAY[t.typbasetype, t.typelem]
         || ARRAY(SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid)
         || ARRAY(SELECT r.rngtypid FROM pg_catalog.pg_range r WHERE r.rngmultitypid = t.oid)
         || ARRAY(SELECT a.atttypid FROM pg_catalog.pg_attribute a
                   WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0
                     AND NOT a.attisdropped AND a.atttypid >= 12000), 0::oid),
       coalesce((SELECT p.proname::text FROM pg_catalog.pg_proc p
                  WHERE p.oid IN (t.typinput::oid, t.typreceive::oid, t.typmodin::oid)
                    AND p.provolatile = 'v' AND p.oid >= 16384
                  LIMIT 1),
                (SELECT p.proname::text FROM pg_catalog.pg_cast c
                   JOIN pg_catalog.pg_proc p ON p.oid = c.castfunc
                  WHERE c.casttarget = t.oid AND p.provolatile = 'v' LIMIT 1),
                (SELECT p.proname::text FROM calls c
                   JOIN harmful h ON h.kind = 'f' AND h.oid = c.function
                   JOIN pg_catalog.pg_proc p ON p.oid = c.function
                  WHERE c.kind = 't' AND c.oid = t.oid LIMIT 1)),
       ARRAY(SELECT pg_catalog.pg_get_constraintdef(c.oid) FROM pg_catalog.pg_constraint c
              WHERE c.contypid = t.oid AND c.contype = 'c')
  FROM pg_catalog.pg_type t
  JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace"
);
