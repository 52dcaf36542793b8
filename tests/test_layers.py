"""The architecture as a test: imports point down, files stay short, the package imports without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"errors", "schema", "config", "prompts"}
    | {"embedded", "jpeg_file", "image_metadata", "jpeg_coefficients", "jpeg_splice", "pillow"}
    | {"image_io", "image_limits"},
    {"models"},
    {"transforms"},
    {"run", "release", "report", "training", "evaluation", "doctor"},
    {"cli"},
]
HEAVY = {"torch", "transformers", "diffusers", "onnxruntime", "onnx", "cv2", "dlib", "rapidocr"}
# demo draws a QR code; doctor asks torch which devices there are.
HEAVY_ALLOWED = {"run/demo.py": {"cv2"}, "doctor.py": {"torch"}}
# A training loop is torch code. Nothing else imports these modules but the commands, inside their functions.
TRAINING_ALLOWED = {"torch", "diffusers"}
FILES = sorted((ROOT / "u2s_datasets").rglob("*.py"))


def layer(module: str) -> int:
    return next(index for index, names in enumerate(LAYERS) if module in names)


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append(node.module)
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_down_and_files_are_short(path):
    name = path.relative_to(ROOT / "u2s_datasets")
    assert len(path.read_text("utf-8").splitlines()) <= 350
    own = name.parts[0].removesuffix(".py")
    for module in imports(path):
        top, *rest = module.split(".")
        if top in HEAVY:
            allowed = TRAINING_ALLOWED if own == "training" else HEAVY_ALLOWED.get(name.as_posix(), ())
            assert own == "models" or top in allowed, f"{name} imports {top}"
        if top == "u2s_datasets" and rest and own != "__init__" and rest[0] != "__version__":
            assert layer(rest[0]) <= layer(own), f"{name} imports {module}"


def test_the_package_imports_without_torch_or_datasets():
    code = "import sys, u2s_datasets; print([m for m in ('torch', 'datasets', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_the_public_names():
    import u2s_datasets

    assert u2s_datasets.__all__ == [
        "Anonymizer",
        "Caption",
        "Edit",
        "Inspect",
        "Instruct",
        "Photo",
        "Score",
        "Transform",
        "Verify",
        "anonymize",
        "load_preset",
        "push_safe",
        "__version__",
    ]
    assert all(getattr(u2s_datasets, name) is not None for name in u2s_datasets.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        u2s_datasets.nothing
