import importlib.util
import json
import sys
from pathlib import Path

FILE = Path(__file__).parents[2] / "benchmarks" / "bench_kernels.py"


def program(monkeypatch):
    monkeypatch.syspath_prepend(str(FILE.parent))
    spec = importlib.util.spec_from_file_location("bench_kernels", FILE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_everything_is_measured_on_a_cpu(tmp_path, capsys, monkeypatch):
    assert program(monkeypatch).main(["--small", "--tune", "--json", str(tmp_path / "k.json")]) == 0
    found = json.loads((tmp_path / "k.json").read_text())
    assert found["skipped"] == []
    groups = {line["group"] for line in found["lines"]}
    assert groups == {"elementwise", "product", "attention"}
    for line in found["lines"]:
        assert line["microseconds"] > 0
        limit = 0.1 if "e4m3" in line["form"] else 0.01
        # On a CPU both forms of a fused kernel are the plain one.
        assert line["error"] is None or line["error"] <= limit, line
    assert "| norm + modulation |" in capsys.readouterr().out
