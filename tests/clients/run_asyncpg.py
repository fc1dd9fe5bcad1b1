"""asyncpg: a pool and its reset, prepared statements, cursors, introspection of types, copy out, cancel; then every write."""

import asyncio
import io

import asyncpg

from transcript import MARK, WRITES, read as read_now, refused as refused_now, wants

LOOP = asyncio.new_event_loop()


def read(step, call):
    read_now(step, lambda: LOOP.run_until_complete(call()))


def refused(step, want, call, guarded=False):
    refused_now(step, want, lambda: LOOP.run_until_complete(call()), guarded)


async def connect():
    return await asyncpg.connect(timeout=20)


def plain(records):
    return [[repr(value) for value in record] for record in records]


def reads():
    db = LOOP.run_until_complete(connect())

    async def fetch():
        return plain(await db.fetch('SELECT id, "Label", height, built, points, tags, facts, uid, raw, seen FROM survey.building WHERE id = $1', 4))

    async def enum():
        return plain(await db.fetch("SELECT held, state FROM survey.visit WHERE building_id = $1 AND state = $2", 7, "running"))

    async def composite():
        return plain(await db.fetch("SELECT located, ARRAY[located] FROM survey.building WHERE id < $1 ORDER BY id", 3))

    async def row_type():
        return plain(await db.fetch("SELECT b FROM survey.building b WHERE id = 2"))

    async def ranges():
        return plain(await db.fetch("SELECT survey.period(date '2024-01-01', date '2024-02-01'), $1::survey.grade", 50))

    async def codec():
        await db.set_type_codec("state", schema="survey", encoder=str, decoder=str.upper, format="text")
        got = plain(await db.fetch("SELECT DISTINCT state FROM survey.visit ORDER BY 1"))
        await db.reset_type_codec("state", schema="survey")
        return got

    async def prepared():
        statement = await db.prepare("SELECT name FROM survey.district WHERE id = $1")
        return [[await statement.fetchval(n) for n in range(1, 9)], [a.name for a in statement.get_parameters()],
                [[a.name, a.type.name] for a in statement.get_attributes()], statement.get_statusmsg()]

    async def explained():
        statement = await db.prepare("SELECT name FROM survey.district WHERE id = $1")
        return (await statement.explain(1))[0]["Plan"]["Node Type"]

    async def cursor():
        async with db.transaction(readonly=True, isolation="repeatable_read"):
            total = 0
            async for record in db.cursor("SELECT id FROM survey.reading WHERE id <= 3000 ORDER BY id", prefetch=170):
                total += record["id"]
            by_hand = await db.cursor("SELECT id FROM survey.building ORDER BY id")
            await by_hand.forward(10)
            return [total, plain(await by_hand.fetch(3)), plain([await by_hand.fetchrow()])]

    async def script():
        return await db.execute("SELECT 1; SELECT 2;")

    async def copy_query():
        out = io.BytesIO()
        status = await db.copy_from_query("SELECT id, code FROM survey.district WHERE id > $1 ORDER BY id", 3, output=out, format="csv", header=True)
        return [status, out.getvalue().decode()]

    async def copy_table():
        out = io.BytesIO()
        return [await db.copy_from_table("district", schema_name="survey", output=out, format="binary"), len(out.getvalue())]

    async def many():
        return await db.executemany("SELECT $1::int", [(1,), (2,), (3,)])

    async def failing():
        try:
            await db.fetch("SELECT 1 / $1::int", 0)
        except asyncpg.PostgresError as error:
            return [error.sqlstate, primary(error), await db.fetchval("SELECT 1")]

    async def savepoint():
        async with db.transaction():
            try:
                async with db.transaction():
                    await db.fetch("SELECT no_such_column")
            except asyncpg.PostgresError as error:
                return [error.sqlstate, await db.fetchval("SELECT 2"), db.is_in_transaction()]

    async def timeout():
        try:
            await db.fetch("SELECT count(*) FROM survey.reading a, survey.reading b WHERE a.value + b.value > 3 AND a.remark <> b.remark", timeout=0.3)
        except asyncio.TimeoutError:
            return ["timed out", await db.fetchval("SELECT 'on'")]

    async def settings():
        status = db.get_settings()
        return [status.server_encoding, status.client_encoding, status.standard_conforming_strings, list(db.get_server_version()[:2])]

    async def reset():
        await db.reset()
        return await db.fetchval("SELECT 3")

    async def listeners():
        return await db.fetchval("SELECT pg_catalog.pg_is_in_recovery()")

    for step in (fetch, enum, composite, row_type, ranges, codec, prepared, explained, cursor, script, copy_query, copy_table, many,
                 failing, savepoint, timeout, settings, reset, listeners):
        read(step.__name__, step)
    LOOP.run_until_complete(db.close())

    async def pool():
        async with asyncpg.create_pool(min_size=2, max_size=3, timeout=20) as connections:
            async def one(n):
                async with connections.acquire() as taken:
                    async with taken.transaction():
                        return await taken.fetchval("SELECT code FROM survey.district WHERE id = $1", n)
            return await asyncio.gather(*(one(n) for n in range(1, 20)))

    async def server_settings():
        other = await asyncpg.connect(timeout=20, server_settings={"application_name": "survey", "search_path": "survey"})
        try:
            return await other.fetchval("SELECT count(*) FROM district")
        finally:
            await other.close()

    read("pool", pool)
    read("server settings", server_settings)


def writes():
    db = LOOP.run_until_complete(connect())
    for name, sql, want, guarded in WRITES:
        async def simple(s=sql):
            return await db.execute(s)

        async def extended(s=sql):
            return plain(await db.fetch(s))

        refused(name, want, simple, guarded)
        refused(f"{name}, extended protocol", want, extended, guarded)

    async def parameters():
        return await db.execute("INSERT INTO survey.scratch VALUES ($1, $2)", 1, MARK)

    async def many():
        return await db.executemany("INSERT INTO survey.scratch VALUES ($1, $2)", [(n, MARK) for n in range(5)])

    async def copy_records():
        return await db.copy_records_to_table("scratch", schema_name="survey", records=[(1, MARK)])

    async def listen():
        return await db.add_listener(MARK, lambda *_: None)

    async def in_transaction():
        got = []
        try:
            async with db.transaction():
                got.append(await db.fetchval("SELECT 1"))
                for sql in (WRITES[0][1], "SELECT 2"):
                    try:
                        got.append(await db.fetch(sql))
                    except asyncpg.PostgresError as error:
                        got.append([error.sqlstate, primary(error)])
        finally:
            got.append(await db.fetchval("SELECT 3"))
        return got

    async def in_savepoint():
        async with db.transaction():
            try:
                async with db.transaction():
                    await db.execute(WRITES[0][1])
            except asyncpg.PostgresError as error:
                return [error.sqlstate, await db.fetchval("SELECT 4")]

    refused("parameters", "25006", parameters)
    refused("executemany", "25006", many)
    refused("copy records", "25006", copy_records)
    refused("listen", "25006", listen, True)
    read("refused in a transaction", in_transaction)
    read("refused in a savepoint", in_savepoint)
    LOOP.run_until_complete(db.close())


if wants("reads"):
    reads()
if wants("writes"):
    writes()
