"""What clients see of records: OpenAI's shapes, with our fields beside theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helios.serving.journal import Record

if TYPE_CHECKING:
    from helios.serving.service import Service

__all__ = ["file_shape", "model_shape", "session_shape", "video_shape"]


def video_shape(service: Service, record: Record) -> dict[str, Any]:
    """A job."""
    document = record.document
    completed, expires = document.get("completed"), document.get("expires")
    failed = document["status"] == "failed"
    return {
        "id": record.id,
        "object": "video",
        "created_at": int(record.created),
        "completed_at": None if completed is None or failed else int(completed),
        "expires_at": None if expires is None else int(expires),
        "status": document["status"],
        "progress": document["progress"],
        "model": _short(document["model"]),
        "prompt": document["prompt"],
        "size": document["size"],
        "seconds": f"{document['num_frames'] / document['fps']:g}",
        "error": document["error"],
        "remixed_from_video_id": document.get("remixed_from"),
        "num_frames": document["num_frames"],
        "fps": document["fps"],
        "chunks": document.get("chunks", 0),
        "place": service.jobs.place(record.id),
        "extended_from_video_id": (document.get("extends") or {}).get("id"),
        "warnings": document["warnings"],
        "settings": document.get("settings"),
    }


def session_shape(
    service: Service, record: Record, *, chunks: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    """A live, parked, saved or imported session; ``chunks``: what each of them shows, if wanted."""
    from helios.serving.live.session import states_in

    document = record.document
    live = service.sessions.live.get(record.id)
    settings = document.get("settings") or {}
    folder = service.store.folder(record.id)
    kept = states_in(folder) if live is None else list(range(live.kept[0], live.kept[1] + 1))
    frames = document.get("frames", 0) if live is None else live.recording.frames
    shape = {
        "id": record.id,
        "object": "session",
        "created_at": int(record.created),
        "updated_at": int(document.get("updated", record.created)),
        "expires_at": int(document["expires"]),
        "status": "parked" if live is None else "live",
        "over": document.get("over") if live is None else live.over,
        "name": document.get("name"),
        "model": _short(document["model"]),
        "loras": [{"name": name, "scale": scale} for name, scale in document["loras"].items()],
        "prompts": document["prompts"],
        "parent": document.get("parent"),
        "branched_at": document.get("branched_at"),
        "chunks": document.get("chunks", 0) if live is None else len(live.recording),
        "frames": frames,
        "seconds": frames / settings.get("fps", 24),
        "kept": kept,
        "settings": settings,
    }
    if chunks is not None:
        shape["chunk_list"] = chunks
    return shape


def file_shape(record: Record) -> dict[str, Any]:
    """An upload."""
    document = record.document
    frames, height, width, _ = document["shape"]
    return {
        "id": record.id,
        "object": "file",
        "created_at": int(record.created),
        "expires_at": int(document["expires"]),
        "filename": document["filename"],
        "bytes": document["bytes"],
        "purpose": "input_reference",
        "kind": document["kind"],
        "width": width,
        "height": height,
        "frames": frames,
        "fps": document["fps"],
    }


def model_shape(info: dict[str, Any], model: str, created: float) -> dict[str, Any]:
    """A model and what can be asked of it."""
    return {
        "id": _short(model),
        "object": "model",
        "created": int(created),
        "owned_by": "helios",
        "ready": bool(info),
        "defaults": info.get("defaults"),
        "scales": info.get("scales"),
        "size_multiple": info.get("size_multiple"),
        "chunk_frames": info.get("chunk_frames"),
        "device": info.get("device"),
        "dtype": info.get("dtype"),
        "loras": info.get("loras", []),
    }


def _short(model: str) -> str:
    return model.rstrip("/").rsplit("/", 1)[-1]
