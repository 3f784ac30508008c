"""Next-token log-probabilities of a causal LM at every valid prefix, by a prefix tree with a KV cache.

Siblings share a row: the eleven children of a node are read in one pass under a mask that lets each see the path
above it and itself only. Legend: R rows (parent nodes), A alphabet, L length of the path, N nodes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from align.testbed.responses import A, level_starts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


ROWS_PER_PASS = 242  # 2,662 tokens: activations of a small model stay in the cache of one core


def _sibling_mask(path_length: int, siblings: int = A) -> torch.Tensor:
    """(1, 1, A, L + A) boolean: each child attends to the path and to itself."""
    mask = torch.zeros(1, 1, siblings, path_length + siblings, dtype=torch.bool)
    mask[..., :path_length] = True
    mask[0, 0, :, path_length:] = torch.eye(siblings, dtype=torch.bool)
    return mask


def _cache(keys: list[torch.Tensor], values: list[torch.Tensor]) -> DynamicCache:
    cache = DynamicCache()
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        cache.update(key, value, layer)
    return cache


def _child_paths(cached: list[torch.Tensor], path_length: int) -> list[torch.Tensor]:
    """(R, H, L + A, D) of parents to (R * A, H, L + 1, D) of their children, in node order."""
    children = []
    for tensor in cached:
        path = tensor[:, :, :path_length].unsqueeze(1).expand(-1, A, -1, -1, -1)
        own = tensor[:, :, path_length:].permute(0, 2, 1, 3).unsqueeze(3)
        children.append(torch.cat([path, own], dim=3).flatten(0, 1))
    return children


def _children_pass(
    model: PreTrainedModel,
    keys: list[torch.Tensor],
    values: list[torch.Tensor],
    *,
    alphabet: Sequence[int],
    keep_cache: bool,
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """Logits (R * A, V) at all children of R nodes, and the children's own paths in the cache."""
    path_length = keys[0].shape[2]
    device = model.device
    mask, position = _sibling_mask(path_length).to(device), torch.full((1, A), path_length, device=device)
    tokens_A = torch.tensor(alphabet, device=device)
    logits, child_keys, child_values = [], [], []
    for start in range(0, keys[0].shape[0], ROWS_PER_PASS):
        chunk = slice(start, start + ROWS_PER_PASS)
        rows = keys[0][chunk].shape[0]
        cache = _cache([k[chunk] for k in keys], [v[chunk] for v in values])
        out = model(
            input_ids=tokens_A.expand(rows, A),
            attention_mask=mask.expand(rows, 1, A, path_length + A),
            position_ids=position.expand(rows, A),
            past_key_values=cache,
            use_cache=True,
        )
        logits.append(out.logits.flatten(0, 1))
        if keep_cache:
            child_keys.append(_child_paths([layer.keys for layer in cache.layers], path_length))
            child_values.append(_child_paths([layer.values for layer in cache.layers], path_length))
    merged_keys = [torch.cat(parts) for parts in zip(*child_keys, strict=True)]
    merged_values = [torch.cat(parts) for parts in zip(*child_values, strict=True)]
    return torch.cat(logits), merged_keys, merged_values


def node_logprobs(
    model: PreTrainedModel, prompt_ids: list[int], *, alphabet: Sequence[int], max_tokens: int
) -> torch.Tensor:
    """(N, V) float64 log-probabilities of the next token at every valid prefix after the prompt, on the CPU.

    The passes are made on the model's device; what follows (leaves, rewards, KL) is arithmetic on the CPU. `model` is a
    causal LM in eval mode whose attention takes a 4-D mask (sdpa or eager). One call reads N + len(prompt) tokens.
    """
    with torch.inference_mode():
        cache = DynamicCache()
        ids = torch.tensor([prompt_ids], device=model.device)
        root = model(input_ids=ids, past_key_values=cache, use_cache=True).logits[:, -1]
        tables = [root]
        keys, values = [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
        for depth in range(1, max_tokens + 1):
            logits, keys, values = _children_pass(model, keys, values, alphabet=alphabet, keep_cache=depth < max_tokens)
            tables.append(logits)
        table_NV = torch.cat(tables)
    if table_NV.shape[0] != level_starts(max_tokens)[-1]:
        raise RuntimeError(f"{table_NV.shape[0]} nodes read, {level_starts(max_tokens)[-1]} expected")
    return table_NV.cpu().double().log_softmax(-1)


def node_states(
    backbone: PreTrainedModel, prompt_ids: list[int], *, alphabet: Sequence[int], end: int, max_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, H) last hidden state at every node (at the prompt's last token for the root), and at `end` behind it.

    `backbone` is a decoder without its head, in eval mode; CPU tensors in its precision. What a reward model reads of a
    response is the second.
    """
    device, nodes, ends = backbone.device, list[torch.Tensor](), list[torch.Tensor]()
    with torch.inference_mode():
        cache = DynamicCache()
        ids = torch.tensor([prompt_ids], device=device)
        nodes.append(backbone(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[:, -1])
        keys, values = [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]
        for depth in range(max_tokens + 1):
            deepest, length = depth == max_tokens, keys[0].shape[2]
            tokens = torch.tensor([end] if deepest else [*alphabet, end], device=device)
            mask = _sibling_mask(length, len(tokens)).to(device)
            child_keys, child_values, inner = [], [], []
            for start in range(0, keys[0].shape[0], ROWS_PER_PASS):
                chunk = slice(start, start + ROWS_PER_PASS)
                cache = _cache([k[chunk] for k in keys], [v[chunk] for v in values])
                rows = keys[0][chunk].shape[0]
                states = backbone(
                    input_ids=tokens.expand(rows, -1),
                    attention_mask=mask.expand(rows, -1, -1, -1),
                    position_ids=torch.full_like(tokens, length).expand(rows, -1),
                    past_key_values=cache,
                    use_cache=True,
                ).last_hidden_state
                ends.append(states[:, -1])
                if not deepest:
                    inner.append(states[:, :-1].flatten(0, 1))
                    child_keys.append(_child_paths([layer.keys[:, :, :-1] for layer in cache.layers], length))
                    child_values.append(_child_paths([layer.values[:, :, :-1] for layer in cache.layers], length))
            if not deepest:
                nodes.append(torch.cat(inner))
                keys = [torch.cat(parts) for parts in zip(*child_keys, strict=True)]
                values = [torch.cat(parts) for parts in zip(*child_values, strict=True)]
    return torch.cat(nodes).cpu(), torch.cat(ends).cpu()
