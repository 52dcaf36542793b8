"""Safe Cross-Attention against a plain reference, silenced, in chunks, in half precision, saved and loaded."""

import math
import weakref

import diffusers
import pytest
import safetensors.torch
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from tiny_editors import WIDTH, tiny_unet
from torch.utils._python_dispatch import TorchDispatchMode

from u2s_datasets.errors import SetupError
from u2s_datasets.models.editors import safe_attention
from u2s_datasets.models.editors.safe_attention import PUBLIC, SafeCrossAttention, bytes_per_query

pytestmark = pytest.mark.models

CASES = {
    # heads, head width, rows, queries, edit tokens, public tokens, mask
    "same lengths": (2, 3, 2, 3, 5, 5, False),
    "longer edit": (3, 2, 1, 2, 7, 4, False),
    "longer public": (1, 5, 2, 3, 2, 6, False),
    "one token each": (2, 3, 1, 2, 1, 1, False),
    "masked": (2, 3, 2, 2, 5, 3, True),
}
BUDGETS = {"whole": 2**28, "some groups": 12_000, "some queries": 4_000, "one query": 1}


def layer(heads: int, width: int, **more) -> tuple[Attention, SafeCrossAttention]:
    torch.manual_seed(0)
    attn = Attention(6, cross_attention_dim=WIDTH, heads=heads, dim_head=width, **more).double()
    processor = SafeCrossAttention(attn).double()
    attn.set_processor(processor)
    for weights in attn.parameters():
        torch.nn.init.normal_(weights, std=0.7)
    return attn, processor


def softmax(scores: list) -> list:
    powers = [(score - max(scores)).exp() for score in scores]
    return [power / sum(powers) for power in powers]


def fused(edit: list, public: list, fusion) -> list:
    """Two convolutions of [edit ; public] with zeros around, written out; the last entries."""
    line, zero = [*edit, *public], torch.zeros((), dtype=torch.double)
    at = lambda values, j: values[j] if 0 <= j < len(values) else zero  # noqa: E731
    channels = []
    for c in range(16):
        values = []
        for j in range(len(line)):
            x = fusion.spread_bias[c] + sum(fusion.spread[c, 0, k] * at(line, j + k - 1) for k in range(3))
            values.append(x * 0.5 * (1 + torch.erf(x / math.sqrt(2))))
        channels.append(values)
    out = [
        fusion.gather_bias[0]
        + sum(fusion.gather[0, c, k] * at(channels[c], j + k - 1) for c in range(16) for k in range(3))
        for j in range(len(line))
    ]
    return softmax(out[-len(public) :])


def reference(attn, processor, image, edit, public, mask):
    """The formula of the module's docstring with a loop over rows, heads, queries and tokens, in float64."""
    rows = []
    width = attn.to_q.out_features // attn.heads
    for b in range(len(image)):
        queries = []
        for i in range(image.shape[1]):
            joined = []
            for h in range(attn.heads):
                part = slice(h * width, (h + 1) * width)
                q_e, q_p = (m.to_q.weight[part] @ image[b, i] for m in (attn, processor))
                scores_e = [q_e @ (attn.to_k.weight[part] @ token) / math.sqrt(width) for token in edit[b]]
                if mask is not None:
                    scores_e = [score + mask[b, 0, j] for j, score in enumerate(scores_e)]
                scores_p = [
                    q_p @ (processor.to_k.weight[part] @ token) / math.sqrt(width) for token in public[b]
                ]
                map_e = softmax(scores_e)
                map_p = fused(map_e, softmax(scores_p), processor.fusion)
                joined.append(
                    sum(a * (attn.to_v.weight[part] @ token) for a, token in zip(map_e, edit[b], strict=True))
                    + sum(
                        a * (processor.to_v.weight[part] @ token)
                        for a, token in zip(map_p, public[b], strict=True)
                    )
                )
            queries.append(attn.to_out[0].weight @ torch.cat(joined) + attn.to_out[0].bias)
        rows.append(torch.stack(queries))
    return torch.stack(rows)


def inputs(rows, queries, edit, public, masked):
    torch.manual_seed(1)
    image = torch.randn(rows, queries, 6, dtype=torch.double, requires_grad=True)
    texts = [torch.randn(rows, n, WIDTH, dtype=torch.double, requires_grad=True) for n in (edit, public)]
    mask = torch.where(torch.rand(rows, 1, edit) < 0.4, -10000.0, 0.0).double() if masked else None
    return image, *texts, mask


