"""The two nodes of ``test_ray.py``, now on Ray itself; needs the extra ``ray``.

No test run collects this file by itself; it is named: ``pytest tests/serving/on_ray.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .harness import Server
from .two_nodes import callers, check_border, check_two_nodes


@pytest.mark.timeout(1200)
def test_two_nodes_on_ray_keep_their_callers(tiny_random: Path, tmp_path: Path) -> None:
    lines = [f"{name} {key}\n" for name, key in callers().items()]
    (tmp_path / "keys").write_text("".join(lines))
    options = ("--ray", "2", "--api-key-file", str(tmp_path / "keys"))
    server = Server(tiny_random, tmp_path / "data", options)
    try:
        server.start(patience=600)
        check_two_nodes(server)
        check_border(server)
    finally:
        server.stop(wait=120)
