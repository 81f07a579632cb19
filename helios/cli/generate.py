"""``helios generate``: one video, several seeds of it, or a batch of requests.

Everything that can be refused is refused before a weight is loaded; the file grows as
``NAME.partial.mp4`` while the video is made and gets its name when it is complete.
"""

from __future__ import annotations

import json
import math
import secrets
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from helios.cli.chosen import (
    ChosenModel,
    Device,
    Dtype,
    EngineSet,
    LowMemory,
    parse_engine,
)
from helios.cli.errors import CommandError, exit_code, explain
from helios.errors import CheckpointError, InputError
from helios.files import shown

if TYPE_CHECKING:
    from types import FrameType

    from helios.pipeline import Request, Resolved

__all__ = ["generate", "parse_script"]

DEFAULT_OUTPUT = Path("out.mp4")


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the video shows.")] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The MP4 file to write.")
    ] = DEFAULT_OUTPUT,
    model: Annotated[
        str,
        typer.Option(
            help="tiny, a folder in the published layout, or a hub id such as "
            "BestWishYsh/Helios-Distilled (downloaded once; see helios plan)."
        ),
    ] = "tiny",
    image: Annotated[Path | None, typer.Option(help="Start from this image.")] = None,
    video: Annotated[Path | None, typer.Option(help="Continue this video.")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(help="What guidance moves away from.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Length in seconds of playback; 132 frames if not given.")
    ] = None,
    num_frames: Annotated[
        int | None, typer.Option(help="Length in frames, instead of --seconds.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Width x height, such as 640x384; the model's own if not given."),
    ] = None,
    steps: Annotated[
        str | None, typer.Option(help="Denoising steps: 50, or 2,2,2 with three scales.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Strength of the prompt; 1: no guidance.")
    ] = None,
    motion: Annotated[
        float | None, typer.Option(help="0 to 1: how freely the video leaves its start.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed, the same frames; drawn if not given.")
    ] = None,
    num_videos: Annotated[
        int | None, typer.Option(help="How many, with seeds SEED, SEED+1 …: out-1.mp4 …")
    ] = None,
    fps: Annotated[
        int | None, typer.Option(help="Frames a second of playback; 24 if not given.")
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="Adapter FILE, or FILE:SCALE such as style.safetensors:0.8 (repeatable)."
        ),
    ] = None,
    preview: Annotated[
        Path | None,
        typer.Option(help="Decode roughly and fast: the folder of a preview decoder."),
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    low_memory: LowMemory = False,
    engine: EngineSet = None,
    script: Annotated[
        Path | None,
        typer.Option(help="File of lines seconds<TAB>prompt: the prompt that holds from then on."),
    ] = None,
    batch: Annotated[
        Path | None, typer.Option(help="JSON Lines: one request a line, one result line each.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other field of a request, as name=value (repeatable)."),
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print the result as a line of JSON.")
    ] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace an existing output.")] = False,
) -> None:
    """Make a video from a sentence, an image or a video."""
    values: dict[str, Any] = {
        "prompt": prompt,
        "image": image,
        "video": video,
        "negative_prompt": negative_prompt,
        "seconds": seconds,
        "num_frames": num_frames,
        "steps": None if steps is None else parse_steps(steps),
        "guidance_scale": guidance_scale,
        "motion": motion,
        "seed": seed,
        "num_videos": num_videos,
        "fps": fps,
    }
    if size is not None:
        values["width"], values["height"] = parse_size(size)
    values = {name: value for name, value in values.items() if value is not None}
    values |= dict(parse_setting(text) for text in settings or [])
    if sum(source is not None for source in (prompt, script, batch)) > 1:
        raise ValueError("give only one of a prompt, --script and --batch")
    loras = [parse_lora(text) for text in lora or []]
    if preview is not None and not (preview / "config.json").is_file():
        raise CheckpointError(
            f"--preview {shown(preview)}: no preview decoder is there; train one with: "
            "helios train preview-decoder"
        )
    chosen = ChosenModel(
        model,
        device,
        dtype,
        loras=loras,
        low_memory=low_memory,
        engine=parse_engine(engine or [], preview),
    )
    run = Run(chosen, overwrite=overwrite, json_output=json_output)
    if batch is not None:
        run.batch(batch, values, output)
        return
    if script is not None:
        rate = values.get("fps") or run.model.defaults.fps
        values["prompt"] = parse_script(read_text(script, "script"), rate)
    elif prompt is None:
        raise InputError('there is no prompt; try: helios generate "a red ball bounces on grass"')
    jobs = run.plan(values, output)
    for job in jobs:
        run.report(run.make(job))


