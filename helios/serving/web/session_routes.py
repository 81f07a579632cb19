"""``/v1/sessions``: live sessions over HTTP, what they recorded, and one file of everything."""

from __future__ import annotations

import asyncio
import base64

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from helios.serving.errors import ApiError
from helios.serving.journal import Record
from helios.serving.live.archive import read_archive, write_archive
from helios.serving.live.recording import note_of
from helios.serving.live.sessions import recorded_chunks
from helios.serving.service import Service
from helios.serving.web.bodies import read_form
from helios.serving.web.documents import file_body
from helios.serving.web.files import send_file
from helios.serving.web.shapes import session_shape

__all__ = ["router"]

router = APIRouter(prefix="/v1/sessions", tags=["sessions"])


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


@router.get("")
async def list_sessions(request: Request) -> JSONResponse:
    """Sessions, newest first."""
    service = _service(request)
    records = list(service.journal.all("session", request.state.owner))[::-1]
    data = [session_shape(service, record) for record in records]
    return JSONResponse({"object": "list", "data": data})


@router.post("/import", **file_body())
async def import_session(request: Request) -> JSONResponse:
    """A session out of a file that ``export`` gave."""
    service, owner = _service(request), request.state.owner
    service.check_accepting()
    async with read_form(request, service) as form:
        if set(form.files) != {"file"} or form.fields:
            raise ApiError(400, "missing_required_parameter", "send one file named file", "file")
        _, path = form.files["file"]
        record = await read_archive(service, path, owner)
    return await _shown(service, record)


@router.get("/{session_id}")
async def get_session(request: Request, session_id: str) -> JSONResponse:
    """One session, with its chunks."""
    service = _service(request)
    record = service.sessions.find(session_id, request.state.owner)
    return await _shown(service, record)


async def _shown(service: Service, record: Record) -> JSONResponse:
    """A session with its chunks; those of a long one take a while to read."""
    chunks = await asyncio.to_thread(recorded_chunks, service.store.folder(record.id))
    return JSONResponse(session_shape(service, record, chunks=chunks))


@router.delete("/{session_id}")
async def delete_session(request: Request, session_id: str) -> JSONResponse:
    """Forget a session with everything it recorded."""
    service = _service(request)
    record = service.sessions.find(session_id, request.state.owner)
    if record.id in service.sessions.live:
        raise ApiError(409, "session_active", "the session is on a connection; stop it first")
    await service.forget(record)
    return JSONResponse({"id": record.id, "object": "session.deleted", "deleted": True})


@router.head("/{session_id}/content", include_in_schema=False)
@router.get("/{session_id}/content")
async def session_content(request: Request, session_id: str) -> Response:
    """What it recorded so far, as MP4."""
    service = _service(request)
    record = service.sessions.find(session_id, request.state.owner)
    path, size = await service.sessions.playable(record)
    return send_file(request, path, f"{record.id}.mp4", "video/mp4", size=size)


@router.get("/{session_id}/thumbnail")
async def session_thumbnail(request: Request, session_id: str) -> Response:
    """A small picture of its beginning; of a branch, of where it goes its own way."""
    service = _service(request)
    record = service.sessions.find(session_id, request.state.owner)
    chunk = record.document.get("branched_at") or 0
    noted = await asyncio.to_thread(note_of, service.store.folder(record.id), chunk)
    if noted is None:
        raise ApiError(404, "content_not_found", "nothing was recorded yet")
    data = base64.b64decode(noted["thumbnail"].partition(",")[2])
    headers = {"content-disposition": f'inline; filename="{record.id}.jpg"'}
    return Response(data, headers=headers, media_type="image/jpeg")


@router.get("/{session_id}/export")
async def export_session(request: Request, session_id: str) -> Response:
    """Everything of it as one file: states, recording, prompts."""
    service = _service(request)
    record = service.sessions.find(session_id, request.state.owner)
    live = service.sessions.live.get(record.id)
    if live is not None:
        await live.keep_states()
    path = await asyncio.to_thread(write_archive, service, record)
    answer = send_file(request, path, f"{record.id}.helios", "application/zip")
    path.unlink(missing_ok=True)  # the answer holds it open
    return answer