def run(attn, image, edit, public, mask=None):
    return attn(image, edit, attention_mask=mask, **{PUBLIC: public})


def error(value: torch.Tensor, truth: torch.Tensor) -> float:
    return float(((value - truth).norm() / truth.norm()).detach())


@pytest.fixture(scope="module")
def truths():
    """Values and gradients of the reference, computed once a case."""
    known = {}

    def truth(case):
        if case not in known:
            heads, width, *sizes = CASES[case]
            attn, processor = layer(heads, width)
            leaves = inputs(*sizes)
            value = reference(attn, processor, *leaves)
            wanted = [*leaves[:3], *attn.parameters()]
            slopes = torch.autograd.grad((value * torch.cos(value.detach())).sum(), wanted)
            known[case] = value.detach(), slopes
        return known[case]

    return truth


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_the_plain_loop(case, budget, truths, monkeypatch):
    monkeypatch.setattr(safe_attention, "BUDGET", BUDGETS[budget])
    heads, width, *sizes = CASES[case]
    attn, _ = layer(heads, width)
    leaves = inputs(*sizes)
    value = run(attn, *leaves)
    wanted = [*leaves[:3], *attn.parameters()]
    slopes = torch.autograd.grad((value * torch.cos(value.detach())).sum(), wanted)
    true_value, true_slopes = truths(case)
    assert error(value, true_value) < 1e-12
    for slope, true_slope in zip(slopes, true_slopes, strict=True):
        # Where a context has one token its softmax is 1, and no slope is left to be relative to.
        assert (slope - true_slope).norm() <= 1e-10 * true_slope.norm() + 1e-13
    with torch.no_grad():
        assert error(run(attn, *leaves), true_value) < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_float32_stays_within_a_hundred_thousandth(case, truths):
    heads, width, *sizes = CASES[case]
    attn, _ = layer(heads, width)
    attn.float()
    leaves = [None if one is None else one.detach().float() for one in inputs(*sizes)]
    for leaf in leaves[:3]:
        leaf.requires_grad_()
    value = run(attn, *leaves)
    true_value, true_slopes = truths(case)
    assert error(value, true_value) < 1e-5
    wanted = [*leaves[:3], *attn.parameters()]
    slopes = torch.autograd.grad((value * torch.cos(true_value).float()).sum(), wanted)
    together = [torch.cat([slope.flatten().double() for slope in both]) for both in (slopes, true_slopes)]
    assert error(*together) < 1e-5


def test_the_budget_decides_how_many_chunks_there_are(monkeypatch):
    attn, processor = layer(2, 4)
    leaves = inputs(2, 5, 7, 7, False)
    seen = []
    processor.fusion.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape[:2])))
    with torch.no_grad():
        run(attn, *leaves)
        assert seen == [(4, 5)]
        seen.clear()
        monkeypatch.setattr(safe_attention, "BUDGET", 3 * bytes_per_query(7, 7, 8))
        run(attn, *leaves)
    assert seen == [(1, 3), (1, 2)] * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("upcast", [False, True])
def test_half_precision_comes_close_and_keeps_its_dtype(dtype, upcast):
    attn, _ = layer(2, 4, upcast_attention=upcast, upcast_softmax=upcast)
    leaves = [leaf.detach() for leaf in inputs(2, 5, 7, 7, False)[:3]]
    attn.to(dtype)
    halves = [leaf.to(dtype) for leaf in leaves]
    with torch.no_grad():
        value = run(attn, *halves)
        attn.double()
        truth = run(attn, *(half.double() for half in halves))
    assert value.dtype == dtype
    assert error(value.double(), truth) < 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_maps_are_made_in_float32_from_half_precision(dtype):
    """Scores of some hundreds would be off by a whole number in bfloat16, and a map by a factor of e."""
    torch.manual_seed(0)
    query, key = (8 * torch.randn(2, 2, 30, 16)).to(dtype)
    value = safe_attention.attention_map(query, key, 0.25)
    assert value.dtype == torch.float32
    assert error(value.double(), safe_attention.attention_map(query.double(), key.double(), 0.25)) < 1e-4


