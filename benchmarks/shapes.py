"""Drawn shapes, and an untrained InstructPix2Pix that is small enough to learn them on a CPU.

A picture shows one or two shapes (circle, square, triangle) of one colour on a grey background, drawn in blocks of
4x4 pixels as an old game would. Instructions name the new colour, public captions name the shape. The autoencoder
reconstructs such pictures exactly, so that what the editor learns in latents shows in pixels. Where blocks of the
picture before the edit are hidden, the caption knows more of the shape than the picture does.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

SIDE = 64
OLD = {"yellow": (225, 205, 40), "green": (40, 170, 70)}
NEW = {"red": (215, 35, 35), "blue": (40, 70, 220)}
SHAPES = ("circle", "square", "triangle")
BLOCK = 4  # pixels of a block's side
SMOOTH = 4  # drawn so many times as large, then reduced
CARRIER = 100.0  # the constant in the autoencoder; colours are at most 1
WORDS = ["make", "paint", "it", "them", "now", "a", "of", "one", "colour", "becomes", *NEW, *OLD, *SHAPES]
WIDTH = 32  # of the text embeddings
TOKENS = 16
LAYOUT: dict[str, Any] = {  # of a UNet: attention at half the latents' resolution alone
    "block_out_channels": (32, 48),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


@dataclass(frozen=True)
class Drawing:
    """Shapes of one kind and colour.

    Attributes:
        shape: of `SHAPES`. old, new: names of the colours before and after the edit.
        boxes: (x, y, size) of each shape in pixels.
        ground: the background's colour.
        hidden: the blocks, numbered row by row, that show the background before the edit.
    """

    shape: str
    old: str
    new: str
    boxes: tuple[tuple[float, float, float], ...]
    ground: tuple[int, int, int]
    hidden: tuple[int, ...] = ()

    @property
    def instruction(self) -> str:
        """The edit, in words."""
        return f"make it {self.new}"

    @property
    def caption(self) -> str:
        """The public caption: the shape, no colour."""
        return f"a {self.shape}"

    @property
    def full_caption(self) -> str:
        """Shape and new colour."""
        return f"a {self.new} {self.shape}"

    def pixels(self, after: bool) -> np.ndarray:
        """(SIDE, SIDE, 3) uint8, in the old or the new colour."""
        colour = NEW[self.new] if after else OLD[self.old]
        cells = SIDE // BLOCK
        image = Image.new("RGB", (cells * SMOOTH, cells * SMOOTH), self.ground)
        draw = ImageDraw.Draw(image)
        for x, y, size in self.boxes:
            box = [v * SMOOTH / BLOCK for v in (x, y, x + size, y + size)]
            if self.shape == "circle":
                draw.ellipse(box, fill=colour)
            elif self.shape == "square":
                draw.rectangle(box, fill=colour)
            else:
                draw.polygon(
                    [(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) / 2, box[1])], fill=colour
                )
        small = np.array(image.resize((cells, cells), Image.Resampling.BOX))
        if not after and self.hidden:
            small.reshape(-1, 3)[list(self.hidden)] = self.ground
        return small.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)

    def mask(self) -> np.ndarray:
        """(SIDE, SIDE) bool: where the shapes are."""
        return replace(self, ground=(0, 0, 0)).pixels(after=True).max(axis=2) > 110


def drawings(count: int, seed: int | list[int] = 0, most: int = 2, hidden: float = 0.0) -> list[Drawing]:
    """Random drawings of one to `most` shapes that do not touch, a share of their blocks hidden before the edit."""
    draw = np.random.default_rng(seed)
    return [_drawing(draw, int(draw.integers(1, most + 1)), hidden) for _ in range(count)]


def _drawing(draw: np.random.Generator, count: int, hidden: float) -> Drawing:
    boxes: list[tuple[float, float, float]] = []
    while len(boxes) < count:
        size = float(draw.uniform(20, 30))
        x, y = (float(v) for v in draw.uniform(4, SIDE - 4 - size, 2))
        if all(abs(x - u) > max(size, s) + 2 or abs(y - v) > max(size, s) + 2 for u, v, s in boxes):
            boxes.append((x, y, size))
        elif draw.random() < 0.05:  # no room is left: begin again
            boxes.clear()
    tone = draw.integers(140, 200)
    ground = tuple(int(v) for v in np.clip(tone + draw.integers(-5, 6, 3), 0, 255))
    names = (str(draw.choice(choices)) for choices in (SHAPES, list(OLD), list(NEW)))
    blocks = np.flatnonzero(draw.random((SIDE // BLOCK) ** 2) < hidden).tolist() if hidden else ()
    return Drawing(*names, tuple(boxes), ground, tuple(blocks))  # type: ignore[arg-type]


def colour_of(pixels: np.ndarray, mask: np.ndarray) -> str:
    """The colour name that is nearest to the mean of an image (HxWx3 uint8) inside a mask (HxW bool)."""
    mean = pixels[mask].mean(axis=0)
    colours = {**OLD, **NEW}
    return min(colours, key=lambda name: float(np.linalg.norm(mean - np.array(colours[name]))))


def overlap(pixels: np.ndarray, drawing: Drawing) -> float:
    """Intersection over union of a drawing's shapes and of what has the new colour in an image (HxWx3 uint8).

    A pixel has it that is closer to it than to the image's own background.
    """
    mask = drawing.mask()
    colours = np.array([NEW[drawing.new], np.median(pixels[~mask], axis=0)])
    far, near = np.linalg.norm(pixels[None] - colours[:, None, None], axis=-1)[::-1]
    found = near < far
    return float((found & mask).sum() / max(1, (found | mask).sum()))


def save_untrained(folder: Path, seed: int = 0) -> Path:
    """An InstructPix2Pix whose UNet knows nothing yet, in diffusers' own form.

    Args:
        folder: becomes the model.
        seed: of all weights.
    """
    import diffusers

    kind = diffusers.StableDiffusionInstructPix2PixPipeline
    pipeline(kind, 6, diffusers.EulerAncestralDiscreteScheduler, seed).save_pretrained(folder)
    return folder


def ids(pipe: Any, texts: list[str]) -> Any:
    """(n, TOKENS) of texts, on the CPU."""
    return pipe.tokenizer(texts, padding="max_length", max_length=TOKENS, return_tensors="pt").input_ids


def pipeline(kind: Any, channels: int, scheduler: Any, seed: int = 0, layout: dict[str, Any] = LAYOUT) -> Any:
    """A pipeline of tiny parts, its UNet with random weights.

    Args:
        kind: the pipeline's class.
        channels: that the UNet takes; it gives 3.
        scheduler: the scheduler's class; it gets Stable Diffusion's noise levels.
        seed: of all weights.
        layout: the UNet's levels and their blocks.
    """
    import diffusers
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=SIDE // BLOCK,
            in_channels=channels,
            out_channels=3,
            layers_per_block=1,
            **layout,
            norm_num_groups=8,
            attention_head_dim=2,  # diffusers' name for the number of heads
            cross_attention_dim=WIDTH,
        )
        return kind(
            vae=block_autoencoder(),
            text_encoder=_text_encoder(),
            tokenizer=_tokenizer(),
            unet=unet,
            scheduler=scheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def block_autoencoder() -> Any:
    """An AutoencoderKL whose latents are the mean colours of blocks of 4x4 pixels; its weights are set, not trained.

    A colour travels as x and -x, since silu(x) - silu(-x) = x, beside a constant so large that a group norm
    divides by it alone. What residual branches add is nothing.
    """
    import diffusers
    import torch

    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=1,
        sample_size=SIDE,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=2.0,  # the deviation of drawings in latents is about a half
    )
    half = torch.cat([torch.eye(3), -torch.eye(3)])
    with torch.no_grad():
        for name, weights in vae.named_parameters():
            if name.endswith(("conv2.weight", "conv2.bias", "to_out.0.weight", "to_out.0.bias")):
                weights.zero_()
        for part in (vae.encoder, vae.decoder):
            _set(part.conv_in, {(1, 1): torch.cat([half, torch.zeros(2, 3)])})
            part.conv_in.bias[6:] = torch.tensor([CARRIER, -CARRIER])
            back = torch.cat([half.T, torch.zeros(3, 2)], dim=1) * CARRIER / 2
            _set(part.conv_out, {(1, 1): torch.cat([back, 0 * back])[: part.conv_out.out_channels]})
        vae.encoder.conv_out.bias[3:] = -20  # logarithm of the variance: none
        for block in vae.encoder.down_blocks[:-1]:
            quarter = torch.eye(8) / 4
            _set(block.downsamplers[0].conv, {(i, j): quarter for i in (0, 1) for j in (0, 1)})
        for block in vae.decoder.up_blocks[:-1]:
            _set(block.upsamplers[0].conv, {(1, 1): torch.eye(8)})
    return vae.eval()


def _set(conv: Any, taps: dict[tuple[int, int], Any]) -> None:
    """Sets a convolution of 3x3 to the given (out, in) matrices and nothing else."""
    conv.weight.zero_()
    conv.bias.zero_()
    for (row, column), matrix in taps.items():
        conv.weight[:, :, row, column] = matrix


def _tokenizer() -> Any:
    """A CLIP tokenizer whose vocabulary is `WORDS` and single letters."""
    import tokenizers
    import transformers

    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in WORDS:  # each word grows letter by letter until it is one token
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            merges.append((parts[0], parts[1]))
            parts[:2] = ["".join(parts[:2])]
    merges = list(dict.fromkeys(merges))
    tokens += [first + second for first, second in merges]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def _text_encoder() -> Any:
    import transformers

    tokenizer = _tokenizer()
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=5.0,  # words far enough apart that a frozen encoder tells them from each other
    )
    return transformers.CLIPTextModel(config).eval()


def save_pairs(folder: Path, splits: dict[str, list[Drawing]]) -> Path:
    """Drawings as a dataset of pairs, a Parquet file for each split."""
    from datasets import Dataset

    from u2s_datasets import schema

    folder.mkdir(parents=True, exist_ok=True)
    for name, drawings_ in splits.items():
        rows = {
            schema.SOURCE_IMAGE: [_png(drawing.pixels(after=False)) for drawing in drawings_],
            schema.TARGET_IMAGE: [_png(drawing.pixels(after=True)) for drawing in drawings_],
            schema.EDIT_INSTRUCTION: [drawing.instruction for drawing in drawings_],
            schema.PUBLIC_CAPTION: [drawing.caption for drawing in drawings_],
        }
        features = schema.features(*rows)
        Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


def _png(pixels: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}
