"""The modules as `evaluate` loads and calls them: by folder, by cached name, in two processes, with bad input."""

import doctest
import importlib.util
import json
import math
import os
import runpy
import subprocess
import sys
import tracemalloc
from pathlib import Path

import evaluate
import numpy as np
import pytest
import skimage.data
import tiny_clip
import transformers
from PIL import Image

from u2s_datasets.errors import SetupError, UsageError
from u2s_datasets.evaluation import spaces
from u2s_datasets.evaluation.module import build
from u2s_datasets.evaluation.reduce import reduce
from u2s_datasets.schema import PRIVACY_SCORES, SCORE_COLUMNS, SCORES, features
from u2s_datasets.transforms.score import COLUMNS, Score

pytestmark = pytest.mark.models

ROOT = Path(__file__).parents[1]
NAMES = ("quality", "cheating", "privacy", "utility")
PAIRS = ("ssim", "copy_rate")


@pytest.fixture(autouse=True)
def _own_modules(tmp_path, monkeypatch):
    """Modules and data of `evaluate` in a folder of the test's own."""
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", tmp_path / "modules")
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    monkeypatch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in [name for name in sys.modules if name.startswith("evaluate_modules")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return {"model": str(tiny_clip.save(tmp_path_factory.mktemp("clip")))}


@pytest.fixture(scope="module")
def images():
    """Parts of photographs without faces or text: quick, and each unlike the others."""
    coffee, cat = skimage.data.coffee(), skimage.data.chelsea()
    return [np.ascontiguousarray(p[y : y + 64, y : y + 96]) for p in (coffee, cat) for y in (0, 70, 140, 200)]


def edited(images):
    return [
        np.clip(image + np.int16(9 * index), 0, 255).astype(np.uint8) for index, image in enumerate(images)
    ]


def load(name, **options):
    return evaluate.load(str(ROOT / "metrics" / name), **options)


@pytest.mark.parametrize("name", NAMES)
def test_each_module_loads_from_its_folder_and_describes_itself(name):
    module = load(name)
    assert module.name == name
    assert "dinh2026" in module.citation
    assert module.inputs_description


def test_identical_images_have_the_best_likeness(images, clip):
    cheating, quality = load("cheating"), load("quality")
    same = {"predictions": images, "references": images}
    found = cheating.compute(**same, scores=["ssim", "copy_rate", "clip_image_similarity"], clip=clip)
    assert found["ssim"] == found["copy_rate"] == 1
    assert found["clip_image_similarity"] == pytest.approx(1, abs=1e-6)
    ratio = quality.compute(
        **same, captions=["a cup"] * 8, source_captions=["a cat"] * 8, clip=clip,
        scores=["clip_score", "clip_ratio", "directional_clip"],
    )  # fmt: skip
    assert ratio["clip_ratio"] == pytest.approx(1, abs=1e-6) or ratio["clip_ratio_n"] == 0
    assert math.isnan(ratio["directional_clip"])
    assert ratio["directional_clip_n"] == 0


def test_clip_scores_are_those_of_the_model(images, clip):
    """Against the tiny model called here by hand."""
    before, after = images[:3], edited(images)[3:6]
    public, private = (
        ["a cup of coffee", "a cat", "a table"],
        ["Maria's cup", "my cat Tom", "27 Harbour Lane"],
    )
    processor = transformers.AutoProcessor.from_pretrained(clip["model"])
    model = transformers.CLIPModel.from_pretrained(clip["model"]).eval()

    def embed(pictures=None, texts=None):
        if pictures is not None:
            inputs = processor.image_processor(
                images=[Image.fromarray(p) for p in pictures], return_tensors="pt"
            )
            out = model.get_image_features(**inputs).pooler_output
        else:
            out = model.get_text_features(
                **processor.tokenizer(texts, padding=True, return_tensors="pt")
            ).pooler_output
        table = out.detach().numpy().astype(np.float64)
        return table / np.linalg.norm(table, axis=1, keepdims=True)

    b, a, p, s = embed(before), embed(after), embed(texts=public), embed(texts=private)
    found = load("quality").compute(
        predictions=after, references=before, captions=public, source_captions=private, clip=clip,
        scores=["clip_score", "directional_clip"],
    )  # fmt: skip
    cosines = (a * p).sum(axis=1)
    assert found["clip_score"] == pytest.approx(np.mean(np.maximum(0, 100 * cosines)), abs=1e-4)
    change, text = a - b, p - s
    expected = (change * text).sum(1) / np.linalg.norm(change, axis=1) / np.linalg.norm(text, axis=1)
    assert found["directional_clip"] == pytest.approx(expected.mean(), abs=1e-4)


def test_fid_and_kid_over_clip_features(images, clip):
    quality = load("quality")
    options = {"features_of": {"kind": "clip", **clip}, "scores": ["fid", "kid"]}
    same = quality.compute(predictions=images, references=images, **options)
    other = quality.compute(predictions=edited(images), references=images, **options)
    assert same["fid"] == pytest.approx(0, abs=1e-6)
    assert other["fid"] > same["fid"]
    assert same["fid_n"] == same["kid_n"] == 8


def test_add_batch_compute_batch_size_and_order_agree(images):
    cheating, after = load("cheating", scores=PAIRS), edited(images)
    whole = cheating.compute(predictions=after, references=images, confidence=0.9)
    for size in (1, 3):
        assert (
            cheating.compute(predictions=after, references=images, batch_size=size, confidence=0.9) == whole
        )
    for start in (0, 5):
        part = slice(start, 5 if start == 0 else None)
        cheating.add_batch(predictions=after[part], references=images[part])
    assert cheating.compute(confidence=0.9) == whole
    for a, b in zip(after[::-1], images[::-1], strict=True):
        cheating.add(prediction=a, reference=b)
    assert cheating.compute(confidence=0.9) == whole
    assert 0 < whole["ssim"] < 1
    assert whole["ssim_n"] == 8


def test_the_columns_of_score_reduce_to_the_same(images):
    after = edited(images)
    rows = Score(scores=PAIRS)({"image": images, "edited_image": after})
    cheating = load("cheating", scores=PAIRS)
    from_images = cheating.compute(predictions=after, references=images)
    assert cheating.compute(predictions=rows["cheating_scores"]) == from_images


def test_score_runs_under_map(images, encode):
    from datasets import Dataset, Image

    score, after = Score(scores=PAIRS), edited(images)
    columns = {"image": [encode(i, "PNG") for i in images], "edited_image": [encode(i, "PNG") for i in after]}
    columns["image"][2], columns["edited_image"][4] = b"broken", None
    data = Dataset.from_dict({k: [v and {"bytes": v} for v in vs] for k, vs in columns.items()})
    data = data.cast_column("image", Image()).cast_column("edited_image", Image())
    one = data.map(score)
    many = data.map(score, batched=True, batch_size=3, num_proc=2, features=score.features(data.features))
    assert many["cheating_scores"] == one["cheating_scores"]
    assert one.features == many.features == score.features(data.features)
    found = reduce("cheating", one["cheating_scores"], PAIRS)
    assert (found["rows"], found["rows_without_pair"], found["ssim_n"]) == (8, 2, 6)


def test_two_processes_share_the_work(images, tmp_path):
    after = edited(images)
    code = """
import sys, numpy as np, evaluate, json
rank, folder = int(sys.argv[1]), sys.argv[2]
data = np.load(folder + "/pairs.npz")
half = slice(0, 5) if rank == 0 else slice(5, None)
metric = evaluate.load(sys.argv[3], num_process=2, process_id=rank, experiment_id="two", cache_dir=folder, scores=["ssim"])
metric.add_batch(predictions=list(data["after"][half]), references=list(data["before"][half]))
print(json.dumps(metric.compute(confidence=0.9)))
"""
    np.savez(tmp_path / "pairs.npz", after=after, before=images)
    env = {
        **os.environ,
        "HF_EVALUATE_OFFLINE": "1",
        "HF_MODULES_CACHE": str(tmp_path / "two"),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", code]
    ranks = [
        subprocess.Popen([*command, str(r), str(tmp_path), str(ROOT / "metrics/cheating")], stdout=subprocess.PIPE, env=env)
        for r in range(2)
    ]  # fmt: skip
    said = [json.loads(rank.communicate(timeout=100)[0].splitlines()[-1]) for rank in ranks]
    assert said[1] is None
    assert said[0] == load("cheating", scores=["ssim"]).compute(
        predictions=after, references=images, confidence=0.9
    )


def test_bad_images_are_counted_and_bad_requests_are_one_error(images):
    cheating = load("cheating")
    broken = [images[0], None, b"no image", images[3][:32], images[4]]
    found = cheating.compute(predictions=broken, references=images[:5], scores=PAIRS)
    assert (found["rows"], found["rows_without_pair"], found["ssim_n"], found["copy_rate_n"]) == (5, 2, 2, 2)
    for message, bad in {
        "lengths differ": {"predictions": images, "references": images[:3]},
        "lengths differ .*captions": {"predictions": images, "references": images, "captions": ["one"]},
        "no pairs": {"predictions": [], "references": []},
        "give predictions": {"references": images},
        "unknown score 'sharpness'": {"predictions": images, "references": images, "scores": ["sharpness"]},
        "unknown setting lpipz": {"predictions": images, "references": images, "lpipz": {}},
        "risks: give these to add_batch": {"risks": []},
    }.items():
        with pytest.raises(UsageError, match=message):
            cheating.compute(**bad)
    with pytest.raises(ValueError, match="between 0 and 1"):
        cheating.compute(predictions=images, references=images, confidence=95)
    cheating.add_batch(predictions=images[:1], references=images[:1], scores=["ssim"])
    with pytest.raises(UsageError, match="lpips was not computed"):
        cheating.compute(scores=["lpips"])
    assert cheating.compute(scores=["ssim"])["ssim_n"] == 1


def test_a_missing_model_is_named_with_the_score_and_the_install_line(images):
    privacy = load("privacy")
    pairs = {"predictions": images[:1], "references": images[:1]}
    for score in ("vlm_score", "race_entropy"):
        with pytest.raises(SetupError, match=rf"{score} needs .*\n.*pip install 'u2s-datasets\[vlm\]'"):
            privacy.compute(**pairs, scores=[score])
    with pytest.raises(SetupError, match=r"clip_score: the CLIP model .* can't be loaded"):
        load("quality").compute(
            **pairs, captions=["a cup"], scores=["clip_score"], clip={"model": "no/where"}
        )
    for package, options in {
        "lpips": ("cheating", ["lpips"], {}),
        "torch_fidelity": ("quality", ["fid"], {}),
        "uniface": ("privacy", ["face_similarity"], {"face_embedder": {"kind": "arcface"}}),
    }.items():
        name, scores, settings = options
        if not _installed(package):
            image = [skimage.data.astronaut()]
            with pytest.raises(SetupError, match=rf"{scores[0]}: .* is not installed.*\n.*pip install"):
                load(name).compute(predictions=image, references=image, scores=scores, **settings)


def _installed(package):
    return importlib.util.find_spec(package) is not None


def test_given_groups_stand_for_a_chat_model(images):
    found = load("privacy").compute(
        predictions=images[:2],
        references=images[:2],
        groups=[["white", "Asian"], ["martian"]],
        scores=["race_entropy"],
    )
    assert found["race_entropy"] == pytest.approx(math.log(2) / math.log(5))
    assert found["race_entropy_n"] == 2


def test_chat_models_judge_read_and_tell(images):
    from test_metrics_photographs import Sayer

    said = {
        "original": '{"score": 80}',
        "writing": '{"lines": ["Harbour Lane"]}',
        "Groups": '{"people": ["Asian", "Other"]}',
    }
    wanted = ["vlm_score", "race_entropy", "text_similarity", "words_left_rate"]
    found = load("privacy").compute(
        predictions=images[:2], references=images[1:3], scores=wanted, chat=Sayer(says=said), reader="chat"
    )
    assert found["vlm_score"] == 80
    assert found["text_similarity"] == found["words_left_rate"] == 1
    assert (found["words_left_rate_n"], found["race_entropy_n"]) == (4, 4)
    unclear = Sayer(says={"original": '{"score": 800}', "writing": "no", "Groups": "{}"})
    found = load("privacy").compute(
        predictions=images[:2], references=images[1:3], scores=wanted, chat=unclear, reader="chat"
    )
    assert all(found[f"{score}_n"] == 0 and math.isnan(found[score]) for score in wanted)


def test_settings_reach_the_models():
    score = build(
        ["ssim"],
        {"faces": {"size": 640}, "limits": {"min_change": 0.5}, "face_embedder": {"kind": "arcface"}},
    )
    assert (score.faces.size, score.limits.min_change, score.face_embedder.kind) == (640, 0.5, "arcface")
    with pytest.raises(UsageError, match=r"faces\.sise"):
        build(["ssim"], {"faces": {"sise": 640}})


def test_ten_thousand_rows_cost_no_more_memory_than_a_thousand(tmp_path):
    """Rows are read from the file of `evaluate` in slices; a row here is 16 kB of features."""
    quality = load("quality", scores=["clip_score"])
    peaks = []
    for count in (1000, 10_000):
        row = {"caption_similarity": 0.2, "caption_similarity_before": 0.1}
        for _ in range(0, count, 500):
            noise = os.urandom(8192)
            quality.add_batch(
                predictions=[{**row, "features": noise + bytes([i % 250] * 8)} for i in range(500)]
            )
        tracemalloc.start()
        found = quality.compute()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found["clip_score_n"] == count
    assert peaks[1] < peaks[0] + 8 * 2**20, peaks


def test_install_makes_the_names_load_offline(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert spaces.install() == [f"u2s/{name}: installed" for name in NAMES]
    assert spaces.install() == [f"u2s/{name}: already there" for name in NAMES]
    row = {"words": 4, "words_left": 1}
    found = evaluate.load("u2s/privacy").compute(predictions=[row], scores=["words_left_rate"])
    assert found["words_left_rate"] == 0.25
    assert evaluate.load("u2s/utility").compute(predictions=[1], references=[1])["top1_accuracy"] == 1


def test_another_file_under_our_name_is_reported_and_stays(tmp_path):
    spaces.install()
    cache = tmp_path / "modules" / "evaluate_modules" / "metrics" / "u2s--privacy"
    stranger = cache / ("a" * 64) / "privacy.py"
    stranger.parent.mkdir()
    stranger.write_text("import evaluate\n")
    with pytest.raises(UsageError, match=r"other modules under our names: u2s/privacy.*--replace"):
        spaces.install()
    assert stranger.exists()
    spaces.install(replace=True)
    assert not stranger.exists()
    mine = next(cache.glob("*/privacy.py"))
    mine.write_text(mine.read_text() + "# changed\n")
    with pytest.raises(UsageError, match="u2s/privacy"):
        spaces.install()
    spaces.install(replace=True)
    assert "# changed" not in next(cache.glob("*/privacy.py")).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_examples_in_the_modules_run(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location(name, ROOT / "metrics" / name / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    done = doctest.testmod(module)
    assert done.attempted >= 3
    assert done.failed == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_space_is_complete(name):
    """Front matter of a Space, every score in the card, requirements, and an app that scores."""
    import yaml

    folder = ROOT / "metrics" / name
    card = (folder / "README.md").read_text("utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    assert (head["sdk"], head["app_file"]) == ("gradio", "app.py")
    assert {"evaluate", "metric"} <= set(head["tags"])
    for score in SCORES[name]:
        assert f"`{score}`" in card, score
    for heading in ("## How to use", "## Inputs", "## Outputs", "## Limits", "## Citation"):
        assert heading in card
    assert "u2s-datasets" in (folder / "requirements.txt").read_text()
    space = runpy.run_path(str(folder / "app.py"), run_name="app")
    pair = (
        ("a cat\na dog", "a cat\na cow")
        if name == "utility"
        else (skimage.data.coffee()[:99], skimage.data.coffee()[:99])
    )
    if name == "quality":
        return  # its scores need weights of a CLIP model
    found = space["score"](*pair)
    assert json.loads(found)["rows"] >= 1


def test_the_struct_of_a_column_has_every_field():
    for column, fields in SCORE_COLUMNS.items():
        assert list(features(column)[column]) == list(fields)
    assert set(COLUMNS.values()) == set(SCORE_COLUMNS)
    assert PRIVACY_SCORES in COLUMNS.values()


@pytest.fixture
def push(tmp_path):
    """Runs `u2s metrics push` against a server, as a command of its own: the address is read at import."""
    import space_server

    servers = []

    def _push(namespace="me", **options):
        servers.append(space_server.HubServer(**options))
        env = {
            **os.environ,
            "HF_ENDPOINT": servers[-1].url,
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_secretsecret",
        }
        env |= {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_TELEMETRY": "1"}
        command = [sys.executable, "-m", "u2s_datasets.cli", "metrics", "push", "--namespace", namespace]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100, check=False)
        return servers[-1], done

    yield _push
    for server in servers:
        server.close()


def test_push_sends_the_spaces_to_the_endpoint_and_prints_no_token(push):
    server, done = push()
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"{server.url}/spaces/me/{name}" for name in NAMES]
    assert "hf_secretsecret" not in done.stdout + done.stderr
    assert server.tokens == {"Bearer hf_secretsecret"}
    assert {made["sdk"] for made in server.made} == {"gradio"}
    for name in NAMES:
        folder = ROOT / "metrics" / name
        sent = server.files[f"me/{name}"]
        assert sent[f"{name}.py"] == (folder / f"{name}.py").read_bytes()
        assert {"README.md", "requirements.txt", "app.py"} <= set(sent)
        assert not [path for path in sent if "__pycache__" in path]


def test_a_refused_push_is_one_line(push):
    _, done = push(refuses=True)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1] == "u2s: the Hub refused me/quality: status 403"
    assert "hf_secretsecret" not in done.stderr
