"""Load on a running server, in the short form of the reliability specification, section 5.2.

    python benchmarks/soak.py --seconds 60 --report docs/results/soak.json
    python benchmarks/soak.py --only S1,S4

Starts ``helios serve`` on a small random model and runs S0 to S4, S6, S7, S12 and S8, one after the
other; prints a table and exits with 1 if a target is missed. S0 is the test of the harness: it must
see a leak that is injected. ``--seconds 1800 --chunks 20946 --sessions 5000`` give the long forms.
Limits that the load would meet are raised and recorded; beside each figure of time stands the same
figure of an echo that does nothing (``control``), and the load of the machine; S4 times a fixed
piece of work along the way (``fixed_work``), so that a slower machine is told from growth.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from soak_jobs import JobScenarios
from soak_server import LIMITS, Control, Figures, Server, small_model
from soak_sessions import SessionScenarios

ORDER = ("S0", "S1", "S2", "S3", "S4", "S6", "S7", "S12", "S8")


class Soak(JobScenarios, SessionScenarios):
    """All scenarios, on one server."""

    def __init__(self, server: Server, seconds: float, chunks: int, sessions: int) -> None:
        super().__init__(server)
        self.seconds = seconds
        self.chunks = chunks
        self.sessions = sessions


async def run(soak: Soak, only: list[str]) -> dict[str, Figures]:
    """The scenarios in their order, with the control beside each."""
    results: dict[str, Figures] = {}
    for name in ORDER:
        if only and name not in only:
            continue
        scenario: Callable[[], Awaitable[Figures]] = getattr(soak, name.lower())
        soak.server.settle()
        began = time.monotonic()
        async with Control() as control:
            try:
                figures = await scenario()
            except Exception as error:
                figures = {"met": False, "error": f"{type(error).__name__}: {error}"}
        results[name] = figures | control.figures
        await soak.drain_queue()
        hidden = ("met", "series")
        shown = {key: value for key, value in results[name].items() if key not in hidden}
        mark = "ok  " if figures["met"] else "MISS"
        print(f"{name:4} {mark} {time.monotonic() - began:6.1f} s  {shown}", flush=True)
    await soak.client.aclose()
    return results


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of S1 and S8; S2 takes half")
    parser.add_argument("--chunks", type=int, default=2619, help="of S4")
    parser.add_argument("--sessions", type=int, default=300, help="of S6")
    parser.add_argument("--only", default="", help="such as S1,S4")
    parser.add_argument("--report", type=Path, help="write the figures there as JSON")
    parser.add_argument("--series", type=Path, help="write what was measured on the way there")
    arguments = parser.parse_args()
    only = [name.strip().upper() for name in arguments.only.split(",") if name.strip()]
    if not set(only) <= set(ORDER) or arguments.chunks < 300:
        parser.error(f"--only takes names out of {','.join(ORDER)}; --chunks 300 or more")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        small_model(root / "model")
        server = Server(root)
        server.start()
        try:
            soak = Soak(server, arguments.seconds, arguments.chunks, arguments.sessions)
            results = asyncio.run(run(soak, only))
        finally:
            server.stop()
    series = {name: figures.pop("series", None) for name, figures in results.items()}
    if arguments.series is not None:
        text = json.dumps({name: values for name, values in series.items() if values})
        arguments.series.write_text(text + "\n", "utf-8")
    if arguments.report is not None:
        machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        report = {
            "machine": machine,
            "limits": LIMITS,
            "seconds": arguments.seconds,
            "whole_s": round(time.monotonic() - began),
            "results": results,
        }
        arguments.report.write_text(json.dumps(report, separators=(",", ":")) + "\n", "utf-8")
    return 0 if all(result["met"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
