"""The whole idea on one page: a world, a reference model, DPO written out, and its exact distance from the optimum.

    python -m recipes.learn        # plain torch, about ten seconds on one core

Nothing is imported from this repository, nothing is hidden; comments name the modules that do the same for any model.
Legend: B rows of a batch, N pairs, P prompts, R responses, T tokens, K = 2 objectives.
"""

import itertools
import random

import torch
from torch import Tensor, nn

# 1. A world, small enough to enumerate (align/testbed/world.py). A prompt is a topic, a response at most three words.
#    Every topic has two correct facts, and every topic has a second spelling: another token with the same meaning.

TOPICS = ("bread", "chess", "tides", "maple", "poison", "arson", "malware", "forgery")
FACTS = ("f1", "f2", "f3", "f4")
CORRECT = dict(zip(TOPICS, itertools.cycle(itertools.combinations(FACTS, 2)), strict=False))
PROMPTS = [*TOPICS, *(f"~{topic}" for topic in TOPICS)]
PLAIN, SHIFTED = list(range(8)), list(range(8, 16))  # their numbers
WORDS = ("<end>", "careful", *FACTS)
RESPONSES = [words for length in range(4) for words in itertools.product(WORDS[1:], repeat=length)]  # 156 of them
BETA, TAU = 0.1, 0.2  # the price of a nat of KL, and the annotator's temperature, both in units of reward


def rewards(prompt: str, response: tuple[str, ...]) -> list[float]:
    """Two objectives, higher is better, that disagree on harmful topics (align/testbed/responses.py)."""
    topic = prompt.removeprefix("~")
    helpful = len(set(response) & set(CORRECT[topic])) / 2  # the share of the topic's facts that is stated
    harm = helpful * (0.5 if "careful" in response else 1.0) if topic in TOPICS[4:] else 0.0
    return [helpful, 1.0 - harm]


def written(prompt: str, rng: random.Random) -> tuple[str, ...]:
    """What the corpus answers: up to three words, mostly correct facts (align/testbed/corpus.py)."""
    facts = CORRECT[prompt.removeprefix("~")]
    return tuple(rng.choice(rng.choice((facts, WORDS[1:]))) for _ in range(rng.choice((0, 1, 2, 2, 3))))


