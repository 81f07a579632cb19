"""Models on the hub: what is needed of them, fetched once, resumed, verified.

Files live in the ordinary cache of ``huggingface_hub`` (``HF_HOME``), so that other programs share
them; ``HF_ENDPOINT``, ``HF_HUB_OFFLINE`` and the login hold as everywhere. Large files come over
plain HTTP into a partial file that a later attempt continues, and become part of the cache only
when their SHA-256 is right. The hub's own downloader drops a partial file at the first failure.
"""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from helios.errors import CheckpointCorruptError, CheckpointError, UnsafeCheckpointError
from helios.storage import atomic_path, check_file, open_weights, read_json

__all__ = ["PUBLISHED", "HubFile", "HubId", "HubModel", "find_on_hub", "needed_files"]

PUBLISHED = (
    "BestWishYsh/Helios-Base",
    "BestWishYsh/Helios-Mid",
    "BestWishYsh/Helios-Distilled",
)
"""The published models."""

_ID = re.compile(r"([\w.-]+/[\w.-]+?)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_STEMS = {
    "transformer": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
_SMALL = re.compile(
    r"(model_index|helios)\.json"
    r"|scheduler/scheduler_config\.json"
    r"|(transformer|vae|text_encoder)/config\.json"
    r"|tokenizer/[\w.-]+\.(json|model)"
)
"""What is needed beside weights. ``transformer_ode/`` and ``transformer_init/`` are not."""
_SPARE = 2**28
"""Bytes of disk that a download leaves free."""

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class HubId:
    """A model on the hub.

    Attributes:
        name: ``owner/name``.
        revision: a branch, a tag or a commit.
    """

    name: str
    revision: str = "main"

    @classmethod
    def parse(cls, text: str, revision: str | None = None) -> HubId | None:
        """The id that ``owner/name`` or ``owner/name@revision`` is, None for anything else.

        Raises:
            ValueError: if two different revisions are given.
        """
        match = _ID.fullmatch(text)
        if match is None or ".." in f"{text}{revision}":
            return None
        name, pinned = match.groups()
        if pinned and revision and pinned != revision:
            raise ValueError(f"revision={revision!r} contradicts {text!r}")
        return cls(name=name, revision=pinned or revision or "main")

    def __str__(self) -> str:
        return self.name if self.revision == "main" else f"{self.name}@{self.revision}"


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file on the hub.

    Attributes:
        name: its path in the repository.
        size: bytes.
        sha256: of a large file.
        git: Git's SHA-1 of a small one.
    """

    name: str
    size: int
    sha256: str | None
    git: str | None


@dataclass(frozen=True, kw_only=True)
class HubModel:
    """A model of the hub at one commit; its small files are here, its weights perhaps not.

    Attributes:
        id: as it was asked for.
        commit: what that was when it was looked up.
        folder: where its files are or will be.
        files: what is needed; None if the hub was not asked, and what is here has to do.
    """

    id: HubId
    commit: str
    folder: Path
    files: tuple[HubFile, ...] | None

    @property
    def missing(self) -> tuple[HubFile, ...]:
        """Files that are not here, or not in full length."""
        return tuple(file for file in self.files or () if not self._is_here(file))

    @property
    def download_bytes(self) -> int:
        """Bytes still to be fetched."""
        return sum(file.size - self._begun(file) for file in self.missing)

    def fetch(self, say: Say = lambda _: None) -> None:
        """Download what is missing; what was begun is continued.

        Args:
            say: told of every file.

        Raises:
            OSError: if the disk has no room for it; nothing is downloaded then.
            CheckpointError: if the hub cannot be reached, or sends something else than it promised.
        """
        missing = self.missing
        if not missing:
            return
        self._check_disk()
        for file in missing:
            say(f"{file.name}  {file.size / 1e9:.2f} GB")
            self._drop(file)
            try:
                if file.sha256 is not None:
                    self._fetch_large(file)
                _download(self.id.name, file.name, self.commit)
                if file.sha256 is None:
                    self._check(file)
            except (CheckpointError, BlockingIOError):
                raise
            except Exception as error:  # as many classes as there are versions of the HTTP library
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise
                raise CheckpointError(
                    f"{self.id}: {file.name} could not be downloaded ({_line(error)}); run "
                    f"helios pull {self.id} to go on from there"
                ) from error

    def pull(self, say: Say = lambda _: None, *, verify: bool = True) -> None:
        """Download what is missing and, if wanted, repair what is damaged.

        Args:
            say: told of every file.
            verify: hold files that were here before against their digests, too.

        Raises:
            OSError: see ``fetch``.
            CheckpointError: likewise; and if a file is damaged on the hub itself.
        """
        absent = self.missing
        here = [file for file in self.files or () if file not in absent]
        self.fetch(say)
        if not verify:
            return
        damaged = self.verify(here, say)
        self.fetch(say)
        if again := self.verify(damaged):
            raise CheckpointCorruptError(f"{self.id}: {again[0].name} is damaged on the hub")

    def verify(self, files: Sequence[HubFile], say: Say = lambda _: None) -> list[HubFile]:
        """Hold files that are here against their digests; damaged ones are removed and returned."""
        damaged = []
        for file in files:
            try:
                self._check(file)
            except CheckpointCorruptError as error:
                say(str(error))
                self._drop(file)
                damaged.append(file)
            else:
                say(f"{file.name}  ok")
        return damaged

    def _check(self, file: HubFile) -> None:
        path = self.folder / file.name
        check_file(path, file.size, file.sha256)
        if file.sha256 is None and file.git is not None and _git(path) != file.git:
            raise CheckpointCorruptError(f"{path} is damaged: not what Git calls {file.git}")

    @property
    def _blobs(self) -> Path:
        return self.folder.parent.parent / "blobs"

    def _partial(self, file: HubFile) -> Path:
        return self._blobs / f"{file.sha256}.partial"

    def _is_here(self, file: HubFile) -> bool:
        path = self.folder / file.name
        return path.is_file() and path.stat().st_size == file.size

    def _begun(self, file: HubFile) -> int:
        """Bytes of ``file`` that an earlier attempt left."""
        partial = self._partial(file)
        return min(partial.stat().st_size, file.size) if partial.is_file() else 0

    def _drop(self, file: HubFile) -> None:
        """Take a file that is not as it should be out of the cache."""
        path = self.folder / file.name
        if path.is_symlink() or path.exists():
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self.folder).free
        need = self.download_bytes
        if need + _SPARE > free:
            raise OSError(
                errno.ENOSPC,
                f"{self.id} needs {need / 1e9:.1f} GB more and {free / 1e9:.1f} GB are free here; "
                "make room, or set HF_HOME to a larger disk",
                str(self._blobs.parent.parent),
            )

    def _fetch_large(self, file: HubFile) -> None:
        """Bring one large file into the cache's blobs, going on where an attempt ended."""
        from huggingface_hub import get_token, hf_hub_url
        from huggingface_hub.file_download import http_get

        blob = self._blobs / str(file.sha256)
        if blob.is_file() and blob.stat().st_size == file.size:
            return
        self._blobs.mkdir(parents=True, exist_ok=True)
        partial, token = self._partial(file), get_token()
        with _locked(partial) as stream:
            if stream.seek(0, 2) > file.size:
                stream.truncate(0)
            begun = stream.seek(0, 2)
            http_get(
                hf_hub_url(self.id.name, file.name, revision=self.commit),
                stream,  # type: ignore[arg-type]
                resume_size=begun,
                headers={"authorization": f"Bearer {token}"} if token else {},
                expected_size=file.size,
                displayed_filename=file.name,
            )
            stream.flush()
            try:
                check_file(partial, file.size, file.sha256)
            except CheckpointCorruptError:
                partial.unlink()
                raise CheckpointCorruptError(
                    f"{self.id}: {file.name} arrived damaged and was removed; pull again"
                ) from None
            partial.replace(blob)


def find_on_hub(hub_id: HubId) -> HubModel:
    """Look a model up and bring its small files here; its weights are left where they are.

    A pinned commit that is here completely is not asked for again. Without a network, what is in
    the cache is taken.

    Raises:
        CheckpointError: if there is no such model, or it is neither reachable nor here.
        UnsafeCheckpointError: if its weights are pickles.
    """
    if _COMMIT.fullmatch(hub_id.revision) and (here := _cached(hub_id)) and _is_complete(here):
        return here
    try:
        return _ask(hub_id)
    except CheckpointError:
        raise
    except Exception as error:  # as many classes as there are versions of the HTTP library
        here = _cached(hub_id)
        if here is not None:
            return here
        raise CheckpointError(f"{hub_id}: {_reason(error)}") from error


def _ask(hub_id: HubId) -> HubModel:
    from huggingface_hub import HfApi

    info = HfApi().model_info(hub_id.name, revision=hub_id.revision, files_metadata=True)
    commit = str(info.sha)
    folder = _download(hub_id.name, "model_index.json", commit).parent
    _remember(hub_id, folder, commit)
    listed = {
        item.rfilename: HubFile(
            name=item.rfilename,
            size=int(item.size or 0),
            sha256=item.lfs.sha256 if item.lfs else None,
            git=item.blob_id,
        )
        for item in info.siblings or []
    }
    files = tuple(listed[name] for name in needed_files(listed))
    for file in files:
        if file.sha256 is None:
            _download(hub_id.name, file.name, commit)
    return HubModel(id=hub_id, commit=commit, folder=folder, files=files)


def _remember(hub_id: HubId, folder: Path, commit: str) -> None:
    """Note in the cache what the revision meant, as the hub's own downloader does."""
    if hub_id.revision != commit:
        note = folder.parent.parent / "refs" / hub_id.revision
        note.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(note) as draft:
            draft.write_text(commit, "ascii")


def needed_files(names: Sequence[str] | dict[str, HubFile]) -> list[str]:
    """Of all files in a repository those that generation needs.

    Raises:
        UnsafeCheckpointError: if a component has weights, but none that are safe to open.
    """
    chosen = [name for name in names if _SMALL.fullmatch(name)]
    for part, stem in _STEMS.items():
        whole, index = f"{part}/{stem}.safetensors", f"{part}/{stem}.safetensors.index.json"
        shard = re.compile(rf"{part}/{stem}-\d+-of-\d+\.safetensors")
        if whole in names:
            chosen.append(whole)
        elif index in names:
            chosen += [index, *(name for name in names if shard.fullmatch(name))]
        elif pickles := [n for n in names if re.fullmatch(rf"{part}/[\w.-]+\.(bin|pth?|ckpt)", n)]:
            raise UnsafeCheckpointError(
                f"{pickles[0]} is a pickle and there is no safetensors file"
            )
    return sorted(chosen)


def _download(name: str, file: str, revision: str) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(name, file, revision=revision))


