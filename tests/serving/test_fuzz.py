"""Requests made from the OpenAPI document: whatever they hold, the server answers and stays up."""

from __future__ import annotations

import re
import subprocess
import sys

from .harness import Server, finished, make


def test_schema_driven_requests_meet_no_server_error(server: Server) -> None:
    options = [
        "run", f"{server.address}/openapi.json",
        "--max-examples", "3", "--seed", "1", "--checks", "not_a_server_error",
        "--phases", "examples,coverage,fuzzing", "--mode", "all", "--no-color",
        "--request-timeout", "20", "--exclude-path-regex", "/health/ready|/events|/stream|/sync",
    ]  # fmt: skip
    code = "from schemathesis.cli import schemathesis; schemathesis()"
    command = [sys.executable, "-c", code, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"[1-9]\d* (?:generated|passed)", done.stdout), done.stdout[-3000:]
    with server.client() as client:
        for video in client.get("/v1/videos?limit=100").json()["data"]:
            client.delete(f"/v1/videos/{video['id']}")
        assert finished(client, make(client)["id"])["status"] == "completed"
