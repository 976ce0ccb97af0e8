"""Generation: the cache changes nothing, and greedy output is transformers', token for token."""

import json
from functools import lru_cache

import model_zoo
import pytest
import torch
from limbeck_runner import LimbeckError
from model_zoo import Family

NEW_TOKENS = 64
PROMPT = 12  # longer than original_max_position_embeddings of the longrope models, see model_zoo
MARGIN = 1e-3  # float32 logits of both programs agree to about 2e-5: a wider top-2 gap leaves one greedy path
DECODERS = pytest.mark.parametrize("family", model_zoo.DECODERS, ids=lambda family: family.name)


def make_prompts(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three rows, left padded by 0, 3 and 7."""
    generator = torch.Generator().manual_seed(49979687 * seed + 7)
    ids = torch.randint(model_zoo.FIRST_TOKEN, model_zoo.VOCABULARY, (3, PROMPT), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    mask[2, :7] = 0
    return ids.masked_fill(mask == 0, model_zoo.PAD), mask


def greedy(model, ids: torch.Tensor, mask: torch.Tensor, new_tokens: int = NEW_TOKENS, **options):
    """transformers' tokens and, along its path, the smallest gap between the best and the second-best logit."""
    output = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=new_tokens,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    best = torch.stack(output.logits).topk(2, dim=-1).values
    return output.sequences, float((best[..., 0] - best[..., 1]).min())


@lru_cache(maxsize=None)
def _reference(family: Family, folder: str):
    model = model_zoo.load(family, folder, torch.float32)
    model.generation_config.eos_token_id = None  # all 64 tokens; a test of its own stops early
    for seed in range(30):
        ids, mask = make_prompts(seed)
        tokens, margin = greedy(model, ids, mask)
        if margin > MARGIN:
            return ids, mask, tokens
    raise AssertionError(f"{family.name}: every prompt of 30 has a near tie on its greedy path")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Writes each family's model once for the module."""

    @lru_cache(maxsize=None)
    def write(family: Family) -> str:
        options = family.generation_options or {}
        return str(model_zoo.write_model(family, tmp_path_factory.mktemp(family.name), **options))

    return write


@lru_cache(maxsize=None)
def _cached(limbeck, family: Family, folder: str) -> torch.Tensor:
    ids, mask, _ = _reference(family, folder)
    return limbeck.generate(folder, ids, mask, "--ignore-eos", new_tokens=NEW_TOKENS)


@DECODERS
def test_cached_greedy_equals_transformers(limbeck, folders, family):
    _, _, wanted = _reference(family, folders(family))
    got = _cached(limbeck, family, folders(family))
    assert got.shape == wanted.shape
    assert torch.equal(got, wanted)


@DECODERS
def test_uncached_equals_cached_token_for_token(limbeck, folders, family):
    ids, mask, _ = _reference(family, folders(family))
    cached = _cached(limbeck, family, folders(family))
    uncached = limbeck.generate(folders(family), ids, mask, "--ignore-eos", "--no-cache", new_tokens=NEW_TOKENS)
    assert cached.shape == (3, PROMPT + NEW_TOKENS)
    assert torch.equal(cached, uncached)


LLAMA3 = model_zoo.BY_NAME["llama3"]


def test_a_row_stops_at_end_of_sequence_and_is_padded(limbeck, tmp_path):
    """The end token is one that greedy search meets in the middle of row 0; generation_config.json names it."""
    path = model_zoo.write_model(LLAMA3, tmp_path)
    ids, mask, tokens = _reference(LLAMA3, str(path))
    end = int(tokens[0, PROMPT + 9])
    config = json.loads((path / "generation_config.json").read_text())
    (path / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [2, end]}))
    model = model_zoo.load(LLAMA3, path, torch.float32)
    wanted, margin = greedy(model, ids, mask)
    assert margin > MARGIN
    first = int((tokens[0, PROMPT:] == end).nonzero()[0]) + PROMPT
    assert int(wanted[0, first]) == end
    assert not wanted[0, first + 1 :].any()  # pad_token_id is 0

    got = limbeck.generate(path, ids, mask, new_tokens=NEW_TOKENS)
    width = min(got.shape[1], wanted.shape[1])  # once every row has ended, what remains is padding on either side
    assert torch.equal(got[:, :width], wanted[:, :width])
    assert not got[:, width:].any()
    assert not wanted[:, width:].any()


