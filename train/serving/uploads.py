"""Images that clients send: read within limits of size, time and number, however they are sent."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from train.data.decode import Accepted

# What browsers show, and TIFF. PIL has openers for fifty more, some of which believe sizes that their files only claim
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
HELD = 256 * 2**20  # bytes of bodies in memory at a time, or one body, if that may be larger
RETRY_AFTER = "1"  # seconds
GENTLE = 1.0  # seconds for which the rest of a refused body is read and dropped


class Limits(NamedTuple):
    """Limits on requests.

    Attributes:
      bytes: largest body.
      pixels: most pixels of an image.
      requests: most requests that are read, wait or are computed at a time.
      seconds: time for a body to arrive.
    """

    bytes: int = 10 * 2**20
    pixels: int = 50_000_000
    requests: int = 128
    seconds: float = 10.0

    @property
    def accepted(self) -> Accepted:
        """The files that are decoded."""
        return Accepted(self.pixels, FORMATS)


LIMITS = Limits()


class Refused(Exception):
    """A request that is not answered, with the HTTP status and one line for the client."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class Uploads:
    """Reads the images of requests, and counts those that are in work.

    Args:
      limits: the limits.
    """

    def __init__(self, limits: Limits):
        self._limits = limits
        self._requests = self._bytes = 0

    @contextlib.contextmanager
    def admitted(self) -> Iterator[None]:
        """Counts a request within a context.

        Raises:
          Refused: too many are in work.
        """
        if self._requests >= self._limits.requests:
            raise Refused(503, f"{self._limits.requests} requests are in work; try again in {RETRY_AFTER} s")
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    @contextlib.asynccontextmanager
    async def image(self, request: Request) -> AsyncIterator[bytes]:
        """Yields the bytes of the image that a request sends as its body, or as the one file of a form.

        Once the body is here, `request.state.arrived` is True.

        Raises:
          Refused: the body is too large, empty, too slow, or not such a form.
        """
        parts: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(self._limits.seconds):
                    await self._read(request, parts)
            except TimeoutError:
                raise Refused(408, f"the image did not arrive within {self._limits.seconds:g} s") from None
            except ClientDisconnect:
                raise Refused(400, "the client is gone") from None
            request.state.arrived = True
            body = b"".join(parts)
            parts[:] = [body]
            if request.headers.get("content-type", "").lower().startswith("multipart/"):
                body = await _file_of_form(request, body)
            if not body:
                raise Refused(400, "the body is empty: send an image as the body, or as a file of a multipart form")
            yield body
        finally:
            self._bytes -= sum(map(len, parts))

    async def _read(self, request: Request, parts: list[bytes]) -> None:
        """Appends the parts of a body to a list, which is counted in self._bytes."""
        declared, size = request.headers.get("content-length", ""), 0
        if declared.isdecimal():
            self._check(int(declared))
        async for part in request.stream():
            size += len(part)
            self._check(size)
            if self._bytes + len(part) > max(HELD, self._limits.bytes):
                raise Refused(503, f"too many images are on their way; try again in {RETRY_AFTER} s")
            self._bytes += len(part)
            parts.append(part)

    def _check(self, size: int) -> None:
        if size > self._limits.bytes:
            raise Refused(413, f"the body is larger than {self._limits.bytes:,} bytes")


async def _file_of_form(request: Request, body: bytes) -> bytes:
    async def stream():
        yield body

    try:
        form = await MultiPartParser(request.headers, stream(), max_files=1, max_fields=8).parse()
    except (MultiPartException, UnicodeError) as error:
        raise Refused(400, f"the form cannot be read: {getattr(error, 'message', error)}") from None
    try:
        for value in form.values():
            if isinstance(value, UploadFile):
                return await value.read()
    finally:
        await form.close()
    raise Refused(400, "the form has no file")
