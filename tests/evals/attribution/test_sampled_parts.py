"""The four parts from samples: by hand, against enumeration, their coverage, controls, and where there are none."""

from __future__ import annotations

import math

import numpy as np
import pytest

from align.functional.parts import References, exact_parts
from align.functional.parts import transported as carried
from evals.attribution.sampled_parts import LEAST, NEEDS, SOURCES, Pool, estimate, sampled_parts

OUTCOMES = 30
PARTS = [part for part in NEEDS if part != "drop"]


def normed(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits)


def made(
    rng: np.random.Generator, *, beta: float, strength: dict[str, float]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """(Rewards, source -> log-probabilities) of one prompt whose surface, pull, learning and transfer are as told."""
    reward, noise = rng.uniform(0, strength["spread"], OUTCOMES), rng.normal(size=(5, OUTCOMES))
    plain = normed(noise[0])
    control = normed(plain + strength["surface"] * noise[1])
    shifted = normed(control - strength["pull"] * reward / strength["spread"])
    learned = strength["learned"] * reward / beta + 0.3 * noise[2]
    policy = normed(plain + learned), normed(shifted + strength["transfer"] * learned + 0.2 * noise[3])
    return reward, dict(zip(SOURCES, (*policy, plain, control, shifted), strict=True))


def truth(reward: np.ndarray, logp: dict[str, np.ndarray], *, beta: float) -> dict[str, float]:
    references = References(*(logp[f"reference_{c}"] for c in ("plain", "control", "shifted")))
    found = exact_parts(
        reward, plain_N=logp["policy_plain"], shifted_N=logp["policy_shifted"], references=references, beta=beta
    )
    return {part: float(getattr(found, part)) for part in NEEDS}


def pool(rng: np.random.Generator, reward: np.ndarray, logp: dict[str, np.ndarray], *, count: int) -> Pool:
    picks = np.concatenate([rng.choice(len(reward), size=count, p=np.exp(logp[s])) for s in SOURCES])
    return Pool(reward[picks], {s: logp[s][picks] for s in SOURCES}, dict.fromkeys(SOURCES, count))


def strengths(rng: np.random.Generator) -> dict[str, float]:
    low = {"surface": 0.0, "pull": 0.0, "learned": 0.0, "transfer": 0.0, "spread": 0.2}
    high = {"surface": 1.2, "pull": 1.5, "learned": 1.0, "transfer": 1.0, "spread": 0.8}
    return {name: float(rng.uniform(low[name], high[name])) for name in low}


def test_many_samples_give_the_enumerated_parts() -> None:
    rng = np.random.default_rng(3)
    kind = {"surface": 0.8, "pull": 1.0, "learned": 0.4, "transfer": 0.3, "spread": 0.6}
    reward, logp = made(rng, beta=0.2, strength=kind)
    exact = truth(reward, logp, beta=0.2)
    assert min(abs(exact[part]) for part in PARTS) > 0.001, "each part is there to be found"
    found = estimate(pool(rng, reward, logp, count=20_000), beta=0.2)
    assert {p: found.parts[p] for p in exact} == pytest.approx(exact, abs=0.0015)
    assert sum(found.parts[p] for p in ("surface", "competing", "carried_over", "mismatched")) == pytest.approx(
        found.parts["drop"], abs=1e-9
    )


def test_effective_sample_sizes_by_hand() -> None:
    # one source, two samples of weights 1 and e^(1/beta) = 3 under the optimum: (1 + 3)^2 / (1 + 9)
    flat = np.log([0.5, 0.5])
    both = Pool(np.array([0.0, math.log(3)]), dict.fromkeys(SOURCES, flat), {"reference_plain": 2})
    found = estimate(both, beta=1.0)
    assert found.ess["surface"] == pytest.approx(1.6) and found.ess["mismatched"] == pytest.approx(2.0)


def test_an_untouched_reference_has_no_mismatched_part_whatever_was_drawn() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        reward, logp = made(rng, beta=0.1, strength=strengths(rng))
        own = {**logp, "policy_plain": logp["reference_plain"], "policy_shifted": logp["reference_shifted"]}
        assert estimate(pool(rng, reward, own, count=20), beta=0.1).parts["mismatched"] == pytest.approx(0, abs=1e-12)
        whole = carried(logp["policy_plain"], plain_N=logp["reference_plain"], shifted_N=logp["reference_shifted"])
        perfect = {**logp, "policy_shifted": whole}
        assert estimate(pool(rng, reward, perfect, count=20), beta=0.1).parts["mismatched"] == pytest.approx(
            0, abs=1e-12
        )


def test_weights_that_degenerate_give_no_number() -> None:
    # nothing transfers, rewards of unit variance, beta .1: log-weights of the optimum have a spread of 10 nats
    rng = np.random.default_rng(0)
    whole, alone, exact = {}, {}, []
    for item in map(str, range(12)):
        reward, flat = rng.normal(size=400), np.full(400, -math.log(400))
        logp = dict.fromkeys(SOURCES, flat) | {"policy_plain": normed(flat + reward / 0.1)}
        whole[item] = pool(rng, reward, logp, count=64)
        picks = rng.choice(400, size=320)
        alone[item] = Pool(reward[picks], {s: logp[s][picks] for s in SOURCES}, {"reference_shifted": 320})
        exact.append(truth(reward, logp, beta=0.1)["mismatched"])
    found = sampled_parts(alone, beta=0.1)
    for part in ("mismatched", "carried_over", "surface", "drop"):
        assert found[part]["value"] is None and found[part]["ci"] is None and "degenerate" in found[part]["over"]
        assert found[part]["ess"] < LEAST
    assert sampled_parts(alone, beta=0.1, least=0.0)["mismatched"]["value"] is not None
    drawn = sampled_parts(whole, beta=0.1)["mismatched"]  # the policy's own samples show what the reference's do not
    assert drawn["ess"] >= LEAST and drawn["value"] == pytest.approx(np.mean(exact), abs=0.1)


def test_rewards_that_never_differ_give_no_number() -> None:
    """Reference 1e-3 and 1e-4 on the good reply, r = (1, 0), beta .1: competing is .197, and 40 samples show bad ones
    alone, under which every weight is 1.
    """
    logp = {source: np.full(40, np.log1p(-1e-3)) for source in SOURCES}
    pools = {prompt: Pool(np.zeros(40), logp, {"reference_plain": 40}) for prompt in "ab"}
    found = sampled_parts(pools, beta=0.1)
    assert all(found[part]["value"] is None and found[part]["ess"] == pytest.approx(40) for part in NEEDS)
    assert all("scored the same" in found[part]["over"] for part in NEEDS)
    pools["b"] = Pool(np.arange(40.0) / 1000, logp, {"reference_plain": 40})
    assert sampled_parts(pools, beta=0.1)["competing"]["value"] is not None


def test_bad_pools_are_refused() -> None:
    flat = np.log([0.5, 0.5])
    logp = dict.fromkeys(SOURCES, flat)
    with pytest.raises(ValueError, match="each of policy_plain"):
        Pool(np.zeros(2), {"policy_plain": flat}, {"policy_plain": 2})
    with pytest.raises(ValueError, match="name a source for each"):
        Pool(np.zeros(2), logp, {"policy_plain": 1})
    good = Pool(np.zeros(2), logp, {"policy_plain": 2})
    with pytest.raises(ValueError, match="beta"):
        estimate(good, beta=0.0)
    with pytest.raises(ValueError, match="infinite"):
        estimate(
            Pool(np.zeros(2), {**logp, "reference_plain": np.array([-math.inf, 0.0])}, {"policy_plain": 2}), beta=1
        )


@pytest.mark.slow
def test_the_intervals_hold_the_truth_in_93_of_100_cases() -> None:
    hits: dict[str, list[bool]] = {part: [] for part in NEEDS}
    for case in range(500):
        rng = np.random.default_rng(case)
        beta, kind = float(rng.choice([0.1, 0.2, 0.5])), strengths(rng)
        every = [made(rng, beta=beta, strength=kind) for _ in range(400)]
        exact = [truth(*one, beta=beta) for one in every]
        found = sampled_parts({str(k): pool(rng, *every[k], count=24) for k in range(24)}, beta=beta)
        for part in NEEDS:
            mean = np.mean([one[part] for one in exact])
            if found[part]["ci"] is not None:
                low, high = found[part]["ci"]
                hits[part].append(low <= mean <= high)
    shares = {part: float(np.mean(found)) for part, found in hits.items()}
    print({part: (len(found), round(shares[part], 3)) for part, found in hits.items()})
    assert min(len(found) for found in hits.values()) > 100 and min(shares.values()) >= 0.93
