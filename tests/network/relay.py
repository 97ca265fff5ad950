"""A TCP relay that takes its time: ``python -m tests.network.relay LISTEN TARGET [--delay-ms N] [--cut-every BYTES]``.

LISTEN and TARGET are host:port. Each byte arrives ``delay`` later, in order, on each of the two ways; with
``cut-every`` a connection is cut after so many bytes towards LISTEN. Kernels without netem have no other latency.
Prints ``ready``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib

CHUNK = 16 << 10
UNDER_WAY = 256
"""Chunks that a direction may hold: a narrow link's buffer."""


class _Cut(Exception):
    """The connection has carried as many bytes as it may."""


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay: float, most: int | None) -> None:
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(UNDER_WAY)

    async def take() -> None:
        carried = 0
        while data := await reader.read(CHUNK):
            await waiting.put((loop.time() + delay, data))
            carried += len(data)
            if most is not None and carried >= most:
                raise _Cut
        await waiting.put((loop.time() + delay, b""))

    async def give() -> None:
        while True:
            at, data = await waiting.get()
            await asyncio.sleep(max(0.0, at - loop.time()))
            if not data:
                return
            writer.write(data)
            await writer.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(take())
        group.create_task(give())


async def relay(listen: tuple[str, int], target: tuple[str, int], delay: float, cut_every: int | None) -> None:
    """Serve until cancelled."""
    tasks: set[asyncio.Task[None]] = set()  # asyncio itself holds them weakly

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ExceptionGroup):
            try:
                to_reader, to_writer = await asyncio.open_connection(*target)
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(_carry(reader, to_writer, delay, None))
                        group.create_task(_carry(to_reader, writer, delay, cut_every))
                finally:
                    to_writer.transport.abort()
            finally:
                writer.transport.abort()

    server = await asyncio.start_server(connected, *listen)
    print("ready", flush=True)
    async with server:
        await server.serve_forever()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="tests.network.relay")
    parser.add_argument("listen")
    parser.add_argument("target")
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--cut-every", type=int)
    options = parser.parse_args()
    (host, port), (to, to_port) = options.listen.rsplit(":", 1), options.target.rsplit(":", 1)
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(relay((host, int(port)), (to, int(to_port)), options.delay_ms / 1000, options.cut_every))


if __name__ == "__main__":
    main()
