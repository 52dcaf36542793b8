"""A CLIP with random weights and its processor, saved as the real ones are."""

from pathlib import Path

import torch
import transformers
from tiny_models import EOS, SIDE, tiny_tokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


def save(folder: Path) -> Path:
    """Saves the model, whose texts and pictures end in 16 numbers, and its processor."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "right"
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"eos_token_id": tokenizer.convert_tokens_to_ids(EOS), "vocab_size": len(tokenizer)}
    config = transformers.CLIPConfig(
        text_config={**size, **ends, "max_position_embeddings": 77, "pad_token_id": tokenizer.pad_token_id},
        vision_config={**size, "image_size": SIDE, "patch_size": 8},
        projection_dim=16,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = transformers.CLIPModel(config)
    model.save_pretrained(folder)
    side = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=side)
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder
