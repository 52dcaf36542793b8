"""The runner's work on a real Ray of this machine: two CPUs, a small object store."""

import io
import json
import os
import signal
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image
from fakes import Painter, RedFinder
from PIL import Image as PillowImage
from pydantic.dataclasses import dataclass
from typer.testing import CliRunner

from u2s_datasets import Anonymizer, Edit, Inspect, Verify
from u2s_datasets.cli import app
from u2s_datasets.errors import SetupError, UsageError
from u2s_datasets.models.base import SETTINGS, Adapter
from u2s_datasets.run.ray import Pool, RayTransform, run_on_ray
from u2s_datasets.run.runner import run
from u2s_datasets.run.source import open_source, source_of

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")
ROWS, SHARD, BATCH = 40, 8, 3
SECRET_NAME, SECRET_CLASS, SECRET_TEXT = "maria_at_home", "lindqvist", "harbour lane"


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Killer(Adapter):
    """Finds nothing, and kills its process at an image of a given width: once, or every time."""

    kind: Literal["killer"] = "killer"
    width: int
    mark: str = ""

    def detect(self, images, areas=None):
        if any(image.shape[1] == self.width for image in images) and not os.path.exists(self.mark):
            if self.mark:
                Path(self.mark).write_text("")
            os.kill(os.getpid(), signal.SIGKILL)
        return [[] for _ in images]


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Absent(Adapter):
    """A model that is not installed."""

    kind: Literal["absent"] = "absent"

    def detect(self, images, areas=None):
        raise SetupError("the absent model is missing")


@pytest.fixture(scope="module")
def ray(tmp_path_factory):
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    pytest.importorskip("ray.data")
    logs = tmp_path_factory.mktemp("ray")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, [Path(__file__).parent, Path(__file__).parents[1]]))
    ray.init(
        "local",
        num_cpus=2,
        object_store_memory=100_000_000,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=str(logs),
    )
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Noise of many widths as PNG, some with a red patch, one damaged, in two classes; width = 64 + row."""
    draw, rows = np.random.default_rng(0), []
    for index in range(ROWS):
        pixels = draw.integers(0, 250, (48, 64 + index, 3), dtype=np.uint8)
        pixels[10:20, 20:40] = (255, 0, 0) if index % 3 else (0, 0, 0)
        buffer = io.BytesIO()
        PillowImage.fromarray(pixels).save(buffer, "PNG")
        content = buffer.getvalue()[: 500 if index == 11 else None]
        rows.append({"bytes": content, "path": f"{SECRET_NAME}_{index}.png"})
    columns = {"image": rows, "label": [index % 2 for index in range(ROWS)], "number": list(range(ROWS))}
    features = Features(
        {"image": Image(decode=False), "label": ClassLabel(names=["market", SECRET_CLASS])}
        | {"number": Dataset.from_dict({"x": [1]}).features["x"]}
    )
    path = tmp_path_factory.mktemp("source") / "photographs.parquet"
    Dataset.from_dict(columns, features=features).to_parquet(str(path))
    return path


def job(**detectors):
    return Anonymizer(
        inspect=Inspect(detectors={"red": RedFinder(text=SECRET_TEXT), **detectors}),
        edit=Edit(editor=Painter(), min_dilate=3, dilate=0),
        verify=Verify(face_embedder=None),
    )


@pytest.fixture(scope="module")
def plain(source, tmp_path_factory):
    """The runner's own output and summary."""
    out = tmp_path_factory.mktemp("plain") / "safe"
    return out, run(open_source(str(source)), job(), out, SHARD, BATCH)


def shards(out):
    return {path.name: path.read_bytes() for path in (out / "data").glob("[!.]*")}


def test_the_bytes_of_the_runner_though_an_actor_is_killed(ray, source, plain, tmp_path):
    killer = Killer(width=64 + 21, mark=str(tmp_path / "died"))  # in the middle of the third shard
    told, pool = [], Pool(least=1, most=2)
    opened, out = open_source(str(source)), tmp_path / "safe"
    summary = run_on_ray(opened, job(killer=killer), out, SHARD, BATCH, told.append, pool=pool)
    assert (tmp_path / "died").exists()
    assert shards(out) == shards(plain[0])
    assert list((out / "data").glob(".*")) == []  # what the dead one had begun is gone
    assert (summary.rows, summary.statuses) == (ROWS, plain[1].statuses)
    assert summary.reasons == plain[1].reasons
    assert summary.shards == 5
    assert sum(told) == ROWS
    assert set(summary.seconds) == set(plain[1].seconds)
    assert ray.is_initialized()  # a connection that was open stays open
    sorted((out / "data").glob("[!.]*"))[2].unlink()
    assert run(opened, job(killer=killer), out, SHARD, BATCH).shards_skipped == 4
    assert shards(out) == shards(plain[0])


