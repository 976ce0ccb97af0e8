"""A tokenizer named as on the hub is found in the local Hugging Face cache, and nothing leads out of it."""

import shutil

import pytest
from test_hub_cache import COMMIT, NAME, OLDER, lead_out, store
from test_prepare_data import CHATML, bpe, bytes_of, hub_folder, prepare, refused  # noqa: F401


@pytest.fixture(name="cache")
def _cache(tmp_path, bpe, monkeypatch):  # noqa: F811
    source = hub_folder(tmp_path / "source", bpe, CHATML)
    store(tmp_path / "hub", source, COMMIT, "main")
    store(tmp_path / "hub", source, OLDER, "v1.0")
    (tmp_path / "a.txt").write_text("a text")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.mark.parametrize("revision", ["", "@v1.0", "@" + OLDER])
def test_found_by_name_and_revision(cache, revision):
    prepare("--tokenizer", "source", "--out", "folder", "a.txt")
    prepare("--tokenizer", NAME + revision, "--out", "hub_name", "a.txt")
    assert bytes_of(cache.parent / "hub_name") == bytes_of(cache.parent / "folder")


def test_found_below_hf_home_as_a_second_tokenizer(cache, monkeypatch):
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(cache.parent))
    prepare("--tokenizer", "source", "--teacher-tokenizer", NAME, "--out", "out", "a.txt")


def test_absent_says_what_to_type(cache):
    said = refused("--tokenizer", "Other/model@v9", "--out", "out", "a.txt", code=2)
    assert f"no snapshot of revision v9 in {cache / 'models--Other--model'}" in said
    assert "hf download Other/model --revision v9 --include '*token*' --include '*.jinja'" in said
    assert not (cache.parent / "out").exists()
    shutil.rmtree(cache / "models--Tiny-Org--tiny-model.v1/snapshots" / OLDER)
    assert "hf download" in refused("--tokenizer", NAME + "@v1.0", "--out", "out", "a.txt", code=2)
    (cache / "models--Tiny-Org--tiny-model.v1/snapshots" / COMMIT / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refused("--tokenizer", NAME, "--out", "out", "a.txt", code=2)
    for name in ("../hub", "a/b/c", "Tiny-Org/..", "a/.b"):
        assert "hf download" not in refused("--tokenizer", name, "--out", "out", "a.txt", code=2)


@pytest.mark.parametrize("ref", ["../../../../etc", "A" * 40, "\x1b[2J" + "a" * 36, "a" * 4000])
def test_a_ref_that_is_no_commit_is_refused(cache, ref):
    (cache / "models--Tiny-Org--tiny-model.v1/refs/main").write_text(ref)
    assert "wanted the 40 hexadecimal digits" in refused("--tokenizer", NAME, "--out", "out", "a.txt", code=3)


@pytest.mark.parametrize("link", ["refs/main", f"snapshots/{COMMIT}", f"snapshots/{COMMIT}/tokenizer.json"])
def test_links_that_lead_out_are_refused(cache, link):
    lead_out(cache, link)
    said = refused("--tokenizer", NAME, "--out", "out", "a.txt", code=3)
    assert "leads out of" in said or "wanted the 40 hexadecimal digits" in said
