"""``/v1/videos``: OpenAI's routes for file jobs, with events and the growing file beside them."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from helios.serving.errors import ApiError, from_job
from helios.serving.jobs.job import Job
from helios.serving.jobs.spritesheet import spritesheet
from helios.serving.journal import Record
from helios.serving.logs import log
from helios.serving.protocol import (
    CreateVideo,
    EditVideo,
    ExtendVideo,
    InputReference,
    RemixVideo,
)
from helios.serving.requests import as_made
from helios.serving.service import Service
from helios.serving.web.bodies import Form, checked, form_values, read_form, read_json
from helios.serving.web.documents import described
from helios.serving.web.files import send_file
from helios.serving.web.shapes import video_shape

__all__ = ["router"]

router = APIRouter(prefix="/v1/videos", tags=["videos"])
KEEP_ALIVE_SECONDS = 15.0
POLL_MILLISECONDS = 500
"""How soon the official client shall ask again for a job that is not done."""
LOOK_SECONDS = 0.5
"""Between two looks whether a client that waits is still there."""
MOST_KEY = 255


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _owner(request: Request) -> str:
    owner: str = request.state.owner
    return owner


def _find(request: Request, video_id: str) -> Record:
    return _service(request).jobs.find(video_id, _owner(request))


@router.post("", **described(CreateVideo, multipart=True))
async def create_video(request: Request) -> JSONResponse:
    """Accept a job."""
    return JSONResponse(video_shape(_service(request), await _accepted(request)))


@router.post("/sync", **described(CreateVideo, multipart=True))
async def create_and_wait(request: Request) -> Response:
    """Make a video while the client waits, and answer with the file; who leaves cancels it."""
    service, record = _service(request), await _accepted(request)
    while (job := service.jobs.active(record.id)) is not None:
        seen = job.version
        if service.jobs.is_active(record.id):
            await job.change(seen, LOOK_SECONDS)
        if await request.is_disconnected():
            await service.jobs.delete(record)
            return Response(status_code=499)
    if record.document["status"] != "completed":
        raise from_job(record.document["error"])
    path = service.store.folder(record.id) / "video.mp4"
    answer = send_file(request, path, f"{record.id}.mp4", "video/mp4")
    answer.headers["x-video-id"] = record.id
    return answer


async def _accepted(request: Request) -> Record:
    """The job that a request asks for; the same one again for the same ``Idempotency-Key``."""
    service, owner = _service(request), _owner(request)
    key = request.headers.get("idempotency-key")
    if key is None:
        return await _create(request, service, owner, None)
    if len(key) > MOST_KEY:
        raise ApiError(400, "invalid_value", "the Idempotency-Key is too long", "Idempotency-Key")
    # Whoever asks again may do so before the first answer.
    async with service.jobs.one_at_a_time(owner, key):
        for record in service.journal.all("video", owner):
            if record.document.get("idempotency_key") == key:
                return record
        return await _create(request, service, owner, key)


async def _create(request: Request, service: Service, owner: str, key: str | None) -> Record:
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        return await _create_from_form(request, service, owner, key)
    asked = await read_json(request, CreateVideo)
    return await service.jobs.create(asked, owner, idempotency_key=key)


async def _create_from_form(
    request: Request, service: Service, owner: str, key: str | None
) -> Record:
    async with read_form(request, service) as form:
        values = await asyncio.to_thread(form_values, form.fields, form.nested)
        unknown = [name for name in form.files if name != "input_reference"]
        if unknown:
            raise ApiError(400, "unknown_parameter", "unknown file", unknown[0][:100])
        asked = checked(values, CreateVideo)
        if "input_reference" in form.files:
            service.jobs.check_room(owner)
            name, path = form.files.pop("input_reference")
            try:
                upload = await service.uploads.add(path, name, owner)
            except ApiError as error:
                error.param = "input_reference"
                raise
            asked = checked(values | {"input_reference": {"file_id": upload.id}}, CreateVideo)
        return await service.jobs.create(asked, owner, idempotency_key=key)


@router.get("")
async def list_videos(
    request: Request, after: str | None = None, limit: str = "20", order: str = "desc"
) -> JSONResponse:
    """Jobs, newest first unless asked otherwise."""
    service = _service(request)
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= 100):
        raise ApiError(400, "invalid_value", "limit must be 1 to 100", "limit")
    if order not in ("asc", "desc"):
        raise ApiError(400, "invalid_value", "order must be asc or desc", "order")
    records = list(service.journal.all("video", _owner(request)))
    if order == "desc":
        records.reverse()
    if after is not None:
        names = [record.id for record in records]
        if after not in names:
            raise ApiError(400, "invalid_value", "after is not one of the list", "after")
        records = records[names.index(after) + 1 :]
    page = records[: int(limit)]
    return JSONResponse(
        {
            "object": "list",
            "data": [video_shape(service, record) for record in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": len(records) > len(page),
        }
    )


@router.post("/extensions", **described(ExtendVideo))
async def extend_video(request: Request) -> JSONResponse:
    """A job that goes on with a finished video."""
    service, owner = _service(request), _owner(request)
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        async with read_form(request, service) as form:
            values = form_values(form.fields, form.nested)
            if "video" in form.files:
                return await _extend_upload(request, service, values, form)
            asked = checked(values, ExtendVideo)
    else:
        asked = await read_json(request, ExtendVideo)
    old = service.jobs.find(asked.video.id, owner)
    record = await service.jobs.extend(old, asked, owner)
    return JSONResponse(video_shape(service, record))


async def _extend_upload(
    request: Request, service: Service, values: dict[str, Any], form: Form
) -> JSONResponse:
    """A clip that was not made here: what follows is made from its end, without it."""
    owner = _owner(request)
    asked = checked(values | {"input_reference": {"file_id": "file_" + "0" * 32}}, CreateVideo)
    service.jobs.check_room(owner)
    name, path = form.files.pop("video")
    try:
        upload = await service.uploads.add(path, name, owner)
    except ApiError as error:
        error.param = "video"
        raise
    reference = InputReference(file_id=upload.id)
    record = await service.jobs.create(
        asked.model_copy(update={"input_reference": reference}), owner
    )
    record.document["warnings"].append("the result holds the new part only")
    return JSONResponse(video_shape(service, record))


@router.post("/edits", **described(EditVideo))
async def edit_video(request: Request) -> JSONResponse:
    """A finished video again with another prompt: by its id, or as the file that was made here."""
    service, owner = _service(request), _owner(request)
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        async with read_form(request, service) as form:
            values = form_values(form.fields, form.nested)
            if "video" in form.files:
                record = await _edit_upload(service, owner, values, form)
                return JSONResponse(video_shape(service, record))
            asked = checked(values, EditVideo)
    else:
        asked = await read_json(request, EditVideo)
    old = service.jobs.find(asked.video.id, owner)
    record = await service.jobs.remix(old, asked.prompt, asked.seed, owner)
    return JSONResponse(video_shape(service, record))


async def _edit_upload(service: Service, owner: str, values: dict[str, Any], form: Form) -> Record:
    """The settings that a file carries, with another prompt; its pixels do not matter."""
    asked = checked(values, RemixVideo)
    service.jobs.check_room(owner)
    name, path = form.files.pop("video")
    try:
        upload = await service.uploads.add(path, name, owner)
    except ApiError as error:
        error.param = "video"
        raise
    settings = upload.document.get("settings")
    await service.forget(upload)
    if not settings:
        text = "only a video made by Helios can be edited, and the file does not say that it is one"
        raise ApiError(400, "invalid_media", text, "video")
    made = as_made(settings, service.jobs.model_info(None)["defaults"])
    fields = {name: value for name, value in asked.model_dump().items() if value is not None}
    return await service.jobs.create(checked(made | fields, CreateVideo), owner)


@router.post("/characters", include_in_schema=False)
@router.get("/characters/{rest:path}", include_in_schema=False)
async def characters(request: Request, rest: str = "") -> Response:
    """What the official client knows and Helios has not."""
    text = "there are no characters here; say in the prompt, or show as input_reference, who it is"
    raise ApiError(404, "not_supported", text)


@router.get("/{video_id}")
async def get_video(request: Request, video_id: str) -> JSONResponse:
    """One job."""
    shape = video_shape(_service(request), _find(request, video_id))
    done = shape["status"] in ("completed", "failed")
    headers = {} if done else {"openai-poll-after-ms": str(POLL_MILLISECONDS)}
    return JSONResponse(shape, headers=headers)


@router.delete("/{video_id}")
async def delete_video(request: Request, video_id: str) -> JSONResponse:
    """Stop and forget a job, with its files."""
    record = _find(request, video_id)
    await _service(request).jobs.delete(record)
    return JSONResponse({"id": record.id, "object": "video.deleted", "deleted": True})


@router.post("/{video_id}/cancel")
async def cancel_video(request: Request, video_id: str) -> JSONResponse:
    """Stop a job; one that is finished stays as it is."""
    record = _find(request, video_id)
    await _service(request).jobs.cancel(record)
    return JSONResponse(video_shape(_service(request), record))


@router.post("/{video_id}/remix", **described(RemixVideo))
async def remix_video(request: Request, video_id: str) -> JSONResponse:
    """The same request with another prompt."""
    service, owner = _service(request), _owner(request)
    old = _find(request, video_id)
    asked = await read_json(request, RemixVideo)
    record = await service.jobs.remix(old, asked.prompt, asked.seed, owner)
    return JSONResponse(video_shape(service, record))


@router.head("/{video_id}/content", include_in_schema=False)
@router.get("/{video_id}/content")
async def get_content(request: Request, video_id: str, variant: str = Query("video")) -> Response:
    """The finished file, or a picture of it."""
    record = _find(request, video_id)
    if variant not in ("video", "thumbnail", "spritesheet"):
        text = "variant must be video, thumbnail or spritesheet"
        raise ApiError(400, "invalid_value", text, "variant")
    if record.document["status"] != "completed":
        raise ApiError(409, "video_not_ready", "the video is not complete", "video_id")
    folder = _service(request).store.folder(record.id)
    if variant == "thumbnail":
        return send_file(
            request, folder / "thumbnail.jpg", f"{record.id}.jpg", "image/jpeg", inline=True
        )
    if variant == "spritesheet":
        sheet = folder / "spritesheet.jpg"
        if not sheet.exists():
            try:
                await asyncio.to_thread(spritesheet, folder / "video.mp4", sheet)
            except OSError as error:
                log("spritesheet_not_made", job=record.id, detail=str(error))
                text = "the pictures cannot be stored"
                raise ApiError(507, "insufficient_storage", text) from None
        return send_file(request, sheet, f"{record.id}.jpg", "image/jpeg", inline=True)
    return send_file(request, folder / "video.mp4", f"{record.id}.mp4", "video/mp4")


@router.get("/{video_id}/stream")
async def stream_video(request: Request, video_id: str) -> Response:
    """The file as it grows: fragments of MP4, from the beginning to the end of the job."""
    record = _find(request, video_id)
    service = _service(request)
    job = service.jobs.active(record.id)
    if job is None:
        return await get_content(request, video_id, "video")
    headers = {
        "content-disposition": f'inline; filename="{record.id}.mp4"',
        "cache-control": "no-store",
    }
    return StreamingResponse(_growing(job, service), headers=headers, media_type="video/mp4")


async def _growing(job: Job, service: Service) -> AsyncIterator[bytes]:
    """Whole fragments only, each as soon as it is on the disk."""
    file, at, seen = None, 0, -1
    try:
        while True:
            seen = await job.change(seen, 1.0)
            if file is None and job.recording is not None:
                file = await asyncio.to_thread(os.open, job.recording.path, os.O_RDONLY)
            if file is not None and job.recording is not None:
                size = job.recording.size
                while at < size:
                    data = await asyncio.to_thread(os.pread, file, min(1 << 18, size - at), at)
                    if not data:
                        return
                    at += len(data)
                    yield data
            if not service.jobs.is_active(job.record.id):
                return
    except FileNotFoundError:
        return
    finally:
        if file is not None:
            os.close(file)


@router.get("/{video_id}/events")
async def video_events(request: Request, video_id: str) -> Response:
    """Server-sent events: one per chunk, then how it ended."""
    record = _find(request, video_id)
    return StreamingResponse(
        _events(_service(request), record),
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        media_type="text/event-stream",
    )


async def _events(service: Service, record: Record) -> AsyncIterator[str]:
    told = 0
    job = service.jobs.active(record.id)
    while job is not None:
        seen, going = job.version, service.jobs.is_active(record.id)
        for progress in job.progress[told:]:
            told += 1
            yield _event("video.progress", progress)
        if not going:
            break
        if await job.change(seen, KEEP_ALIVE_SECONDS) == seen:
            yield ": still here\n\n"
    shape: dict[str, Any] = video_shape(service, record)
    yield _event(f"video.{shape['status']}", shape)


def _event(kind: str, data: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data}, ensure_ascii=True)}\n\n"


@router.api_route("/{rest:path}", methods=["GET", "DELETE"], include_in_schema=False)
async def no_video(request: Request, rest: str) -> Response:
    """Whatever is no identifier."""
    raise ApiError(404, "video_not_found", "there is no such video")
