"""Requirement 2: nothing in the package can run what it reads."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "helios"
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle", "yaml"}
NAMES = {"eval", "exec", "compile", "__import__"}
CALLS = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("joblib", "load")}


def unsafe(source: str) -> list[str]:
    """What in a source could run code out of data."""
    found = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found += [name.name for name in names if name.name.split(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in MODULES:
                found.append(module)
            case ast.Call(func=ast.Name(id=name)) if name in NAMES:
                found.append(name)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name)):
                found += [f"{owner}.{name}"] * ((owner, name) in CALLS)
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=value)) if value:
                found.append("allow_pickle")
            case ast.keyword(arg="trust_remote_code", value=ast.Constant(value=value)) if value:
                found.append("trust_remote_code")
    return found


def test_nothing_that_is_read_can_run() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 200
    assert {str(path): unsafe(path.read_text("utf-8")) for path in files} == {
        str(path): [] for path in files
    }


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from dill import loads", "import yaml", "eval('1')",
        "torch.load(path)", "np.load(path)", "read(path, allow_pickle=True)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(source: str) -> None:
    assert unsafe(source)
    assert not unsafe("model.eval()\ndictionary.load(path)\nread(path, allow_pickle=False)")
