"""LPIPS, FID and KID for real, with random backbones: the arithmetic is compared, not the weights."""

import numpy as np
import pytest
import skimage.data

# The two libraries warn of their own: old arguments of torchvision, features kept in memory.
pytestmark = [pytest.mark.full, pytest.mark.filterwarnings("ignore::UserWarning")]

torch = pytest.importorskip("torch")
lpips = pytest.importorskip("lpips")
torchvision = pytest.importorskip("torchvision")
torch_fidelity = pytest.importorskip("torch_fidelity")
fid_module = pytest.importorskip("torchmetrics.image.fid")
kid_module = pytest.importorskip("torchmetrics.image.kid")

from u2s_datasets.evaluation.reduce import reduce  # noqa: E402
from u2s_datasets.models.perceptual import Inception, Lpips  # noqa: E402
from u2s_datasets.transforms.score import Score  # noqa: E402


@pytest.fixture(scope="module")
def images():
    coffee, cat = skimage.data.coffee(), skimage.data.chelsea()
    return [np.ascontiguousarray(p[y : y + 72, y : y + 96]) for p in (coffee, cat) for y in range(0, 200, 25)]


@pytest.fixture(scope="module")
def edited(images):
    draw = np.random.default_rng(0)
    return [np.clip(i + draw.normal(0, 25, i.shape), 0, 255).astype(np.uint8) for i in images]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """AlexNet's convolutions with random weights, as torchvision saves them."""
    torch.manual_seed(0)
    network = torchvision.models.alexnet(weights=None)
    path = tmp_path_factory.mktemp("weights") / "alex.pt"
    torch.save({k: v for k, v in network.state_dict().items() if k.startswith("features.")}, path)
    return path, network


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """torch-fidelity's extractor with random weights, saved as it reads them."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "inception.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.save({}, path)
        network = module.FeatureExtractorInceptionV3("inception", ["64"], str(path))
    torch.save(network.state_dict(), path)
    return path


def test_lpips_is_that_of_the_package(images, edited, backbone):
    path, network = backbone
    model = Lpips(net="alex", weights=str(path))
    reference = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    for name, part in reference.net.named_parameters():
        part.data = network.state_dict()["features." + name.split(".", 1)[1]]

    def tensor(image):
        return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1

    with torch.no_grad():
        expected = [reference(tensor(a), tensor(b)).item() for a, b in zip(images, edited, strict=True)]
    rows = Score(scores=("lpips",), lpips=model)({"image": images, "edited_image": edited})["cheating_scores"]
    assert [row["lpips"] for row in rows] == pytest.approx(expected, abs=1e-6)
    found = reduce("cheating", rows, ["lpips"])
    assert found["lpips"] == pytest.approx(np.mean(expected), abs=1e-6)
    same = Score(scores=("lpips",), lpips=model)({"image": images, "edited_image": images})
    assert reduce("cheating", same["cheating_scores"], ["lpips"])["lpips"] == 0


def test_lpips_leaves_pairs_of_two_sizes_undefined(images, backbone):
    score = Score(scores=("lpips",), lpips=Lpips(net="alex", weights=str(backbone[0])))
    rows = score({"image": images[:2], "edited_image": [images[0][:64], images[1]]})["cheating_scores"]
    assert [row["lpips"] for row in rows] == [None, 0]


def test_fid_and_kid_are_those_of_torchmetrics(images, edited, inception):
    model = Inception(layer="64", weights=str(inception))
    score = Score(scores=("fid", "kid"), features_of=model)
    rows = score({"image": images, "edited_image": edited})["quality_scores"]
    found = reduce("quality", rows, ["fid", "kid"])
    small = [np.stack([model._resized(i).numpy() for i in some]) for some in (images, edited)]

    class Extractor(torch.nn.Module):
        num_features = 64

        def forward(self, batch):
            return model.loaded(batch)[0]

    fid = fid_module.FrechetInceptionDistance(Extractor(), input_img_size=(3, 299, 299)).set_dtype(
        torch.float64
    )
    kid = kid_module.KernelInceptionDistance(Extractor(), subsets=1, subset_size=len(images))
    for metric in (fid, kid):
        metric.update(torch.from_numpy(small[0]), real=True)
        metric.update(torch.from_numpy(small[1]), real=False)
    assert found["fid"] == pytest.approx(fid.compute().item(), rel=1e-4, abs=1e-6)
    assert found["kid"] == pytest.approx(kid.compute()[0].item(), rel=1e-4, abs=1e-6)
    assert found["fid"] > 0
    assert found["fid_n"] == found["kid_n"] == len(images)


def test_bleu_and_cider_are_those_of_pycocoevalcap():
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu")
    cider = pytest.importorskip("pycocoevalcap.cider.cider")
    from test_metrics_formulas import CANDIDATES, REFERENCES

    from u2s_datasets.evaluation.captions import tokenize
    from u2s_datasets.evaluation.utility import utility

    theirs = [
        {i: [" ".join(tokenize(text)) for text in some] for i, some in enumerate(rows)}
        for rows in (REFERENCES, [[text] for text in CANDIDATES])
    ]
    found = utility(CANDIDATES, REFERENCES, ["bleu4", "cider"])
    assert found["bleu4"] == pytest.approx(bleu.Bleu(4).compute_score(*theirs, verbose=0)[0][3], abs=1e-6)
    assert found["cider"] == pytest.approx(cider.Cider().compute_score(*theirs)[0], abs=1e-6)
