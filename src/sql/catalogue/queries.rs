//! The queries that load what a [`super::graph::Source`] holds; an ordinary role may run them on versions 14
//! to 18.
//!
//! Invariant: every table is qualified, and they run in a transaction whose search_path is pg_catalog
//! alone, so that nothing in the source can stand in for what they name. They only select rows: what
//! these mean is decided by [`super::graph`].

/// Opens the transaction in which the others run. Rows are read between its queries, which the source must not take for
/// idleness; the caller bounds the load as a whole.
pub const BEGIN: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL search_path = pg_catalog; \
                         SET LOCAL idle_in_transaction_session_timeout = 0";

/// One number for all rows that the others read; the same number means that nothing has changed.
///
/// A changed row has another `xmin`, frozen ones included. The sums are ordered, since workers of a parallel plan bring
/// them in as they finish.
pub const PROBE: &str = "
SELECT pg_catalog.current_setting('server_version_num') || pg_catalog.string_agg(s.counted, ' ' ORDER BY s.counted)
  FROM (
    SELECT count(*) || ':' || coalesce(sum(hashint8extended((oid::bigint << 32) | xmin::text::bigint, 0)), 0)
      FROM pg_catalog.pg_proc
     UNION ALL
    SELECT count(*) || ':' || coalesce(sum(hashint8extended((oid::bigint << 32) | xmin::text::bigint, 1)), 0)
      FROM pg_catalog.pg_type
     UNION ALL
    SELECT count(*) || ':' || coalesce(sum(hashint8extended((oid::bigint << 32) | xmin::text::bigint, 2)), 0)
      FROM pg_catalog.pg_class
     UNION ALL
    SELECT count(*) || ':' || coalesce(sum(hashint8extended((attrelid::bigint << 32) | xmin::text::bigint, attnum)), 0)
      FROM pg_catalog.pg_attribute
     UNION ALL
    SELECT count(*) || ':' || coalesce(sum(hashint8extended((oid::bigint << 32) | xmin::text::bigint, class)), 0)
      FROM (SELECT oid, xmin, 3 AS class FROM pg_catalog.pg_rewrite
             UNION ALL SELECT oid, xmin, 4 FROM pg_catalog.pg_policy
             UNION ALL SELECT oid, xmin, 5 FROM pg_catalog.pg_operator
             UNION ALL SELECT oid, xmin, 6 FROM pg_catalog.pg_cast
             UNION ALL SELECT oid, xmin, 7 FROM pg_catalog.pg_amproc
             UNION ALL SELECT oid, xmin, 8 FROM pg_catalog.pg_amop
             UNION ALL SELECT oid, xmin, 9 FROM pg_catalog.pg_namespace
             UNION ALL SELECT oid, xmin, 10 FROM pg_catalog.pg_constraint
             UNION ALL SELECT oid, xmin, 11 FROM pg_catalog.pg_extension
             UNION ALL SELECT oid, xmin, 12 FROM pg_catalog.pg_attrdef
             UNION ALL SELECT inhrelid, xmin, 13 FROM pg_catalog.pg_inherits
             UNION ALL SELECT aggfnoid::oid, xmin, 14 FROM pg_catalog.pg_aggregate
             UNION ALL SELECT rngtypid, xmin, 15 FROM pg_catalog.pg_range
             UNION ALL SELECT ftrelid, xmin, 16 FROM pg_catalog.pg_foreign_table) AS row
  ) AS s (counted)";

/// oid, schema, name, kind, volatility, arguments' types, all arguments' and the result's types, one
/// argument?, variadic?, written in C?, extension, defaults
pub const FUNCTIONS: &str = "
SELECT p.oid, n.nspname::text, p.proname::text, p.prokind::text, p.provolatile::text, p.proargtypes::oid[],
       coalesce(p.proallargtypes, p.proargtypes::oid[]) || p.prorettype,
       (p.pronargs - p.pronargdefaults <= 1 AND p.pronargs >= 1), p.provariadic <> 0,
       l.lanname IN ('c', 'internal'), e.extname::text, p.proargdefaults::text
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
  LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid
       AND d.deptype = 'e' AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass
  LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
 ORDER BY p.oid";

/// oid of the aggregate, its component functions, its sort operator
pub const AGGREGATES: &str = "
SELECT a.aggfnoid::oid,
       array_remove(ARRAY[a.aggtransfn::oid, a.aggfinalfn::oid, a.aggcombinefn::oid, a.aggserialfn::oid,
                          a.aggdeserialfn::oid, a.aggmtransfn::oid, a.aggminvtransfn::oid, a.aggmfinalfn::oid], 0::oid),
       a.aggsortop
  FROM pg_catalog.pg_aggregate a ORDER BY 1";

/// oid, symbol, schema, left, right and result type, function, negator and commutator (0: none)
pub const OPERATORS: &str = "
SELECT o.oid, o.oprname::text, n.nspname::text, o.oprleft, o.oprright, o.oprresult, o.oprcode::oid,
       ARRAY[o.oprnegate, o.oprcom]
  FROM pg_catalog.pg_operator o JOIN pg_catalog.pg_namespace n ON n.oid = o.oprnamespace ORDER BY o.oid";

/// oid, schema, name, kind, category, base type, element type, attributes, functions for reading and writing
/// values, function for modifiers
pub const TYPES: &str = "
SELECT t.oid, n.nspname::text, t.typname::text, t.typtype::text, t.typcategory::text, t.typbasetype, t.typelem,
       CASE WHEN t.typrelid = 0 THEN '{}'::oid[] ELSE ARRAY(
         SELECT DISTINCT a.atttypid FROM pg_catalog.pg_attribute a
          WHERE a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1) END,
       ARRAY[t.typinput::oid, t.typreceive::oid], ARRAY[t.typoutput::oid, t.typsend::oid], t.typmodin::oid
  FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace ORDER BY t.oid";

