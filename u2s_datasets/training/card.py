"""The model card of a trained editor, and its way to the Hub."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

from u2s_datasets import __version__
from u2s_datasets.errors import UsageError
from u2s_datasets.training.settings import EditorTraining

SHOWN = (
    "resolution", "steps", "batch_size", "accumulate", "learning_rate", "optimizer", "warmup", "dropout", "flip",
    "mixed_precision", "ema", "seed",
)  # fmt: skip
LORA = "FluxKontextPipeline"


def write_card(out: Path, training: EditorTraining, found: dict[str, Any]) -> None:
    """Writes README.md from the settings and what `train_editor` returned. No row of the data is in it."""
    template = (resources.files("u2s_datasets.training") / "model_card.md").read_text("utf-8")
    lora = found["kind"] == LORA
    settings = training.settings()
    names = [*SHOWN, *(["lora_rank", "lora_alpha"] if lora else ["safe_attention"])]
    base = "a local model" if Path(training.model).exists() else training.model
    values = {
        "base_line": "" if Path(training.model).exists() else f"base_model: {training.model}\n",
        "library": "diffusers",
        "tags": "\n".join(
            f"- {tag}" for tag in ("u2s-datasets", "image-to-image", *(["lora"] if lora else []))
        ),
        "base": base,
        "method": (
            "a LoRA on its attention and MLP projections"
            if lora
            else "its whole UNet"
            + (", with Safe Cross-Attention for the public caption" if training.safe_attention else "")
        ),
        "pairs": found["pairs"],
        "validation_pairs": found["validation_pairs"],
        "validation_loss": f"{found['validation_loss']:.5f}",
        "best_step": found["best_step"],
        "rows": "\n".join(f"| {name} | {settings[name]} |" for name in names),
        "use": (
            f"u2s anonymize photos --out safe --preset modern --set edit.model={training.model} "
            "--set edit.editor.lora=THIS_FOLDER"
            if lora
            else "u2s anonymize photos --out safe --preset paper-safe-attention --set edit.model=THIS_FOLDER"
        ).replace(training.model, "BASE_MODEL" if Path(training.model).exists() else training.model),
        "version": __version__,
    }
    (out / "README.md").write_text(template.format(**values), "utf-8")


def push(out: Path, repo: str) -> str:
    """Publishes a trained editor at `HF_ENDPOINT`, without its private folder; the address.

    Raises:
        UsageError: not a repository's name, or the server refuses; the message carries no token.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", repo):
        raise UsageError("--push-to-hub takes the name of a repository, such as me/my-editor")
    api = HfApi()
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            folder_path=out,
            ignore_patterns=["training/*", "training/**"],
            commit_message="An editor trained with u2s-datasets",
        )
    except LocalTokenNotFoundError as error:
        raise UsageError("no token is stored: run `hf auth login` first") from error
    except OfflineModeIsEnabled as error:
        raise UsageError("HF_HUB_OFFLINE is set; publishing needs the Hub") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no"
        raise UsageError(f"the Hub refused {repo}: status {status}") from None
    except (httpx2.HTTPError, OSError, HFValidationError) as error:
        raise UsageError(f"{repo} could not be sent ({type(error).__name__})") from None
    return f"{api.endpoint}/{repo}"
