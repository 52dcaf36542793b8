"""The four metric modules as files: into the cache of `evaluate`, and onto the Hub as Spaces.

In the cache a module lies under its name and the hash of its text. `evaluate` takes the newest one of a name,
whatever it is, so another file under our names is reported and not replaced unasked.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from u2s_datasets import schema
from u2s_datasets.errors import SetupError, UsageError

NAMESPACE = "u2s"
NAMES = tuple(schema.SCORES)


def folder(name: str) -> Path:
    """The folder of a module: in the installed package, or at the root of a checkout.

    Raises:
        SetupError: it is in neither.
    """
    package = Path(__file__).parents[1]
    for place in (package / "metrics", package.parent / "metrics"):
        if (place / name / f"{name}.py").is_file():
            return place / name
    raise SetupError(
        f"the metric module {name!r} is not part of this installation; install u2s-datasets again"
    )


def install(replace: bool = False) -> list[str]:
    """Puts the modules into the cache, so that `evaluate.load("u2s/privacy")` finds them offline.

    Args:
        replace: removes other files under our names instead of reporting them.

    Returns:
        What was done, a line for each module.

    Raises:
        UsageError: something else lies there under one of our names; nothing has been written.
    """
    from evaluate.loading import files_to_hash, init_dynamic_modules

    cache = Path(init_dynamic_modules()) / "metrics"
    places = {}
    for name in NAMES:
        source = folder(name) / f"{name}.py"
        places[name] = cache / f"{NAMESPACE}--{name}" / files_to_hash([str(source)]) / source.name
    if not replace and (others := [name for name, place in places.items() if _others(name, place)]):
        raise UsageError(
            f"the cache holds other modules under our names: {', '.join(f'{NAMESPACE}/{n}' for n in others)}. "
            "Look at them, then give --replace"
        )
    return [_put(name, place) for name, place in places.items()]


def _others(name: str, place: Path) -> list[Path]:
    """What lies in the cache under a name and is not the module: another version, or a changed file."""
    there = place.parent.parent
    other = [p for p in there.glob("*") if p.is_dir() and len(p.name) == 64 and p != place.parent]
    if place.exists() and place.read_bytes() != (folder(name) / place.name).read_bytes():
        other.append(place.parent)
    return other


def _put(name: str, place: Path) -> str:
    for other in _others(name, place):
        shutil.rmtree(other)
    if place.exists():
        return f"{NAMESPACE}/{name}: already there"
    place.parent.mkdir(parents=True, exist_ok=True)
    for parent in (place.parents[2], place.parents[1], place.parents[0]):
        (parent / "__init__.py").touch()
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    shutil.copyfile(folder(name) / place.name, temporary)
    os.replace(temporary, place)
    return f"{NAMESPACE}/{name}: installed"


def push(namespace: str) -> list[str]:
    """Publishes the modules as Spaces `namespace/quality` ... at `HF_ENDPOINT`, with the stored token.

    Returns:
        The addresses.

    Raises:
        UsageError: not a namespace, or the server refuses; the message carries no token.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", namespace):
        raise UsageError("--namespace is the name of a user or an organisation on the Hub")
    api, found = HfApi(), []
    for name in NAMES:
        repo = f"{namespace}/{name}"
        try:
            api.create_repo(repo, repo_type="space", space_sdk="gradio", exist_ok=True)
            api.upload_folder(
                repo_id=repo,
                repo_type="space",
                folder_path=folder(name),
                ignore_patterns=["__pycache__/*", "*.pyc"],
                commit_message=f"The metric {name} of u2s-datasets",
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
        found.append(f"{api.endpoint}/spaces/{repo}")
    return found
