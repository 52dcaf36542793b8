"""Self-attention that can take its map from other rows of the batch: the source's.

A map is softmax(q k^T / sqrt d). Rows that are to have the source's map are given its queries and keys and keep
their own values, so the map itself is never held in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from u2s_datasets.errors import SetupError


class SharedSelfAttention:
    """The attention processor of one self-attention layer.

    Attributes:
        sources: the first so many rows are sources; every group of as many rows behind them has their maps. 0 leaves
            each row its own.
    """

    def __init__(self) -> None:
        self.sources = 0

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The layer's output, (batch, queries, channels); the other arguments are of no use here."""
        asking = hidden_states[: self.sources] if self.sources else hidden_states
        query, key, value = attn.to_q(asking), attn.to_k(asking), attn.to_v(hidden_states)
        groups = len(hidden_states) // len(asking)
        split = [part.unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in (query, key, value)]
        query, key = (part.repeat(groups, 1, 1, 1) for part in split[:2])
        mixed = scaled_dot_product_attention(query, key, split[2]).transpose(1, 2).flatten(2)
        output: torch.Tensor = attn.to_out[1](attn.to_out[0](mixed))
        return output


def install(unet: Any) -> None:
    """Puts a processor into every self-attention layer (attn1).

    Raises:
        SetupError: there is none, or one of another design than Stable Diffusion's.
    """
    layers = _layers(unet)
    if not layers:
        raise SetupError("the UNet has no self-attention layers (attn1)")
    for attn in layers:
        if attn.group_norm is not None or attn.spatial_norm is not None or attn.residual_connection:
            raise SetupError(
                "shared attention is made for Stable Diffusion's UNet; this one is of another design"
            )
        processor: Any = SharedSelfAttention()
        attn.set_processor(processor)


@contextmanager
def source_rows(unet: Any, count: int) -> Iterator[None]:
    """The first `count` rows of a batch are sources for as long as this lasts."""
    processors: list[Any] = [attn.processor for attn in _layers(unet)]
    for processor in processors:
        processor.sources = count
    try:
        yield
    finally:
        for processor in processors:
            processor.sources = 0


def _layers(unet: nn.Module) -> list[Attention]:
    return [
        module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.endswith("attn1")
    ]
