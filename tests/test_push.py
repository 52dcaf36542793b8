"""Pushes to a Hub on loopback with the real client, through faults, and loads back with the real library."""

import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Features, Image, load_dataset
from hub_server import PRIVATE, TOKEN, Hub, Repo
from huggingface_hub.utils import _http
from secret_world import HOST, USER, anonymizer, encoded, make_world, pixels, score
from test_release import readable, shards
from typer.testing import CliRunner

from u2s_datasets import push_safe, schema
from u2s_datasets.cli import app
from u2s_datasets.errors import UsageError
from u2s_datasets.release.build import Request, digest_of, write_release
from u2s_datasets.release.push import push

REPO = "someone/places"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world") / "run")


@pytest.fixture
def hub(monkeypatch):
    """A Hub, and the client of this process pointed at it; `hub.fault` may be set."""
    with Hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda seconds: None, time=time.time))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("LOGNAME", USER)
        monkeypatch.setattr(socket, "gethostname", lambda: HOST)
        yield hub
        _http.close_session()


def request_of(world, **changes):
    values = {"run": world.path, "repo": REPO, "license": "cc-by-4.0", "originals": world.source}
    return Request(**{**values, "score": score(), **changes})


def u2s(world, *arguments):
    command = ["push", world.path, "--repo", REPO, "--license", "cc-by-4.0", *arguments]
    return CliRunner().invoke(app, list(map(str, command)))


def stored(repo: Repo, branch="main"):
    return {path: data for path, data in repo.head(branch).files.items() if path != ".gitattributes"}


def as_files(folder: Path):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def dry(world, tmp_path_factory):
    target = tmp_path_factory.mktemp("dry") / "out"
    write_release(request_of(world, originals=None), target)
    return as_files(target)


def test_no_canary_reaches_the_hub_or_a_log(hub, world, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    _, url = push(request_of(world))
    assert url == f"{hub.url}/datasets/{REPO}"
    assert hub.repos[REPO].private is False
    received = hub.everything()
    for index, data in enumerate({*hub.objects.values()}):
        (tmp_path / str(index)).write_bytes(data)
        received += readable(tmp_path / str(index))
    logs = caplog.text + "".join(capfd.readouterr())
    found = [c.name for c in world.canaries if c.secret.lower() in received.lower()]
    logged = [c.name for c in world.canaries if c.secret.decode("latin-1").lower() in logs.lower()]
    assert (found, logged) == ([], [])
    assert TOKEN not in logs
    assert "signature=secret" not in "\n".join(
        r.getMessage() for r in caplog.records if r.name.startswith("huggingface_hub")
    )
    assert TOKEN.encode() not in received
    assert len(world.canaries) >= 50


def test_a_push_sends_what_a_dry_run_writes(hub, world, dry):
    result = u2s(world)
    assert result.exit_code == 0, result.output
    assert stored(hub.repos[REPO]) == dry
    assert [commit.title.split(",")[0][:8] for commit in hub.repos[REPO].branches["main"]] == [
        "initial ",
        "Release ",
    ]
    assert f"The release is at {hub.url}/datasets/{REPO}." in result.output
    steps = hub.steps
    assert hub.repos[REPO].visibility == ["private", "public"]
    assert steps.index("create") < steps.index("commit") < steps.index("settings")


def test_visibility_branch_and_pull_request(hub, world, dry):
    assert u2s(world, "--private").exit_code == 0
    assert hub.repos[REPO].private is True
    assert u2s(world, "--revision", "v2").exit_code == 0
    assert stored(hub.repos[REPO], "v2") == dry
    hub.repos.clear()
    for _ in range(2):  # the second time it is the same request
        result = u2s(world, "--create-pr")
        assert result.exit_code == 0, result.output
        assert hub.repos[REPO].private is True
        assert stored(hub.repos[REPO]) == {}
        assert stored(hub.repos[REPO], "refs/pr/1") == dry
        assert len(hub.repos[REPO].requests) == 1
    result = u2s(world, "--create-pr", "--revision", "v2")
    assert "leave out --revision" in result.stderr


def test_round_trip_in_other_processes(hub, world, tmp_path):
    """The command line and load_dataset, each in a process that knows the Hub from HF_ENDPOINT alone."""
    env = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1",
        "LOGNAME": USER, "NO_COLOR": "1",
    }  # fmt: skip
    command = [
        sys.executable,
        "-m",
        "u2s_datasets.cli",
        "push",
        world.path,
        "--repo",
        REPO,
        "--license",
        "cc-by-4.0",
    ]
    done = subprocess.run(list(map(str, command)), env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    del env["HF_TOKEN"]
    code = f"""
import hashlib, json
from datasets import load_dataset
from huggingface_hub import DatasetCard
data = load_dataset("{REPO}", split="train")
card = DatasetCard.load("{REPO}", repo_type="dataset")
print(json.dumps({{
    "rows": len(data), "features": repr(data.features), "sizes": [row["image"].size for row in data],
    "pixels": [hashlib.sha256(row["image"].convert("RGB").tobytes()).hexdigest() for row in data],
    "license": card.data.license,
}}))
"""
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout.splitlines()[-1])
    write_release(request_of(world, originals=None), tmp_path / "dry")
    data = load_dataset(str(tmp_path / "dry"), split="train")
    assert loaded["rows"] == len(data) == 34
    assert loaded["features"] == repr(data.features)
    digests = [hashlib.sha256(row["image"].convert("RGB").tobytes()).hexdigest() for row in data]
    assert loaded["pixels"] == digests
    assert loaded["license"] == "cc-by-4.0"


