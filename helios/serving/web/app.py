"""The web application: routes by topic, errors in one form, the border around all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request, WebSocket
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles

from helios import __version__
from helios.serving.errors import ApiError
from helios.serving.live.connection import LiveConnection
from helios.serving.protocol import SUBPROTOCOL, Fault
from helios.serving.service import Service
from helios.serving.web import session_routes, video_routes
from helios.serving.web.bodies import read_form, read_json
from helios.serving.web.documents import ERRORS, file_body
from helios.serving.web.edge import Edge
from helios.serving.web.files import send_file
from helios.serving.web.security import Guard, ticket_shape
from helios.serving.web.shapes import file_shape, model_shape

__all__ = ["create_app"]

STATIC = Path(__file__).parents[1] / "static"
router = APIRouter()


def create_app(service: Service) -> Any:
    """The ASGI application around ``service``, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="Helios",
        version=__version__,
        docs_url=None,  # its pages would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        responses=ERRORS,
    )
    app.state.service = service
    app.state.guard = guard = Guard(service.config)
    app.include_router(router)
    app.include_router(video_routes.router)
    app.include_router(session_routes.router)
    if service.config.faults:
        app.include_router(faults)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    return Edge(app, service, guard)


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes = {404: "not_found", 405: "method_not_allowed"}
    code = codes.get(error.status_code, "invalid_request")
    texts = {404: "there is nothing here", 405: "this method is not possible here"}
    text = texts.get(error.status_code, "the request is not valid")
    refusal = ApiError(error.status_code, code, text, headers=error.headers)
    return JSONResponse(refusal.body, error.status_code, headers=refusal.headers)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


# ------------------------------------------------------------------------------------- health


@router.get("/", include_in_schema=False)
async def page() -> Response:
    """The studio."""
    return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})


@router.get("/favicon.ico", include_in_schema=False)
async def icon() -> Response:
    """The page names its own."""
    return Response(status_code=204)


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Whether this process answers."""
    return {"status": "live"}


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """Whether work is accepted and every worker is ready; 503 with the reason if not."""
    status = _service(request).status()
    return JSONResponse(status, 200 if status["ready"] else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Figures for Prometheus."""
    service = _service(request)
    service.measure()
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")


@router.get("/v1/status")
async def status(request: Request) -> dict[str, Any]:
    """Workers, streams, queue, memory and speed."""
    return _service(request).status()


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """What can be asked for."""
    service = _service(request)
    known = {worker.model: worker.info for worker in service.supervisor.workers}
    data = [model_shape(info, model, service.began) for model, info in known.items()]
    return {"object": "list", "data": data}


@router.get("/v1/models/{model:path}")
async def model(request: Request, model: str) -> dict[str, Any]:
    """One model."""
    service = _service(request)
    try:
        worker = service.supervisor.of_model(model)[0]
    except ApiError:
        raise ApiError(404, "model_not_found", "there is no such model") from None
    return model_shape(worker.info, worker.model, service.began)


@router.get("/v1/loras")
async def loras(request: Request) -> dict[str, Any]:
    """Adapters that can be asked for by name."""
    names = _service(request).config.loras
    return {"object": "list", "data": [{"name": name, "object": "lora"} for name in names]}


# ------------------------------------------------------------------------------------ uploads


@router.post("/v1/uploads", **file_body())
async def upload(request: Request) -> Response:
    """A picture or a video to start from."""
    service, owner = _service(request), request.state.owner
    service.check_accepting()
    service.store.check_room()
    async with read_form(request, service) as form:
        form.fields.pop("purpose", None)
        if set(form.files) != {"file"} or form.fields:
            raise ApiError(400, "missing_required_parameter", "send one file named file", "file")
        name, path = form.files.pop("file")
        record = await service.uploads.add(path, name, owner)
    return JSONResponse(file_shape(record))


@router.get("/v1/uploads")
async def uploads(request: Request) -> dict[str, Any]:
    """What was uploaded, newest first."""
    service = _service(request)
    records = list(service.journal.all("file", request.state.owner))[::-1]
    return {"object": "list", "data": [file_shape(record) for record in records]}


@router.get("/v1/uploads/{file_id}")
async def get_upload(request: Request, file_id: str) -> Response:
    """One upload."""
    return JSONResponse(file_shape(_service(request).uploads.find(file_id, request.state.owner)))


@router.delete("/v1/uploads/{file_id}")
async def delete_upload(request: Request, file_id: str) -> Response:
    """Forget an upload."""
    service = _service(request)
    record = service.uploads.find(file_id, request.state.owner)
    await service.forget(record)
    return JSONResponse({"id": record.id, "object": "file.deleted", "deleted": True})


@router.head("/v1/uploads/{file_id}/content", include_in_schema=False)
@router.get("/v1/uploads/{file_id}/content")
async def upload_content(request: Request, file_id: str) -> Response:
    """The file as it was sent; never shown as a page."""
    service = _service(request)
    record = service.uploads.find(file_id, request.state.owner)
    path = service.store.folder(record.id) / "original"
    return send_file(request, path, record.id, "application/octet-stream")


# --------------------------------------------------------------------------------------- live


@router.post("/v1/realtime/tickets")
async def ticket(request: Request) -> dict[str, Any]:
    """A word for one WebSocket handshake: a browser cannot send a key there."""
    word = request.app.state.guard.ticket(request.state.owner)
    return ticket_shape(word)


@router.websocket("/v1/realtime/video")
async def realtime(socket: WebSocket) -> None:
    """The live protocol, ``docs/protocol.md``."""
    service: Service = socket.app.state.service
    protocols = socket.scope.get("subprotocols", [])
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in protocols else None)
    connection = LiveConnection(service, socket, socket.state.owner)
    service.connections.add(connection)
    try:
        await connection.run()
    finally:
        service.connections.discard(connection)


# ------------------------------------------------------------------------------------- faults

faults = APIRouter(include_in_schema=False)


@faults.post("/test/faults")
async def fault(request: Request) -> dict[str, bool]:
    """Faults on purpose; only there on a server started for tests."""
    service = _service(request)
    asked = await read_json(request, Fault)
    if asked.kind in ("disk_full", "disk_free"):
        service.disk_full = asked.kind == "disk_full"
    else:
        worker = service.supervisor.workers[asked.worker]
        worker.tell("fault", kind=asked.kind, after=asked.after, seconds=asked.seconds)
    return {"ok": True}
