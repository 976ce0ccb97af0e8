"""A model named as on the hub is found in the local Hugging Face cache, and nothing leads out of it."""

import hashlib
import re

import model_zoo
import pytest
import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from test_command_line import limbeck, refused

COMMIT, OLDER = "a" * 40, "0123456789" * 4
NAME = "Tiny-Org/tiny-model.v1"


def store(cache, source, commit, ref):
    """One snapshot as huggingface_hub lays it out: files are links into blobs/."""
    repository = cache / "models--Tiny-Org--tiny-model.v1"
    snapshot = repository / "snapshots" / commit
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        blob = hashlib.sha256(file.read_bytes()).hexdigest()
        (repository / "blobs" / blob).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(f"../../blobs/{blob}")
    if ref:
        (repository / "refs" / ref).write_text(commit)
    return snapshot


def lead_out(cache, link):
    """Replaced by a link to what would have been read, outside of the repository."""
    inside, outside = cache / "models--Tiny-Org--tiny-model.v1" / link, cache.parent / "outside"
    if inside.is_dir():
        inside.rename(outside)
    else:
        outside.write_bytes(inside.read_bytes())
        inside.unlink()
    inside.symlink_to(outside)


@pytest.fixture(name="cache")
def _cache(tmp_path):
    source = model_zoo.write_model(model_zoo.DECODERS[0], tmp_path / "source")
    store(tmp_path / "hub", source, COMMIT, "main")
    store(tmp_path / "hub", source, OLDER, "v1.0")
    save_file({"input_ids": torch.arange(5).reshape(1, 5)}, tmp_path / "in.safetensors")
    return tmp_path / "hub"


def forward(cache, name, **more):
    work = cache.parent
    arguments = ("forward", "--model", name, "--input", work / "in.safetensors", "--output", work / "out.safetensors")
    return arguments, {"cwd": work, "env": {"HF_HUB_CACHE": str(cache)} | more}


@pytest.mark.parametrize("revision", ["", "@main", "@v1.0", "@" + OLDER])
def test_found_by_name_and_revision(cache, revision):
    arguments, more = forward(cache, NAME + revision)
    done = limbeck(*arguments, **more)
    assert done.returncode == 0, done.stderr
    name, _, asked = (NAME + revision).partition("@")
    assert snapshot_download(name, revision=asked or "main", cache_dir=cache, local_files_only=True).startswith(str(cache))


def test_found_below_hf_home(cache):
    arguments, more = forward(cache, NAME, HF_HUB_CACHE="", HF_HOME=str(cache.parent))
    assert limbeck(*arguments, **more).returncode == 0


def test_a_local_folder_of_that_name_wins(cache):
    (cache.parent / NAME).mkdir(parents=True)
    arguments, more = forward(cache, NAME)
    assert f"{cache.parent / NAME}: no model.safetensors" in refused(*arguments, code=4, **more)


@pytest.mark.parametrize(("revision", "line"), [("", ""), ("@v9", " --revision v9")])
def test_absent_says_where_it_looked_and_what_to_type(cache, revision, line):
    arguments, more = forward(cache, "Other/model" + revision)
    said = refused(*arguments, code=4, **more)
    assert str(cache / "models--Other--model") in said and str(cache.parent / "Other") in said
    assert f"hf download Other/model{line} (--model)" in said


def test_a_ref_without_its_snapshot_is_absent(cache):
    (cache / "models--Tiny-Org--tiny-model.v1/refs/main").write_text("b" * 40)
    arguments, more = forward(cache, NAME)
    assert "hf download" in refused(*arguments, code=4, **more)


@pytest.mark.parametrize("ref", ["../../../../etc", "", "A" * 40, "\x1b[2J" + "a" * 36, "a" * 4000])
def test_a_ref_that_is_no_commit_is_refused(cache, ref):
    (cache / "models--Tiny-Org--tiny-model.v1/refs/main").write_text(ref)
    arguments, more = forward(cache, NAME)
    assert "wanted the 40 hexadecimal digits of a commit" in refused(*arguments, code=4, **more)


@pytest.mark.parametrize("link", ["refs/main", f"snapshots/{COMMIT}", f"snapshots/{COMMIT}/config.json"])
def test_links_that_lead_out_are_refused(cache, link):
    lead_out(cache, link)
    arguments, more = forward(cache, NAME)
    said = refused(*arguments, code=4, **more)
    assert "is a symbolic link" in said or "(a link or a file)" in said


@pytest.mark.parametrize("name", ["../hub", "Tiny-Org/..", "Tiny-Org/tiny-model.v1@../../x", "-a/b", "a/b/c", "a/.b"])
def test_names_that_are_none_of_the_hub_are_folders(cache, name):
    arguments, more = forward(cache, name)
    said = refused(*arguments, code=4, **more)
    assert "hf download" not in said