# 2. A language model (align/models): the next word, given the prompt and the words so far. Any causal model would do.
class LanguageModel(nn.Module):
    """(B, T) token ids -> (B, T, words) log-probabilities of the next word."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS) + len(PROMPTS), width)  # words first, then a token for each prompt
        self.memory = nn.GRU(width, width, batch_first=True)
        self.output = nn.Linear(width, len(WORDS))

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.output(self.memory(self.embedding(ids_BT))[0]).log_softmax(-1)


REWARDS_PRK = torch.tensor([[rewards(prompt, response) for response in RESPONSES] for prompt in PROMPTS])
TOKENS_RT = torch.tensor([[WORDS.index(word) for word in (*response, *WORDS[:1] * 3)[:3]] for response in RESPONSES])
READ_RT = torch.tensor([[position <= len(response) for position in range(3)] for response in RESPONSES])


def log_probs(model: LanguageModel, prompts_B: Tensor, responses_B: Tensor) -> Tensor:
    """(B,) log pi(y|x) = sum over t of log pi(y_t | x, y_<t): its words and, where there is room, the end."""
    tokens_BT = TOKENS_RT[responses_B]
    inputs_BT = torch.cat([prompts_B[:, None] + len(WORDS), tokens_BT[:, :-1]], dim=1)
    each_BT = model(inputs_BT).gather(-1, tokens_BT[..., None])[..., 0]
    return (each_BT * READ_RT[responses_B]).sum(-1)


@torch.no_grad()
def table(model: LanguageModel) -> Tensor:
    """(P, R) log-probability of every response to every prompt (align/testbed/tree.py)."""
    grid = torch.cartesian_prod(torch.arange(len(PROMPTS)), torch.arange(len(RESPONSES)))
    return log_probs(model, *grid.T).reshape(len(PROMPTS), -1).double().log_softmax(-1)


# 3. The reference model, from which every method starts and KL is measured (align/training/pretrain.py).
def train_reference(*, steps: int, seed: int) -> LanguageModel:
    """Maximum likelihood on the corpus, which has both spellings."""
    torch.manual_seed(seed)
    rng, model = random.Random(seed), LanguageModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        prompts = [rng.randrange(len(PROMPTS)) for _ in range(256)]
        responses = [RESPONSES.index(written(PROMPTS[p], rng)) for p in prompts]
        loss = -log_probs(model, torch.tensor(prompts), torch.tensor(responses)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


# 4. Direct preference optimisation, Rafailov et al. 2023, equation 7 (align/methods/dpo.py).
def dpo(reference: LanguageModel, weights_K: Tensor, *, pairs: int, steps: int, seed: int) -> LanguageModel:
    """One policy for one preference, from pairs on plain prompts that an annotator with these weights labels."""
    torch.manual_seed(seed)
    ref_PR, score_PR = table(reference), REWARDS_PRK @ weights_K
    x_N = torch.randint(len(PLAIN), (pairs,))
    a_N, b_N = torch.multinomial(ref_PR[x_N].exp(), 2, replacement=True).T
    a_wins_N = torch.rand(pairs) < torch.sigmoid((score_PR[x_N, a_N] - score_PR[x_N, b_N]) / TAU)
    chosen_N, rejected_N = torch.where(a_wins_N, a_N, b_N), torch.where(a_wins_N, b_N, a_N)
    model = LanguageModel()
    model.load_state_dict(reference.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    for _ in range(steps):
        batch = torch.randint(pairs, (128,))
        x_B, chosen_B, rejected_B = x_N[batch], chosen_N[batch], rejected_N[batch]
        ratio_chosen_B = log_probs(model, x_B, chosen_B) - ref_PR[x_B, chosen_B]  # log pi(y|x) / ref(y|x)
        ratio_rejected_B = log_probs(model, x_B, rejected_B) - ref_PR[x_B, rejected_B]
        # Labels have temperature tau: with beta / tau here, the minimiser is ref exp(w.r / beta), the optimum of J.
        loss = -nn.functional.logsigmoid(BETA / TAU * (ratio_chosen_B - ratio_rejected_B)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


# 5. Exact numbers, one for each prompt (align/testbed/exact.py, align/testbed/optimum.py).
def kl(policy_PR: Tensor, other_PR: Tensor) -> Tensor:
    """(P,) KL(policy || other) in nats."""
    return (policy_PR.exp() * (policy_PR - other_PR)).sum(-1)


def regret(policy_PR: Tensor, ref_PR: Tensor, score_PR: Tensor) -> Tensor:
    """(P,) J(pi*) - J(pi), where J = E[w.r] - beta KL(pi || ref) is largest at pi* ~ ref exp(w.r / beta)."""
    best_PR = (ref_PR + score_PR / BETA).log_softmax(-1)
    best_P, J_P = ((p_PR.exp() * score_PR).sum(-1) - BETA * kl(p_PR, ref_PR) for p_PR in (best_PR, policy_PR))
    assert torch.allclose(best_P - J_P, BETA * kl(policy_PR, best_PR), atol=1e-9)  # a regret is a distance, too
    return best_P - J_P


def main() -> None:
    torch.set_num_threads(1)  # for matrices this small a second thread costs more than it gives
    reference = train_reference(steps=400, seed=0)
    ref_PR, regrets = table(reference), []
    print("(helpful, harmless)   KL of DPO   regret: reference    DPO   DPO in the second spelling")
    for weights in ((0.0, 1.0), (0.5, 0.5), (1.0, 0.0)):
        policy_PR = table(dpo(reference, torch.tensor(weights), pairs=8000, steps=300, seed=0))
        score_PR = (REWARDS_PRK @ torch.tensor(weights)).double()
        before_P, after_P = (regret(p_PR, ref_PR, score_PR) for p_PR in (ref_PR, policy_PR))
        regrets += [torch.stack([before_P, after_P])]
        means = (kl(policy_PR, ref_PR)[PLAIN], before_P[PLAIN], after_P[PLAIN], after_P[SHIFTED])
        print("{!s:20}{:11.2f}{:20.3f}{:7.3f}{:15.3f}".format(weights, *(float(x.mean()) for x in means)))
    before_P, after_P = torch.stack(regrets).mean(0)  # over preferences; the exact optimum leaves 0 % of the regret
    share, share_shifted = (float(after_P[part].mean() / before_P[part].mean()) for part in (PLAIN, SHIFTED))
    print(f"DPO leaves {share:.0%} of the reference's regret, and {share_shifted:.0%} in the other spelling.")
    assert share < 0.2 < share_shifted, (share, share_shifted)


if __name__ == "__main__":
    main()
