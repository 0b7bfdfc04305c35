"""A network that is slower than the one at hand: relays between processes that delay what passes, for benchmarks.

A relay needs no rights and no particular system, which `tc netem` does. It stands before an address: what connects to
it is connected to that address, and bytes arrive `delay` seconds later and at `bandwidth` in each direction.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Address = str
"""`127.0.0.1:4711`"""

_BLOCK_BYTES = 1 << 14
_RETRY_SECONDS = 0.05


@dataclass(frozen=True)
class Link:
    """What a connection is like in each direction.

    Attributes:
        delay_seconds: from sending to arriving, of a byte.
        bandwidth: bytes a second; None: as fast as they come.
    """

    delay_seconds: float
    bandwidth: float | None = None


@contextlib.contextmanager
def relays(targets: Sequence[Address], link: Link) -> Iterator[list[Address]]:
    """Addresses that stand before `targets`, one each, for as long as the context lasts."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    starting = asyncio.run_coroutine_threadsafe(_start(targets, link), loop)
    try:
        servers = starting.result()
        yield ["{}:{}".format(*server.sockets[0].getsockname()) for server in servers]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        _close(loop)


def _close(loop: asyncio.AbstractEventLoop) -> None:
    for task in (tasks := asyncio.all_tasks(loop)):
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks))
    loop.close()


async def _start(targets: Sequence[Address], link: Link) -> list[asyncio.Server]:
    return [await _relay(target, link) for target in targets]


async def _relay(target: Address, link: Link) -> asyncio.Server:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            far_reader, far_writer = await _connection(target)
            await asyncio.gather(_pass_on(reader, far_writer, link), _pass_on(far_reader, writer, link))
        writer.close()

    return await asyncio.start_server(connected, "127.0.0.1", 0)


async def _connection(target: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To an address, as soon as it listens: what connects here must not take a relay for its target too early."""
    host, port = target.split(":")
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            return await asyncio.open_connection(host, int(port))
        await asyncio.sleep(_RETRY_SECONDS)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
    """Sends what is read, later: reading goes on while earlier bytes are still under way."""
    clock = asyncio.get_running_loop().time
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def deliver() -> None:
        while True:
            due, block = await under_way.get()
            await asyncio.sleep(due - clock())
            writer.write(block)
            await writer.drain()
            if not block:
                return

    delivering = asyncio.create_task(deliver())
    free = 0.0
    """When the line can take the next byte."""
    with contextlib.suppress(OSError):
        while block := await reader.read(_BLOCK_BYTES):
            free = max(free, clock()) + (len(block) / link.bandwidth if link.bandwidth else 0.0)
            under_way.put_nowait((free + link.delay_seconds, block))
    under_way.put_nowait((clock() + link.delay_seconds, b""))
    with contextlib.suppress(OSError):
        await delivering
    writer.close()
