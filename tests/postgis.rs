//! PostGIS behind the gateway: its reads work, what writes is refused.
//!
//! Invariant: with FEDGATE_REQUIRE_POSTGIS set, as CI does after scripts/setup, a machine without PostGIS
//! fails; elsewhere it is said that nothing was held.

mod support;

use std::time::Duration;

use fedgate::guard::{Context, Mode, Step, judge};
use fedgate::ids::SourceName;
use fedgate::sql::Limits;
use fedgate::upstream::catalogue;
use support::{Options, Postgres};

const CASES: &[(&str, bool)] = &[
    ("SELECT ST_AsText(geom), ST_AsBinary(geom), ST_AsGeoJSON(geom), ST_SRID(geom) FROM places", true),
    (
        "SELECT id FROM places WHERE geom && ST_MakeEnvelope(0, 0, 9, 9, 4326) AND ST_DWithin(geom, 'SRID=4326;POINT(1 1)', 9)",
        true,
    ),
    ("SELECT ST_Union(geom), ST_Collect(geom), ST_Extent(geom), ST_MakeLine(geom) FROM places", true),
    ("SELECT id FROM places ORDER BY geom <-> ST_Point(1, 1, 4326) LIMIT 3", true),
    ("SELECT ST_Distance(geog, 'SRID=4326;POINT(0 0)'::geography) FROM places", true),
    ("SELECT geom::text, geom::geography, geom::box2d FROM places GROUP BY geom", true),
    ("SELECT ST_AsMVT(t) FROM (SELECT ST_AsMVTGeom(geom, ST_TileEnvelope(0, 0, 0)) FROM places) t", true),
    ("SELECT * FROM geometry_columns JOIN spatial_ref_sys USING (srid)", true),
    ("SELECT * FROM geography_columns", true),
    ("SELECT postgis_full_version(), postgis_version()", true),
    ("SELECT ST_GeneratePoints(geom, 3), ST_ClusterKMeans(geom, 1) OVER () FROM places", true),
    ("SELECT AddGeometryColumn('places', 'g', 4326, 'POINT', 2)", false),
    ("SELECT DropGeometryColumn('places', 'geom')", false),
    ("SELECT DropGeometryTable('places')", false),
    ("SELECT UpdateGeometrySRID('places', 'geom', 4326)", false),
    ("SELECT Populate_Geometry_Columns()", false),
    ("SELECT EnableLongTransactions()", false),
    ("SELECT LockRow('places', '1', 'x')", false),
];
/// With postgis_topology.
const TOPOLOGY: &[(&str, bool)] = &[
    ("SELECT topology.CreateTopology('t')", false),
    ("SELECT topology.DropTopology('t')", false),
    ("SELECT topology.AddNode('t', ST_Point(1, 1))", false),
    ("SELECT * FROM topology.topology", true),
    ("SELECT ST_AsText(geom), geom FROM places WHERE geom = ST_Point(1, 1, 4326)", true),
    ("SELECT public.ST_SRID(geom) FROM places", true),
];

#[tokio::test]
async fn reads_work_and_writes_are_refused() {
    let server = Postgres::start(Options::default());
    let admin = server.superuser_client("postgres").await;
    let there = "SELECT count(*) FROM pg_available_extensions WHERE name IN ('postgis', 'postgis_topology')";
    let there: i64 = admin.query_one(there, &[]).await.unwrap().get(0);
    if there < 2 {
        assert!(std::env::var_os("FEDGATE_REQUIRE_POSTGIS").is_none(), "there is no PostGIS on this machine");
        println!("no PostGIS on this machine: nothing was held");
        return;
    }
    let set_up = "CREATE EXTENSION postgis;
                  CREATE TABLE places (id int, geom geometry(Point, 4326), geog geography);
                  CREATE INDEX ON places USING gist (geom);
                  INSERT INTO places VALUES (1, 'SRID=4326;POINT(1 1)', 'POINT(1 1)')";
    admin.batch_execute(set_up).await.unwrap();
    for (extension, cases) in [("", CASES), ("CREATE EXTENSION postgis_topology", TOPOLOGY)] {
        admin.batch_execute(extension).await.unwrap();
        let catalogue =
            tokio::time::timeout(Duration::from_secs(60), catalogue::load(&admin)).await.unwrap().unwrap();
        let (limits, source) = (Limits::default(), SourceName::new("s"));
        let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
        for (sql, admitted) in cases {
            let verdict = judge(sql.as_bytes(), &ctx);
            let is = matches!(verdict.steps.as_slice(), [Step::Admit(_)]);
            assert_eq!(is, *admitted, "{sql}: {:?}", verdict.steps);
            if *admitted {
                admin.batch_execute("SET default_transaction_read_only = on").await.unwrap();
                admin.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
                admin.batch_execute("SET default_transaction_read_only = off").await.unwrap();
            }
        }
    }
}
