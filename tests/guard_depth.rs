//! What runs behind a name, held against a real server: views, policies, types, operators, casts.
//!
//! Invariant: the server decides. Every planted function draws from a sequence when it runs, so whatever is
//! admitted is run, as a superuser and as an ordinary role, and must leave the sequence where it was; and
//! what is said to run something is run, too, and must move it.

mod support;

use std::time::Duration;

use fedgate::guard::{Context, Mode, Step, judge};
use fedgate::ids::SourceName;
use fedgate::sql::Limits;
use fedgate::sql::catalogue::{Catalogue, graph};
use fedgate::upstream::catalogue;
use support::{Options, Postgres};
use tokio_postgres::Client;

const PATIENCE: Duration = Duration::from_secs(120);

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("the server answers in time")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// Admitted, and nothing runs.
    Pass,
    /// Refused, and something would run.
    Runs,
    /// Refused although nothing runs here: the price.
    Price,
}
use Want::{Pass, Price, Runs};

const PLANTED: &str = r#"
CREATE SEQUENCE ran;
CREATE ROLE reader;
CREATE FUNCTION checked(text) RETURNS bool SECURITY DEFINER LANGUAGE plpgsql AS
  $$ BEGIN PERFORM nextval('public.ran'); RETURN true; END $$;
CREATE FUNCTION reads(text) RETURNS bool STABLE LANGUAGE sql AS 'SELECT true';
CREATE FUNCTION step(int, int) RETURNS int SECURITY DEFINER LANGUAGE plpgsql AS
  $$ BEGIN PERFORM nextval('public.ran'); RETURN 1; END $$;
CREATE AGGREGATE total(int) (SFUNC = step, STYPE = int, INITCOND = '0');
CREATE TABLE plain (id int, name text);
INSERT INTO plain VALUES (1, 'a'), (2, 'b');

CREATE VIEW v_good AS SELECT id, lower(name) AS name FROM plain WHERE reads(name);
CREATE VIEW v_bad AS SELECT id, checked(name) AS c FROM plain;
CREATE VIEW v_over AS SELECT * FROM v_bad;
CREATE VIEW v_over_over AS SELECT count(c) FROM v_over;
CREATE VIEW v_barrier WITH (security_barrier) AS SELECT id FROM plain WHERE checked(name);
CREATE VIEW v_inner AS SELECT id FROM plain WHERE EXISTS (SELECT FROM v_bad WHERE c);
CREATE VIEW v_with AS WITH x AS (SELECT * FROM v_bad) SELECT * FROM x;
CREATE VIEW v_union AS SELECT id FROM plain UNION ALL SELECT 1 FROM v_barrier;
CREATE VIEW v_total AS SELECT total(id) FROM plain;
CREATE VIEW v_window AS SELECT total(id) OVER () FROM plain;
CREATE VIEW v_from AS SELECT * FROM checked('x');
CREATE VIEW v_draws AS SELECT nextval('ran');
CREATE VIEW v_id AS SELECT txid_current();
CREATE VIEW v_kill AS SELECT pg_terminate_backend(0);
CREATE VIEW v_file AS SELECT pg_read_file('PG_VERSION');
CREATE VIEW v_sql AS SELECT table_to_xml('v_bad', false, false, '');
CREATE VIEW v_random AS SELECT random() AS r, clock_timestamp() AS c, gen_random_uuid() AS u;
CREATE MATERIALIZED VIEW m_bad AS SELECT id, checked(name) AS c FROM plain;
CREATE VIEW v_of_m AS SELECT * FROM m_bad;

CREATE TABLE rls (id int, name text); INSERT INTO rls VALUES (1, 'a');
ALTER TABLE rls ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON rls USING (checked(name));
CREATE TABLE rls_inner (id int, name text); INSERT INTO rls_inner VALUES (1, 'a');
ALTER TABLE rls_inner ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON rls_inner USING (id IN (SELECT id FROM v_bad WHERE c));
CREATE TABLE rls_good (id int, name text); INSERT INTO rls_good VALUES (1, 'a');
ALTER TABLE rls_good ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON rls_good USING (name <> current_user AND reads(name));
CREATE TABLE rls_off (id int, name text); CREATE POLICY p ON rls_off USING (checked(name));
CREATE TABLE rls_insert (id int, name text);
ALTER TABLE rls_insert ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON rls_insert FOR INSERT WITH CHECK (checked(name));
CREATE VIEW v_of_rls AS SELECT * FROM rls;
CREATE TABLE parted (id int, name text) PARTITION BY LIST (id);
CREATE TABLE part_one PARTITION OF parted FOR VALUES IN (1);
ALTER TABLE parted ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON parted USING (checked(name));
INSERT INTO parted VALUES (1, 'a');

