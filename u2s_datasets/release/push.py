"""Sends a release to the Hub: private until it is complete and has been looked at, then as asked.

The same command after an interruption sends what is missing. A repository that holds anything but a release
of this toolkit is refused: its history would keep what is there. Messages name the status of an answer and
never its text, its headers or the token.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import yaml
from datasets import Dataset, DatasetDict, Image
from huggingface_hub import DatasetCard, HfApi
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.hf_api import RepoFile

from u2s_datasets import schema
from u2s_datasets.errors import UsageError
from u2s_datasets.release.build import Release, Request, built, record
from u2s_datasets.release.card import TAG
from u2s_datasets.release.scan import CARD, DATA
from u2s_datasets.run.record import SETTINGS_FILE
from u2s_datasets.run.rows import DatasetRows, chosen
from u2s_datasets.run.source import Source

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

KIND = "dataset"
OF_THE_HUB = ".gitattributes"
SHARD_ROWS = 256
AGAIN = "give the same command again, it continues"
REASONS = {
    401: "it does not accept the token; log in with `hf auth login`, or set HF_TOKEN, then give the same command",
    403: "the token may not write there; take one with write access, then give the same command",
    404: "there is no such repository or branch for this token",
    409: f"somebody else is changing the repository; {AGAIN}",
    413: "a file is too large for it",
    429: f"it asks to wait; later {AGAIN}",
}


def push(
    request: Request,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> tuple[Release, str]:
    """Publishes a run.

    Args:
        request: what.
        private: whether the repository is private in the end.
        create_pr: opens a pull request instead; the visibility of the repository is then left as it is.
        revision: a branch, made if it is not there.
        on_rows: told the number of rows scored.

    Returns:
        The release (its folder is gone) and its address.

    Raises:
        UsageError: the release is refused, or the Hub did not take it; the message says what to do.
    """
    if create_pr and revision:
        raise UsageError("--create-pr opens a request against the main branch: leave out --revision")
    with built(request, on_rows) as release:
        record(request, release)
        with _explained():
            return release, send(release, request.repo, private, create_pr, revision)


def send(release: Release, repo: str, private: bool, create_pr: bool, revision: str | None) -> str:
    """Sends a folder that may be published and returns its address."""
    api = HfApi()
    api.create_repo(repo, repo_type=KIND, private=True, exist_ok=True)
    _check_is_ours(api, repo)
    title = f"Release {release.digest[:12]}, made with {TAG}"
    if revision:
        api.create_branch(repo, repo_type=KIND, branch=revision, exist_ok=True)
    if create_pr and (begun := _begun(api, repo, title)):
        revision, create_pr = begun, False
        is_request = True
    else:
        is_request = create_pr
    commit: CommitInfo = api.upload_folder(
        repo_id=repo,
        repo_type=KIND,
        folder_path=release.folder,
        commit_message=title,
        revision=revision,
        create_pr=create_pr,
        # Shards of an earlier release would be loaded beside these.
        delete_patterns=["data/*"],
    )
    _check_is_complete(api, repo, release, (commit.pr_revision if create_pr else revision))
    if not is_request:
        api.update_repo_settings(repo, repo_type=KIND, private=private)
    return commit.pr_url or f"{api.endpoint}/datasets/{repo}"


def _check_is_ours(api: HfApi, repo: str) -> None:
    """Refuses a repository with other files than a release has."""
    files = set(api.list_repo_files(repo, repo_type=KIND)) - {OF_THE_HUB}
    is_ours = all(name == CARD or DATA.fullmatch(name) for name in files)
    if is_ours and CARD in files:
        with tempfile.TemporaryDirectory() as place:
            path = api.hf_hub_download(repo, CARD, repo_type=KIND, local_dir=place)
            card = DatasetCard(Path(path).read_text("utf-8"), ignore_metadata_errors=True)
        is_ours = TAG in (card.data.get("tags") or [])
    if not is_ours:
        raise UsageError(
            f"{repo} holds files that are no release of this toolkit, and its history would keep them; "
            "choose another --repo"
        )


def _begun(api: HfApi, repo: str, title: str) -> str | None:
    """The branch of an open pull request of the same release, which an interrupted push left."""
    found = api.get_repo_discussions(
        repo, repo_type=KIND, discussion_type="pull_request", discussion_status="open"
    )
    return next((request.git_reference for request in found if request.title == title), None)


def _check_is_complete(api: HfApi, repo: str, release: Release, revision: str | None) -> None:
    """Compares names, sizes and digests of what the Hub lists with what was sent."""
    listed = {
        file.path: file
        for file in api.list_repo_tree(repo, repo_type=KIND, recursive=True, revision=revision)
        if isinstance(file, RepoFile) and file.path != OF_THE_HUB
    }
    sent = {p.relative_to(release.folder).as_posix(): p for p in release.folder.rglob("*") if p.is_file()}
    if set(listed) != set(sent) or not all(_is_same(listed[name], sent[name]) for name in sent):
        raise UsageError(f"the Hub does not hold what was sent; {AGAIN}. The repository is left as it is")


def _is_same(file: RepoFile, path: Path) -> bool:
    data = path.read_bytes()
    if file.lfs is not None:
        return file.lfs.sha256 == hashlib.sha256(data).hexdigest()
    return file.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what the client raises into one line, and silences its log, which quotes signed addresses."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    except UsageError:
        raise
    except LocalTokenNotFoundError:
        raise UsageError("no token is stored: log in with `hf auth login`, or set HF_TOKEN") from None
    except OfflineModeIsEnabled:
        raise UsageError("HF_HUB_OFFLINE is set; publishing needs the Hub") from None
    except HFValidationError:
        raise UsageError("--repo or --revision is no name that the Hub accepts") from None
    except (httpx2.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise UsageError(_reason(error)) from None
    finally:
        logger.setLevel(level)


def _reason(error: BaseException) -> str:
    """One line about a failed request. An upload's own error stands behind the one that was raised."""
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, HfHubHTTPError) and cause.response is not None:
            status = cause.response.status_code
            default = f"it failed; {AGAIN}" if status >= 500 else "it refuses what was sent"
            return f"the Hub answered with {status}: {REASONS.get(status, default)}"
    kind = type(causes[-1]).__name__
    return f"the Hub could not be reached or broke off ({kind}); {AGAIN}"