@dataclass(frozen=True, kw_only=True)
class Job:
    """One file to write, checked."""

    request: Request
    resolved: Resolved
    output: Path
    sources: Mapping[str, str]


class Run:
    """A model and how results are written; the weights are loaded with the first video."""

    def __init__(self, chosen: ChosenModel, *, overwrite: bool, json_output: bool) -> None:
        self.chosen = chosen
        self.model = chosen.folder
        self.overwrite = overwrite
        self.json_output = json_output

    def plan(self, values: Mapping[str, Any], output: Path) -> list[Job]:
        """The jobs of one request: one per seed. Nothing is loaded or written."""
        from helios.media import check_output
        from helios.pipeline import Request

        request = Request.make(**values)
        resolved = self.model.defaults.resolve(request, self.model.schedule)
        if not self.model.has_text_encoder:
            raise ValueError(
                f"model {self.model.name!r} has no text encoder, so it cannot read a prompt; "
                "use it from Python with prompt_embeds"
            )
        self.chosen.check_size(resolved.height, resolved.width)
        outputs = _numbered(output, request.num_videos)
        for path in outputs:
            check_output(path, self.overwrite)
        first = secrets.randbelow(2**32) if request.seed is None else request.seed
        request, sources = _read_media(request)
        return [
            Job(
                request=replace(
                    request,
                    num_videos=1,
                    seed=first + index,
                    seconds=None,
                    num_frames=resolved.num_frames,
                ),
                resolved=resolved,
                output=path,
                sources=sources,
            )
            for index, path in enumerate(outputs)
        ]

    def make(self, job: Job) -> dict[str, Any]:
        """Make one video; the result, ready for JSON."""
        from helios.cli.progress import Progress
        from helios.geometry import CHUNK_FRAMES
        from helios.media import VideoWriter

        pipeline = self.chosen.load()
        resolved = job.resolved
        settings = pipeline.settings(job.request) | dict(job.sources)
        progress = Progress(resolved.chunks or 0, resolved.fps, self.chosen.device)
        print(_headline(settings), file=sys.stderr, flush=True)
        writer = VideoWriter(
            job.output,
            resolved.width,
            resolved.height,
            resolved.fps,
            settings,
            self.overwrite,
            fragment_frames=CHUNK_FRAMES,
        )
        with _interruptible(writer.partial), writer:
            for chunk in pipeline.stream(job.request):
                writer.write(chunk.frames)
                progress.show(chunk)
        return {
            "status": "completed",
            "output": str(job.output),
            "frames": progress.frames,
            "seconds": round(progress.frames / resolved.fps, 3),
            "elapsed": round(progress.elapsed, 3),
            "frames_per_second": round(progress.frames / max(progress.elapsed, 1e-9), 2),
            "settings": settings,
        }

    def report(self, result: Mapping[str, Any]) -> None:
        """Say on standard output what was made."""
        text = json.dumps(result) if self.json_output else result["output"]
        print(text, flush=True)

    def batch(self, path: Path, values: Mapping[str, Any], output: Path) -> None:
        """Run every line of a JSON Lines file and print one result line each."""
        lines = [
            (number, line)
            for number, line in enumerate(read_text(path, "batch file").splitlines(), 1)
            if line.strip()
        ]
        if not lines:
            raise InputError(f"batch file {path} holds no request")
        codes = []
        for number, line in lines:
            name = output.with_name(f"{output.stem}-{number}{output.suffix}")
            for result in self._batch_line(line, values, name):
                print(json.dumps({"line": number} | result), flush=True)
                if result["status"] == "failed":
                    codes.append(int(result["error"]["code"]))
        if codes:
            raise CommandError(codes[0], f"{len(codes)} of {len(lines)} requests of {path} failed")

    def _batch_line(
        self, line: str, values: Mapping[str, Any], output: Path
    ) -> Iterator[dict[str, Any]]:
        try:
            own = parse_request(line)
            target = own.pop("output", None)
            if target is not None and not isinstance(target, str):
                raise ValueError(f"output must be a file name, got {target!r}")
            jobs = self.plan({**values, **own}, output if target is None else Path(target))
            for job in jobs:
                yield self.make(job)
        except CommandError:
            raise
        except Exception as error:
            # One bad request must not cost the others; what failed is said in its own line.
            code = exit_code(error)
            yield {"status": "failed", "error": {"code": code, "message": explain(error)}}


def parse_size(text: str) -> tuple[int, int]:
    """Width and height of ``640x384``."""
    parts = text.lower().replace("×", "x").split("x")
    try:
        width, height = (int(part) for part in parts)
    except ValueError:
        raise ValueError(f"--size must be WIDTHxHEIGHT such as 640x384, got {text!r}") from None
    return width, height


