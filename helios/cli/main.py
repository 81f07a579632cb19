"""Every command, one file each; this file starts them and turns failures into exit codes."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, TextIO

import typer

from helios import __version__
from helios.cli.bench import bench
from helios.cli.checkpoint import checkpoint
from helios.cli.doctor import doctor
from helios.cli.errors import exit_code, explain
from helios.cli.evaluate import evaluate
from helios.cli.export import export
from helios.cli.generate import generate
from helios.cli.live import live
from helios.cli.plan import plan
from helios.cli.precompute import precompute
from helios.cli.pull import pull
from helios.cli.serve import serve, studio
from helios.cli.train import train

__all__ = ["app", "main", "run"]

app = typer.Typer(
    name="helios",
    help="Videos from a sentence, an image or a video, made chunk by chunk.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback when a command fails.")
    ] = False,
) -> None:
    """Videos from a sentence, an image or a video, made chunk by chunk."""
    if version:
        typer.echo(f"helios {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


# The order of `helios --help`: making videos, looking after models, measuring, training.
for command in (generate, live, studio, serve, pull, plan, export, doctor, bench, evaluate, train):
    app.command()(command)
app.add_typer(precompute, name="precompute")
app.add_typer(checkpoint, name="checkpoint")


def main() -> None:
    """Entry point of ``helios``."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; the last line of a failure says why."""
    own, rest = _before_dashes(arguments)
    debug = "--debug" in own
    own = [argument for argument in own if argument != "--debug"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore" if not debug else "default")
            warnings.filterwarnings("always", category=UserWarning, module=r"helios\.")
            warnings.showwarning = _show_warning
            code = app(args=own + rest, prog_name="helios", standalone_mode=False)
    except Exception as error:
        if debug:
            import traceback

            traceback.print_exc()
        return _fail(exit_code(error), explain(error))
    except KeyboardInterrupt as error:
        return _fail(130, explain(error))
    if code == 130:
        return _fail(130, "interrupted; nothing was written")
    return code if isinstance(code, int) else 0


def _before_dashes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments before ``--`` and the rest: after it, everything is text."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    return list(arguments[:cut]), list(arguments[cut:])


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    print(f"warning: {message}", file=file or sys.stderr)


def _fail(code: int, message: str) -> int:
    sys.stdout.flush()
    print(f"error: {code}: {message}", file=sys.stderr, flush=True)
    return code
