import subprocess
import sys

import pytest

from helios.training.lock import only_trainer

from .toys import alone

HOLDER = """
import sys, torch
from pathlib import Path
from helios.distributed import World
from helios.training.lock import only_trainer
with only_trainer(Path(sys.argv[1]), World(device=torch.device("cpu"))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_trainer_is_refused_until_the_first_has_ended(tmp_path):
    out = tmp_path / "run"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", HOLDER, str(out)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        refused = pytest.raises(FileExistsError, match=f"another process is training in {out}")
        with refused, only_trainer(out, alone()):
            pass
        holder.kill()
    with only_trainer(out, alone()):
        pass
