//! A hostile schema, and the statements that would run what it has planted.
//!
//! Invariant: whatever is planted tells the server's log when it runs; see [`RAN`].

/// What the server's log says when something planted ran.
pub const RAN: &str = "PLANTED FUNCTION RAN";

/// What a careless or hostile schema has. Only functions that an attack names are volatile by name;
/// the others hide behind types, defaults, operators and key words.
pub const PLANTED: &str = r#"
CREATE FUNCTION ran(what text) RETURNS void LANGUAGE plpgsql AS
  $$ BEGIN RAISE LOG 'PLANTED FUNCTION RAN: %', what; PERFORM pg_catalog.pg_advisory_lock(4711); END $$;
CREATE TABLE t (id int, name text);
INSERT INTO t VALUES (1, 'a'), (2, 'b');
CREATE SEQUENCE counter;
CREATE FUNCTION reads(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION vol() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('vol()'); RETURN 1; END $$;
CREATE FUNCTION vol(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('vol(int)'); RETURN 1; END $$;
CREATE FUNCTION volsql(int) RETURNS int LANGUAGE sql AS 'SELECT vol($1)';
CREATE FUNCTION f(t) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('f(t)'); RETURN 1; END $$;
CREATE FUNCTION g(t) RETURNS t LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('g(t)'); RETURN $1; END $$;
CREATE FUNCTION optional(t, int DEFAULT 1) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('optional'); RETURN 1; END $$;
CREATE FUNCTION "Vol"(t) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('Vol'); RETURN 1; END $$;
CREATE FUNCTION "été"(t) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('été'); RETURN 1; END $$;
CREATE FUNCTION "left"(t) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('left'); RETURN 1; END $$;
CREATE FUNCTION "select"(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('select'); RETURN 1; END $$;
CREATE FUNCTION "row"(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('row'); RETURN 1; END $$;
CREATE FUNCTION defaulted(int DEFAULT vol(7)) RETURNS int STABLE LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION step(int, int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('step'); RETURN 1; END $$;
CREATE AGGREGATE total(int) (SFUNC = step, STYPE = int);
CREATE AGGREGATE ordered(ORDER BY int) (SFUNC = step, STYPE = int);
CREATE PROCEDURE proc(int) LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('proc'); END $$;
CREATE FUNCTION checked(text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('CHECK'); RETURN true; END $$;
CREATE DOMAIN dom AS text CHECK (checked(VALUE));
CREATE DOMAIN domi AS int CHECK (checked(VALUE::text));
CREATE DOMAIN domt AS t CHECK (checked((VALUE).name));
CREATE DOMAIN "verbose" AS text CHECK (checked(VALUE));
CREATE DOMAIN "zone" AS text CHECK (checked(VALUE));
CREATE DOMAIN "escape" AS text CHECK (checked(VALUE));
CREATE DOMAIN "path" AS text CHECK (checked(VALUE));
CREATE SCHEMA "values"; CREATE DOMAIN "values".vd AS text CHECK (checked(VALUE));
CREATE TYPE comp AS (a int, d dom);
CREATE TABLE td (id int, d dom, c comp); INSERT INTO td VALUES (1, 'x', NULL);
CREATE FUNCTION takes(dom) RETURNS text STABLE LANGUAGE sql AS 'SELECT $1::text';
CREATE FUNCTION same(dom, dom) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1::text = $2::text';
CREATE OPERATOR ### (LEFTARG = dom, RIGHTARG = dom, FUNCTION = same);
CREATE TYPE inner_cast AS (x int);
CREATE FUNCTION to_mac(inner_cast) RETURNS macaddr8 LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('cast'); RETURN NULL; END $$;
CREATE CAST (inner_cast AS macaddr8) WITH FUNCTION to_mac AS IMPLICIT;
CREATE FUNCTION fine(macaddr8) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT true';
CREATE DOMAIN casting AS inner_cast CHECK (fine(VALUE));
CREATE TYPE noisy;
CREATE FUNCTION noisy_in(cstring) RETURNS noisy LANGUAGE internal IMMUTABLE STRICT AS 'textin';
CREATE FUNCTION noisy_out(noisy) RETURNS cstring LANGUAGE internal IMMUTABLE STRICT AS 'textout';
CREATE FUNCTION noisy_mod(cstring[]) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('typmod'); RETURN 1; END $$;
CREATE TYPE noisy (INPUT = noisy_in, OUTPUT = noisy_out, TYPMOD_IN = noisy_mod, LIKE = text);
CREATE TYPE my AS (x int);
CREATE TABLE tm (m my); INSERT INTO tm VALUES (ROW(1));
CREATE FUNCTION op(my, my) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('operator'); RETURN true; END $$;
CREATE OPERATOR === (LEFTARG = my, RIGHTARG = my, FUNCTION = op);
CREATE OPERATOR <> (LEFTARG = my, RIGHTARG = my, FUNCTION = op);
CREATE OPERATOR !~~ (LEFTARG = my, RIGHTARG = my, FUNCTION = op);
CREATE FUNCTION pre(my) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('prefix'); RETURN true; END $$;
CREATE OPERATOR !! (RIGHTARG = my, FUNCTION = pre);
CREATE FUNCTION int_to_my(int) RETURNS my LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('int to my'); RETURN NULL; END $$;
CREATE CAST (int AS my) WITH FUNCTION int_to_my;
CREATE VIEW v_bad AS SELECT id, vol(id) AS c FROM t;
CREATE VIEW v_over AS SELECT count(c) AS c FROM v_bad WHERE c > 0;
CREATE TABLE plain_dom (id int, d dom); INSERT INTO plain_dom VALUES (1, 'x');
"#;

/// Expressions that run something planted, or a function of the server's own that is no read.
pub const HARMFUL: &[&str] = &[
    "vol()",
    "vol(1)",
    "public.vol()",
    "\"vol\"(1)",
    "volsql(1)",
    "\"select\"(1)",
    "public.select(1)",
    "\"row\"(1)",
    "public.row(1)",
    "total(1)",
    "ordered() WITHIN GROUP (ORDER BY 1)",
    "proc(1)",
    "defaulted()",
    "t.f",
    "(t).f",
    "(t.*).f",
    "t.\"f\"",
    "(t).g.f",
    "((t).g).f",
    "(g(t)).f",
    "f(t)",
    "f(t.*)",
    "(t.g).id",
    "(t).g.id",
    "(array[t])[1].f",
    "(array[t])[1].g.id",
    "(select t).f",
    "(coalesce(t,t)).f",
    "t.optional",
    "t.\"Vol\"",
    "t.\"left\"",
    "t.left",
    "t.\"été\"",
    "t.été",
    "to_regtype('noisy(1)')",
    "to_regprocedure('f(noisy(1))')",
    "to_regoperator('+(noisy(1), noisy)')",
    "'noisy(1)'::regtype",
    "regtypein('noisy(1)')",
    "has_type_privilege('noisy(1)', 'usage')",
    "pg_get_object_address('type', '{noisy(1)}', '{}')",
    "record_in('(1,x)', (SELECT oid FROM pg_type WHERE typname = 'comp'), -1)",
    "array_in('{x}', (SELECT oid FROM pg_type WHERE typname = 'dom'), -1)",
    "'x'::dom",
    "dom 'x'",
    "public.dom 'x'",
    "cast('x' as dom)",
    "('x').dom",
    "(t.name).dom",
    "dom('x')",
    "'{x}'::dom[]",
    "array['x']::dom[]",
    "'{x}'::_dom",
    "'(1,x)'::comp",
    "row(1,'x')::comp",
    "comp '(1,x)'",
    "verbose 'x'",
    "zone 'x'",
    "escape 'x'",
    "path 'x'",
    "values.vd 'x'",
    "\"values\".vd 'x'",
    "noisy(3) 'x'",
    "'x'::noisy(3)",
    "1::my",
    "my(1)",
    "t.domt",
    "(t).domt",
    "takes('x')",
    "takes(name)",
    "(1).domi",
    "1::domi",
    "domi '1'",
    "treat(1 as domi)",
    "row(1)::casting",
    "row(1)::inner_cast::casting",
    "'x' ### 'y'",
    "name ### name",
    "m === m",
    "m <> m",
    "m != m",
    "m NOT IN (m)",
    "m NOT IN (m, m)",
    "m OPERATOR(public.===) m",
    "!! m",
    "m <> ALL (array[m])",
    "m NOT LIKE m",
    "json_populate_record(td, '{\"d\":\"x\"}')",
    "json_populate_record(null::td, '{\"d\":\"x\"}')",
    "nextval('counter')",
    "('counter'::regclass).nextval",
    "pg_advisory_lock(1)",
    "(1::bigint).pg_advisory_lock",
    "pg_notify('a','b')",
    "lo_create(0)",
    "(0::oid).lo_create",
    "txid_current()",
    "set_config('role','postgres',false)",
    "set_config('transaction_read_only','off',false)",
    "query_to_xml('select vol()',true,true,'')",
    "treat('counter'::regclass as nextval)",
    "(now()).dom",
    "(SELECT c FROM v_bad LIMIT 1)",
    "(SELECT c FROM public.v_over)",
    "(SELECT lag(d, 1, 'y') OVER () FROM plain_dom)",
    "(SELECT array_append(ARRAY[d], 'y')::text FROM plain_dom)",
    "(SELECT array_agg(d) = '{y}' FROM plain_dom)",
    "(SELECT coalesce(p, '(1,y)')::text FROM plain_dom p)",
];

/// Places of an expression.
pub const PLACES: &[&str] = &[
    "SELECT {}",
    "SELECT {} FROM t",
    "SELECT {} FROM t, td, tm",
    "SELECT {} AS a FROM t, tm",
    "SELECT {} a FROM t, td",
    "SELECT {}::text FROM t",
    "SELECT ({}).* FROM t",
    "SELECT 1 FROM t WHERE ({}) IS NOT NULL",
    "SELECT 1 FROM t, tm ORDER BY {}",
    "SELECT 1 FROM t GROUP BY {}",
    "SELECT 1 FROM t GROUP BY GROUPING SETS (({}), ())",
    "SELECT DISTINCT ON ({}) 1 FROM t",
    "SELECT count(*) FILTER (WHERE ({}) IS NOT NULL) FROM t",
    "SELECT array_agg({}) FROM t",
    "SELECT array_agg(1 ORDER BY {}) FROM t",
    "SELECT rank() OVER (PARTITION BY {}) FROM t",
    "SELECT CASE WHEN ({}) IS NULL THEN 1 END FROM t",
    "SELECT coalesce(({})::text, 'a') FROM t",
    "SELECT array[({})::text] FROM t",
    "SELECT row({}) FROM t",
    "SELECT EXISTS (SELECT {} FROM t)",
    "SELECT * FROM (SELECT {} FROM t, tm) x",
    "WITH x AS (SELECT {} FROM t) TABLE x",
    "SELECT 1 FROM t LIMIT (SELECT length(({})::text) FROM t LIMIT 1)",
    "VALUES ((SELECT {} FROM t LIMIT 1))",
    "SELECT 1 UNION ALL SELECT length(({})::text) FROM t",
    "SELECT 'a' LIKE {} FROM t",
    "SELECT 'a' LIKE 'b' ESCAPE {} FROM t",
    "SELECT now() AT TIME ZONE {} FROM t",
    "SELECT {} COLLATE \"C\" FROM t",
    "SELECT substring('abc', {}) FROM t",
    "SELECT trim({}) FROM t",
    "SELECT 'a' IN (SELECT ({})::text FROM t)",
    "SELECT * FROM t LEFT JOIN LATERAL (SELECT {}) x ON true",
    "SELECT * FROM {}",
    "SELECT * FROM {} AS x(a)",
    "SELECT * FROM t, unnest(array[({})::text]) u",
    "SELECT * FROM t TABLESAMPLE bernoulli(length(({})::text))",
    "SELECT format('%s', VARIADIC array[({})::text]) FROM t",
    "SELECT make_interval(days := {}) FROM t",
    "COPY (SELECT {} FROM t) TO STDOUT",
    "EXPLAIN (ANALYZE, COSTS off) SELECT {} FROM t",
    "EXPLAIN ANALYZE SELECT {} FROM tm",
    "SELECT {} FROM tm",
    "SELECT 1 FROM tm WHERE {}",
    "BEGIN; DECLARE c CURSOR FOR SELECT {} FROM t; FETCH ALL c; COMMIT",
    "PREPARE q AS SELECT {} FROM t; EXECUTE q",
    "PREPARE q AS SELECT $1::text; EXECUTE q({})",
    "SELECT 1; SELECT {} FROM t",
    "SELECT json_build_object('a', {}) FROM t",
    "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY ({})::text) FROM t",
    "SELECT (id, ({})::text) = (1, 'a') FROM t",
];

/// A generator of our own, so that a run can be repeated.
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`, which is not zero.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }

    /// One of them.
    pub fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len())]
    }
}

/// The same statement to PostgreSQL, spelled otherwise; sometimes another one.
pub fn respell(sql: &str, random: &mut Random) -> String {
    const SPACES: &[&str] =
        &[" ", "\n", "\t", "\r", "\x0c", "/**/", "/* /* */ */", "--\n", "-- '\r", " /*;*/ ", "/*\"*/"];
    let mut out = String::new();
    let mut quoted = None;
    for letter in sql.chars() {
        match quoted {
            Some(quote) if letter == quote => quoted = None,
            None if matches!(letter, '\'' | '"') => quoted = Some(letter),
            None if letter == ' ' && random.below(4) == 0 => {
                out.push_str(random.one(SPACES));
                continue;
            }
            None if matches!(letter, '(' | '.' | ':' | ')') && random.below(12) == 0 => {
                out.push_str(random.one(SPACES))
            }
            None if random.below(40) == 0 => {
                out.extend(letter.to_uppercase());
                continue;
            }
            None if random.below(400) == 0 => continue,
            _ => {}
        }
        out.push(letter);
    }
    out
}
