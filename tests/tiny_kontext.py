"""A tiny FLUX.1-Kontext with random weights, saved as the real one is."""

from pathlib import Path

import diffusers
import tiny_flow


def save_kontext(folder: Path, guidance_embeds: bool = True) -> Path:
    """The parts of the tiny FLUX in a FluxKontextPipeline."""
    flux = diffusers.FluxPipeline.from_pretrained(tiny_flow.save_flux(folder, guidance_embeds))
    diffusers.FluxKontextPipeline(**flux.components).save_pretrained(folder)
    return folder
