-- climscore: a climate-risk database as a customer might run it. Demo, tests and compose file share it.
-- Every row is made here, by rule and without chance, so two runs give the same bytes. People, addresses
-- and accounts are invented: example.org mail, the telephone range reserved for fiction, a bank code that
-- no bank has (check digits are right, so that tools which validate an IBAN accept it).
-- Plain SQL without client commands: any driver can send it. The role gets no password here.

CREATE TYPE hazard AS ENUM ('flood', 'drought', 'heat', 'storm', 'landslide');
COMMENT ON TYPE hazard IS 'What a score is about';

CREATE DOMAIN insee_code AS text CHECK (VALUE ~ '^[0-9]{5}$');
COMMENT ON DOMAIN insee_code IS 'Département (two digits) and commune (three)';

CREATE TABLE communes (
    code       insee_code PRIMARY KEY,
    name       varchar(80) NOT NULL,
    region     text NOT NULL,
    population integer NOT NULL CHECK (population > 0),
    lat        double precision NOT NULL,
    lon        double precision NOT NULL
);

CREATE TABLE scores (
    commune insee_code NOT NULL REFERENCES communes (code),
    year    smallint NOT NULL,
    hazard  hazard NOT NULL,
    score   numeric(5, 2) NOT NULL CHECK (score BETWEEN 0 AND 100),
    PRIMARY KEY (commune, year, hazard)
);

CREATE SEQUENCE policy_numbers START 100001;

CREATE TABLE customers (
    id         integer PRIMARY KEY,
    name       text NOT NULL,
    email      varchar(120) NOT NULL,
    phone      varchar(20),
    iban       char(27) NOT NULL,
    commune    insee_code NOT NULL REFERENCES communes (code),
    policy     bigint NOT NULL,
    signed_on  date NOT NULL,
    notes      jsonb
);
COMMENT ON TABLE customers IS 'Personal data';
COMMENT ON COLUMN customers.iban IS 'French IBAN';

WITH regions (number, name, lat, lon) AS (
    VALUES (0, 'Auvergne-Rhône-Alpes', 45.4, 4.4), (1, 'Bourgogne-Franche-Comté', 47.2, 4.8),
           (2, 'Bretagne', 48.2, -2.9), (3, 'Centre-Val de Loire', 47.5, 1.7), (4, 'Grand Est', 48.7, 5.6),
           (5, 'Hauts-de-France', 49.9, 2.8), (6, 'Île-de-France', 48.7, 2.5), (7, 'Normandie', 49.1, 0.1),
           (8, 'Nouvelle-Aquitaine', 45.2, 0.2), (9, 'Occitanie', 43.7, 2.1), (10, 'Pays de la Loire', 47.5, -0.8),
           (11, 'Provence-Alpes-Côte d''Azur', 44.0, 6.1)
), parts AS (
    SELECT ARRAY['Saint-', 'Val-', 'Mont-', 'Bois-', 'Pont-', 'Roche', 'Ville', 'Champ', 'Font', 'Clair', 'Beau',
                 'Haute'] AS heads,
           ARRAY['aubin', 'brenne', 'cerny', 'dormans', 'épinal', 'fleury', 'gérard', 'huisne', 'illiers', 'juvigny',
                 'lormes', 'maurin', 'noyal', 'orval', 'plessis', 'quincy', 'rémy', 'sauve', 'thury'] AS tails,
           ARRAY['', '-sur-Mer', '-les-Bains', '-en-Plaine', '-le-Vieux', '-sous-Bois', '-la-Forêt'] AS ends
)
INSERT INTO communes (code, name, region, population, lat, lon)
SELECT lpad((1 + n % 95)::text, 2, '0') || lpad((1 + n * 37 % 900)::text, 3, '0'),
       heads[1 + n % 12] || CASE WHEN n % 12 < 5 THEN initcap(tail) ELSE tail END || ends[1 + n / 7 % 7],
       r.name,
       120 + (n * 7919 % 9973) * (1 + n % 11),
       round((r.lat + (n * 131 % 200 - 100) / 120.0)::numeric, 5),
       round((r.lon + (n * 173 % 200 - 100) / 110.0)::numeric, 5)
FROM generate_series(0, 719) AS n CROSS JOIN parts JOIN regions AS r ON r.number = (n % 95) * 12 / 95
CROSS JOIN LATERAL (SELECT tails[1 + (n + n / 95 * 3) % 19]) AS chosen (tail);

INSERT INTO scores (commune, year, hazard, score)
SELECT c.code, y, h,
       round((hashed % 7000 / 100.0 + (y - 2022) * 2.5
              + 10 * (c.lat < 45 AND h IN ('heat', 'drought'))::int)::numeric, 2)
FROM communes AS c
CROSS JOIN generate_series(2022, 2024) AS y
CROSS JOIN unnest(enum_range(NULL::hazard)) AS h
CROSS JOIN LATERAL (SELECT ('x' || substr(md5(c.code || h::text), 1, 7))::bit(28)::int) AS digest (hashed);

