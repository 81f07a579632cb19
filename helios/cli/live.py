"""``helios live``: a stream to standard output or a player; each line typed is a new prompt."""

from __future__ import annotations

import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from helios.cli.chosen import (
    ChosenModel,
    Device,
    Dtype,
    EngineSet,
    LowMemory,
    parse_engine,
)
from helios.cli.errors import CommandError
from helios.cli.generate import parse_lora, parse_setting, parse_size, parse_steps
from helios.errors import InputError

if TYPE_CHECKING:
    from helios.pipeline import Session

__all__ = ["live"]

PLAYERS = (
    ("mpv", "--no-terminal", "--profile=low-latency", "-"),
    ("ffplay", "-loglevel", "error", "-autoexit", "-i", "-"),
    ("vlc", "--quiet", "-"),
)


def live(
    prompt: Annotated[str, typer.Argument(help="What the video shows at first.")],
    model: Annotated[str, typer.Option(help="tiny, a hub id or a folder.")] = "tiny",
    image: Annotated[Path | None, typer.Option(help="Start from this image.")] = None,
    video: Annotated[Path | None, typer.Option(help="Continue this video.")] = None,
    seconds: Annotated[float | None, typer.Option(help="Length; endless if not given.")] = None,
    num_frames: Annotated[int | None, typer.Option(help="Length in frames.")] = None,
    size: Annotated[str | None, typer.Option(help="Width x height, such as 640x384.")] = None,
    steps: Annotated[str | None, typer.Option(help="Denoising steps: 4, or 2,2,2.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Strength of the prompt.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same frames.")] = None,
    transition: Annotated[int, typer.Option(help="Chunks from one prompt to the next.")] = 3,
    lora: Annotated[
        list[str] | None, typer.Option(help="Adapter FILE or FILE:SCALE (repeatable).")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other field of a request, as name=value (repeatable)."),
    ] = None,
    player: Annotated[
        str | None,
        typer.Option(help="Show it with this program; auto: mpv, ffplay or vlc."),
    ] = None,
    save: Annotated[
        Path | None, typer.Option(help="Write the session there at the end, to go on later.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    low_memory: LowMemory = False,
    engine: EngineSet = None,
) -> None:
    """Stream a video as fragmented MP4; type a line to change what it shows."""
    values: dict[str, Any] = {
        "prompt": prompt,
        "image": image,
        "video": video,
        "seconds": seconds,
        "num_frames": num_frames,
        "steps": None if steps is None else parse_steps(steps),
        "guidance_scale": guidance_scale,
        "seed": seed,
    }
    values = {name: value for name, value in values.items() if value is not None}
    if size is not None:
        values["width"], values["height"] = parse_size(size)
    values |= dict(parse_setting(text) for text in settings or [])
    if player is None and sys.stdout.isatty():
        raise InputError(
            "the stream is not for a terminal; give --player auto, or pipe it: … | mpv -"
        )
    command = None if player is None else _player(player)
    chosen = ChosenModel(
        model,
        device,
        dtype,
        loras=[parse_lora(text) for text in lora or []],
        low_memory=low_memory,
        engine=parse_engine(engine or []),
    )
    session = _session(chosen, values)
    try:
        with _output(command) as sink:
            _stream(session, sink, transition)
    except BrokenPipeError:
        _say("the player has gone")
    except KeyboardInterrupt:
        raise CommandError(130, "interrupted; what was written plays") from None
    finally:
        if save is not None:
            session.save(save)
            _say(f"saved {save}; go on with pipe.resume({str(save)!r})")


def _session(chosen: ChosenModel, values: dict[str, Any]) -> Session:
    """A session of a model that is loaded once the request is known to be possible."""
    from helios.pipeline import Request

    request = Request.make(**values)
    folder = chosen.folder
    resolved = folder.defaults.resolve(request, folder.schedule, endless=True)
    chosen.check_size(resolved.height, resolved.width)
    return chosen.load().session(request, keep=0)


def _stream(session: Session, sink: IO[bytes], transition: int) -> None:
    """Chunks to ``sink``, prompts from standard input."""
    from helios.media import FragmentEncoder

    own = session.settings
    encoder = FragmentEncoder(own["width"], own["height"], own["fps"], own)
    sink.write(encoder.header)
    sink.flush()
    _say(f"{own['width']}x{own['height']} seed {own['seed']}; type a line to change the prompt")
    lines = _lines()
    for chunk in session:
        sink.write(encoder.encode(chunk.frames))
        sink.flush()
        rate = len(chunk.frames) / max(chunk.timings["total"], 1e-9)
        _say(f"chunk {chunk.index}  {rate / own['fps']:.2f}x real time  {chunk.prompt}")
        with suppress(queue.Empty):
            while True:
                _change(session, lines.get_nowait(), transition)


def _change(session: Session, text: str, transition: int) -> None:
    try:
        lands = session.prompt(text, transition)
    except ValueError as error:
        _say(f"not taken: {error}")
        return
    _say(f"lands in chunk {lands}: {text}")


def _lines() -> queue.SimpleQueue[str]:
    """Lines of standard input as they come, read by a thread that ends with the process."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        with suppress(ValueError, OSError):
            for line in sys.stdin:
                if line.strip():
                    lines.put(line.strip())

    threading.Thread(target=read, daemon=True).start()
    return lines


def _player(name: str) -> list[str]:
    """The command line of a player that reads its standard input."""
    if name != "auto":
        if shutil.which(name) is None:
            raise InputError(f"player {name} was not found")
        known = next((found for found in PLAYERS if found[0] == Path(name).name), (name, "-"))
        return [name, *known[1:]]
    for command in PLAYERS:
        if shutil.which(command[0]) is not None:
            return list(command)
    raise InputError("no player was found; install mpv, ffplay or vlc, or name one")


@contextmanager
def _output(command: list[str] | None) -> Iterator[IO[bytes]]:
    """Standard output, or the standard input of a player that ends with the stream."""
    if command is None:
        yield sys.stdout.buffer
        return
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        try:
            yield process.stdin
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
