"""Tag tokens beside an adapter: their embeddings are trained and merged, their probability is 0, and runs resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from align.engines.tagged_pairs import Example, build_sft_trainer
from align.methods import mo_odpo, ric
from align.models import load_model, load_tokenizer
from align.policies.tagged import Tags, forbid, tag_ids, tagged_checkpoint
from factories.tagged_bandit import killed_at
from factories.tagged_styles import checkpoint, trained
from factories.tiny_bandit import same_weights


@pytest.mark.parametrize("method", ["ric", "conditioned_dpo", "conditioned_rl"])
def test_lora_trains_the_embeddings_of_tag_tokens_and_no_other(method: str, tmp_path: Path) -> None:
    """... whose output head is tied to them; both adapter and tags are merged into one ordinary model."""
    reference = checkpoint("chatml", tmp_path / "reference")
    family = trained(
        method, reference=reference, run=tmp_path / "run", tags="tokens", lora_r=2, learning_rate=1e-2, online_rounds=0
    )
    before, after = (
        load_model(tagged_checkpoint(reference, tags=family.tags, out=tmp_path / "s")),
        load_model(family.model),
    )
    new = tag_ids(load_tokenizer(family.model), family.tags)
    rows = [model.get_input_embeddings().weight.detach() for model in (before, after)]
    words = [i for i in range(len(rows[0])) if i not in new]
    assert torch.equal(rows[0][words], rows[1][words])
    assert (rows[0][new] - rows[1][new]).abs().max() > 1e-3
    assert (
        after.config.tie_word_embeddings and after.get_output_embeddings().weight is after.get_input_embeddings().weight
    )
    assert not torch.equal(*(m.model.layers[0].mlp.down_proj.weight for m in (before, after)))


def test_with_lora_tag_tokens_have_no_probability_in_training(tmp_path: Path) -> None:
    reference, tags = checkpoint("chatml", tmp_path / "reference"), Tags(("one", "two"), tokens=True)
    start = tagged_checkpoint(reference, tags=tags, out=tmp_path / "start")
    config = ric.Config(lora_r=2, batch_size=2)
    example = Example("hot?", (0.2, 0.8), (40, 41))
    trainer = build_sft_trainer([example], config=config, model=start, tags=tags, folder=tmp_path, epochs=1)
    new = tag_ids(load_tokenizer(start), tags)
    trainer.model.requires_grad_(False)
    logits = trainer.model(input_ids=torch.tensor([[40, new[0], 41]])).logits
    assert float(logits[..., new].softmax(-1).max()) > 0 and float(logits.softmax(-1)[..., new].max()) == 0.0
    tagged_copy = forbid(load_model(start), new)(input_ids=torch.tensor([[40, new[0], 41]])).logits
    assert torch.allclose(logits, tagged_copy, atol=1e-4)  # at the first step: the copy itself


def test_lora_with_tag_tokens_resumes_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = checkpoint("chatml", tmp_path / "reference")
    settings: Any = {"reference": reference, "tags": "tokens", "lora_r": 2, "rounds": 3, "save_steps": 1}
    whole = trained("mo_odpo", run=tmp_path / "w", **settings)
    with monkeypatch.context() as patch:
        patch.setattr(mo_odpo.FreshPairs, "draw", killed_at(3, mo_odpo.FreshPairs.draw))
        with pytest.raises(KeyboardInterrupt):
            trained("mo_odpo", run=tmp_path / "c", **settings)
    assert same_weights(whole.model, trained("mo_odpo", run=tmp_path / "c", **settings).model)