CREATE DOMAIN email AS text CHECK (checked(VALUE));
CREATE DOMAIN inner_email AS email;
CREATE DOMAIN fine AS text CHECK (VALUE <> '' AND reads(VALUE));
CREATE DOMAIN number AS int CHECK (checked(VALUE::text));
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE DOMAIN moods AS mood CHECK (checked(VALUE::text));
CREATE DOMAIN tags AS text[] CHECK (checked(VALUE::text));
CREATE DOMAIN span AS int4range CHECK (checked(VALUE::text));
CREATE DOMAIN doc AS jsonb CHECK (checked(VALUE::text));
CREATE TABLE td (id int, d email, i inner_email, n number, m moods, a tags, s span, j doc, f fine);
INSERT INTO td VALUES (1, 'x', 'x', 1, 'ok', '{x}', '[1,3)', '{"a":1}', 'x');
CREATE VIEW v_of_td AS SELECT d, id FROM td;
CREATE VIEW v_makes AS SELECT id::text::email AS d FROM plain;
CREATE FUNCTION gives() RETURNS email STABLE LANGUAGE sql AS 'SELECT d FROM public.td';
CREATE TYPE pair AS (x int, d email);
CREATE TYPE emails AS RANGE (SUBTYPE = email);
CREATE TABLE th_array (id int, d email[]); INSERT INTO th_array VALUES (1, '{x}');
CREATE TABLE th_pair (id int, p pair); INSERT INTO th_pair VALUES (1, '(1,x)');
CREATE TABLE th_range (id int, r emails); INSERT INTO th_range VALUES (1, '[a,b]');
CREATE TABLE tf (id int, f fine, fs fine[]); INSERT INTO tf VALUES (1, 'x', '{x}');

CREATE TYPE fruit AS (x int);
CREATE FUNCTION to_mac(fruit) RETURNS macaddr8 SECURITY DEFINER LANGUAGE plpgsql AS
  $$ BEGIN PERFORM nextval('public.ran'); RETURN '08:00:2b:01:02:03:04:05'; END $$;
CREATE CAST (fruit AS macaddr8) WITH FUNCTION to_mac AS IMPLICIT;
CREATE TABLE tc (id int, c fruit); INSERT INTO tc VALUES (1, ROW(1));
CREATE TABLE mac (m macaddr8);
CREATE FUNCTION is_fine(macaddr8) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
CREATE TYPE loud AS (x int);
CREATE FUNCTION to_text(loud) RETURNS text SECURITY DEFINER LANGUAGE plpgsql AS
  $$ BEGIN PERFORM nextval('public.ran'); RETURN 'x'; END $$;
CREATE CAST (loud AS text) WITH FUNCTION to_text;
CREATE TABLE tl (id int, l loud); INSERT INTO tl VALUES (1, ROW(1));

CREATE TYPE sorted AS (x int);
CREATE FUNCTION s_lt(sorted, sorted) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT ($1).x < ($2).x';
CREATE FUNCTION s_le(sorted, sorted) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT ($1).x <= ($2).x';
CREATE FUNCTION s_eq(sorted, sorted) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT ($1).x = ($2).x';
CREATE FUNCTION s_ge(sorted, sorted) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT ($1).x >= ($2).x';
CREATE FUNCTION s_gt(sorted, sorted) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT ($1).x > ($2).x';
CREATE FUNCTION s_cmp(sorted, sorted) RETURNS int SECURITY DEFINER LANGUAGE plpgsql AS
  $$ BEGIN PERFORM nextval('public.ran'); RETURN ($1).x - ($2).x; END $$;