MOMENTS = [
    ("create", "late cut"), ("validate", "cut"), ("preupload", "cut"), ("batch", "cut"), ("upload", "half"),
    ("commit", "cut"), ("commit", "late cut"), ("files", "cut"), ("settings", "cut"), ("settings", 500),
]  # fmt: skip


@pytest.mark.parametrize(("step", "fault"), MOMENTS)
def test_interrupted_and_run_again(hub, world, dry, step, fault):
    # A step that the client repeats by itself has to fail for good.
    hub.fault = lambda now, n: fault if now == step and n < 20 else None
    result = u2s(world)
    assert result.exit_code == 2
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("u2s:")]
    assert "the same command" in line
    repo = hub.repos.get(REPO)
    assert repo is None or repo.private
    hub.fault = lambda now, n: None
    result = u2s(world)
    assert result.exit_code == 0, result.output
    assert stored(hub.repos[REPO]) == dry
    assert hub.repos[REPO].private is False
    assert len(hub.repos[REPO].branches["main"]) == 2
    assert len(hub.objects) == 1


def test_a_killed_push_leaves_a_private_repository(hub, world, dry):
    def stop(step, n):
        if step == "commit" and n == 0:
            raise KeyboardInterrupt
        return None

    from huggingface_hub import HfApi

    patch = pytest.MonkeyPatch()
    patch.setattr(HfApi, "upload_folder", lambda self, **options: stop("commit", 0))
    result = u2s(world)
    patch.undo()
    assert result.exit_code == 130
    assert hub.repos[REPO].private is True
    assert u2s(world).exit_code == 0
    assert stored(hub.repos[REPO]) == dry


def test_a_passing_fault_is_tried_again(hub, world, dry):
    hub.fault = lambda step, n: 503 if step in ("preupload", "batch", "upload") and n < 2 else None
    result = u2s(world)
    assert result.exit_code == 0, result.output
    assert stored(hub.repos[REPO]) == dry
    assert "signature" not in result.output


@pytest.mark.parametrize(("step", "status", "message"), [
    ("create", 403, "403: the token may not write there"),
    ("create", 500, "500: it failed; give the same command again"),
    ("preupload", 401, "401: it does not accept the token"),
    ("upload", 403, "403: the token may not write there"),
    ("commit", 409, "409: somebody else is changing the repository; give the same command again"),
    ("commit", 412, "412: it refuses what was sent"),
    ("commit", 429, "429: it asks to wait"),
    ("settings", 403, "403: the token may not write there"),
])  # fmt: skip
def test_a_refusal_is_one_line(hub, world, step, status, message):
    hub.fault = lambda now, n: status if now == step else None
    result = u2s(world)
    assert result.exit_code == 2
    # Before it stand the note about originals and the client's own bar of the upload.
    line = result.stderr.splitlines()[-1]
    assert line.startswith("u2s: the Hub answered with ")
    assert message in line
    assert "Traceback" not in result.output
    assert TOKEN not in result.output
    assert PRIVATE not in result.output
    assert "signature" not in result.output


