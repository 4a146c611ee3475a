"""uvicorn until a signal comes, with a limit on the time for which a connection may keep it waiting."""

import asyncio
import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from models import command
from models.errors import UserError

CONNECTIONS = 512  # open at a time; further ones are answered with 503
GRACE = 5  # seconds for requests that are in work when the server is asked to stop


def bound(host: str, port: int) -> socket.socket:
    """Returns a socket that listens on an address; port 0 takes a free one.

    Raises:
      UserError: the host has no such address, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host={host}: {getattr(error, 'strerror', '') or error}") from None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(CONNECTIONS)
    except OSError as error:
        listening.close()
        raise UserError(f"--host={host} --port={port}: {error.strerror}") from None
    return listening


def is_loopback(listening: socket.socket) -> bool:
    """Returns whether a socket can be reached from this machine alone."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def address(listening: socket.socket) -> str:
    """Returns the address of the page."""
    return f"http://{host(listening)}:{listening.getsockname()[1]}"


def host(listening: socket.socket) -> str:
    """Returns the host in that address."""
    name = listening.getsockname()[0]
    return f"[{name}]" if ":" in name else name


def run(application: Any, listening: socket.socket, seconds: float, ready: Callable[[], None] = lambda: None) -> int:
    """Serves an application until SIGINT or SIGTERM; then answers what is in work, and returns.

    Args:
      application: the ASGI application.
      listening: the socket.
      seconds: for which a connection may send no request, or not read its answer.
      ready: called when connections are answered.

    Returns:
      The exit code of the command: 0, or 130 after ctrl-C.
    """
    config = uvicorn.Config(
        application,
        http=type("Protocol", (_Impatient,), {"seconds": seconds}),
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE,
    )
    server = _Server(config)
    server.ready = ready
    asyncio.run(server.serve([listening]))
    return command.INTERRUPTED if server.interrupted else 0


class _Server(uvicorn.Server):
    """uvicorn's server; after a signal, it returns instead of raising the signal again."""

    ready: Callable[[], None]
    interrupted = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        def stop(number: int, frame: Any) -> None:
            self.interrupted |= number == signal.SIGINT
            self.handle_exit(number, frame)

        with command.handling((signal.SIGINT, signal.SIGTERM), stop):
            yield


class _Impatient(H11Protocol):
    """uvicorn's connection, which closes if no whole head of a request comes, or if the client does not read."""

    seconds: float
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._limit()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            if not self.flow.write_paused:
                self._end_limit()
        elif self._timer is None:
            self._limit()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._limit()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._end_limit()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_limit()
        super().connection_lost(exc)

    def _limit(self) -> None:
        self._end_limit()
        self._timer = self.loop.call_later(self.seconds, self.transport.abort)

    def _end_limit(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