/// range type, its multirange type, what it is a range of, functions
pub const RANGES: &str = "
SELECT r.rngtypid, r.rngmultitypid, r.rngsubtype, ARRAY[r.rngcanonical::oid, r.rngsubdiff::oid]
  FROM pg_catalog.pg_range r ORDER BY 1";

/// from, to, function (0: none), context, method
pub const CASTS: &str = "
SELECT c.castsource, c.casttarget, c.castfunc, c.castcontext::text, c.castmethod::text
  FROM pg_catalog.pg_cast c ORDER BY c.oid";

/// domain, expression of its CHECK
pub const CHECKS: &str = "
SELECT c.contypid, c.conbin::text FROM pg_catalog.pg_constraint c
 WHERE c.contypid <> 0 AND c.contype = 'c' ORDER BY c.oid";

/// left type, right type, support function (0: none), operator (0: none); of operators those that
/// sorting and comparing use by themselves
pub const CLASSES: &str = "
SELECT p.amproclefttype, p.amprocrighttype, p.amproc::oid, 0::oid FROM pg_catalog.pg_amproc p
 UNION
SELECT o.amoplefttype, o.amoprighttype, 0, o.amopopr FROM pg_catalog.pg_amop o
 WHERE o.amopmethod IN (SELECT a.oid FROM pg_catalog.pg_am a WHERE a.amname IN ('btree', 'hash'))
 ORDER BY 1, 2, 3, 4";

/// oid, schema, name, types of its columns, rows of which tables it holds, program
///
/// The program is what `file_fdw` runs for each read.
pub const RELATIONS: &str = "
SELECT c.oid, n.nspname::text, c.relname::text,
       ARRAY(SELECT DISTINCT a.atttypid FROM pg_catalog.pg_attribute a
              WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1),
       CASE WHEN c.relhassubclass
            THEN ARRAY(SELECT i.inhrelid FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid ORDER BY 1)
            ELSE '{}'::oid[] END,
       coalesce((SELECT true FROM pg_catalog.pg_foreign_table f
                   JOIN pg_catalog.pg_foreign_server s ON s.oid = f.ftserver
                   JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
                   JOIN pg_catalog.pg_proc p ON p.oid = w.fdwhandler
                  WHERE f.ftrelid = c.oid AND p.proname = 'file_fdw_handler'
                    AND EXISTS (SELECT FROM unnest(coalesce(f.ftoptions, '{}') || coalesce(s.srvoptions, '{}')
                                                   || coalesce(w.fdwoptions, '{}')) AS o (option)
                                 WHERE o.option LIKE 'program=%')), false)
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 't') ORDER BY c.oid";

/// What reading a relation evaluates: kind, oid and version of the expression, the relation. A view's query,
/// the policies of a table, its virtual columns.
///
/// A materialized view has a query too, but holds its rows.
pub const STORED: &str = "
SELECT 'r', r.oid, r.xmin::text, r.ev_class
  FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_class c ON c.oid = r.ev_class
 WHERE r.ev_type = '1' AND c.relkind <> 'm'
 UNION ALL
SELECT 'p', p.oid, p.xmin::text, p.polrelid
  FROM pg_catalog.pg_policy p JOIN pg_catalog.pg_class c ON c.oid = p.polrelid
 WHERE p.polcmd IN ('*', 'r') AND c.relrowsecurity
 UNION ALL
SELECT 'd', d.oid, d.xmin::text, d.adrelid
  FROM pg_catalog.pg_attrdef d JOIN pg_catalog.pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum
 WHERE a.attgenerated = 'v'
 ORDER BY 1, 2";

/// oid and text of these expressions, by kind of [`STORED`].
pub const STORED_TEXTS: &[(&str, &str)] = &[
    ("r", "SELECT r.oid, r.ev_action::text FROM pg_catalog.pg_rewrite r WHERE r.oid = ANY ($1)"),
    ("p", "SELECT p.oid, coalesce(p.polqual::text, '') FROM pg_catalog.pg_policy p WHERE p.oid = ANY ($1)"),
    ("d", "SELECT d.oid, d.adbin::text FROM pg_catalog.pg_attrdef d WHERE d.oid = ANY ($1)"),
];

/// relation, function (0: none), operator (0: none) that its query or policies depend on by `pg_depend`: the
/// server's own are not in it, and nothing of the others can be missing.
pub const DEPENDS: &str = "
SELECT coalesce(r.ev_class, p.polrelid),
       CASE WHEN d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass THEN d.refobjid ELSE 0 END,
       CASE WHEN d.refclassid = 'pg_catalog.pg_operator'::pg_catalog.regclass THEN d.refobjid ELSE 0 END
  FROM pg_catalog.pg_depend d
  LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND r.oid = d.objid
       AND r.ev_type = '1' AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = r.ev_class AND c.relkind <> 'm')
  LEFT JOIN pg_catalog.pg_policy p ON d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND p.oid = d.objid
       AND p.polcmd IN ('*', 'r')
       AND EXISTS (SELECT FROM pg_catalog.pg_class c WHERE c.oid = p.polrelid AND c.relrowsecurity)
 WHERE d.classid IN ('pg_catalog.pg_rewrite'::pg_catalog.regclass, 'pg_catalog.pg_policy'::pg_catalog.regclass)
   AND d.refclassid IN ('pg_catalog.pg_proc'::pg_catalog.regclass, 'pg_catalog.pg_operator'::pg_catalog.regclass)
   AND (r.oid IS NOT NULL OR p.oid IS NOT NULL)
 ORDER BY 1, 2, 3";
