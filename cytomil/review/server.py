"""The review as a web page for this machine only: the requests that are allowed, and the answers."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cytomil.errors import CytomilError, ReviewError, ReviewLogError
from cytomil.review.log import Action, Judgements, ReviewLog, of_other_versions, of_these_versions, others
from cytomil.review.slides import TILE_PX, FollowedTriage, ShownSlide, Triage

HOST = "127.0.0.1"
_MAX_BODY_BYTES = 1 << 16
_STATIC = {
    "review.html": "text/html; charset=utf-8",
    "review.css": "text/css; charset=utf-8",
    "review.js": "text/javascript; charset=utf-8",
    "openseadragon.min.js": "text/javascript; charset=utf-8",
}
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' "
    "data: blob:; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


_Endpoint = Callable[[Triage, ReviewLog, Mapping[str, Any], Any], Response]


class Guard:
    """Allows only requests of this page on this machine: right host, right origin, right token.

    The address that `cytomil review` prints holds the token. It is exchanged for a cookie, so that it does not stay in the
    browser's history. Everything else gets status 403 and nothing more.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app, self._token = app, token
        self._hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        self._cookie = f"cytomil-review-{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        response: ASGIApp = Response(status_code=403, headers=_HEADERS)
        if self._is_from_here(request.headers):
            if (
                request.method == "GET"
                and request.url.path == "/"
                and self._is_token(request.query_params.get("token"))
            ):
                redirect = RedirectResponse("/", status_code=303, headers=_HEADERS)
                redirect.set_cookie(self._cookie, self._token, httponly=True, samesite="strict", path="/")
                response = redirect
            elif self._is_token(request.cookies.get(self._cookie)):
                response = self._app
        await response(scope, receive, send)

    def _is_from_here(self, headers: Mapping[str, str]) -> bool:
        # A page of another site can make its own host name point to this machine. The request then has that host name.
        host, origin = headers.get("host", ""), headers.get("origin")
        is_own_page = origin is None or origin == f"http://{host}"
        return host in self._hosts and is_own_page and headers.get("sec-fetch-site", "none") in ("none", "same-origin")

    def _is_token(self, given: str | None) -> bool:
        return given is not None and secrets.compare_digest(given.encode(), self._token.encode())


def create_app(followed: FollowedTriage, log: ReviewLog, token: str, port: int) -> ASGIApp:
    """The application. ``token`` must be in every request, as a cookie; ``port`` is where it is served.

    Each request is answered from the worklist as it is on disk at that moment.
    """
    routes = [
        Route("/", partial(_static, name="review.html")),
        Route("/api/state", partial(_answer, lambda values, body: _state(followed))),
        *(Route(f"/{name}", partial(_static, name=name)) for name in _STATIC),
        *(
            Route(path, partial(_answer, partial(_current, function, followed, log)), methods=[method])
            for method, path, function in _API
        ),
    ]
    return Guard(Starlette(routes=routes), token, port)


def _current(
    function: _Endpoint, followed: FollowedTriage, log: ReviewLog, values: Mapping[str, Any], body: Any
) -> Response:
    return function(followed.current(), log, values, body)


def _state(followed: FollowedTriage) -> Response:
    """The state that the page requests now and then, to detect that the folder was ranked again."""
    triage = followed.current()
    return _json({"created": triage.created, "slides": list(triage.by_name), "fault": followed.fault})


async def _static(request: Request, name: str) -> Response:
    content = (resources.files("cytomil.review") / "static" / name).read_bytes()
    return Response(content, media_type=_STATIC[name], headers=_HEADERS)