def parse_steps(text: str) -> int | tuple[int, ...]:
    """A number, or one per scale separated by commas."""
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--steps must be a number or 2,2,2, got {text!r}") from None
    return counts[0] if len(counts) == 1 else counts


def parse_lora(text: str) -> tuple[Path, float]:
    """A file and how much it counts: ``FILE`` or ``FILE:SCALE``."""
    file, colon, number = text.rpartition(":")
    try:
        scale = float(number) if colon else 1.0
    except ValueError:
        # A colon of the path itself, unless what stands before it is the file.
        scale = math.nan if Path(file).is_file() else 1.0
        file = text
    if not colon or Path(text).exists():
        file, scale = text, 1.0
    if not file or not math.isfinite(scale):
        raise ValueError(f"--lora must be FILE or FILE:SCALE such as a.safetensors:0.8: {text!r}")
    return Path(file), scale


def parse_setting(text: str) -> tuple[str, Any]:
    """``name=value``; the value is JSON, or plain text if it is not."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"--set must be name=value, got {text!r}")
    try:
        parsed = json.loads(value)
    except ValueError:
        parsed = value
    return name.strip(), _tuples(parsed)


def parse_request(line: str) -> dict[str, Any]:
    """The fields of one batch line.

    Raises:
        ValueError: if it is not one JSON object, names a field twice or holds NaN.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({name for name, _ in pairs}) != len(pairs):
            raise ValueError("a field is given twice")
        return dict(pairs)

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is not a number")

    try:
        value = json.loads(line, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("the line is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"the line is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("the line must hold a JSON object")
    if isinstance(value.get("size"), str):
        value["width"], value["height"] = parse_size(value.pop("size"))
    return {name: _tuples(item) for name, item in value.items()}


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def parse_script(text: str, fps: int) -> list[tuple[int, str]]:
    """``(start_chunk, prompt)`` of lines ``seconds<TAB>prompt``.

    A prompt can change between chunks only, so a time is taken to the nearest chunk border.

    Raises:
        InputError: naming the line that is wrong.
    """
    from helios.geometry import CHUNK_FRAMES

    changes: list[tuple[int, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        start, tab, prompt = line.partition("\t")
        try:
            seconds = float(start)
        except ValueError:
            seconds = -1.0
        if not tab or not 0 <= seconds < float("inf"):
            raise InputError(f"script line {number} must be seconds<TAB>prompt, got {line!r}")
        chunk = round(seconds * fps / CHUNK_FRAMES)
        if not changes and chunk:
            raise InputError(f"script line {number}: the first prompt must start at 0 seconds")
        if changes and chunk <= changes[-1][0]:
            raise InputError(
                f"script line {number}: a prompt holds for whole chunks of "
                f"{CHUNK_FRAMES / fps:.3f} seconds, so {seconds:g} is too close to the line before"
            )
        changes.append((chunk, prompt))
    if not changes:
        raise InputError("the script is empty: give lines of seconds<TAB>prompt")
    return changes


def read_text(path: Path, what: str) -> str:
    """The text of a small file that a person wrote."""
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{what} {path} is not UTF-8 text") from None
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read: {error.strerror}") from None


def _numbered(output: Path, count: int) -> list[Path]:
    if count == 1:
        return [output]
    return [output.with_name(f"{output.stem}-{i}{output.suffix}") for i in range(1, count + 1)]


def _read_media(request: Request) -> tuple[Request, dict[str, str]]:
    """The request with its start image or video read, and the names for the record."""
    from helios.pipeline import read_start

    sources = {
        item.name: Path(value).name
        for item in fields(request)
        if item.name in ("image", "video")
        and isinstance(value := getattr(request, item.name), str | Path)
    }
    return read_start(request), sources


def _headline(settings: Mapping[str, Any]) -> str:
    return (
        f"model {settings['model']}  {settings['device']} {settings['dtype']}  "
        f"{settings['width']}x{settings['height']}  {settings['num_frames']} frames  "
        f"steps {settings['steps']}  guidance {settings['guidance_scale']:g}  "
        f"seed {settings['seed']}"
    )


@contextmanager
def _interruptible(partial: Path) -> Iterator[None]:
    """Turn Ctrl-C and SIGTERM into their exit codes, naming the part of the video that stays."""

    class Terminated(KeyboardInterrupt):
        pass

    def terminate(number: int, frame: FrameType | None) -> None:
        raise Terminated

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, terminate) if main else None
    try:
        yield
    except KeyboardInterrupt as stop:
        code = 143 if isinstance(stop, Terminated) else 130
        kept = f"the part made so far is {partial}" if partial.exists() else "nothing was written"
        raise CommandError(code, f"interrupted; {kept}") from None
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
