//! The queries that load a [`super::Catalogue`]; an ordinary role may run them on versions 14 to 18.
//!
//! Invariant: every table is qualified, and they run in a transaction whose search_path is pg_catalog
//! alone, so that nothing in the source can stand in for what they name.

/// Opens the transaction in which the others run.
pub const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path = pg_catalog";

/// schema, name, kind, volatility (an aggregate's is the worst of its components), one argument?
pub const FUNCTIONS: &str = "
SELECT DISTINCT n.nspname::text, p.proname::text, p.prokind::text,
       coalesce((SELECT max(c.provolatile::text)
                   FROM pg_catalog.pg_aggregate a
                   JOIN pg_catalog.pg_proc c ON c.oid = ANY (ARRAY[
                        a.aggtransfn::oid, a.aggfinalfn::oid, a.aggcombinefn::oid, a.aggserialfn::oid,
                        a.aggdeserialfn::oid, a.aggmtransfn::oid, a.aggminvtransfn::oid,
                        a.aggmfinalfn::oid])
                  WHERE a.aggfnoid = p.oid), p.provolatile::text),
       (p.pronargs - p.pronargdefaults <= 1 AND p.pronargs >= 1)
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace";

/// symbol, schema and name of its function, volatility: those that are volatile or made by somebody.
pub const OPERATORS: &str = "
SELECT DISTINCT o.oprname::text, n.nspname::text, p.proname::text, p.provolatile::text
  FROM pg_catalog.pg_operator o
  JOIN pg_catalog.pg_proc p ON p.oid = o.oprcode
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
 WHERE p.provolatile = 'v' OR o.oid >= 16384";

/// oid, schema, name, oids of what it is made of, a volatile function that making a value runs, CHECKs
pub const TYPES: &str = "
SELECT t.oid, n.nspname::text, t.typname::text,
       array_remove(ARRAY[t.typbasetype, t.typelem]
         || ARRAY(SELECT r.rngsubtype FROM pg_catalog.pg_range r WHERE r.rngtypid = t.oid)
         || ARRAY(SELECT r.rngtypid FROM pg_catalog.pg_range r WHERE r.rngmultitypid = t.oid)
         || ARRAY(SELECT a.atttypid FROM pg_catalog.pg_attribute a
                   WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0
                     AND NOT a.attisdropped AND a.atttypid >= 12000), 0::oid),
       coalesce((SELECT p.proname::text FROM pg_catalog.pg_proc p
                  WHERE p.oid IN (t.typinput::oid, t.typreceive::oid) AND p.provolatile = 'v' AND p.oid >= 16384
                  LIMIT 1),
                (SELECT p.proname::text FROM pg_catalog.pg_cast c
                   JOIN pg_catalog.pg_proc p ON p.oid = c.castfunc
                  WHERE c.casttarget = t.oid AND p.provolatile = 'v' LIMIT 1)),
       ARRAY(SELECT pg_catalog.pg_get_constraintdef(c.oid) FROM pg_catalog.pg_constraint c
              WHERE c.contypid = t.oid AND c.contype = 'c')
  FROM pg_catalog.pg_type t
  JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace";