def test_an_image_that_always_kills_ends_the_run_and_the_rest_is_kept(ray, source, plain, tmp_path):
    out, opened = tmp_path / "safe", open_source(str(source))
    with pytest.raises(UsageError, match=r"a worker failed \(Actor.*same command") as caught:
        run_on_ray(opened, job(killer=Killer(width=64 + 39)), out, SHARD, BATCH, pool=Pool(deaths=0))
    assert SECRET_NAME not in str(caught.value)
    kept = shards(out)
    assert kept == {name: content for name, content in shards(plain[0]).items() if name in kept}
    assert 0 < len(kept) < 5


def test_either_finishes_what_the_other_began(ray, source, plain, tmp_path):
    out, opened = tmp_path / "safe", open_source(str(source))
    run(opened, job(), out, SHARD, BATCH)
    files = sorted((out / "data").glob("[!.]*"))
    files[1].unlink()
    files[3].write_bytes(files[3].read_bytes()[:100])
    kept = files[0].stat().st_mtime_ns
    summary = run_on_ray(opened, job(), out, SHARD, BATCH)
    assert (summary.shards, summary.shards_skipped) == (5, 3)
    assert shards(out) == shards(plain[0])
    assert files[0].stat().st_mtime_ns == kept
    start = time.perf_counter()
    assert run_on_ray(opened, job(), out, SHARD).shards_skipped == 5
    assert time.perf_counter() - start < 1  # nothing waits, so no actor starts
    with pytest.raises(UsageError, match="another run"):
        run_on_ray(opened, job(killer=Killer(width=1)), out, SHARD)


def test_a_missing_model_on_a_worker_is_told_as_ours(ray, source, tmp_path):
    with pytest.raises(SetupError, match=r"^the absent model is missing$"):
        run_on_ray(open_source(str(source)), job(absent=Absent()), tmp_path / "safe", SHARD)


def test_the_plain_composition_gives_the_same_rows(ray, source, plain):
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    data = ray.data.read_parquet(str(source)).map_batches(
        RayTransform,
        fn_constructor_args=[job(), open_source(str(source)).splits["train"].features],
        batch_format="pyarrow",
        batch_size=7,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    rows = data.drop_columns(["image"]).take_all()
    assert rows == pq.read_table(plain[0] / "data").to_pylist()


def test_steps_can_be_composed_one_by_one(source, plain):
    table = pq.read_table(source)
    features = open_source(str(source)).splits["train"].features
    for step in job().steps:
        table = RayTransform(step, features)(table)
    assert table.drop_columns(["image"]).to_pylist() == pq.read_table(plain[0] / "data").to_pylist()
    with pytest.raises(UsageError, match="Caption needs the columns"):
        RayTransform(job().steps[1])(table.select(["label"]))


def test_a_stream_is_refused(source, tmp_path):
    stream = Dataset.from_parquet(str(source)).cast_column("image", Image(decode=False)).to_iterable_dataset()
    with pytest.raises(UsageError, match="this one is streamed"):
        run_on_ray(source_of(stream), job(), tmp_path / "safe")


def test_the_pool_must_make_sense():
    with pytest.raises(UsageError, match="got 3 to 2"):
        Pool(least=3, most=2)


def test_the_command(ray, source, tmp_path):
    off = [f"inspect.detectors.{name}=null" for name in ("faces", "text", "codes")]
    sets = [word for setting in [*off, "verify.face_embedder=null"] for word in ("--set", setting)]
    command = ["anonymize", str(source), "--out", str(tmp_path / "safe"), *sets]
    result = CliRunner().invoke(app, [*command, "--ray", "local", "--ray-actors", "1:2", "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout.splitlines()[-1])
    assert (told["rows"], told["shards"], told["statuses"]["withheld"]) == (ROWS, 1, 1)
    for wrong in (["--ray-actors", "two"], ["--num-processes", "2"], ["--one-step-at-a-time"]):
        result = CliRunner().invoke(app, [*command, "--ray", "local", *wrong])
        assert result.exit_code == 2
        assert "--ray" in result.output


def test_no_private_word_is_in_the_logs(ray):
    """Last: after all the runs above, in the logs of every worker and of Ray Data."""
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    files = [path for path in session.rglob("*") if path.is_file()]
    assert any("ray-data" in str(path) for path in files)
    assert any(path.name.startswith("worker-") for path in files)
    for path in files:
        content = path.read_bytes()
        for word in (SECRET_NAME, SECRET_CLASS, SECRET_TEXT):
            assert word.encode() not in content, path.name