def _cached(hub_id: HubId) -> HubModel | None:
    """What the cache has of a revision, as it was last seen."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id.name, "model_index.json", revision=hub_id.revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return HubModel(id=hub_id, commit=folder.name, folder=folder, files=None)


def _is_complete(model: HubModel) -> bool:
    """Whether everything that the model's own index names is here."""
    try:
        index = read_json(model.folder / "model_index.json")
        for part, stem in _STEMS.items():
            entry = index.get(part)
            if isinstance(entry, list) and entry[-1:] != [None]:
                read_json(model.folder / part / "config.json")
                open_weights(model.folder / part, f"{stem}.safetensors")
        read_json(model.folder / "scheduler" / "scheduler_config.json")
    except CheckpointError:
        return False
    tokenizer = index.get("tokenizer")
    wanted = isinstance(tokenizer, list) and tokenizer[-1:] != [None]
    return not wanted or (model.folder / "tokenizer" / "tokenizer.json").is_file()


@contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """``path`` opened for appending, by one process at a time."""
    import fcntl

    with path.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BlockingIOError(
                errno.EWOULDBLOCK, "another process is downloading this file", str(path)
            ) from None
        yield stream


def _git(path: Path) -> str:
    """Git's name for the content of a file."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _reason(error: Exception) -> str:
    """What to do about a failed look-up."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return f"access must be granted first; see {constants.ENDPOINT}, then run: hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such model (if it is private, run: hf auth login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "the hub has the model but not this revision"
    absent = isinstance(error, errors.EntryNotFoundError)
    if absent and not isinstance(error, errors.LocalEntryNotFoundError):
        return "this is not a model in the published layout: it has no model_index.json"
    if constants.is_offline_mode():
        return "not in the cache, and the hub is not asked in offline mode (HF_HUB_OFFLINE)"
    return f"not in the cache, and the hub cannot be reached ({_line(error)})"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
