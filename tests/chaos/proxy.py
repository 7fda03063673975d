"""A bad network as a process: passes TCP on, with delays, pauses and cuts drawn from a seed.

python tests/chaos/proxy.py EDGE_PORT SEED      takes any free port, and prints it
"""

import asyncio
import random
import sys


async def main(edge_port: int, seed: int, port: int = 0) -> None:
    rng = random.Random(seed)

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(4096):
            await asyncio.sleep(rng.choice([0.0, 0.0, 0.002, 0.02]))
            if rng.random() < 0.02:
                await asyncio.sleep(rng.uniform(0.2, 0.8))  # frozen for a while
            writer.write(data)
            await writer.drain()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            edge_reader, edge_writer = await asyncio.open_connection("127.0.0.1", edge_port)
        except OSError:
            writer.transport.abort()
            return
        ways = [asyncio.create_task(carry(reader, edge_writer)), asyncio.create_task(carry(edge_reader, writer))]
        lives_s = rng.uniform(0.02, 1.0) if rng.random() < 0.7 else None
        await asyncio.wait(ways, timeout=lives_s, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        for each in (writer, edge_writer):
            each.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    if not port:
        print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