WITH names AS (
    SELECT ARRAY['Alice', 'Bruno', 'Chloé', 'David', 'Elena', 'Farid', 'Gaëlle', 'Hugo', 'Inès', 'Jules', 'Karim',
                 'Léa', 'Manon', 'Nadia', 'Oscar', 'Pauline', 'Quentin', 'Rosa', 'Samir', 'Théa', 'Ugo', 'Viola',
                 'William'] AS firsts,
           ARRAY['Aubry', 'Besson', 'Carlier', 'Delmas', 'Étienne', 'Faure', 'Garnier', 'Humbert', 'Imbert', 'Joly',
                 'Klein', 'Lemoine', 'Marchand', 'Noël', 'Olivier', 'Perrin', 'Quéré', 'Roussel', 'Sabatier',
                 'Tessier', 'Urbain', 'Vidal', 'Weber', 'Yvon', 'Zeller'] AS lasts
), people AS (
    SELECT n, firsts[1 + n % 23] AS first, lasts[1 + n / 3 % 25] AS last,
           lpad((10000 + n * 89 % 90000)::text, 5, '0') AS branch,
           lpad((n::bigint * 7368787 % 100000000000)::text, 11, '0') AS account
    FROM generate_series(1, 1800) AS n CROSS JOIN names
), keyed AS (
    -- The national key, then the international one (ISO 13616: mod 97, F is 15 and R is 27).
    SELECT *, '00000' || branch || account
              || lpad((97 - (15 * branch::bigint + 3 * account::bigint) % 97)::text, 2, '0') AS bban
    FROM people
)
INSERT INTO customers (id, name, email, phone, iban, commune, policy, signed_on, notes)
SELECT n, first || ' ' || last,
       translate(lower(first || '.' || last), 'éèëêàâçïîôùû', 'eeeeaaciiouu') || n || '@example.org',
       CASE WHEN n % 17 <> 0
            THEN '+33 6 39 98 ' || lpad((n / 100 % 100)::text, 2, '0') || ' ' || lpad((n % 100)::text, 2, '0') END,
       'FR' || lpad((98 - (bban || '152700')::numeric % 97)::text, 2, '0') || bban,
       (SELECT code FROM communes ORDER BY code OFFSET n * 53 % 720 LIMIT 1),
       nextval('policy_numbers'),
       date '2015-01-01' + (n * 11 % 3600),
       CASE n % 3 WHEN 0 THEN jsonb_build_object('channel', 'broker', 'visits', n % 9)
                  WHEN 1 THEN jsonb_build_object('channel', 'web', 'tags', jsonb_build_array('home', 'car')) END
FROM keyed ORDER BY n;

CREATE INDEX customers_commune ON customers (commune);
CREATE INDEX scores_hazard ON scores (hazard, year);

CREATE VIEW commune_risk AS
    SELECT c.code, c.name, c.region, s.year, max(s.score) AS worst, round(avg(s.score), 2) AS average
    FROM communes AS c JOIN scores AS s ON s.commune = c.code
    GROUP BY c.code, c.name, c.region, s.year;

CREATE MATERIALIZED VIEW regional_risk AS
    SELECT c.region, s.hazard, s.year, round(avg(s.score), 2) AS average, sum(c.population) AS population
    FROM communes AS c JOIN scores AS s ON s.commune = c.code
    GROUP BY c.region, s.hazard, s.year;
CREATE UNIQUE INDEX regional_risk_key ON regional_risk (region, hazard, year);

CREATE FUNCTION risk_band(score numeric) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT CASE WHEN score < 25 THEN 'low' WHEN score < 50 THEN 'medium' WHEN score < 75 THEN 'high'
                 ELSE 'severe' END $$;

-- Looks like a read in a SELECT and is a write.
CREATE FUNCTION correct_population(commune insee_code, people integer) RETURNS integer LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    UPDATE communes SET population = people WHERE code = commune;
    RETURN people;
END
$$;

CREATE PROCEDURE refresh_risk() LANGUAGE plpgsql
    AS $$
BEGIN
    REFRESH MATERIALIZED VIEW regional_risk;
END
$$;

-- What the customer grants: SELECT, and nothing else.
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_catalog.pg_roles WHERE rolname = 'akko_readonly') THEN
        CREATE ROLE akko_readonly LOGIN;
    END IF;
    EXECUTE pg_catalog.format('GRANT CONNECT ON DATABASE %I TO akko_readonly', pg_catalog.current_database());
    EXECUTE pg_catalog.format('REVOKE CREATE ON DATABASE %I FROM akko_readonly', pg_catalog.current_database());
END
$$;
GRANT USAGE ON SCHEMA public TO akko_readonly;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO akko_readonly;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO akko_readonly;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO akko_readonly;
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON SEQUENCES TO akko_readonly;
REVOKE CREATE ON SCHEMA public FROM akko_readonly;

ANALYZE;
