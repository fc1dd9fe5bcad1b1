//! What a schema can run without its name in the text: behind types, operators, relations.
//!
//! Invariant: each entry shows an effect when it is run directly, or it proves nothing.

/// Objects, and statements that run what they hide. `{out}` is a folder that the server may write to.
pub const HIDDEN: &[(&str, &str, &[&str])] = &[
    (
        "an implicit cast",
        "CREATE TYPE coin AS (x int); CREATE TABLE coins (c coin); INSERT INTO coins VALUES (ROW(1));
         CREATE FUNCTION coin_text(coin) RETURNS text LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('implicit cast'); RETURN 'x'; END $$;
         CREATE CAST (coin AS text) WITH FUNCTION coin_text AS IMPLICIT;",
        &["SELECT length(c) FROM coins", "SELECT upper(c) FROM coins", "SELECT c::text FROM coins", "SELECT c ~ 'x' FROM coins"],
    ),
    (
        "an operator class",
        "CREATE TYPE loud AS (x int); CREATE TABLE louds (l loud, ls loud[]); INSERT INTO louds VALUES (ROW(1), NULL), (ROW(2), NULL), (ROW(1), NULL);
         CREATE FUNCTION loud_eq(loud, loud) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT ($1).x = ($2).x';
         CREATE FUNCTION loud_lt(loud, loud) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT ($1).x < ($2).x';
         CREATE FUNCTION loud_cmp(loud, loud) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('comparison'); RETURN 0; END $$;
         CREATE FUNCTION loud_hash(loud) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('hash'); RETURN 0; END $$;
         CREATE OPERATOR ==== (LEFTARG = loud, RIGHTARG = loud, FUNCTION = loud_eq, MERGES, HASHES, COMMUTATOR = ====);
         CREATE OPERATOR <<<< (LEFTARG = loud, RIGHTARG = loud, FUNCTION = loud_lt);
         CREATE OPERATOR CLASS loud_ops DEFAULT FOR TYPE loud USING btree AS OPERATOR 1 <<<<, OPERATOR 3 ====, FUNCTION 1 loud_cmp(loud, loud);
         CREATE OPERATOR CLASS loud_hash_ops DEFAULT FOR TYPE loud USING hash AS OPERATOR 1 ====, FUNCTION 1 loud_hash(loud);",
        &[
            "SELECT l FROM louds ORDER BY l",
            "SELECT DISTINCT l FROM louds",
            "SELECT l FROM louds GROUP BY l",
            "SELECT GREATEST(l, l) FROM louds",
            "SELECT l FROM louds UNION SELECT l FROM louds",
            "SELECT count(DISTINCT l) FROM louds",
            "SELECT array_agg(l ORDER BY l) FROM louds",
            "SELECT row_number() OVER (ORDER BY l) FROM louds",
            "SELECT rank() OVER (PARTITION BY l) FROM louds",
            "SELECT array[l] < array[l] FROM louds",
            "SELECT ROW(l, l) <<<< ROW(l, l) FROM louds",
            "SELECT a FROM louds AS a ORDER BY a",
            "SELECT l FROM louds ORDER BY l USING <<<<",
        ],
    ),
    (
        "an array or a row of a domain",
        "CREATE FUNCTION looked(text) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('CHECK'); RETURN true; END $$;
         CREATE DOMAIN tag AS text CHECK (looked(VALUE)); CREATE TYPE tagged AS (a int, d tag);
         CREATE TABLE labels (id int, tags tag[], c tagged); INSERT INTO labels VALUES (1, '{a}', NULL);",
        &[
            "SELECT array_append(tags, 'x') FROM labels",
            "SELECT array_prepend('x', tags) FROM labels",
            "SELECT tags || '{x}' FROM labels",
            "SELECT tags = '{x}' FROM labels",
            "SELECT tags @> '{x}' FROM labels",
            "SELECT array_remove(tags, 'x') FROM labels",
            "SELECT array_position(tags, 'x') FROM labels",
            "SELECT coalesce(tags, '{x}') FROM labels",
            "SELECT CASE WHEN id = 1 THEN '{x}' ELSE tags END FROM labels",
            "SELECT tags FROM labels UNION ALL SELECT '{x}'",
            "SELECT coalesce(c, '(1,x)') FROM labels",
            "SELECT nullif(tags, '{x}') FROM labels",
            "SELECT c IN ('(1,x)', '(2,y)') FROM labels",
            "SELECT ARRAY[c, '(1,x)'] FROM labels",
            "SELECT c FROM labels UNION ALL SELECT '(1,x)'",
            "SELECT lead(c, 1, '(1,x)') OVER () FROM labels",
            "SELECT tags IN ('{x}', '{y}') FROM labels",
            "SELECT * FROM (SELECT c FROM labels UNION ALL SELECT '(1,x)') AS v",
        ],
    ),
    (
        "a parameter that is an array of a domain by its place",
        "",
        &["SELECT coalesce(tags, $1) FROM labels", "SELECT array_append(tags, $1) FROM labels", "SELECT tags = $1 FROM labels"],
    ),
    (
        "an operator's negator",
        "CREATE TYPE sign AS (x int); CREATE TABLE signs (s sign); INSERT INTO signs VALUES (ROW(1));
         CREATE FUNCTION sign_is(sign, sign) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
         CREATE FUNCTION sign_is_not(sign, sign) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('negator'); RETURN true; END $$;
         CREATE OPERATOR ~== (LEFTARG = sign, RIGHTARG = sign, FUNCTION = sign_is, NEGATOR = ~<>);
         CREATE OPERATOR ~<> (LEFTARG = sign, RIGHTARG = sign, FUNCTION = sign_is_not, NEGATOR = ~==);",
        &["SELECT NOT (s ~== s) FROM signs", "SELECT 1 FROM signs WHERE NOT (s ~== s)", "SELECT (s ~== s) = false FROM signs"],
    ),
    (
        "a moving aggregate",
        "CREATE FUNCTION plain_step(int, int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT coalesce($1, 0) + coalesce($2, 0)';
         CREATE FUNCTION moving_step(int, int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('moving step'); RETURN 1; END $$;
         CREATE AGGREGATE moving(int) (SFUNC = plain_step, STYPE = int, MSFUNC = moving_step, MINVFUNC = moving_step, MSTYPE = int);
         CREATE FUNCTION last_step(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('last step'); RETURN 1; END $$;
         CREATE AGGREGATE ending(int) (SFUNC = plain_step, STYPE = int, FINALFUNC = last_step);",
        &[
            "SELECT moving(id) OVER (ORDER BY id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM t",
            "SELECT ending(id) FROM t",
        ],
    ),
    (
        "a view",
        "CREATE VIEW noisy_view AS SELECT id, vol(id) FROM t; CREATE VIEW outer_view AS SELECT * FROM noisy_view;
         CREATE SEQUENCE tickets; CREATE VIEW next_ticket AS SELECT nextval('tickets');
         CREATE VIEW checking_view AS SELECT id FROM t WHERE vol(id) = 1;",
        &[
            "SELECT * FROM noisy_view",
            "TABLE noisy_view",
            "SELECT * FROM outer_view",
            "SELECT * FROM next_ticket",
            "TABLE next_ticket",
            "SELECT count(*) FROM checking_view",
            "COPY (TABLE noisy_view) TO STDOUT",
            "SELECT (SELECT nextval FROM next_ticket)",
        ],
    ),
    (
        "a policy of row security",
        "CREATE TABLE guarded (id int, name text); INSERT INTO guarded VALUES (1, 'a');
         ALTER TABLE guarded ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON guarded USING (vol(id) = 1);",
        &["SELECT * FROM guarded", "TABLE guarded", "SELECT count(*) FROM t, guarded"],
    ),
    (
        "a foreign table",
        "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
         CREATE FOREIGN TABLE from_program (line text) SERVER files OPTIONS (program 'date +%N%s >>{out}/ran; echo x');
         CREATE TABLE parent (line text); CREATE FOREIGN TABLE child () INHERITS (parent) SERVER files
         OPTIONS (program 'date +%N%s >>{out}/ran; echo x');",
        &["SELECT * FROM from_program", "SELECT * FROM parent", "SELECT count(*) FROM child"],
    ),
];