def test_an_expired_a_missing_token_and_an_absent_hub(hub, world, monkeypatch):
    hub.token = "hf_another"
    assert "401: it does not accept the token" in u2s(world).stderr
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", "/nonexistent")
    assert "401" in u2s(world).stderr
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in u2s(world).stderr
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "could not be reached or broke off (ConnectError)" in u2s(world).stderr


def test_a_later_release_replaces_the_shards(hub, world, dry):
    assert u2s(world).exit_code == 0
    hub.repos[REPO].add(
        "main",
        "more",
        "",
        {**hub.repos[REPO].head("main").files, "data/train-00001-of-00002.parquet": b"old"},
    )
    assert u2s(world).exit_code == 0
    assert stored(hub.repos[REPO]) == dry


@pytest.mark.parametrize("files", [
    {"originals.zip": b"x"},
    {"README.md": b"---\nlicense: mit\n---\n# Mine\n"},
    {"README.md": b"# Mine\n"},
    {"train/data.parquet": b"x"},
])  # fmt: skip
def test_a_repository_with_something_else_is_left_alone(hub, world, files):
    hub.repos[REPO] = Repo(private=False)
    hub.repos[REPO].add("main", "mine", "", files)
    result = u2s(world)
    assert result.exit_code == 2
    assert "holds files that are no release of this toolkit" in result.stderr
    assert stored(hub.repos[REPO]) == files
    assert hub.repos[REPO].private is False
    assert "commit" not in hub.steps


def test_what_the_hub_lost_is_not_published(hub, world):
    def lose(step, n):
        if step == "files" and "commit" in hub.steps:
            files = dict(hub.repos[REPO].head("main").files)
            files.pop("data/train-00000-of-00001.parquet", None)
            hub.repos[REPO].add("main", "lost", "", files)

    hub.fault = lose
    result = u2s(world)
    assert "the Hub does not hold what was sent" in result.stderr
    assert hub.repos[REPO].private is True


def test_a_refused_run_sends_nothing(hub, world, tmp_path):
    import shutil

    shutil.copytree(world.path, tmp_path / "run")
    shards(tmp_path / "run")[-1].unlink()
    command = ["push", str(tmp_path / "run"), "--repo", REPO, "--license", "mit"]
    assert CliRunner().invoke(app, command).exit_code == 2
    assert (hub.received, hub.repos) == ([], {})


def in_memory(rows=12):
    images = [
        {"bytes": encoded(pixels(i % 8, i < 8)), "path": f"/home/x/Marlowe-{i}.png"} for i in range(rows)
    ]
    features = Features({"photo": Image()})
    return Dataset.from_dict({"photo": images}, features=features)


def test_push_safe(hub):
    from dataclasses import replace

    one = replace(anonymizer(), image_column="photo")
    data = in_memory()
    with pytest.raises(UsageError, match="was not verified: it has no column audit"):
        push_safe(data, REPO, license="mit")
    safe = data.map(one, features=one.features(data.features))
    url = push_safe(safe, REPO, license="mit", private=True, score=score())
    assert url.endswith(REPO)
    files = stored(hub.repos[REPO])
    assert sorted(files) == ["README.md", "data/train-00000-of-00001.parquet"]
    assert b"Images were inspected and the unsafe ones edited." in files["README.md"]
    assert b"| copy_rate |" in files["README.md"]
    assert b"Marlowe" not in b"".join(files.values())
    both = DatasetDict(train=safe, test=safe)
    push_safe(both, "someone/both", license="mit", score=score())
    assert len(stored(hub.repos["someone/both"])) == 3
    forged = [
        dict(row, edited_image=row["photo"])
        for row in safe.cast_column("photo", Image(decode=False)).cast_column(
            "edited_image", Image(decode=False)
        )
    ]
    forged = Dataset.from_list(forged, features=safe.features)
    with pytest.raises(UsageError, match="not the one that was verified: row train 0, 1"):
        push_safe(forged, "someone/forged", license="mit", score=score())
    with pytest.raises(UsageError, match="never guessed"):
        push_safe(safe, REPO, license="")
    assert "someone/forged" not in hub.repos


def test_a_released_folder_reads_as_parquet_without_pandas(dry, tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(dry["data/train-00000-of-00001.parquet"])
    assert set(pq.read_metadata(path).metadata) == {b"huggingface", b"ARROW:schema"}
    assert schema.PRIVATE_CAPTION not in pq.read_schema(path).names
    assert digest_of(tmp_path) != ""
