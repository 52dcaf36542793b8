"""A run as a program of its own, for tests that kill it: `python driver.py SOURCE OUT [PROCESSES [BATCH [SECONDS [HOW]]]]`."""

import os
import sys
import time
from pathlib import Path
from typing import Literal

import typer
from fakes import Painter, RedFinder
from pydantic.dataclasses import dataclass

from u2s_datasets.models.base import SETTINGS

HERE = Path(__file__).parent
# What a rank needs to find the fakes.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
    "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}
SHARD_SIZE = 4


def command(*arguments) -> list[str]:
    return [sys.executable, str(HERE / "driver.py"), *map(str, arguments)]


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class SlowRedFinder(RedFinder):
    """Takes its time for each picture, as a model does; `does` what happens at the picture of a given shade."""

    kind: Literal["red"] = "red"
    does: str = ""

    def detect(self, images, areas=None):
        for image in images:
            time.sleep(float(os.environ.get("SLOW", "0")))
            if self.does and image[0, 0, 1] == int(self.does.split()[1]):
                misbehave(self.does.split()[0])
        return super().detect(images, areas)


def misbehave(how: str) -> None:
    from u2s_datasets.errors import SetupError

    if how == "abort":
        os.abort()
    if how == "exit":
        os._exit(7)
    if how == "fail":
        raise RuntimeError("private words")
    raise SetupError("the model is not there")


def anonymizer(does: str = ""):
    from u2s_datasets import Anonymizer, Edit, Inspect, Verify
    from u2s_datasets.transforms.checks import Limits

    return Anonymizer(
        inspect=Inspect(detectors={"red": SlowRedFinder(does=does)}),
        edit=Edit(editor=Painter(works_from=1)),
        verify=Verify(face_embedder=None, detectors={"red": RedFinder()}, limits=Limits(min_change=0.2)),
    )


def write_source(file: Path, rows: int) -> Path:
    """Small pictures with a number each; every third has no red patch."""
    from datasets import Dataset, Features, Image, Value
    from report_runs import drawn, encoded

    features = Features({"image": Image(), "id": Value("int64")})
    images = [{"bytes": encoded(drawn(row, red=row % 3 != 0)), "path": None} for row in range(rows)]
    Dataset.from_dict({"image": images, "id": list(range(rows))}, features=features).to_parquet(file)
    return file


def main() -> None:
    from u2s_datasets.cli.common import errors, run_job
    from u2s_datasets.run.source import open_source

    source, out, *rest = sys.argv[1:]
    processes, batch, seconds, does, *how = [*rest, *["1", "3", "0", "", ""][len(rest) :]]
    os.environ["SLOW"] = seconds
    options = dict.fromkeys(filter(None, how), True)
    try:
        with errors():
            job = anonymizer(does)
            run_job(open_source(source), job, out, int(processes), SHARD_SIZE, int(batch), **options)
    except typer.Exit as end:
        sys.exit(end.exit_code)


if __name__ == "__main__":
    # A rank has to find this class by a name that it can import.
    import driver

    driver.main()
