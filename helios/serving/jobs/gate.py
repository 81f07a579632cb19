"""Reading what strangers send: in a child process with limits, through the one gate of ``media``.

``python -m helios.serving.jobs.gate KIND PATH OUT`` reads a picture or a video, writes its pixels
as raw bytes and prints one line of JSON. The child has bounded memory, processor time and file
size, no network of its own making and no other file open (specification "reliability", 12).
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from helios.serving.errors import ApiError

__all__ = ["main", "read_upload"]

IMAGE_HEADS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF")
WIDEST = 1280
"""Larger frames of a video are reduced while they are read: nothing larger is ever made."""
MOST_SETTINGS = 64 * 1024
LARGE = "larger", "at most", "too large"
LONG = "seconds long", "more than"


def kind_of(head: bytes) -> str | None:
    """``image`` or ``video`` by the first bytes; none: neither."""
    if head[:8] == IMAGE_HEADS[0] or head[:3] == IMAGE_HEADS[1]:
        return "image"
    if head[:4] == IMAGE_HEADS[2] and head[8:12] == b"WEBP":
        return "image"
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"):
        return "video"
    return "video" if head[:4] == b"\x1a\x45\xdf\xa3" else None


async def read_upload(path: Path, out: Path, *, memory: int, seconds: float) -> dict[str, Any]:
    """Read the file at ``path``; its pixels are in ``out`` then.

    Returns:
        ``kind`` (image or video), ``shape`` ``[T, H, W, 3]``, ``fps``, and of a video the
        ``settings`` that Helios made it with, none if it is another's.

    Raises:
        ApiError: 400 for anything that cannot be used; ``out`` does not exist then.
    """
    with path.open("rb") as file:
        head = file.read(16)
    kind = kind_of(head)
    if not head:
        raise ApiError(400, "invalid_media", "the file is empty", "file")
    if kind is None:
        raise ApiError(
            400,
            "unsupported_media",
            "the file is not PNG, JPEG, WebP, MP4, MOV, WebM or MKV",
            "file",
        )
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "helios.serving.jobs.gate", kind, str(path), str(out),
        str(memory), str(seconds),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = await asyncio.wait_for(child.communicate(), seconds)
        answer = json.loads(said)
    except (TimeoutError, ValueError):
        answer = {"code": "invalid_media", "message": f"the {kind} cannot be read"}
    finally:
        if child.returncode is None:
            with suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if "code" in answer:
        out.unlink(missing_ok=True)
        raise ApiError(400, answer["code"], answer["message"], "file")
    result: dict[str, Any] = answer
    return result


def main(arguments: list[str]) -> int:
    """The child: read, write pixels, say what they are."""
    kind, path, out, memory, seconds = arguments
    _limit(int(memory), float(seconds))
    try:
        answer = _read(kind, Path(path), Path(out))
    except MemoryError:
        answer = {"code": "media_too_large", "message": f"the {kind} needs too much memory"}
    except ValueError as error:
        answer = _refusal(kind, Path(path), str(error))
    print(json.dumps(answer), flush=True)
    return 0


def _limit(memory: int, seconds: float) -> None:
    cpu = max(1, int(seconds))
    for what, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 4 << 30),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, most = resource.getrlimit(what)
        low = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(what, (low, most))


def _read(kind: str, path: Path, out: Path) -> dict[str, Any]:
    from helios.media import read_image, read_settings, read_video

    answer: dict[str, Any] = {"kind": kind}
    if kind == "image":
        pixels, fps = read_image(path)[None], 0.0
    else:
        pixels, fps = read_video(path, cover=(WIDEST, WIDEST))
        answer["settings"] = _own(read_settings(path))
    with out.open("xb") as file:
        pixels.tofile(file)
    return answer | {"shape": list(pixels.shape), "fps": round(fps, 3)}


def _own(settings: dict[str, Any]) -> dict[str, Any] | None:
    """What a file of ours says of its making; none of another's, or of one that says too much."""
    try:
        said = json.dumps(settings, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return settings if "helios" in settings and len(said) <= MOST_SETTINGS else None


def _refusal(kind: str, path: Path, message: str) -> dict[str, str]:
    """The gate's own line, with the path that nobody outside shall see taken out."""
    said = message.replace(str(path), "").replace("  ", " ")
    if any(words in said for words in LONG):
        code = "media_too_long"
    elif any(words in said for words in LARGE):
        code = "media_too_large"
    elif "not a picture we read" in said or "use H.264" in said or "is not an MP4" in said:
        code = "unsupported_media"
    else:
        code = "invalid_media"
    return {"code": code, "message": said if said.startswith(kind) else f"the {kind} is not usable"}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