CREATE OPERATOR < (LEFTARG = sorted, RIGHTARG = sorted, FUNCTION = s_lt);
CREATE OPERATOR <= (LEFTARG = sorted, RIGHTARG = sorted, FUNCTION = s_le);
CREATE OPERATOR = (LEFTARG = sorted, RIGHTARG = sorted, FUNCTION = s_eq);
CREATE OPERATOR >= (LEFTARG = sorted, RIGHTARG = sorted, FUNCTION = s_ge);
CREATE OPERATOR > (LEFTARG = sorted, RIGHTARG = sorted, FUNCTION = s_gt);
CREATE OPERATOR CLASS sorted_ops DEFAULT FOR TYPE sorted USING btree AS
  OPERATOR 1 <, OPERATOR 2 <=, OPERATOR 3 =, OPERATOR 4 >=, OPERATOR 5 >, FUNCTION 1 s_cmp(sorted, sorted);
CREATE TABLE ts (id int, s sorted); INSERT INTO ts VALUES (1, ROW(2)), (2, ROW(1));
CREATE TABLE ts_array (id int, s sorted[]); INSERT INTO ts_array VALUES (1, ARRAY[ROW(2)::sorted]), (2, ARRAY[ROW(1)::sorted]);
CREATE FUNCTION any_row(int) RETURNS record STABLE LANGUAGE sql AS 'SELECT t FROM (SELECT s FROM public.ts WHERE id = $1) t';

CREATE TYPE money_of AS ENUM ('small', 'big');
CREATE FUNCTION m_ne(money_of, money_of) RETURNS bool SECURITY DEFINER LANGUAGE plpgsql AS
  $$ BEGIN PERFORM nextval('public.ran'); RETURN true; END $$;
CREATE OPERATOR <> (LEFTARG = money_of, RIGHTARG = money_of, FUNCTION = m_ne);
CREATE OPERATOR <%> (LEFTARG = money_of, RIGHTARG = money_of, FUNCTION = m_ne);
CREATE TABLE tm (id int, m money_of); INSERT INTO tm VALUES (1, 'small');
CREATE FUNCTION a_lot() RETURNS money_of STABLE LANGUAGE sql AS $$ SELECT 'big'::public.money_of $$;
CREATE VIEW v_of_tm AS SELECT m AS x FROM tm;

-- What text and XML become by themselves, without a function.
CREATE TYPE sly;
CREATE FUNCTION sly_in(cstring) RETURNS sly IMMUTABLE STRICT LANGUAGE internal AS 'textin';
CREATE FUNCTION sly_out(sly) RETURNS cstring IMMUTABLE STRICT LANGUAGE internal AS 'textout';
CREATE TYPE sly (INPUT = sly_in, OUTPUT = sly_out, LIKE = text);
CREATE CAST (text AS sly) WITHOUT FUNCTION AS IMPLICIT;
CREATE CAST (xml AS sly) WITHOUT FUNCTION AS IMPLICIT;
CREATE FUNCTION to_sly(int) RETURNS sly SECURITY DEFINER LANGUAGE plpgsql AS
  $$ BEGIN PERFORM nextval('public.ran'); RETURN 'x'; END $$;
CREATE CAST (int AS sly) WITH FUNCTION to_sly AS IMPLICIT;
CREATE FUNCTION takes(sly) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
CREATE FUNCTION sly_is(sly, sly) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
CREATE FUNCTION sly_cmp(sly, sly) RETURNS int SECURITY DEFINER LANGUAGE plpgsql AS
  $$ BEGIN PERFORM nextval('public.ran'); RETURN 0; END $$;
CREATE OPERATOR <%< (LEFTARG = sly, RIGHTARG = sly, FUNCTION = sly_is);
CREATE OPERATOR <%= (LEFTARG = sly, RIGHTARG = sly, FUNCTION = sly_is);
CREATE OPERATOR =%= (LEFTARG = sly, RIGHTARG = sly, FUNCTION = sly_is);
CREATE OPERATOR >%= (LEFTARG = sly, RIGHTARG = sly, FUNCTION = sly_is);
CREATE OPERATOR >%> (LEFTARG = sly, RIGHTARG = sly, FUNCTION = sly_is);
CREATE OPERATOR CLASS sly_ops DEFAULT FOR TYPE sly USING btree AS
  OPERATOR 1 <%<, OPERATOR 2 <%=, OPERATOR 3 =%=, OPERATOR 4 >%=, OPERATOR 5 >%>, FUNCTION 1 sly_cmp(sly, sly);
CREATE TABLE tsly (id int, s sly); INSERT INTO tsly VALUES (1, 'a'), (2, 'b');
CREATE TABLE txml (id int, x xml); INSERT INTO txml VALUES (1, '<a/>'), (2, '<b/>');

