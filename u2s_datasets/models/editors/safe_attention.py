"""Safe Cross-Attention: a layer that reads two texts, the edit instruction and the public caption.

The edit branch is the layer's own attention. The public branch has a query, key and value of its own, and its
map is fused with the edit branch's map, so that what the public caption keeps knows where the edit goes:

    A_E = softmax(q_E k_E^T / sqrt d)                          (batch*heads, queries, edit tokens)
    A_P = softmax(q_P k_P^T / sqrt d)                          (batch*heads, queries, public tokens)
    A_P' = softmax(last tokens of Conv1d(GELU(Conv1d([A_E ; A_P]))))    over the token axis, 1 -> 16 -> 1 channels
    output = W_o (A_E v_E + public_scale * A_P' v_P)

Source: "Unsafe2Safe" (Dinh and Jin, CVPR 2026). Two convolutions of width 3 see two positions to the left, so
of A_E only its last two tokens reach the entries that are kept: the rest is not convolved, and nothing changes.

Memory: no map outlives its chunk of queries. A query of a chunk costs `bytes_per_query`,

    size of the weights' dtype * 34 * (public + 2) + 4 * (edit + public)   bytes,

5.8 KiB in bfloat16 and 11 KiB in float32 for twice 77 tokens; a chunk is as large as BUDGET allows. Whole maps of a
batch of 8 with guidance at 512 px (24 rows, 8 heads, 4096 queries) would take 4.4 GiB a layer in bfloat16. While
gradients are recorded each chunk is checkpointed: backward computes its maps again, one chunk at a time, so
training holds queries, keys and values, and no maps. Backward through a chunk takes 1.6 times its forward.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from diffusers.models.attention_processor import Attention
from safetensors import SafetensorError
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from u2s_datasets.errors import SetupError

BUDGET = 256 * 2**20  # bytes that the maps of a chunk may take
CHANNELS = 16
FILE = "safe_attention.safetensors"  # beside the UNet's own weights
# The name of the public context in `cross_attention_kwargs`. A UNet hands those to every attention layer, and
# this is the name under which diffusers lets layers without a second context ignore one in silence.
PUBLIC = "ip_hidden_states"


class MapFusion(nn.Module):
    """The new public map from both branches' maps: two one-dimensional convolutions along the tokens.

    The weights are those of Conv1d(1, 16, 3, padding=1) and Conv1d(16, 1, 3, padding=1); they are applied as
    matrix products with the channels last, which on a CPU takes less than half the time of a convolution of
    one channel. Being this module's own, they are where offloading expects them when `forward` runs.
    """

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Conv1d(1, CHANNELS, 3), nn.Conv1d(CHANNELS, 1, 3)
        self.spread, self.spread_bias = first.weight, first.bias
        self.gather, self.gather_bias = second.weight, cast(nn.Parameter, second.bias)

    def forward(self, edit: torch.Tensor, public: torch.Tensor) -> torch.Tensor:
        """The last entries of the convolved [edit ; public], after a softmax.

        Args:
            edit: (groups, queries, edit tokens), a map.
            public: (groups, queries, public tokens), a map.

        Returns:
            The new map, shaped and typed as `public`.
        """
        rows = torch.cat([edit[..., -2:], public], dim=-1).to(self.spread.dtype)
        windows = F.pad(rows, (1, 1)).unfold(-1, 3, 1)
        hidden = F.gelu(F.linear(windows, self.spread[:, 0], self.spread_bias))
        left, middle, right = (hidden @ self.gather[0]).to(public.dtype).unbind(-1)
        kept = rows.shape[-1] - public.shape[-1]
        fused = left[..., kept - 1 : -1] + middle[..., kept:] + F.pad(right[..., kept + 1 :], (0, 1))
        return (fused + self.gather_bias).softmax(dim=-1)


class SafeCrossAttention(nn.Module):
    """The attention processor of one cross-attention layer, with the weights of its public branch.

    Attributes:
        to_q, to_k, to_v: the public branch's projections, shaped as the layer's own.
        fusion: makes the public map from both maps.
        public_scale: factor on what the public branch adds before the output projection; at 0 the layer is
            the plain one. 1 is the published attention.
    """

    def __init__(self, attn: Attention, public_scale: float = 1.0):
        super().__init__()
        self.to_q, self.to_k, self.to_v = (
            nn.Linear(own.in_features, own.out_features, bias=own.bias is not None)
            for own in (attn.to_q, attn.to_k, attn.to_v)
        )
        self.fusion = MapFusion()
        self.public_scale = public_scale

    # `Attention` reads this signature to learn which keywords the processor takes; `forward` would hide it.
    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        ip_hidden_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The layer's output.

        Args:
            attn: the layer that this processor is in; its projections are the edit branch.
            hidden_states: (batch, queries, channels), of the image.
            encoder_hidden_states: (batch, edit tokens, width), the edit instruction.
            attention_mask: (batch, 1, edit tokens), added to the edit branch's scores: the UNet's
                `encoder_attention_mask`. All public tokens are seen.
            temb: of no use here.
            ip_hidden_states: (batch, public tokens, width), the public caption.

        Returns:
            (batch, queries, channels), differentiable by everything that went in.

        Raises:
            ValueError: a context is missing, or there is not one public caption per row.
        """
        edit, public = encoder_hidden_states, ip_hidden_states
        if edit is None or public is None or public.shape[0] != edit.shape[0]:
            raise ValueError(
                f"safe cross-attention needs two texts a row; pass cross_attention_kwargs={{'{PUBLIC}': tensor "
                f"of shape {None if edit is None else (edit.shape[0], 'tokens', edit.shape[2])}}} to the UNet"
            )
        mask = attention_mask
        if mask is not None:
            mask = attn.prepare_attention_mask(mask, edit.shape[1], edit.shape[0])
        split = attn.head_to_batch_dim
        mixed = self._in_chunks(
            (split(attn.to_q(hidden_states)), split(attn.to_k(edit)), split(attn.to_v(edit))),
            (split(self.to_q(hidden_states)), split(self.to_k(public)), split(self.to_v(public))),
            mask,
            attn.scale,
        )
        project, dropout = attn.to_out
        return dropout(project(attn.batch_to_head_dim(mixed)))

    def _in_chunks(
        self,
        edit: tuple[torch.Tensor, ...],
        public: tuple[torch.Tensor, ...],
        mask: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        """Both branches together, (batch*heads, queries, head width).

        Args:
            edit: its query, key and value, each (batch*heads, length, head width).
            public: likewise.
            mask: (batch*heads, 1, edit tokens) or None.
            scale: 1 / sqrt(d).
        """
        groups, queries = edit[0].shape[:2]
        size = self.fusion.spread.dtype.itemsize
        at_once = max(1, BUDGET // bytes_per_query(edit[1].shape[1], public[1].shape[1], size))
        run = self._chunk
        if torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=False)
        done = []
        for start in range(0, groups, max(1, at_once // queries)):
            some = slice(start, start + max(1, at_once // queries))
            (q_e, k_e, v_e), (q_p, k_p, v_p) = ([part[some] for part in branch] for branch in (edit, public))
            rows = zip(q_e.split(at_once, dim=1), q_p.split(at_once, dim=1), strict=True)
            here = None if mask is None else mask[some]
            parts = [run(part_e, k_e, v_e, part_p, k_p, v_p, here, scale) for part_e, part_p in rows]
            done.append(torch.cat(parts, dim=1))
        return torch.cat(done)

    def _chunk(
        self,
        q_e: torch.Tensor,
        k_e: torch.Tensor,
        v_e: torch.Tensor,
        q_p: torch.Tensor,
        k_p: torch.Tensor,
        v_p: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        # Each step below names its dtype; autocast would bring the scores down to 8 bits of mantissa.
        with torch.autocast(q_e.device.type, enabled=False):
            edit = attention_map(q_e, k_e, scale, mask)
            public = self.fusion(edit, attention_map(q_p, k_p, scale))
            return edit.to(v_e.dtype) @ v_e + self.public_scale * (public.to(v_p.dtype) @ v_p)


def attention_map(
    query: torch.Tensor, key: torch.Tensor, scale: float, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """softmax(scale * query key^T + mask), (groups, queries, tokens), in float32 or wider whatever comes in."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    scores = (scale * query.to(dtype)) @ key.to(dtype).transpose(-1, -2)
    return (scores if mask is None else scores + mask).softmax(dim=-1)


def bytes_per_query(edit: int, public: int, size: int) -> int:
    """Peak memory of one query's maps.

    Args:
        edit: tokens of the edit instruction.
        public: tokens of the public caption.
        size: bytes of a number of the fusion's weights.

    >>> bytes_per_query(77, 77, 2)
    5988
    """
    # At the GELU: its input and its output, the row as it is and padded, and the maps in float32.
    return size * (2 * CHANNELS + 2) * (public + 2) + 4 * (edit + public)


def cross_attentions(unet: nn.Module) -> Iterator[tuple[str, Attention]]:
    """The cross-attention layers of a UNet with their names, in the order of the modules."""
    for name, module in unet.named_modules():
        if isinstance(module, Attention) and name.endswith("attn2"):
            yield name, module


def processors(unet: nn.Module) -> dict[str, SafeCrossAttention]:
    """The installed processors by the names of their layers; empty for a plain UNet."""
    return {
        name: attn.processor
        for name, attn in cross_attentions(unet)
        if isinstance(attn.processor, SafeCrossAttention)
    }


def install(unet: nn.Module) -> dict[str, SafeCrossAttention]:
    """Puts a processor into every cross-attention layer; its projections are copies of the layer's own.

    The fusion has torch's usual initialisation, from the global generator. Not for quantised layers.

    Raises:
        SetupError: the UNet has no cross-attention, or one of another design.
    """
    added = _add(unet)
    for name, processor in added.items():
        layer = unet.get_submodule(name)
        for branch in ("to_q", "to_k", "to_v"):
            getattr(processor, branch).load_state_dict(getattr(layer, branch).state_dict())
    return added


def _add(unet: nn.Module) -> dict[str, SafeCrossAttention]:
    layers = dict(cross_attentions(unet))
    if not layers:
        raise SetupError("safe attention needs a UNet with cross-attention layers (attn2), and this has none")
    for name, attn in layers.items():
        others = (attn.group_norm, attn.spatial_norm, attn.norm_cross, attn.norm_q, attn.added_kv_proj_dim)
        if any(other is not None for other in others) or attn.residual_connection:
            raise SetupError(
                f"safe attention is made for Stable Diffusion's UNet; {name} is of another design"
            )
        # A quantised layer's own dtype is no number to compute with; the output's bias always is.
        like: Any = attn.to_out[0].bias
        processor: Any = SafeCrossAttention(attn).to(like.device, like.dtype)
        attn.set_processor(processor)
    return processors(unet)


def save(unet: nn.Module, folder: str | os.PathLike[str]) -> Path:
    """Writes the weights of the processors, and nothing else of the UNet, as `FILE` in a folder.

    The UNet's own `save_pretrained` would write them too, into its own file: call it before `install`, or after
    `unet.set_attn_processor(AttnProcessor2_0())`.

    Returns:
        The file.

    Raises:
        SetupError: nothing is installed.
    """
    tensors = {
        f"{layer}.{name}": value.detach().cpu().contiguous()
        for layer, processor in processors(unet).items()
        for name, value in processor.state_dict().items()
    }
    if not tensors:
        raise SetupError("this UNet has no safe attention to save; call install first")
    file = Path(folder) / FILE
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{FILE}.{os.getpid()}.tmp")
    safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"})
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    os.replace(temporary, file)
    return file


def load(unet: nn.Module, file: str | os.PathLike[str]) -> dict[str, SafeCrossAttention]:
    """Puts the processors of a file that `save` wrote into a UNet, in the UNet's dtype and on its device.

    Raises:
        SetupError: the file can't be read, or its names or shapes are not those of this UNet.
    """
    try:
        tensors = safetensors.torch.load_file(file)
    except (SafetensorError, OSError) as error:
        raise SetupError(f"the safe attention weights can't be read ({error}); save them again") from error
    added = _add(unet)
    expected = {
        f"{layer}.{name}": value.shape
        for layer, it in added.items()
        for name, value in it.state_dict().items()
    }
    given = {name: value.shape for name, value in tensors.items()}
    wrong = sorted(name for name in given.keys() | expected.keys() if given.get(name) != expected.get(name))
    if wrong:
        raise SetupError(
            f"the safe attention weights belong to another UNet: {len(wrong)} of {len(expected)} don't fit, "
            f"first {wrong[0]} with shape {given.get(wrong[0])} where {expected.get(wrong[0])} is expected"
        )
    for layer, processor in added.items():
        own = {name: tensors[f"{layer}.{name}"] for name in processor.state_dict()}
        processor.load_state_dict(own)
    return added