def test_autocast_trains_in_mixed_precision():
    attn, processor = layer(2, 4)
    attn.float()
    leaves = [leaf.detach().float() for leaf in inputs(2, 5, 7, 7, False)[:3]]
    plain = run(attn, *leaves)
    with torch.autocast("cpu", torch.bfloat16):
        value = run(attn, *leaves)
    value.float().sum().backward()
    assert error(value.float(), plain) < 0.05
    assert all(weights.grad.isfinite().all() for weights in processor.parameters())


def test_nan_comes_out_as_nan_in_its_own_row_only():
    attn, _ = layer(2, 4)
    image, edit, public, _ = (None if x is None else x.detach() for x in inputs(2, 5, 7, 7, False))
    image[1, 0, 0] = torch.nan
    value = run(attn, image, edit, public)
    assert value[1, 0].isnan().all()
    assert value[0].isfinite().all()


class Peak(TorchDispatchMode):
    """Counts the bytes of all tensors that are made and not yet freed."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        for tensor in torch.utils._pytree.tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self._count(storage)
        return out

    def _count(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key, size):
        self.known.discard(key)
        self.now -= size


def peak(function) -> int:
    with Peak() as counted:
        function()
    return counted.most


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_costs_what_the_formula_says(dtype):
    attn, processor = layer(8, 4)
    attn.to(dtype)
    queries, keys = torch.randn(8, 64, 4, dtype=dtype), torch.randn(8, 77, 4, dtype=dtype)

    def maps():
        edit, public = (safe_attention.attention_map(queries, keys, 0.5) for _ in range(2))
        processor.fusion(edit, public)

    with torch.no_grad():
        per_query = peak(maps) / (8 * 64)
    assert 0.95 < per_query / bytes_per_query(77, 77, dtype.itemsize) < 1.05


@pytest.mark.parametrize("training", [False, True])
def test_chunks_bound_the_memory_also_of_training(training, monkeypatch):
    attn, _ = layer(8, 4)
    attn.float()
    image, edit, public = torch.randn(1, 256, 6), torch.randn(1, 77, WIDTH), torch.randn(1, 77, WIDTH)

    def step():
        value = run(attn, image, edit, public)
        if training:
            value.sum().backward()

    with torch.set_grad_enabled(training):
        step()  # The gradients of the weights are there from the first step on.
        whole = peak(step)
        monkeypatch.setattr(safe_attention, "BUDGET", bytes_per_query(77, 77, 4) * 8 * 256 // 16)
        chunked = peak(step)
    assert whole > 8 * 256 * bytes_per_query(77, 77, 4)
    assert chunked < whole / 8


def test_a_missing_or_wrong_public_caption_is_refused():
    attn, _ = layer(2, 4)
    image, edit, public, _ = inputs(2, 5, 7, 7, False)
    for wrong in ({}, {PUBLIC: public[:1]}):
        with pytest.raises(ValueError, match="two texts a row"):
            attn(image, edit, **wrong)


@pytest.fixture
def unet():
    torch.manual_seed(0)
    return tiny_unet()


def predict(unet, public=None):
    torch.manual_seed(3)
    sample, text = torch.randn(2, 8, 8, 8), torch.randn(2, 77, WIDTH)
    more = {} if public is None else {"cross_attention_kwargs": {PUBLIC: public}}
    with torch.no_grad():
        return unet(sample, 10, text, **more).sample


def test_only_cross_attention_layers_get_a_copy_of_their_own_projections(unet, caplog):
    plain = {name: type(it) for name, it in unet.attn_processors.items()}
    own = {name: weights.clone() for name, weights in unet.state_dict().items()}
    installed = safe_attention.install(unet)
    kinds = {name: type(it) for name, it in unet.attn_processors.items()}
    crossing = {name for name in plain if name.endswith("attn2.processor")}
    assert {name for name in kinds if kinds[name] is SafeCrossAttention} == crossing
    assert {f"{name}.processor" for name in installed} == crossing
    assert all(kinds[name] is plain[name] for name in plain.keys() - crossing)
    for name, processor in installed.items():
        for branch in ("to_q", "to_k", "to_v"):
            assert torch.equal(getattr(processor, branch).weight, own[f"{name}.{branch}.weight"])
    # A copy, not the same weights: training one branch leaves the other alone.
    shared = {weights.data_ptr() for it in installed.values() for weights in it.parameters()}
    assert len(shared) == 7 * len(installed)
    assert not shared & {unet.get_parameter(name).data_ptr() for name in own if name.endswith("weight")}
    predict(unet, torch.randn(2, 50, WIDTH))
    assert "not expected" not in caplog.text


def test_the_public_text_matters_until_its_branch_is_silenced(unet):
    one, other = torch.randn(2, 2, 77, WIDTH)
    plain = predict(unet)
    for processor in safe_attention.install(unet).values():
        torch.nn.init.normal_(processor.to_v.weight)
    assert error(predict(unet, one), predict(unet, other)) > 1e-3
    assert error(predict(unet, one), plain) > 1e-3
    for processor in safe_attention.processors(unet).values():
        processor.public_scale = 0.0
    assert error(predict(unet, one), plain) < 1e-5


def test_a_public_branch_without_values_adds_nothing(unet):
    plain = predict(unet)
    for processor in safe_attention.install(unet).values():
        torch.nn.init.zeros_(processor.to_v.weight)
    assert error(predict(unet, torch.randn(2, 77, WIDTH)), plain) < 1e-5


def test_gradients_reach_all_public_weights_through_checkpointed_blocks(unet):
    safe_attention.install(unet)
    slopes = []
    for checkpointed in (False, True):
        if checkpointed:
            unet.enable_gradient_checkpointing()
        unet.train().zero_grad()
        torch.manual_seed(3)
        sample, texts = torch.randn(1, 8, 8, 8), torch.randn(2, 1, 20, WIDTH)
        unet(sample, 10, texts[0], cross_attention_kwargs={PUBLIC: texts[1]}).sample.square().sum().backward()
        slopes.append(
            {
                f"{layer}.{name}": weights.grad.clone()
                for layer, it in safe_attention.processors(unet).items()
                for name, weights in it.named_parameters()
            }
        )
    for name, slope in slopes[0].items():
        if not name.endswith("gather_bias"):  # The softmax after it takes no notice of it.
            assert slope.norm() > 0, name
        torch.testing.assert_close(slope, slopes[1][name], rtol=1e-4, atol=1e-7)


def test_saved_weights_come_back(unet, tmp_path):
    for processor in safe_attention.install(unet).values():
        torch.nn.init.normal_(processor.fusion.gather)
    public = torch.randn(2, 77, WIDTH)
    before = predict(unet, public)
    file = safe_attention.save(unet, tmp_path / "unet")
    assert [path.name for path in file.parent.iterdir()] == [safe_attention.FILE]
    unet.set_attn_processor(AttnProcessor2_0())
    assert not safe_attention.processors(unet)
    unet.save_pretrained(tmp_path / "unet")
    again = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    loaded = safe_attention.load(again, file)
    assert len(loaded) == 7
    assert torch.equal(predict(again, public), before)
    half = safe_attention.load(again.to(torch.bfloat16), file)
    assert {weights.dtype for it in half.values() for weights in it.parameters()} == {torch.bfloat16}


def test_a_file_that_does_not_fit_is_refused(unet, tmp_path):
    safe_attention.install(unet)
    file = safe_attention.save(unet, tmp_path)
    good = safetensors.torch.load_file(file)
    name = next(iter(good))
    torch.manual_seed(0)
    other = tiny_unet(cross_attention_dim=2 * WIDTH)
    with pytest.raises(SetupError, match="another UNet: 14 of 49 don't fit"):
        safe_attention.load(other, file)
    for wrong in (
        {key: value for key, value in good.items() if key != name},
        {**good, "more": torch.zeros(1)},
        {**good, name: good[name].flatten()},
    ):
        safetensors.torch.save_file(wrong, file)
        with pytest.raises(SetupError, match="another UNet: 1 of 49"):
            safe_attention.load(tiny_unet(), file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SetupError, match="can't be read"):
        safe_attention.load(tiny_unet(), file)
    with pytest.raises(SetupError, match="can't be read"):
        safe_attention.load(tiny_unet(), tmp_path / "nothing.safetensors")


def test_other_designs_are_refused(tmp_path):
    with pytest.raises(SetupError, match="has none"):
        safe_attention.install(torch.nn.Linear(1, 1))
    with pytest.raises(SetupError, match="another design"):
        safe_attention.install(torch.nn.ModuleDict({"attn2": Attention(8, 8, norm_num_groups=2)}))
    with pytest.raises(SetupError, match="call install first"):
        safe_attention.save(tiny_unet(), tmp_path)
