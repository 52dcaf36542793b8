"""Settings: merged, validated, and explained when they are wrong."""

import dataclasses
import pickle

import pytest
import yaml
from datasets.fingerprint import Hasher

from u2s_datasets import Anonymizer, load_preset
from u2s_datasets.config import SettingsError, differences, preset_names
from u2s_datasets.models.faces import CenterFace
from u2s_datasets.transforms.anonymize import build


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_its_settings_round_trip(name):
    anonymizer = load_preset(name)
    settings = anonymizer.settings()
    assert build(yaml.safe_load(yaml.safe_dump(settings))) == anonymizer


def test_overrides_reach_nested_settings_and_keep_their_neighbours():
    anonymizer = load_preset(
        "local", ["inspect.detectors.faces.size=640", "inspect.detectors.text=null", "seed=7"]
    )
    assert anonymizer.inspect.detectors["faces"] == CenterFace(size=640)
    assert anonymizer.inspect.detectors["text"] is None
    assert {step.seed for step in anonymizer.steps} == {7}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("edit.dilat=0.3", "unknown setting 'edit.dilat'; did you mean 'edit.dilate'"),
        ("inspect.detectors.faces.sze=3", "unknown setting 'inspect.detectors.faces.sze'; did you mean"),
        ("edit.dilate=wide", "setting 'edit.dilate': Input should be a valid number.*'wide'"),
        ("edit.editor.cells=99", "setting 'edit.editor.cells': .*less than or equal to 8"),
        ("edit.seed=3", "set 'seed' once"),
        ("inspect.unsafe=[faces]", "unknown finding.*known: face, text, code, metadata"),
        ("edit.dilate", "--set takes key=value"),
        ("edit.dilate=[", "not YAML"),
    ],
)
def test_a_wrong_setting_is_named(override, message):
    with pytest.raises(SettingsError, match=message):
        load_preset("local", [override])


def test_an_unknown_preset_names_the_nearest(tmp_path):
    with pytest.raises(SettingsError, match="did you mean 'local'"):
        load_preset("loacl")
    own = tmp_path / "mine.yaml"
    own.write_text("edit: {dilate: 0.5}\n")
    assert load_preset(str(own)).edit.dilate == 0.5
    own.write_text("- a list\n")
    with pytest.raises(SettingsError, match="must be a mapping"):
        load_preset(str(own))


def test_differences_name_each_changed_setting():
    before, after = load_preset("local").settings(), load_preset("local", ["seed=1"]).settings()
    assert differences(before, after) == ["seed: 42 -> 1"]


def test_the_state_is_the_settings_and_the_version():
    adapter = CenterFace()
    before = Hasher.hash(adapter)
    adapter.loaded
    assert Hasher.hash(adapter) == before
    assert adapter.__getstate__() == {**dataclasses.asdict(adapter), "version": CenterFace.version}
    assert pickle.loads(pickle.dumps(adapter)) == adapter
    assert Hasher.hash(CenterFace(size=961)) != before


def test_the_hash_is_the_same_in_another_process_and_changes_with_a_setting_or_version(monkeypatch):
    import subprocess
    import sys

    code = "from datasets.fingerprint import Hasher; from u2s_datasets import anonymize; print(Hasher.hash(anonymize))"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
    anonymizer = load_preset("local")
    assert Hasher.hash(anonymizer) == other
    assert Hasher.hash(load_preset("local", ["seed=1"])) != other
    monkeypatch.setattr(CenterFace, "version", CenterFace.version + 1)
    assert Hasher.hash(anonymizer) != other


def test_steps_share_the_settings_of_the_whole():
    anonymizer = Anonymizer(seed=9, max_pixels=1000)
    *_, verify = anonymizer.steps
    assert verify.detectors == anonymizer.inspect.detectors
    assert verify.edit.seed == 9
    assert {step.max_pixels for step in anonymizer.steps} == {1000}
