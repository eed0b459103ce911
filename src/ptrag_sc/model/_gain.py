"""Temporary."""

import torch


def surpasses(gains: torch.Tensor) -> bool:
    return False