CREATE FUNCTION same(anyelement, anyelement) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 = $2';
CREATE OPERATOR =|= (LEFTARG = anyelement, RIGHTARG = anyelement, FUNCTION = same);

CREATE SCHEMA shadow;
CREATE FUNCTION shadow.lower(text) RETURNS text SECURITY DEFINER LANGUAGE plpgsql AS
  $$ BEGIN PERFORM nextval('public.ran'); RETURN $1; END $$;
CREATE VIEW shadow.plain AS SELECT checked(name) FROM public.plain;
CREATE VIEW shadow.pg_class AS SELECT public.checked('x') AS relname;
GRANT SELECT ON ALL TABLES IN SCHEMA public, shadow TO reader;
GRANT USAGE ON SCHEMA shadow TO reader;
"#;

const CASES: &[(&str, Want)] = &[
    // views
    ("SELECT * FROM v_good", Pass),
    ("SELECT * FROM v_bad", Runs),
    ("SELECT id FROM v_bad", Runs),
    ("SELECT * FROM public.v_bad", Runs),
    ("TABLE v_bad", Runs),
    ("SELECT * FROM v_over", Runs),
    ("SELECT * FROM v_over_over", Runs),
    ("SELECT 1 FROM v_barrier", Runs),
    ("SELECT * FROM v_inner", Runs),
    ("SELECT * FROM v_with", Runs),
    ("SELECT * FROM v_union", Runs),
    ("SELECT * FROM v_total", Runs),
    ("SELECT * FROM v_window", Runs),
    ("SELECT * FROM v_from", Runs),
    ("SELECT * FROM v_draws", Runs),
    ("SELECT * FROM v_id", Price),
    ("SELECT * FROM v_kill", Price),
    ("SELECT * FROM v_file", Price),
    ("SELECT * FROM v_sql", Runs),
    ("SELECT * FROM v_random", Pass),
    ("SELECT * FROM m_bad", Pass),
    ("SELECT * FROM v_of_m", Pass),
    ("SELECT 1 WHERE EXISTS (SELECT c FROM v_bad WHERE c)", Runs),
    ("WITH x AS MATERIALIZED (SELECT * FROM v_bad) SELECT count(*) FROM x", Runs),
    ("SELECT p.id FROM plain p JOIN v_bad b ON b.c", Runs),
    ("SELECT p.id, l.* FROM public.plain p, LATERAL (SELECT c FROM v_bad LIMIT 1) l", Runs),
    ("EXPLAIN (ANALYZE) SELECT * FROM v_bad", Runs),
    // policies
    ("SELECT * FROM rls", Runs),
    ("SELECT * FROM v_of_rls", Price),
    ("SELECT * FROM rls_inner", Runs),
    ("SELECT * FROM rls_good", Pass),
    ("SELECT * FROM rls_off", Pass),
    ("SELECT * FROM rls_insert", Pass),
    ("SELECT * FROM parted", Runs),
    ("SELECT * FROM part_one", Pass),
    // names in schemas
    ("SELECT * FROM public.plain", Pass),
    ("SELECT * FROM plain", Price),
    ("SELECT * FROM shadow.plain", Runs),
    ("SELECT relname FROM pg_catalog.pg_class LIMIT 1", Pass),
    ("SELECT relname FROM pg_class LIMIT 1", Price),
    ("SELECT pg_catalog.lower('A')", Pass),
    ("SELECT lower('A')", Price),
    ("SELECT shadow.lower('A')", Runs),
    ("SET search_path = shadow, pg_catalog; SELECT lower('A'); SET search_path = public", Runs),
    // the server's own views
    ("SELECT * FROM pg_locks", Pass),
    ("SELECT * FROM pg_settings", Pass),
    ("SELECT * FROM pg_file_settings", Pass),
    ("SELECT * FROM pg_stat_activity", Pass),
    ("SELECT * FROM information_schema.columns", Pass),
    // domains: reading is harmless, whatever their CHECK
    ("SELECT * FROM td", Pass),
    ("SELECT id, d, i, n, m, a, s, j FROM td ORDER BY d, n, m, a, s, j", Pass),
    ("SELECT DISTINCT d, n, m, a, s, j FROM td", Pass),
    ("SELECT id FROM td WHERE d = 'x' AND i = 'x' AND d <> 'y' AND d LIKE 'x%' AND d ~ 'x'", Pass),
    ("SELECT id FROM td WHERE n = 1 AND n = '1' AND n BETWEEN '0' AND 2 AND n + 1 > '1'", Pass),
    ("SELECT id FROM td WHERE m::mood = 'ok' AND m::mood <> 'sad' AND m IS NOT NULL", Pass),
    (
        "SELECT id FROM td WHERE a = '{x}' AND a @> '{x}' AND a && '{x}' AND 'x' = ANY (a) AND a[1] = 'x'",
        Pass,
    ),
    ("SELECT id FROM td WHERE s = '[1,3)' AND s && '[1,2]' AND s @> 1 AND pg_catalog.lower(s) = '1'", Pass),
    ("SELECT id FROM td WHERE j = '{\"a\":1}' AND j @> '{}' AND j -> 'a' = '1' AND j ->> 'a' = '1'", Pass),
    ("SELECT id FROM td WHERE d IN ('x', 'y') AND n IN (1, '2') AND d = ANY ('{x,y}')", Pass),
    (
        "SELECT coalesce(d, 'y'), coalesce(n, '2'), coalesce(m, 'sad'), coalesce(a, '{}'), coalesce(s, 'empty') FROM td",
        Pass,
    ),
    (
        "SELECT CASE WHEN id = 1 THEN d ELSE 'y' END, CASE id WHEN 1 THEN m END, greatest(d, 'y'), least(n, '2') FROM td",
        Pass,
    ),
    ("SELECT nullif(d, 'y'), nullif(n, '1'), nullif(j, '{}'), nullif(a, '{}') FROM td", Pass),
    ("SELECT d FROM td UNION SELECT 'y' UNION ALL SELECT NULL", Pass),
    ("SELECT m, n FROM td UNION SELECT 'ok', '1'", Pass),
    ("VALUES ((SELECT d FROM td)), ('y'), (NULL)", Pass),
    ("SELECT d || 'y', 'y' || d, d || NULL, n || 'x', a || '{y}', '{y}' || a, n || '{1}' FROM td", Pass),
    (
        "SELECT (d, n) = ('x', 1), (d, n) IN (('x', '1')), ROW(d, s) IS DISTINCT FROM ROW('x', 'empty') FROM td",
        Pass,
    ),
    ("SELECT d IS DISTINCT FROM 'y', d COLLATE \"C\" < 'y', d::text, length(d), upper(d) FROM td", Pass),
    ("SELECT max(d), min(n), max(a), count(d), string_agg(d, ',') FROM td", Pass),
    ("SELECT id FROM td WHERE id = ANY (ARRAY[1, 2])", Pass),
    ("SELECT n =|= '1' FROM td", Runs),
    ("SELECT d OPERATOR(public.=|=) 'x' FROM td", Runs),
    ("SELECT id = 1 FROM td WHERE n = '1' AND id =|= '1'", Price),
    ("SELECT id =|= '1' FROM public.plain", Pass),
    (
        "SELECT domain_in('x', (SELECT oid FROM pg_catalog.pg_type WHERE typname = 'em' || 'ail'), -1) IS NULL",
        Runs,
    ),
    ("SELECT id FROM td WHERE (id, d) IN (SELECT 1, 'x')", Pass),
    ("SELECT td.*, td.d FROM td WHERE td.d > '(1,x)'", Pass),
    ("SELECT to_jsonb(td) FROM td", Pass),
    ("SELECT json_agg(td) FROM td", Pass),
    ("SELECT first_value(d) OVER (), nth_value(d, 1) OVER () FROM td", Pass),
    ("SELECT * FROM v_of_td WHERE d = 'x'", Pass),
    ("SELECT d FROM td x JOIN plain y USING (id)", Price),
    ("SELECT d FROM td x JOIN public.plain y USING (id)", Pass),
    ("SELECT gives()", Pass),
    ("SELECT gives() = 'x'", Pass),
    // unless a value is made
    ("SELECT 'x'::email", Runs),
    ("SELECT lag(d, 1, 'y') OVER () FROM td", Runs),
    ("SELECT lead(gives(), 1, 'y') OVER () FROM public.plain", Runs),
    ("SELECT ARRAY[d] = '{y}' FROM td", Runs),
    ("SELECT array_append(ARRAY[d], 'y') FROM td", Runs),
    ("SELECT coalesce(ARRAY[d], ARRAY[f::text]) FROM td", Price),
    ("SELECT array_agg(d) = '{y}' FROM td", Runs),
    ("SELECT array_position(ARRAY[d], 'y') FROM td", Runs),
    ("SELECT ARRAY(SELECT d FROM td) || '{y}'", Runs),
    ("SELECT array_fill(d, '{2}') || '{y}' FROM td", Runs),
    ("SELECT td = '(1,x,x,1,ok,{x},empty,{},x)' FROM td", Price),
    ("SELECT * FROM td AS r WHERE r = '(1,x,x,1,ok,{x},empty,{},x)'", Price),
    ("SELECT coalesce(r, '(1,x,x,1,ok,{x},empty,{},x)') FROM td r", Runs),
    ("SELECT json_populate_record(td, '{\"d\":\"y\"}') FROM td", Runs),
    ("SELECT * FROM v_makes", Runs),
    ("SELECT (gives()).array_agg = '{y}'", Runs),
    // and inside other types there is always a way
    ("SELECT d = '{y}' FROM th_array", Runs),
    ("SELECT array_append(d, 'y') FROM th_array", Runs),
    ("SELECT CASE WHEN id = 1 THEN ARRAY[id::text] ELSE d END FROM th_array", Runs),
    ("SELECT d FROM th_array", Price),
    ("SELECT p = '(1,y)' FROM th_pair", Price),
    ("SELECT coalesce(p, '(1,y)') FROM th_pair", Runs),
    ("SELECT r = '[a,c]' FROM th_range", Runs),
    ("SELECT * FROM tf WHERE f = 'x' AND fs = '{x}' AND array_append(fs, 'y') <> '{}'", Pass),
    ("SELECT 'x'::fine, '{x}'::fine[]", Pass),
    // implicit casts
    ("SELECT is_fine(c) FROM tc", Runs),
    ("SELECT is_fine(ROW(1)::fruit)", Runs),
    ("SELECT id FROM tc", Price),
    ("SELECT is_fine(m), m FROM mac", Pass),
    // explicit ones where there is something to cast
    ("SELECT l::text FROM tl", Runs),
    ("SELECT CAST(ROW(1)::loud AS text)", Runs),
    ("SELECT id FROM tl", Pass),
    ("SELECT id::text FROM tl", Price),
    ("SELECT id::text, name::text FROM public.plain", Pass),
    // operator classes
    ("SELECT s FROM ts ORDER BY s", Runs),
    ("SELECT DISTINCT s FROM ts", Runs),
    ("SELECT greatest(s, s) FROM ts", Runs),
    ("SELECT ROW(s) < ROW(s) FROM ts", Price),
    ("SELECT max(s.s) FROM (SELECT s FROM ts_array) s", Runs),
    ("SELECT s FROM ts_array ORDER BY s", Runs),
    ("SELECT any_row(1) < any_row(2)", Runs),
    ("SELECT s FROM ts", Price),
    ("SELECT 1 < 2, 'a' < 'b' ORDER BY 1", Pass),
    // operators that only values of a type can mean
    ("SELECT m <> m FROM tm", Runs),
    ("SELECT m <> 'big' FROM tm", Runs),
    ("SELECT x <> x FROM v_of_tm", Runs),
    ("SELECT x.m NOT IN (x.m, x.m) FROM tm x", Runs),
    ("SELECT a_lot() <> 'small'", Runs),
    ("SELECT 'small'::money_of <> 'big'", Runs),
    ("SELECT 'small' OPERATOR(public.<>) 'big'", Runs),
    ("SELECT 'small' <%> 'big'", Runs),
    ("SELECT m = 'small' FROM tm", Pass),
    ("SELECT m OPERATOR(pg_catalog.<>) 'big' FROM tm", Pass),
    ("SELECT id FROM public.plain WHERE id <> 1 AND name <> 'x' AND name NOT IN ('x', NULL)", Pass),
    ("SELECT 'a' <> 'b', NULL <> NULL, 1 <> 2, now() <> now(), (1, 2) <> (3, 4), '{1}'::int[] <> '{}'", Pass),
    ("SELECT id <> 1 FROM tm", Price),
    // what becomes another type without a function
    ("SELECT takes(id) FROM public.plain", Runs),
    ("SELECT takes('a'::text)", Price),
    ("SELECT 1 <%= 'a'::text", Runs),
    ("SELECT 1::sly", Runs),
    ("SELECT s FROM tsly ORDER BY s", Runs),
    ("SELECT id FROM tsly", Price),
    ("SELECT id FROM txml ORDER BY x", Runs),
    ("SELECT DISTINCT name FROM public.plain ORDER BY name DESC", Pass),
    ("SELECT name, count(*), max(name) FROM public.plain GROUP BY name HAVING min(name) > 'A'", Pass),
    ("SELECT name FROM public.plain UNION SELECT 'x' INTERSECT SELECT 'x'", Pass),
    ("SELECT a.id FROM public.plain a JOIN public.plain b USING (name)", Pass),
    ("SELECT ARRAY[name] = ARRAY['x'], (id, name) < (2, 'b'), greatest(name, 'x') FROM public.plain", Pass),
    ("SELECT name = ANY ('{a,b}'), name || id, id::text < name, nullif(name, 'a') FROM public.plain", Pass),
    ("SELECT rank() OVER (ORDER BY name), coalesce(name, 'x') LIKE 'a%' FROM public.plain", Pass),
];

