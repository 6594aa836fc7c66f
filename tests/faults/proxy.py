"""A TCP proxy on the loopback interface that can cut, delay, refuse and half-open the connections it carries."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from deploy.local.ports import LOOPBACK

_CHUNK = 256 * 1024


class Proxy:
    """Carries bytes between `port` and the `target` port, until told otherwise. Safe to use from any thread."""

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._delay = 0.0
        self._refuses = False
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{port}", daemon=True)
        self._thread.start()
        self._server = self._run(self._start())

    def cut(self) -> None:
        """Reset all connections; new ones work."""
        self._run(self._cut())

    def refuse(self, refuses: bool) -> None:
        """Reset all connections, and new ones too."""
        self._refuses = refuses
        self.cut()

    def delay(self, seconds: float) -> None:
        """Hold every piece of data back for so long."""
        self._delay = seconds

    def half_open(self, stalled: bool) -> None:
        """Connections stay open, are accepted even, and nothing arrives; what stalled is reset in the end."""
        self._run(self._stall(stalled))

    def close(self) -> None:
        """End it and its connections."""
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _start(self) -> asyncio.Server:
        self._flows.set()
        return await asyncio.start_server(self._accept, LOOPBACK, self.port)

    async def _close(self) -> None:
        self._server.close()
        await self._cut()

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()

    async def _stall(self, stalled: bool) -> None:
        if stalled:
            self._flows.clear()
        else:
            await self._cut()
            self._flows.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        try:
            to_reader, to_writer = await asyncio.open_connection(LOOPBACK, self._target)
        except OSError:
            writer.transport.abort()
            return
        for source, sink in ((reader, to_writer), (to_reader, writer)):
            self._writers.add(sink)
            task = asyncio.create_task(self._carry(source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(_CHUNK):
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._flows.wait()
                sink.write(data)
                await sink.drain()
            sink.close()
        except OSError:
            sink.transport.abort()
        except asyncio.CancelledError:
            sink.transport.abort()
        finally:
            self._writers.discard(sink)
