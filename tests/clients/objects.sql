-- One object of every kind that clients list, describe or dump. Deterministic; beside the climscore tables.
SET client_min_messages = warning;
CREATE SCHEMA survey;
COMMENT ON SCHEMA survey IS 'field survey of buildings';
SET search_path = survey, public;

CREATE TYPE state AS ENUM ('planned', 'running', 'done');
CREATE TYPE place AS (street text, house integer, lon double precision, lat double precision);
CREATE TYPE period AS RANGE (subtype = date);
CREATE DOMAIN grade AS smallint CHECK (VALUE BETWEEN 0 AND 100);
COMMENT ON TYPE state IS 'how far a visit has come';
COMMENT ON DOMAIN grade IS 'points out of a hundred';

CREATE TABLE district (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    code varchar(8) NOT NULL UNIQUE,
    name text NOT NULL,
    parent integer REFERENCES district (id) ON DELETE SET NULL
);
COMMENT ON TABLE district IS 'where buildings stand';
COMMENT ON COLUMN district.code IS 'official code';

CREATE TABLE building (
    id bigserial PRIMARY KEY,
    district_id integer NOT NULL REFERENCES district (id),
    "Label" varchar(40) NOT NULL,
    located place,
    built date,
    height numeric(6, 2) DEFAULT 0 CHECK (height >= 0),
    points grade,
    tags text[] NOT NULL DEFAULT '{}',
    facts jsonb,
    uid uuid,
    raw bytea,
    seen timestamptz,
    label_length integer GENERATED ALWAYS AS (length("Label")) STORED,
    CONSTRAINT label_not_empty CHECK ("Label" <> ''),
    UNIQUE (district_id, "Label")
);
CREATE INDEX building_tags ON building USING gin (tags);
CREATE INDEX building_lower_label ON building (lower("Label")) WHERE built IS NOT NULL;
CREATE STATISTICS building_spread (ndistinct, dependencies) ON district_id, built FROM building;
COMMENT ON COLUMN building."Label" IS 'what the sign says';

CREATE TABLE visit (
    building_id bigint NOT NULL REFERENCES building (id) ON DELETE CASCADE,
    held date NOT NULL,
    state state NOT NULL DEFAULT 'planned',
    note text,
    PRIMARY KEY (building_id, held)
) PARTITION BY RANGE (held);
CREATE TABLE visit_2024 PARTITION OF visit FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE visit_2025 PARTITION OF visit FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE INDEX visit_state ON visit (state);

CREATE TABLE reading (
    id integer PRIMARY KEY,
    building_id bigint NOT NULL,
    taken timestamptz NOT NULL,
    value double precision NOT NULL,
    remark varchar(60) NOT NULL
);

CREATE TABLE archive (LIKE building INCLUDING DEFAULTS);
CREATE TABLE tower (floors integer NOT NULL) INHERITS (archive);
CREATE UNLOGGED TABLE scratch (id integer, body text) WITH (fillfactor = 70);

CREATE SEQUENCE ticket START 100 INCREMENT 5;

INSERT INTO district (code, name, parent)
SELECT 'D' || n, 'District ' || n, CASE WHEN n > 4 THEN n % 4 + 1 END FROM generate_series(1, 24) n;
INSERT INTO building (district_id, "Label", located, built, height, points, tags, facts, uid, raw, seen)
SELECT n % 24 + 1, 'Building ' || n, ROW ('Street ' || n % 50, n, 6.5 + n / 1000.0, 46.2 + n / 2000.0)::place,
       date '1900-01-01' + n * 7, n % 90 + 0.25, n % 101, ARRAY ['t' || n % 7, 'ü' || n % 3],
       jsonb_build_object('n', n, 'even', n % 2 = 0), md5(n::text)::uuid, decode(md5(n::text), 'hex'),
       timestamptz '2024-01-01 00:00:00+00' + n * interval '1 hour'
FROM generate_series(1, 600) n;
INSERT INTO visit
SELECT n % 600 + 1, date '2024-01-01' + n, (ARRAY ['planned', 'running', 'done'])[n % 3 + 1]::state, NULLIF('note ' || n % 5, 'note 0')
FROM generate_series(0, 700) n;
INSERT INTO reading
SELECT n, n % 600 + 1, timestamptz '2024-01-01 00:00:00+00' + n * interval '1 minute', sin(n), 'reading number ' || n
FROM generate_series(1, 60000) n;
INSERT INTO tower ("Label", district_id, id, floors) SELECT 'Tower ' || n, 1, n, n FROM generate_series(1, 9) n;

CREATE VIEW tall AS
SELECT b.id, b."Label", d.name AS district FROM building b JOIN district d ON d.id = b.district_id WHERE b.height > 80;
COMMENT ON VIEW tall IS 'buildings over 80 m';
CREATE MATERIALIZED VIEW per_district AS
SELECT district_id, count(*) AS buildings, avg(height)::numeric(8, 3) AS mean_height FROM building GROUP BY 1;
CREATE UNIQUE INDEX per_district_key ON per_district (district_id);

CREATE FUNCTION full_name(building) RETURNS text LANGUAGE sql STABLE AS $$ SELECT $1."Label" || ' (' || $1.id || ')' $$;
CREATE FUNCTION next_ticket() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT nextval('survey.ticket') $$;
CREATE FUNCTION store(marker text) RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
BEGIN INSERT INTO survey.scratch VALUES (1, marker); RETURN 1; END $$;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.seen := now(); RETURN NEW; END $$;
CREATE PROCEDURE clear_scratch() LANGUAGE sql AS $$ DELETE FROM survey.scratch $$;
CREATE AGGREGATE product(double precision) (SFUNC = float8mul, STYPE = double precision, INITCOND = '1');
CREATE TRIGGER building_touch BEFORE UPDATE ON building FOR EACH ROW EXECUTE FUNCTION touch();
CREATE RULE keep_archive AS ON DELETE TO archive DO INSTEAD NOTHING;
COMMENT ON FUNCTION full_name(building) IS 'label and number';

ALTER TABLE visit ENABLE ROW LEVEL SECURITY;
CREATE POLICY recent ON visit FOR SELECT USING (held >= date '2024-01-01');

CREATE COLLATION by_code (provider = libc, locale = 'C');
CREATE TEXT SEARCH CONFIGURATION plain (COPY = simple);
CREATE OPERATOR === (LEFTARG = text, RIGHTARG = text, FUNCTION = texteq);
CREATE FOREIGN DATA WRAPPER nowhere;
CREATE SERVER far FOREIGN DATA WRAPPER nowhere OPTIONS (host 'far.invalid');
CREATE FOREIGN TABLE distant (id integer, body text) SERVER far;
CREATE PUBLICATION changes FOR TABLE building, district;
CREATE ROLE survey_reader;
GRANT USAGE ON SCHEMA survey TO survey_reader;
GRANT SELECT ON ALL TABLES IN SCHEMA survey TO survey_reader;
GRANT SELECT (id, code) ON district TO PUBLIC;
ALTER DEFAULT PRIVILEGES IN SCHEMA survey GRANT SELECT ON TABLES TO survey_reader;
ALTER ROLE survey_reader SET work_mem = '8MB';
SELECT lo_from_bytea(54321, '\x66656467617465'::bytea);
ANALYZE;
