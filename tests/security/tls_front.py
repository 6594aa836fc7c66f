"""TLS in front of PostgreSQL, as `hostssl` would have it: the server of the local stack is built without OpenSSL.

Everything on our side is real: libpq asks for TLS, verifies certificate and name, and logs in through it.
"""

from __future__ import annotations

import asyncio
import ssl
import struct
import threading
from contextlib import suppress
from pathlib import Path

from deploy.local.ports import LOOPBACK

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104


class TlsFront:
    """Listens on `port`; what comes by TLS goes on to the server at `target`, what comes without it is refused."""

    def __init__(self, folder: Path, key: bytes, certificate: bytes, target: int) -> None:
        path = folder / "front.pem"
        path.write_bytes(key + certificate)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(path)
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tls-front", daemon=True)
        self._thread.start()
        self.encrypted = 0  # connections so far
        starting = asyncio.start_server(self._accept, LOOPBACK, 0)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        self.port = int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """End it and its connections."""
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Clients that do not like the certificate hang up.
        with suppress(OSError, EOFError, ssl.SSLError):
            _, code = struct.unpack("!II", await reader.readexactly(8))
            while code == _GSS_REQUEST:
                writer.write(b"N")
                _, code = struct.unpack("!II", await reader.readexactly(8))
            if code == _SSL_REQUEST:
                writer.write(b"S")
                await writer.start_tls(self._context)
                self.encrypted += 1
                server_reader, server_writer = await asyncio.open_connection(LOOPBACK, self._target)
                await asyncio.gather(_carry(reader, server_writer), _carry(server_reader, writer))
            else:
                text = b'no pg_hba.conf entry for host "127.0.0.1", no encryption'
                body = b"SFATAL\0VFATAL\0C28000\0M" + text + b"\0\0"
                writer.write(b"E" + struct.pack("!I", len(body) + 4) + body)
        writer.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