class _RefusedError(Exception):
    """A request that is not one of this page: its HTTP status, and why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


async def _answer(function: Callable[[Mapping[str, Any], Any], Response], request: Request) -> Response:
    """Run ``function`` in a thread with the path's and the query's values and the JSON body; errors become one line."""
    values = {**request.query_params, **request.path_params}
    try:
        body = await _body_of(request) if request.method == "POST" else None
        return await run_in_threadpool(function, values, body)
    except _RefusedError as error:
        return _failed(error.status, str(error))
    except ReviewLogError as error:
        return _failed(507, str(error))
    except ReviewError as error:
        return _failed(404, str(error))
    except CytomilError as error:
        return _failed(500, str(error))


async def _body_of(request: Request) -> dict[str, Any]:
    if request.headers.get("content-type", "").partition(";")[0] != "application/json":
        raise _RefusedError(415, "send JSON.")
    received = b""
    async for chunk in request.stream():
        received += chunk
        if len(received) > _MAX_BODY_BYTES:
            raise _RefusedError(413, "too long.")
    try:
        body = json.loads(received)
    except (ValueError, RecursionError):
        raise _RefusedError(400, "this is not JSON.") from None
    if not isinstance(body, dict):
        raise _RefusedError(400, "an action is a JSON object.")
    return body


def _failed(status: int, reason: str) -> Response:
    return JSONResponse({"error": reason}, status, headers=_HEADERS)


def _json(content: Any) -> Response:
    return JSONResponse(content, headers=_HEADERS)


def _picture(content: bytes) -> Response:
    return Response(content, media_type="image/jpeg", headers=_HEADERS | {"cache-control": "private, max-age=3600"})


def _reader(values: Mapping[str, Any]) -> str:
    return str(values.get("reader", ""))


def _worklist(triage: Triage, log: ReviewLog, values: Mapping[str, Any], _: Any) -> Response:
    entries, reader = of_these_versions(log.entries(), triage.sha256_of), _reader(values)
    slides = []
    for slide in triage.slides:
        own = Judgements.of(entries, reader, slide.slide)
        document = slide.model_dump(include={"rank", "slide", "call", "probability", "is_unlike", "reason", "n_cells"})
        slides.append(
            document | {"number": triage.numbers[slide.slide], "judged": len(own.cells), "verdict": own.verdict}
        )
    return _json(
        {
            "created": triage.created,
            "meaning": triage.score_meaning,
            "slides": slides,
            "log_faults": log.faults(),
        }
    )


def _slide(triage: Triage, log: ReviewLog, values: Mapping[str, Any], _: Any) -> Response:
    shown = _shown(triage, values)
    slide = shown.slide
    document: dict[str, Any] = slide.model_dump(exclude={"path", "files"})
    document |= {"pyramid": None, "fault": ""}
    if shown.is_whole:
        try:
            size = shown.size
            document["to_teach"] = [one.model_dump() for one in shown.to_teach]
            document["pyramid"] = {
                "width": size.width,
                "height": size.height,
                "max_level": size.max_level,
                "tile": TILE_PX,
            }
        except ReviewError as error:
            document["fault"] = str(error)
    document["earlier"] = _earlier(triage, log, _reader(values), slide.slide)
    return _json(document | _judgements(triage, log, _reader(values), slide.slide))


def _earlier(triage: Triage, log: ReviewLog, reader: str, slide: str) -> str:
    """The reader's verdicts on another version of the slide's file, as one line; "" if nothing."""
    own = Judgements.of(of_other_versions(log.entries(), triage.sha256_of), reader, slide)
    if not (own.cells or own.verdict or own.remark):
        return ""
    verdict = f"; slide: {own.verdict.value}" if own.verdict else ""
    return (
        f"You judged another version of this slide's file (cells: {len(own.cells)}{verdict}). "
        "Those judgements stay in the log and do not count for this version."
    )


def _judgements(triage: Triage, log: ReviewLog, reader: str, slide: str) -> dict[str, Any]:
    entries = of_these_versions(log.entries(), triage.sha256_of)
    return {
        "own": Judgements.of(entries, reader, slide).model_dump(),
        "others": {name: one.model_dump(exclude={"last"}) for name, one in others(entries, reader, slide).items()},
    }


def _check(triage: Triage, log: ReviewLog, values: Mapping[str, Any], _: Any) -> Response:
    return _json({"unchanged": _shown(triage, values).is_unchanged()})


def _cells(triage: Triage, log: ReviewLog, values: Mapping[str, Any], _: Any) -> Response:
    numbers = _shown(triage, values).cells.numbers
    return Response(numbers.astype("<f4").tobytes(), media_type="application/octet-stream", headers=_HEADERS)


def _cell_ids(triage: Triage, log: ReviewLog, values: Mapping[str, Any], _: Any) -> Response:
    return _json(list(_shown(triage, values).cells.ids))


def _tile(triage: Triage, log: ReviewLog, values: Mapping[str, Any], _: Any) -> Response:
    return _picture(_shown(triage, values).tile(values["level"], values["column"], values["row"]))


def _cell(triage: Triage, log: ReviewLog, values: Mapping[str, Any], _: Any) -> Response:
    return _picture(_shown(triage, values).cell_picture(str(values.get("cell", "")), values.get("around") == "1"))


def _shown(triage: Triage, values: Mapping[str, Any]) -> ShownSlide:
    return triage.shown(values["number"])


def _act(triage: Triage, log: ReviewLog, values: Mapping[str, Any], body: Any) -> Response:
    """Log what a reader did. The body names reader, action and slide, and cell and value if the action has them."""
    slide = triage.by_name.get(str(body.get("slide", "")))
    if slide is None:
        raise ReviewError("there is no such slide in the worklist.")
    if body.get("sha256", slide.sha256) != slide.sha256:
        raise _RefusedError(409, "the slide's file changed and was ranked again. Open the slide again.")
    try:
        action = Action(str(body.get("action", "")))
    except ValueError:
        raise _RefusedError(400, "there is no such action.") from None
    reader, fields = str(body.get("reader", "")), {}
    if action is Action.CELL:
        fields = _of_cell(triage.shown(triage.numbers[slide.slide]), str(body.get("cell", "")))
    if action is Action.UNDO:
        last = Judgements.of(of_these_versions(log.entries(), triage.sha256_of), reader, slide.slide).last
        if last is None:
            return _json(_judgements(triage, log, reader, slide.slide))
        fields = {"of": last}
    if action in (Action.CELL, Action.SLIDE, Action.REMARK):
        fields["value"] = str(body.get("value", ""))
    named = {"slide_sha256": slide.sha256, "model_sha256": triage.model_sha256}
    log.append(reader, action, slide.slide, **named, **fields)
    return _json(_judgements(triage, log, reader, slide.slide))


def _of_cell(shown: ShownSlide, cell: str) -> dict[str, Any]:
    """The fields of a cell in the log besides the verdict. Raises `ReviewError` for an unknown one."""
    for rank, key in enumerate(shown.slide.key_instances, start=1):
        if key.instance_id == cell:
            return {"cell": cell, "score": key.score, "rank": rank}
    for taught in shown.slide.to_teach:
        if taught.instance_id == cell:
            return {"cell": cell, "score": taught.score}
    if cell not in shown.cells.index:
        raise ReviewError("there is no such cell.")
    return {"cell": cell, "score": float(shown.cells.numbers[shown.cells.index[cell], 3])}


_API: tuple[tuple[str, str, _Endpoint], ...] = (
    ("GET", "/api/worklist", _worklist),
    ("GET", "/api/slides/{number:int}", _slide),
    ("GET", "/api/slides/{number:int}/check", _check),
    ("GET", "/api/slides/{number:int}/cells", _cells),
    ("GET", "/api/slides/{number:int}/ids", _cell_ids),
    ("GET", "/api/slides/{number:int}/cell", _cell),
    ("GET", "/api/slides/{number:int}/tiles/{level:int}/{column:int}/{row:int}", _tile),
    ("POST", "/api/act", _act),
)


def listen(port: int) -> socket.socket:
    """Listen on this machine only. ``port`` 0 takes a free one. Raises `ReviewError` if the port is in use."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise ReviewError(
            f"port {port} cannot be used ({error.strerror or error}). Name another one: --port 0."
        ) from None


def serve(triage: FollowedTriage, log: ReviewLog, token: str, listening: socket.socket) -> None:
    """Serve until interrupted."""
    import uvicorn

    port = int(listening.getsockname()[1])
    config = uvicorn.Config(
        create_app(triage, log, token, port),
        log_level="warning",
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=2,
    )
    uvicorn.Server(config).run(sockets=[listening])
