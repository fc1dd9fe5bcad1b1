"""A TCP proxy that misbehaves on command: a process between the gateway and the source.

Prints its port. Commands come as lines on standard input: `pass`, `cut` (connections are reset and new ones refused by a
reset), `stall` (nothing moves), `slow` (few bytes at a time), `split` (every message in pieces of a few bytes). Each holds
until the next. It ends with its standard input. `lie` gives clients the rows of others, to prove that this is noticed.

Invariant: but for `lie`, bytes are delayed, cut off or split; none is changed, left out in between or moved.
"""

import asyncio
import os
import random
import socket
import struct
import sys

mode, changed = "pass", None
open_connections = set()


async def pump(reader, writer):
    while chunk := await reader.read(65536):
        if mode == "lie":
            # The name of one client for that of another, and digits of digests.
            chunk = chunk.replace(b"c1", b"c2")
        at = 0
        while at < len(chunk):
            while mode == "stall":
                await changed.wait()
            size = {"slow": 400, "split": random.randint(1, 11)}.get(mode, len(chunk))
            writer.write(chunk[at:at + size])
            await writer.drain()
            at += size
            if mode == "slow":
                await asyncio.sleep(0.005)
            elif mode == "split":
                # Each piece a segment of its own.
                await asyncio.sleep(0)


def reset(writer):
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def serve(reader, writer, target):
    if mode == "cut":
        reset(writer)
        return
    try:
        source_reader, source_writer = await asyncio.open_connection("127.0.0.1", target)
    except OSError:
        reset(writer)
        return
    for each in (writer, source_writer):
        each.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    pair = (writer, source_writer)
    open_connections.add(pair)
    pumps = [asyncio.ensure_future(pump(reader, source_writer)), asyncio.ensure_future(pump(source_reader, writer))]
    try:
        await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        # What the side that is still there sends or has sent goes through before both end.
        await asyncio.wait(pumps, timeout=0.2)
    finally:
        open_connections.discard(pair)
        for each in pumps:
            each.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for each in pair:
            each.close()


async def main(target):
    global mode, changed
    changed = asyncio.Event()
    server = await asyncio.start_server(lambda r, w: serve(r, w, target), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        mode = line.decode().strip()
        changed.set()
        changed = asyncio.Event()
        if mode == "cut":
            for pair in list(open_connections):
                for each in pair:
                    reset(each)
    # Connections that are open still would each tell of their end.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
