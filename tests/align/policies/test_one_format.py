"""Policies of several checkpoints have one prompt format: another is refused, one that was never settled is adopted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from align.errors import UserError
from align.models import load_model, load_tokenizer
from align.models.formats import Choice, formatter, settle, stored_format
from align.models.sampling import Drawn
from align.models.tokenizers import choose_format
from align.policies.base import ModelPolicy
from align.policies.guided import GuidedFamily
from align.policies.mixed import MixedPolicy, Mixture
from align.policies.soups import SoupFamily, merge
from align.preferences import Weights
from factories.chat_styles import chat_checkpoint

PROMPTS = ["in the start", "Sit here"]
HALVES = Mixture((0.5, 0.5))


def settled(style: str, folder: Path, *, seed: int, **choice: Any) -> str:
    """A checkpoint that carries a format, as training leaves it."""
    path = chat_checkpoint(style, folder, seed=seed)
    tokenizer = load_tokenizer(path)
    settle(tokenizer, Choice(**choice))
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A hub checkpoint without a chat template, two that were trained from its kind as transcripts, one as plain."""
    folder = tmp_path_factory.mktemp("parts")
    return {
        "hub": str(chat_checkpoint("base_bos", folder / "hub", seed=1)),
        "first": settled("base_bos", folder / "first", seed=2, template="hh"),
        "second": settled("base_bos", folder / "second", seed=3, template="hh"),
        "plain": settled("base_bos", folder / "plain", seed=4, template="plain"),
    }


def test_what_auto_comes_to_in_training_is_carried_on(tmp_path: Path) -> None:
    """Else a base trained on bare questions is asked them as transcripts by the suites."""
    told = "\n\nHuman: hi\n\nAssistant:"
    for number, (style, prompt, template) in enumerate(
        [("base_bos", "hi", "plain"), ("base_bos", told, "hh"), ("llama3", told, "chat")]
    ):
        path = chat_checkpoint(style, tmp_path / str(number))
        before = formatter(load_tokenizer(path)).format
        choose_format(path, prompts=["hi", prompt])
        carried = stored_format(load_tokenizer(path))
        assert carried is not None and carried.template == template and carried.ends == before.ends
    path = settled("base_bos", tmp_path / "settled", seed=0, template="plain")
    choose_format(path, prompts=[told])
    assert formatter(load_tokenizer(path)).format.template == "plain"


def test_a_mixture_of_two_formats_is_refused(parts: dict[str, str]) -> None:
    with pytest.raises(UserError, match="first reads prompts as hh .*plain as plain .*train both in one format"):
        MixedPolicy((parts["first"], parts["plain"]), mixture=HALVES, name="m").draw(PROMPTS, max_new_tokens=2, seed=0)


def test_a_part_that_was_never_settled_is_read_as_the_others(parts: dict[str, str]) -> None:
    """Whichever comes first; each part's own share of the mixture is what it says in the mixture's format."""
    for names in (("hub", "first"), ("first", "hub")):
        paths = [parts[name] for name in names]
        policy = MixedPolicy(paths, mixture=HALVES, name="m")
        heads = policy.prompt_ids(PROMPTS)
        assert heads == formatter(load_tokenizer(parts["first"])).prompts_ids(PROMPTS)
        assert heads != ModelPolicy(parts["hub"]).prompt_ids(PROMPTS)
        drawn = policy.draw(PROMPTS * 8, max_new_tokens=4, seed=0)
        expected = []
        for head, response in zip(heads * 8, drawn, strict=True):
            ids = torch.tensor([[*head, *response.ids]])
            with torch.no_grad():
                both = [load_model(path)(input_ids=ids).logits[0].log_softmax(-1) for path in paths]
            logp_TV = (sum(both) / 2).log_softmax(-1)
            expected.append(sum(float(logp_TV[len(head) - 1 + t, v]) for t, v in enumerate(response.ids)))
        assert policy.sequence_logprobs(PROMPTS * 8, drawn) == pytest.approx(expected, abs=1e-4)


def test_a_mixture_ends_where_the_format_ends(tmp_path: Path) -> None:
    """A model that lists one of its two ends is no other than one that lists both."""
    paths = [settled("gemma", tmp_path / str(seed), seed=seed) for seed in (1, 2)]
    file = Path(paths[1]) / "generation_config.json"
    eos, turn = json.loads(file.read_text())["eos_token_id"]
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": eos}))
    policy = MixedPolicy(paths, mixture=HALVES, name="m")
    assert set(policy.model.ending_ids) == {eos, turn}
    rows = policy.draw(PROMPTS * 200, max_new_tokens=8, seed=0)
    ends = {response.ids[-1] for response in rows if response.ended}
    assert ends == {eos, turn} and all(not {eos, turn} & set(response.ids[:-1]) for response in rows)
    assert [Drawn.of(response.ids, ends=[eos, turn], text=response.text) for response in rows] == rows


def test_a_guided_base_reads_its_arms_format(parts: dict[str, str]) -> None:
    class Arms:
        method, domain = "arms", "all weights"

        def policy(self, preference: Any) -> ModelPolicy:
            return ModelPolicy(parts["second"], name="arm")

    family = GuidedFamily(parts["hub"], Arms(), gain=0.5)  # type: ignore[arg-type]
    policy = family.policy(Weights((0.5, 0.5)))
    assert policy.prompt_ids(PROMPTS) == ModelPolicy(parts["second"]).prompt_ids(PROMPTS)


def test_a_soup_carries_the_format_of_its_parts(parts: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train both in one format"):
        merge([parts["first"], parts["plain"]], weights=(0.5, 0.5), out=tmp_path / "none")
    soup = SoupFamily((parts["hub"], parts["first"]), tmp_path).policy(Weights((0.5, 0.5)))
    assert isinstance(soup, ModelPolicy)
    assert soup.prompt_ids(PROMPTS) == ModelPolicy(parts["first"]).prompt_ids(PROMPTS)
    carried = stored_format(load_tokenizer(soup.path))
    assert carried == stored_format(load_tokenizer(parts["first"])) is not None
