"""The addresses of the server: the page, the network's description, and predictions."""

import asyncio
import base64
import contextlib
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from models.errors import UserError, choice_error
from models.kernels import runtime
from train import predict
from train.data import user_image
from train.data.decode import TooManyPixels
from train.serving.batcher import Batcher
from train.serving.evidence import Evidence
from train.serving.uploads import GENTLE, LIMITS, RETRY_AFTER, Limits, Refused, Uploads

if TYPE_CHECKING:
    from train.export.loaded import Loaded

PAGE = Path(__file__).with_name("page.html")
TOP = 5  # classes per answer
DECODERS = 4  # pictures that are decoded or drawn at a time, which bounds their memory
PARAMETERS = ("top", "explain")
BEST = "top1"  # of the parameter explain: the most probable class
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Service:
    """An opened network behind HTTP.

    Args:
      network: the network.
      limits: limits on requests.
      batch: largest number of images that are computed together.
      wait: seconds that a batch waits for images that are on their way.

    Raises:
      UserError: the network's images are not square.
    """

    def __init__(self, network: "Loaded", limits: Limits = LIMITS, batch: int = 8, wait: float = 0.005):
        user_image.for_users(network.decoder, network.shape, "train.serve")
        self._network, self._limits = network, limits
        self._batcher = Batcher(network.run, network.shape, batch, wait)
        self._uploads = Uploads(limits)
        self._decoders = ThreadPoolExecutor(min(runtime.cores(), DECODERS), "decode")
        self._batcher.warm_up()
        self._evidence = Evidence(network)
        self._page, self._policy = _page()

    def application(self, hosts: list[str]) -> Starlette:
        """Returns the application, which answers requests to these names of the host; ["*"] stands for any."""
        return Starlette(
            routes=[
                Route("/", self._show_page, methods=["GET"]),
                Route("/about", self._about, methods=["GET"]),
                Route("/predict", self._predict, methods=["POST"]),
            ],
            middleware=[Middleware(_Hosts, names=hosts)],
            exception_handlers={Refused: _refusal, HTTPException: _refusal, Exception: _refusal},
            lifespan=self._working,
        )

    @contextlib.asynccontextmanager
    async def _working(self, app: Starlette) -> AsyncIterator[None]:
        work = asyncio.create_task(self._batcher.work())
        yield
        work.cancel()

    async def _show_page(self, request: Request) -> Response:
        return Response(
            self._page, headers={**HEADERS, "Content-Security-Policy": self._policy}, media_type="text/html"
        )

    async def _about(self, request: Request) -> Response:
        card = self._network.card
        about = {
            "architecture": card["architecture"],
            "format": card["format"],
            "classes": len(card["labels"]),
            "shape": self._network.shape,
            "background": card["preprocessing"].get("background", ""),
            "evidence": not self._evidence.missing,
            "no_evidence": self._evidence.missing,
            "bytes": self._limits.bytes,
            "pixels": self._limits.pixels,
        }
        return JSONResponse(about, headers=HEADERS)

    async def _predict(self, request: Request) -> Response:
        top, explained = self._parameters(request)
        with self._uploads.admitted():
            async with self._uploads.image(request) as stored:
                began = time.perf_counter()
                with self._batcher.expecting():
                    pixels, inverted = await self._decoded(stored)
                computed = await self._batcher.submit(pixels)
                answer = predict.as_json(self._ranked(computed.probabilities, top), inverted)
                answer["batch"] = computed.batch
                answer["milliseconds"] = round(1e3 * (time.perf_counter() - began), 2)
                if explained is not None:
                    target = int(computed.probabilities.argmax()) if explained == BEST else self._class(explained)
                    heat = await self._batcher.alone(lambda: self._evidence.heat(pixels, target))
                    picture = await self._aside(lambda: self._evidence.drawn(stored, self._limits.accepted, heat))
                    url = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
                    answer["explained"] = {"label": self._network.card["labels"][target], "picture": url}
        return JSONResponse(answer, headers=HEADERS)

    def _parameters(self, request: Request) -> tuple[int, str | None]:
        """Returns the number of classes, and the class to explain or None; raises Refused for wrong parameters."""
        for name in request.query_params:
            if name not in PARAMETERS:
                raise Refused(400, str(choice_error("parameter", name, PARAMETERS)))
        top = request.query_params.get("top", str(TOP))
        if not re.fullmatch("[0-9]{1,9}", top) or int(top) < 1:
            raise Refused(400, f"top={top}: must be a whole number above 0")
        explained = request.query_params.get("explain")
        if explained is not None:
            if self._evidence.missing:
                raise Refused(400, f"explain={explained}: {self._evidence.missing}")
            if explained != BEST:
                self._class(explained)
        return int(top), explained

    def _class(self, label: str) -> int:
        labels = self._network.card["labels"]
        if label not in labels:
            raise Refused(400, str(choice_error("explain", label, (BEST, *labels))))
        return labels.index(label)

    def _ranked(self, probabilities: Any, top: int) -> list[tuple[str, float]]:
        try:
            return self._network.ranked(probabilities, top)
        except UserError as error:
            raise Refused(500, str(error)) from None

    async def _decoded(self, stored: bytes) -> tuple[Any, bool]:
        """Returns the pixels that the network sees, and whether they were inverted; raises Refused for no image."""
        try:
            return await self._aside(lambda: self._network.prepared(stored, self._limits.accepted))
        except TooManyPixels as error:
            raise Refused(413, str(error)) from None
        except UserError as error:
            raise Refused(415, str(error)) from None

    async def _aside(self, function: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function)


def _page() -> tuple[str, str]:
    """Returns the page, and the policy that allows its own script and style, and nothing else."""
    page = PAGE.read_text()

    def own(tag: str) -> str:
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"

    return page, (
        f"default-src 'none'; script-src {own('script')}; style-src {own('style')}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


class _Unread(JSONResponse):
    """An error that is answered while the client may still send, after which the connection is closed.

    For GENTLE seconds, what comes is dropped. If it were rejected, the client's system would discard the answer.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GENTLE):
                while (await receive()).get("more_body"):
                    pass
        await send({"type": "http.response.body", "body": b""})


class _Hosts:
    """Refuses requests to other names of the host than these; "*" stands for any.

    A page elsewhere whose name is made to resolve to this machine names another host (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, names: list[str]):
        self._app, self._names = app, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http" and "*" not in self._names:
            name = re.sub(r":\d*$", "", Headers(scope=scope).get("host", "")).lower()
            if name not in self._names:
                text = f"this server does not answer to that name of the host; allowed: {', '.join(self._names)}"
                app = _Unread({"error": text}, 400, {**HEADERS, "Connection": "close"})
        await app(scope, receive, send)


async def _refusal(request: Request, error: Exception) -> Response:
    """Returns the answer to a request that is refused, or for which the network fails."""
    headers = dict(HEADERS)
    if isinstance(error, HTTPException):  # by Starlette: no such address, or not this method
        status, text = error.status_code, error.detail
        headers |= error.headers or {}
    elif isinstance(error, Refused):
        status, text = error.status, str(error)
    else:
        status, text = 500, "the server failed; its output says why"
    if status == 503:
        headers["Retry-After"] = RETRY_AFTER
    if getattr(request.state, "arrived", False):
        return JSONResponse({"error": text}, status, headers)
    return _Unread({"error": text}, status, {**headers, "Connection": "close"})