def test_prompt_ids_on_the_command_line_equal_the_file(limbeck, folders):
    ids, _ = make_prompts(0)
    prompt = ids[:1]
    from_file = limbeck.generate(folders(LLAMA3), prompt, torch.ones_like(prompt), "--ignore-eos", new_tokens=16)
    typed = limbeck.generate_from_ids(folders(LLAMA3), prompt[0].tolist(), "--ignore-eos", new_tokens=16)
    assert torch.equal(typed, from_file)


def test_sampling_from_one_candidate_is_greedy(limbeck, folders):
    ids, mask, wanted = _reference(LLAMA3, folders(LLAMA3))
    flags = ("--ignore-eos", "--temperature", "0.8", "--top-k", "1", "--seed", "5")
    assert torch.equal(limbeck.generate(folders(LLAMA3), ids, mask, *flags, new_tokens=NEW_TOKENS), wanted)


def test_sampling_repeats_with_its_seed_and_changes_with_another(limbeck, folders):
    ids, mask = make_prompts(1)

    def sample(seed: int) -> torch.Tensor:
        flags = ("--ignore-eos", "--temperature", "1.0", "--seed", str(seed))
        return limbeck.generate(folders(LLAMA3), ids, mask, *flags, new_tokens=32)

    first = sample(11)
    assert torch.equal(first, sample(11))
    assert not torch.equal(first, sample(12))
    assert torch.equal(first[:, :PROMPT], ids)


@pytest.mark.parametrize("restriction", [("--top-k", "5"), ("--top-p", "0.3")], ids=["top-k", "top-p"])
def test_sampled_tokens_come_from_the_allowed_set(limbeck, folders, restriction):
    """Every sampled token is held against transformers' distribution after the same prefix."""
    ids, mask = make_prompts(2)
    flags = ("--ignore-eos", "--temperature", "1.3", "--seed", "3", *restriction)
    tokens = limbeck.generate(folders(LLAMA3), ids, mask, *flags, new_tokens=48)
    model = model_zoo.load(LLAMA3, folders(LLAMA3), torch.float32)
    whole = torch.cat([mask, torch.ones(3, 48, dtype=torch.int64)], dim=1)
    with torch.no_grad():
        logits = model(tokens, attention_mask=whole, position_ids=model_zoo.positions_from_mask(whole)).logits
    probability = (logits[:, PROMPT - 1 : -1] / 1.3).softmax(-1)
    chosen = probability.gather(-1, tokens[:, PROMPT:, None])
    better = probability > chosen + 1e-5
    rank = better.sum(-1)
    if restriction[0] == "--top-k":
        assert int(rank.max()) < 5
    else:  # a token is in the nucleus while the ones above it hold less than top-p together
        assert float((probability * better).sum(-1).max()) < 0.3 + 1e-3
    assert int(rank.max()) > 0  # it did sample: not all tokens are the best one


def test_a_prompt_longer_than_the_model_is_refused_before_it_is_read(limbeck, tmp_path):
    """100,000 tokens of a stranger's tokenizer took minutes of attention; a dynamic rope is made for more."""
    spec = model_zoo.BY_NAME["llama3"]
    model_zoo.write_model(spec, tmp_path, max_position_embeddings=16)
    short, long = (",".join(["7"] * count) for count in (16, 17))
    limbeck.run("generate", f"--model={tmp_path}", f"--prompt-ids={short}", "--max-new-tokens=1", "--ignore-eos")
    with pytest.raises(LimbeckError) as refusal:
        limbeck.run("generate", f"--model={tmp_path}", "--prompt-ids=7,8", f"--prompt-ids={long}", "--max-new-tokens=1")
    assert "exit 3" in str(refusal.value)
    assert "prompt 2 has 17 tokens, and the model reads at most 16 (max_position_embeddings" in str(refusal.value)
