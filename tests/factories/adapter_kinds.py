"""Conditioned adapters of every kind, one layer of each, and a batch of ids with its preferences."""

from __future__ import annotations

from typing import Any

import torch

from align.policies import conditioned as adapters
from align.policies.conditioned import AdapterConfig
from factories.conditioned_models import disturb

KINDS = ("svd", "pblora", "dense")
LINEAR = [AdapterConfig("svd"), AdapterConfig("pblora"), AdapterConfig("dense", products=False)]
ALL = [*LINEAR, AdapterConfig("dense"), AdapterConfig("dense", train_all=True), AdapterConfig("svd", train_all=True)]
IDS = torch.tensor([[2, 4, 5], [3, 4, 6], [2, 4, 7], [3, 4, 8]])
ROWS = torch.tensor([[0.2, 0.8], [1.0, 0.0], [0.2, 0.8], [0.5, 0.5]])


def name_of(config: AdapterConfig) -> str:
    return f"{config.kind}{'' if config.products else '-straight'}{'-all' if config.train_all else ''}"


def layer_of(config: AdapterConfig, *, i: int = 6, o: int = 5, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    preferences = adapters.Preferences(config.objectives)
    layer = adapters.LAYERS[config.kind](torch.nn.Linear(i, o), preferences, config).double()
    disturb(layer, size=1.0)
    return layer
