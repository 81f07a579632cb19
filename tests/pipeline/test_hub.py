"""Models from a hub: what is fetched, continued, verified and refused; against a stand-in."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

import helios
from helios.cli.main import run
from helios.diffusion import Pyramid
from helios.errors import CheckpointCorruptError, CheckpointError, UnsafeCheckpointError
from helios.media import read_settings, read_video
from helios.pipeline import HubId, Pipeline, inspect_model, save
from helios.pipeline.hub import find_on_hub, needed_files

from .published import random_parts, write_checkpoint
from .stand_in_hub import NAME, Repository, handler_of

SHARD = 20_000


@pytest.fixture(scope="module")
def files(pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published repository: sharded, with the extra folders of the real ones."""
    folder = save(pipeline, tmp_path_factory.mktemp("hub") / "model", shard_bytes=SHARD)
    for extra in ("transformer_ode", "transformer_init"):
        shutil.copytree(folder / "transformer", folder / extra)
    (folder / "README.md").write_text("a model")
    (folder / "transformer" / "training.bin").write_bytes(b"not for us")
    return folder


@pytest.fixture
def hub(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Repository]:
    folder = Path(shutil.copytree(files, tmp_path / "repository"))
    with served(Repository(folder=folder), tmp_path / "cache", monkeypatch) as repository:
        yield repository


@contextmanager
def served(
    repository: Repository, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Repository]:
    """The hub's library asks our server and keeps what it gets in ``cache``."""
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(repository))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    # Real downloads keep whole blocks of 10 MB.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    # The library waits a second between its own attempts.
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    try:
        yield repository
    finally:
        server.shutdown()
        server.server_close()


def go_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def file_size(repository: Repository, part: str) -> int:
    return (repository.folder / part / "diffusion_pytorch_model.safetensors").stat().st_size


def weights(repository: Repository) -> list[str]:
    return [name for name, _ in repository.downloads() if name.endswith(".safetensors")]


def test_ids_and_revisions() -> None:
    assert HubId.parse("a/b") == HubId(name="a/b", revision="main")
    assert HubId.parse("a/b@v1.0") == HubId(name="a/b", revision="v1.0")
    assert HubId.parse("a/b", "v2") == HubId(name="a/b", revision="v2")
    assert str(HubId.parse("a/b@v1")) == "a/b@v1"
    assert [HubId.parse(text) for text in ("tiny", "/a/b", "a/b/c", "../b", "a/..", "a b/c")] == [
        None
    ] * 6
    with pytest.raises(ValueError, match="contradicts"):
        HubId.parse("a/b@v1", "v2")


def test_looking_up_fetches_no_weights(hub: Repository) -> None:
    model = inspect_model(NAME)
    assert model.name == NAME
    assert model.hub is not None
    assert weights(hub) == []
    names = {name for name, _ in hub.downloads()}
    assert "model_index.json" in names
    assert "tokenizer/tokenizer.json" in names
    assert not any(name.startswith(("transformer_", "README")) for name in names)
    assert model.hub.download_bytes == sum(
        path.stat().st_size
        for part in ("transformer", "vae", "text_encoder")
        for path in (hub.folder / part).glob("*.safetensors")
    )


def test_a_hub_id_loads_and_only_what_is_needed_comes(hub: Repository, pipeline: Pipeline) -> None:
    loaded = helios.load(NAME, device="cpu", dtype="float32")
    assert loaded.name == NAME
    assert loaded.defaults == pipeline.defaults
    for mine, own in zip(
        loaded.transformer.parameters(), pipeline.transformer.parameters(), strict=True
    ):
        assert mine.equal(own)
    fetched = weights(hub)
    assert len(fetched) == len(set(fetched)) > 4
    assert not any(name.startswith("transformer_") for name in fetched)
    assert not any(name.endswith(".bin") for name, _ in hub.downloads())
    hub.requests.clear()
    helios.load(NAME, device="cpu", dtype="float32")
    assert hub.downloads() == []


def test_offline_takes_the_cache_and_nothing_else(
    hub: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["pull", NAME]) == 0
    hub.requests.clear()
    go_offline(monkeypatch)
    helios.load(NAME, device="cpu", dtype="float32")
    helios.load(f"{NAME}@{hub.commit}", device="cpu", dtype="float32")
    assert hub.requests == []
    with pytest.raises(CheckpointError, match="offline mode"):
        helios.load("owner/other")
    with pytest.raises(CheckpointError, match="offline mode"):
        helios.load(f"{NAME}@v9")


def test_a_hub_that_is_gone_leaves_the_cache(
    hub: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["pull", NAME]) == 0
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    helios.load(NAME, device="cpu", dtype="float32")
    with pytest.raises(CheckpointError, match="cannot be reached"):
        helios.load("owner/other")


def test_a_pinned_commit_is_not_asked_for_again(hub: Repository) -> None:
    pinned = f"{NAME}@{hub.commit}"
    assert run(["pull", pinned]) == 0
    hub.requests.clear()
    assert inspect_model(pinned).folder.name == hub.commit
    assert inspect_model(NAME, revision=hub.commit).name == pinned
    assert hub.requests == []
    assert run(["pull", NAME, "--revision", "v1"]) == 0
    assert weights(hub) == []


def test_unknown_models_and_revisions(hub: Repository) -> None:
    with pytest.raises(CheckpointError, match="no such model"):
        inspect_model("owner/none")
    with pytest.raises(CheckpointError, match="not this revision"):
        inspect_model(f"{NAME}@v9")
    (hub.folder / "model_index.json").unlink()
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        inspect_model(NAME)
    assert run(["pull", "owner/none"]) == 4