def push_safe(
    data: Dataset | DatasetDict,
    repo: str,
    *,
    license: str,
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    keep: Sequence[str] = (),
    accept: Sequence[str] = (),
    shuffle_seed: int | None = None,
    **options: Any,
) -> str:
    """Publishes a dataset that `map(anonymize)` has gone over. Originals in it are compared with, and stay.

    Args:
        data: with all columns that `anonymize` adds.
        repo: "namespace/name" on the Hub.
        license: of the published images, an identifier that the Hub knows.
        private: whether the repository is private in the end.
        create_pr: opens a pull request instead.
        revision: a branch, made if it is not there.
        keep: columns to publish besides those that may leave anyway.
        accept: limits to change, as "name=value".
        shuffle_seed: of the order of the rows; None keeps it.
        options: `score`, as for `Request`.

    Returns:
        The address.

    Raises:
        UsageError: it was not anonymized and verified, a limit is not kept, or the Hub did not take it.
    """
    # The split of a slice is called like "train[:10]".
    name = "train" if isinstance(data, DatasetDict) else str(data.split or "train").split("[")[0]
    splits = dict(data) if isinstance(data, DatasetDict) else {name: data}
    missing = {
        name for some in splits.values() for name in schema.features() if name not in some.column_names
    }
    if missing:
        raise UsageError(
            f"the dataset was not verified: it has no column {', '.join(sorted(missing))}. Map u2s_datasets.anonymize over it first"
        )
    with tempfile.TemporaryDirectory(prefix="u2s-run-") as place:
        originals = _as_run(splits, Path(place))
        request = Request(
            Path(place), repo, license, originals, tuple(keep), tuple(accept), shuffle_seed, **options
        )
        return push(request, private, create_pr, revision)[1]


def _as_run(splits: dict[str, Dataset], folder: Path) -> Source | None:
    """Writes splits as a run's folder, without their originals, and returns those."""
    features = next(iter(splits.values())).features
    images = [name for name, f in features.items() if isinstance(f, Image) and name != schema.EDITED_IMAGE]
    (folder / "data").mkdir()
    for split, data in splits.items():
        rows = data.remove_columns(images).cast_column(schema.EDITED_IMAGE, Image(decode=False))
        rows = rows.with_format(None).cast_column(schema.EDITED_IMAGE, Image())
        count = -(-len(rows) // SHARD_ROWS)
        for index in range(count):
            part = rows.select(range(index * SHARD_ROWS, min((index + 1) * SHARD_ROWS, len(rows))))
            part.to_parquet(str(folder / "data" / f"{split}-{index:05d}-of-{count:05d}.parquet"))
    about = {"fingerprint": "", "rows": {split: len(data) for split, data in splits.items()}}
    settings = {"data": about, "shard_size": SHARD_ROWS, "settings": {}}
    (folder / SETTINGS_FILE).write_text(yaml.safe_dump(settings), "utf-8")
    if not images:
        return None
    encoded = {images[0]: Image(decode=False)}
    opened = {split: chosen(DatasetRows(data), images[:1], encoded) for split, data in splits.items()}
    return Source(dict(opened), images[0], None, "")
