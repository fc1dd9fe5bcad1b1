"""SQLAlchemy over psycopg 3: reflection of everything the inspector knows, the ORM, streaming; then writes."""

import sqlalchemy as sa
from sqlalchemy.ext.automap import automap_base
from sqlalchemy.orm import Session

from transcript import MARK, WRITES, read, refused, wants

ENGINE = sa.create_engine("postgresql+psycopg://", pool_size=2)


def plain(value):
    """Inspector answers as sorted, printable data."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (int, float, bool)):
        return value
    return str(value) if not isinstance(value, sa.types.TypeEngine) else repr(value)


def reads():
    inspector = sa.inspect(ENGINE)
    schemas = ["survey", "public"]
    read("dialect", lambda: [ENGINE.dialect.server_version_info, ENGINE.dialect.default_schema_name])
    read("schemas", lambda: inspector.get_schema_names())
    for schema in schemas:
        read(f"{schema}: tables", lambda: sorted(inspector.get_table_names(schema)))
        read(f"{schema}: views", lambda: sorted(inspector.get_view_names(schema)))
        read(f"{schema}: materialized views", lambda: sorted(inspector.get_materialized_view_names(schema)))
        read(f"{schema}: foreign tables", lambda: sorted(inspector.get_foreign_table_names(schema)))
        read(f"{schema}: temporary tables", lambda: sorted(inspector.get_temp_table_names()))
        read(f"{schema}: sequences", lambda: sorted(inspector.get_sequence_names(schema)))
        read(f"{schema}: enums", lambda: plain(inspector.get_enums(schema)))
        read(f"{schema}: domains", lambda: plain(inspector.get_domains(schema)))
        for kind in ("columns", "pk_constraint", "foreign_keys", "indexes", "unique_constraints", "check_constraints", "table_comment"):
            read(f"{schema}: all {kind}", lambda: plain(getattr(inspector, f"get_multi_{kind}")(schema, kind=sa.engine.reflection.ObjectKind.ANY)))
    for table in ("building", "visit", "district"):
        read(f"{table}: one by one", lambda: plain([
            inspector.get_columns(table, "survey"), inspector.get_pk_constraint(table, "survey"), inspector.get_foreign_keys(table, "survey"),
            inspector.get_indexes(table, "survey"), inspector.get_check_constraints(table, "survey"), inspector.has_table(table, "survey")]))
    read("view definition", lambda: inspector.get_view_definition("tall", "survey"))
    read("no such table", lambda: inspector.has_table("nothing", "survey"))
    read("metadata", reflect)
    read("orm", orm)
    read("core", core)
    read("stream", stream)
    read("read only isolation", isolation)
    read("ping", ping)


def reflect():
    metadata = sa.MetaData()
    metadata.reflect(ENGINE, schema="survey", views=True)
    return {name: [f"{c.name} {c.type!r} {c.nullable}" for c in table.columns] for name, table in sorted(metadata.tables.items())}


def orm():
    base = automap_base()
    base.prepare(ENGINE, schema="survey")
    with Session(ENGINE) as session:
        building = base.classes.building
        found = session.scalars(sa.select(building).where(building.id <= 3).order_by(building.id)).all()
        related = [b.district.name for b in found]
        counted = session.execute(sa.select(building.district_id, sa.func.count()).group_by(building.district_id).order_by(building.district_id).limit(4)).all()
        return [[b.Label for b in found], related, plain(counted), session.get(building, 9).Label]


def core():
    with ENGINE.connect() as db:
        return plain(db.execute(sa.text("SELECT id, code FROM survey.district WHERE id > :low ORDER BY id LIMIT 3"), {"low": 5}).all())


def stream():
    with ENGINE.connect().execution_options(stream_results=True, yield_per=500) as db:
        return sum(row[0] for row in db.execute(sa.text("SELECT id FROM survey.reading WHERE id <= 4000 ORDER BY id")))


def isolation():
    # An engine of its own: a connection that goes back to its pool is opened again as READ WRITE.
    engine = sa.create_engine("postgresql+psycopg://")
    try:
        with engine.connect().execution_options(isolation_level="SERIALIZABLE", postgresql_readonly=True, postgresql_deferrable=True) as db:
            return plain(db.execute(sa.text("SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')")).all())
    finally:
        engine.dispose()


def ping():
    engine = sa.create_engine("postgresql+psycopg://", pool_pre_ping=True)
    try:
        for _ in range(2):
            with engine.connect() as db:
                got = db.execute(sa.text("SELECT 1")).scalar()
        return got
    finally:
        engine.dispose()


def writes():
    metadata = sa.MetaData(schema="survey")
    scratch = sa.Table("scratch", metadata, sa.Column("id", sa.Integer, primary_key=True), sa.Column("body", sa.Text))
    fresh = sa.Table(MARK, sa.MetaData(schema="survey"), sa.Column("id", sa.Integer, primary_key=True))

    def run(statement, *arguments):
        with ENGINE.begin() as db:
            result = db.execute(statement, *arguments)
            return plain(result.all()) if result.returns_rows else result.rowcount

    for name, sql, want, guarded in WRITES:
        # What cannot run inside a block is refused as such by PostgreSQL itself; SQLAlchemy always opens one.
        if name in ("vacuum", "begin read write", "alter system", "checkpoint"):
            continue
        refused(name, want, lambda s=sql: run(sa.text(s)), guarded)
    refused("core insert", "25006", lambda: run(sa.insert(scratch), [{"id": n, "body": MARK} for n in range(3)]))
    refused("core update", "25006", lambda: run(sa.update(scratch).values(body=MARK)))
    refused("core delete", "25006", lambda: run(sa.delete(scratch).where(scratch.c.body == MARK)))
    refused("create all", "25006", lambda: fresh.create(ENGINE))
    refused("orm flush", "25006", flush)
    refused("for update", "25006", lambda: run(sa.select(sa.text(f"'{MARK}'")).select_from(scratch).with_for_update()))
    refused("sequence", "42501", lambda: run(sa.select(sa.Sequence("ticket", schema="survey").next_value(), sa.text(f"'{MARK}'"))), True)
    read("after all that", core)


def flush():
    base = automap_base()
    base.prepare(ENGINE, schema="survey")
    with Session(ENGINE) as session:
        session.add(base.classes.district(code=MARK[:8], name=MARK))
        session.commit()


try:
    if wants("reads"):
        reads()
    if wants("writes"):
        writes()
finally:
    ENGINE.dispose()