@pytest.mark.filterwarnings("ignore:this checkpoint was trained")
def test_the_published_name_alone_gives_its_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "BestWishYsh/Helios-Distilled"
    folder = write_checkpoint("distilled", tmp_path / "repository", random_parts(patched=True))
    shutil.copytree(folder / "transformer", folder / "transformer_ode")
    output = tmp_path / "out.mp4"
    words = ["generate", "a red ball rolls", "--model", name, "-o", str(output)]
    with served(Repository(folder=folder, name=name), tmp_path / "cache", monkeypatch) as hub:
        defaults = inspect_model(name).defaults
        # Only the size and the length are smaller than what the bare command makes.
        assert run([*words, "--size", "64x64", "--num-frames", "34", "--device", "cpu"]) == 0
        assert not any("transformer_ode" in part for part, _ in hub.downloads())
    assert defaults.plan == Pyramid(steps=(2, 2, 2), solver="renoise", amplify=True)
    assert (defaults.height, defaults.width, defaults.guidance) == (384, 640, None)
    made = read_settings(output)
    assert made["model"] == name
    for key, value in {
        "steps": [2, 2, 2],
        "guidance_scale": 1.0,
        "amplify_first_chunk": True,
        "shift": "published",
        "fps": 24,
    }.items():
        assert made[key] == value, key
    assert len(read_video(output)[0]) == 34
    assert "downloading transformer/" in capsys.readouterr().err


def test_an_interrupted_download_goes_on_where_it_ended(
    hub: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    model = find_on_hub(HubId(name=NAME))
    total = model.download_bytes
    hub.budget = total - 5000
    assert run(["pull", NAME]) == 4
    assert "go on from there" in capsys.readouterr().err
    (partial,) = model.folder.parent.parent.rglob("*.partial")
    begun = partial.stat().st_size
    assert model.download_bytes == file_size(hub, "vae") - begun
    assert 5000 <= model.download_bytes < 5100
    hub.budget = None
    hub.requests.clear()
    assert run(["pull", NAME]) == 0
    assert [part for _, part in hub.downloads() if part] == [f"bytes={begun}-"]
    assert len(weights(hub)) == 1
    for file in model.files or ():
        assert (model.folder / file.name).read_bytes() == (hub.folder / file.name).read_bytes()
    assert not partial.exists()


def test_what_arrives_damaged_is_not_kept(hub: Repository) -> None:
    hub.damage = True
    model = find_on_hub(HubId(name=NAME))
    with pytest.raises(CheckpointCorruptError, match="arrived damaged"):
        model.fetch()
    assert not list(model.folder.rglob("*.safetensors"))
    assert not list(model.folder.parent.parent.rglob("*.partial"))
    hub.damage = False
    model.fetch()
    assert model.missing == ()


def test_pull_repairs_what_was_damaged_here(
    hub: Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["pull", NAME]) == 0
    model = find_on_hub(HubId(name=NAME))
    target = (model.folder / "vae" / "diffusion_pytorch_model.safetensors").resolve()
    data = bytearray(target.read_bytes())
    data[-1] ^= 1
    target.write_bytes(data)
    small = (model.folder / "vae" / "config.json").resolve()
    small.write_text(small.read_text().replace("\n", " ", 1))
    hub.requests.clear()
    assert run(["pull", "--no-verify", NAME]) == 0
    assert weights(hub) == []
    capsys.readouterr()
    assert run(["pull", NAME]) == 0
    said = capsys.readouterr().err
    assert "expected" in said
    assert "transformer/config.json  ok" in said
    assert weights(hub) == ["vae/diffusion_pytorch_model.safetensors"]
    assert "vae/config.json" in {name for name, _ in hub.downloads()}
    assert target.read_bytes() != bytes(data)
    assert run(["checkpoint", "verify", str(model.folder)]) == 0


def test_the_disk_is_checked_first(
    hub: Repository, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = inspect_model(NAME)
    assert model.hub is not None
    monkeypatch.setattr(
        "helios.pipeline.hub.shutil.disk_usage", lambda _: SimpleNamespace(free=1000)
    )
    hub.requests.clear()
    assert run(["pull", NAME]) == 6
    assert "HF_HOME" in capsys.readouterr().err
    assert weights(hub) == []


def test_weights_that_are_pickles_are_not_fetched(hub: Repository) -> None:
    for path in (hub.folder / "vae").glob("*.safetensors"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(UnsafeCheckpointError, match="pickle"):
        inspect_model(NAME)


def test_files_are_chosen_by_name() -> None:
    part = "transformer/diffusion_pytorch_model"
    shards = [f"{part}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = f"{part}.safetensors.index.json"
    noise = [
        "transformer_ode/config.json", "transformer/notes.json", "../evil.json", ".gitattributes",
        "transformer/deep/config.json", "transformer_init/diffusion_pytorch_model.safetensors",
        f"{part}.fp16.safetensors", "tokenizer/tokenizer.py", "scheduler/scheduler.py",
    ]  # fmt: skip
    assert needed_files([*shards, index, *noise]) == sorted([*shards, index])
    assert needed_files([f"{part}.safetensors", *shards, index]) == [f"{part}.safetensors"]


def test_plan_needs_no_weights(hub: Repository, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", NAME, "--device", "h100", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["download"] > 0
    assert weights(hub) == []