fn verdict(catalogue: &Catalogue, sql: &str) -> Result<(), String> {
    let (limits, source) = (Limits::default(), SourceName::new("s"));
    let ctx = Context { catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
    judge(sql.as_bytes(), &ctx).steps.iter().try_for_each(|step| match step {
        Step::Admit(_) => Ok(()),
        Step::Refuse(refusal) => {
            Err(format!("{}: {}", refusal.message, refusal.detail.as_deref().unwrap_or_default()))
        }
    })
}

async fn drawn(client: &Client) -> i64 {
    let row = client.query_one("SELECT last_value + is_called::int FROM public.ran", &[]).await.unwrap();
    row.get(0)
}

#[tokio::test]
async fn what_is_admitted_runs_nothing_planted() {
    let server = Postgres::start(Options::default());
    let admin = server.superuser_client("postgres").await;
    within(admin.batch_execute(PLANTED)).await.unwrap();
    let reader = server.superuser_client("postgres").await;
    within(reader.batch_execute("SET ROLE reader")).await.unwrap();
    let catalogue = within(catalogue::load(&reader)).await.unwrap();
    let mut wrong = Vec::new();
    for (sql, want) in CASES {
        let judged = verdict(&catalogue, sql);
        let mut ran = false;
        let mut failed = Vec::new();
        for client in [&admin, &reader] {
            let before = drawn(&admin).await;
            if let Err(error) = within(client.simple_query(sql)).await {
                failed.push(
                    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned()),
                );
            }
            ran |= drawn(&admin).await != before;
        }
        let is = match (&judged, ran) {
            (Ok(()), false) => Pass,
            (Err(_), true) => Runs,
            (Err(_), false) => Price,
            (Ok(()), true) => {
                wrong.push(format!("ADMITTED AND RAN: {sql}"));
                continue;
            }
        };
        if is != *want || (is != Price && failed.len() == 2) {
            wrong.push(format!("{sql}\n    want {want:?}, is {is:?} {judged:?} {failed:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
}

/// What the graph takes for sorted and compared as what it is, is so.
#[tokio::test]
async fn types_with_operator_classes_of_their_own_are_such() {
    let server = Postgres::start(Options::default());
    let admin = server.superuser_client("postgres").await;
    let query = "SELECT t.oid FROM pg_type t WHERE t.oid = ANY ($1) AND (
                   SELECT count(DISTINCT a.amname) FROM pg_opclass c JOIN pg_am a ON a.oid = c.opcmethod
                    WHERE c.opcintype = t.oid AND c.opcdefault AND a.amname IN ('btree', 'hash')) = 2";
    let found = within(admin.query(query, &[&graph::SORTED])).await.unwrap();
    assert_eq!(found.len(), graph::SORTED.len());
}

/// The server's own views are read by monitoring and by clients.
#[tokio::test]
async fn the_servers_own_views_stay_readable() {
    let server = Postgres::start(Options::default());
    let admin = server.superuser_client("postgres").await;
    let catalogue = within(catalogue::load(&admin)).await.unwrap();
    let views = "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c
                   JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE c.relkind IN ('v', 'r', 'm') AND c.oid < 16384";
    let names: Vec<String> =
        within(admin.query(views, &[])).await.unwrap().iter().map(|row| row.get(0)).collect();
    assert!(names.len() > 200, "{}", names.len());
    let wrong: Vec<String> = names
        .iter()
        .filter_map(|name| verdict(&catalogue, &format!("SELECT * FROM {name} WHERE true")).err())
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
