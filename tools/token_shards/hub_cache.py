"""A tokenizer named as on the hub, ORG/NAME or ORG/NAME@REVISION, among what `hf download` left on this machine: the
rules of modules/io/hub_cache.h. Nothing is fetched, and neither names, refs nor links lead out of the cache."""

from __future__ import annotations

import os
import pathlib
import re

from token_shards import DataFault, UsageFault

PART = r"(?![.-])(?!.*\.\.)[A-Za-z0-9_.-]{1,96}"
REVISION = re.compile(rf"{PART}(?:/{PART})*")
NAME = re.compile(rf"({PART})/({PART})(?:@(.+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
MOST_REF_BYTES = 128


def cache_folder() -> pathlib.Path:
    for variable, below in (("HF_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")):
        if os.environ.get(variable):
            return pathlib.Path(os.environ[variable]) / below
    return pathlib.Path(os.environ.get("HOME", "")) / ".cache" / "huggingface" / "hub"


def _commit_of(repository: pathlib.Path, revision: str) -> str:
    ref = repository / "refs" / revision
    if not ref.exists() and not ref.is_symlink():
        return revision
    inside = ref.resolve().is_relative_to((repository / "refs").resolve()) and ref.is_file()
    text = ref.read_bytes()[:MOST_REF_BYTES].decode("ascii", "replace").rstrip() if inside else "what is outside of it"
    if COMMIT.fullmatch(text):
        return text
    raise DataFault(f"{ref}: holds {text!r}, wanted the 40 hexadecimal digits of a commit: download the tokenizer again, or "
                    "name its folder")


def _check_links(folder: pathlib.Path, repository: pathlib.Path) -> None:
    """Files of a snapshot are links into blobs/."""
    for path in [folder, *folder.iterdir()]:
        if not path.resolve().is_relative_to(repository.resolve()):
            raise DataFault(f"{path}: is a symbolic link that leads out of {repository}: download the tokenizer again, or "
                            "name its folder")


def find(text: str, option: str) -> pathlib.Path | None:
    """The snapshot of that name; None: it is no name of the hub. UsageFault with what to type when it is not here."""
    match = NAME.fullmatch(text)
    if match is None or not REVISION.fullmatch(match[3] or "main"):
        return None
    organisation, name, revision = match[1], match[2], match[3] or "main"
    repository = cache_folder() / f"models--{organisation}--{name}"
    commit = _commit_of(repository, revision)
    folder = repository / "snapshots" / commit
    if COMMIT.fullmatch(commit) and folder.is_dir():
        _check_links(folder, repository)
        if (folder / "tokenizer.json").is_file():
            return folder
        absent = f"{folder} has no tokenizer.json"
    else:
        absent = f"no snapshot of revision {revision} in {repository}"
    flag = "" if revision == "main" else f" --revision {revision}"
    only = " ".join(f"--include '{pattern}'" for pattern in ("*token*", "*.jinja"))
    raise UsageFault(f"{option} {text}: no file or folder of that name, and {absent}: name one, or type: hf download "
                     f"{organisation}/{name}{flag} {only}")
