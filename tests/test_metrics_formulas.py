"""The scores against formulas written here anew, in float64 and as plainly as they stand in the papers."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import scipy.linalg

from u2s_datasets.errors import UsageError
from u2s_datasets.evaluation import captions, vqa
from u2s_datasets.evaluation.distances import FeatureStatistics, Reservoir, frechet, kernel_distance
from u2s_datasets.evaluation.reduce import reduce, reidentified
from u2s_datasets.evaluation.statistics import entropy, estimate, wilson
from u2s_datasets.evaluation.utility import utility
from u2s_datasets.schema import CHEATING_SCORES, PRIVACY_SCORES, QUALITY_SCORES, SCORE_COLUMNS, SCORES
from u2s_datasets.transforms import likeness

CLOSE = pytest.approx


@pytest.fixture
def draw():
    return np.random.default_rng(3)


def row(column, **values):
    return {**dict.fromkeys(SCORE_COLUMNS[column]), **values}


def unit(vector):
    return vector / math.sqrt(sum(float(v) ** 2 for v in vector))


def test_directional_clip_is_the_cosine_of_both_changes(draw):
    before, after, private, public = (unit(draw.normal(size=32)) for _ in range(4))
    expected = unit(after - before) @ unit(public - private)
    assert likeness.directional(before, after, private, public) == CLOSE(expected, abs=1e-6)
    assert likeness.directional(before, before, private, public) is None
    assert likeness.directional(before, after, public, public) is None


def test_clip_score_and_clip_ratio(draw):
    after, before = draw.uniform(0.1, 0.4, 20), draw.uniform(0.1, 0.4, 20)
    rows = [
        row(QUALITY_SCORES, caption_similarity=a, caption_similarity_before=b)
        for a, b in zip(after, before, strict=True)
    ]
    rows.append(row(QUALITY_SCORES, caption_similarity=-0.1, caption_similarity_before=-0.2))
    found = reduce("quality", rows, ["clip_score", "clip_ratio"])
    assert found["clip_score"] == CLOSE(100 * after.sum() / 21, abs=1e-6)
    assert found["clip_score_n"] == 21
    assert found["clip_ratio"] == CLOSE(
        np.mean([a / b for a, b in zip(after, before, strict=True)]), abs=1e-6
    )
    assert found["clip_ratio_n"] == 20


def privacy_rows(draw, rows=30):
    """People with faces that move a little, some lost in the edit, some images without anyone."""
    out = []
    for index in range(rows):
        before = draw.normal(size=(index % 4, 16)).astype(np.float32)
        after = draw.normal(size=(index % 3, 16)).astype(np.float32)
        if len(before) and len(after) and index % 2:
            after[0] = before[0] + draw.normal(scale=0.2, size=16)
        sure = draw.choice([0.3, 0.5, 0.9], size=len(after)).astype(np.float32)
        found = {"faces_before": before.tolist(), "faces": after.tolist(), "face_confidences": sure.tolist()}
        out.append(row(PRIVACY_SCORES, **found, faces_left=0))
    return out


def test_face_similarity_is_the_mean_over_the_faces_of_images_whose_edit_has_one(draw):
    rows = privacy_rows(draw)
    found = reduce("privacy", rows, ["face_similarity"])
    nearest = [
        max(float(unit(np.float64(face)) @ unit(np.float64(other))) for other in sure)
        for one in rows
        if (sure := [f for f, c in zip(one["faces"], one["face_confidences"], strict=True) if c >= 0.5])
        for face in one["faces_before"]
    ]
    assert found["face_similarity"] == CLOSE(sum(nearest) / len(nearest), abs=1e-6)
    assert found["face_similarity_n"] == len(nearest) > 15


def test_reidentification_looks_every_edit_up_among_all_originals(draw):
    rows = privacy_rows(draw)
    gallery = [(i, unit(np.float64(f))) for i, one in enumerate(rows) for f in one["faces_before"]]
    hits = []
    for index, one in enumerate(rows):
        if one["faces_before"]:
            first = [max(gallery, key=lambda g: g[1] @ np.float64(face))[0] for face in one["faces"]]
            hits.append(index in first)
    found = reduce("privacy", rows, ["reidentification_rate"])
    assert found["reidentification_rate"] == CLOSE(np.mean(hits))
    assert found["reidentification_rate_n"] == len(hits)
    assert 0 < found["reidentification_rate_low"] < np.mean(hits) < found["reidentification_rate_high"] < 1


def test_twins_in_the_data_count_as_found():
    one = np.array([[1.0, 0.0]])
    assert reidentified([one, one], [one, one]).all()
    assert not reidentified([one], [one[:0]]).any()


def test_race_entropy(draw):
    counts = draw.integers(0, 9, 5)
    shares = [c / counts.sum() for c in counts if c]
    expected = -sum(p * math.log(p) for p in shares) / math.log(5)
    assert entropy(counts[None].astype(float))[0] == CLOSE(expected, abs=1e-6)
    rows = [row(PRIVACY_SCORES, groups=["White", "Asian"]), row(PRIVACY_SCORES, groups=["White"])]
    found = reduce("privacy", [*rows, None], ["race_entropy"], confidence=0.9)
    two = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)) / math.log(5)
    assert found["race_entropy"] == CLOSE(two, abs=1e-6)
    assert (found["race_entropy_n"], found["rows_without_pair"]) == (3, 1)
    assert found["race_entropy_low"] <= two <= found["race_entropy_high"]


def features(draw, rows, shift=0.0, width=12):
    mix = np.eye(width) + 0.3 * np.ones((width, width))
    return (draw.normal(size=(rows, width)) @ mix + shift).astype(np.float32)


def test_fid_streams_to_the_formula(draw):
    one, two = features(draw, 80), features(draw, 80, 0.4)
    means = one.astype(np.float64).mean(0), two.astype(np.float64).mean(0)
    covs = np.cov(one.astype(np.float64), rowvar=False), np.cov(two.astype(np.float64), rowvar=False)
    root = scipy.linalg.sqrtm(covs[0] @ covs[1]).real
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(covs[0] + covs[1] - 2 * root)
    sums = FeatureStatistics(), FeatureStatistics()
    for start in range(0, 80, 7):
        for side, table in zip(sums, (one, two), strict=True):
            side.add(table[start : start + 7])
    assert frechet(*sums) == CLOSE(expected, abs=1e-6)
    assert frechet(sums[0], sums[0]) == CLOSE(0, abs=1e-6)
    assert math.isnan(frechet(FeatureStatistics(), sums[0]))


def test_kid_is_the_unbiased_estimate(draw):
    one, two = (features(draw, n).astype(np.float64) for n in (25, 25))

    def kernel(a, b):
        return (sum(x * y for x, y in zip(a, b, strict=True)) / 12 + 1) ** 3

    pairs = list(itertools.permutations(range(25), 2))
    within = sum(kernel(t[i], t[j]) for t in (one, two) for i, j in pairs) / len(pairs)
    across = sum(kernel(a, b) for a in one for b in two) / 25**2
    assert kernel_distance(one, two) == CLOSE(within - 2 * across, abs=1e-6)
    assert math.isnan(kernel_distance(one[:1], two))


def test_kid_keeps_the_same_rows_whatever_their_order(draw):
    table = features(draw, 50)
    order = draw.permutation(50)
    kept = []
    for rows in (table, table[order]):
        reservoir = Reservoir(20)
        for one in rows:
            reservoir.add(one.tobytes(), (one + 1).tobytes())
        kept.append(reservoir.tables())
    assert kept[0][0].shape == (20, 12)
    np.testing.assert_array_equal(kept[0], kept[1])


CANDIDATES = [
    "A man is riding a brown horse.",
    "two dogs play on the green grass",
    "a red bus on a street, at night",
]
REFERENCES = [
    ["A man is riding a brown horse on the beach", "someone is riding a horse"],
    ["two dogs play on the grass", "Two dogs are running over the green grass!"],
    ["a red bus drives down a street at night", "a bus on a street at night"],
]


def words(text):
    return "".join(c if c.isalnum() or c == " " else " " for c in text.lower()).split()


def runs(tokens, n):
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def test_bleu4_of_a_corpus():
    logs, length, closest = [], 0, 0
    for n in range(1, 5):
        hits = total = 0
        for candidate, some in zip(map(words, CANDIDATES), REFERENCES, strict=True):
            most = {}
            for reference in some:
                for gram, count in runs(words(reference), n).items():
                    most[gram] = max(count, most.get(gram, 0))
            hits += sum(min(count, most.get(gram, 0)) for gram, count in runs(candidate, n).items())
            total += sum(runs(candidate, n).values())
        logs.append(math.log(hits / total))
    for candidate, some in zip(map(words, CANDIDATES), REFERENCES, strict=True):
        length += len(candidate)
        closest += min((abs(len(words(r)) - len(candidate)), len(words(r))) for r in some)[1]
    expected = math.exp(sum(logs) / 4) * (math.exp(1 - closest / length) if length < closest else 1)
    found = utility(CANDIDATES, REFERENCES, ["bleu4"], confidence=0.95)
    assert found["bleu4"] == CLOSE(expected, abs=1e-6)
    assert found["bleu4_n"] == 3
    assert found["bleu4_low"] <= expected <= found["bleu4_high"]
    assert utility(["a b c d e"], [["a b c d e"]], ["bleu4"])["bleu4"] == CLOSE(1, abs=1e-6)
    assert utility(["x y"], [["a b c d e"]], ["bleu4"])["bleu4"] == CLOSE(0, abs=1e-3)


def test_cider():
    rows = len(CANDIDATES)
    seen = Counter()
    for some in REFERENCES:
        seen.update(set().union(*(runs(words(r), n) for r in some for n in range(1, 5))))

    def vector(tokens, n):
        return {g: c * (math.log(rows) - math.log(max(1, seen[g]))) for g, c in runs(tokens, n).items()}

    def norm(v):
        return math.sqrt(sum(x * x for x in v.values()))

    scores = []
    for candidate, some in zip(map(words, CANDIDATES), REFERENCES, strict=True):
        per_reference = []
        for reference in map(words, some):
            total = 0.0
            for n in range(1, 5):
                a, b = vector(candidate, n), vector(reference, n)
                dot = sum(min(a[g], b[g]) * b[g] for g in a if g in b)
                total += dot / (norm(a) * norm(b)) if norm(a) * norm(b) else 0
            longer = (len(candidate) - 1) - (len(reference) - 1)
            per_reference.append(total / 4 * math.exp(-(longer**2) / 72))
        scores.append(10 * sum(per_reference) / len(per_reference))
    assert utility(CANDIDATES, REFERENCES, ["cider"])["cider"] == CLOSE(np.mean(scores), abs=1e-6)
    assert captions.cider([words("a b")], [[words("a b")]]).tolist() == [0.0]


def test_vqa_accuracy_leaves_each_person_out_once():
    people = ["red"] * 2 + ["dark red"] * 4 + ["blue"] * 4
    for answer in ("red", "Dark red.", "blue", "green"):
        said = answer.lower().rstrip(".")
        expected = np.mean(
            [min(1, sum(said == o for j, o in enumerate(people) if j != i) / 3) for i in range(10)]
        )
        assert vqa.accuracy(answer, people) == CLOSE(expected, abs=1e-6)
    assert vqa.accuracy("The two dogs", ["2 dogs"] * 10) == 1
    with pytest.raises(UsageError, match="at least two people"):
        utility(["red"], [["red"]], ["vqa_accuracy"])


def test_top1_and_the_flag(draw):
    given, true = draw.integers(0, 3, 200).tolist(), draw.integers(0, 3, 200).tolist()
    found = utility(given, true, ["top1_accuracy"], 0.95)
    assert found["top1_accuracy"] == CLOSE(np.mean(np.array(given) == true))
    assert found["top1_accuracy_low"] < found["top1_accuracy"] < found["top1_accuracy_high"]
    flags, labels = draw.random(200) < 0.7, draw.random(200) < 0.5
    found = utility(flags.tolist(), labels.tolist(), ["recall", "balanced_accuracy"])
    recall, specificity = flags[labels].mean(), (~flags)[~labels].mean()
    assert found["recall"] == CLOSE(recall)
    assert found["recall_n"] == labels.sum()
    assert found["balanced_accuracy"] == CLOSE((recall + specificity) / 2)
    assert math.isnan(utility([True], [False], ["recall"])["recall"])


@pytest.mark.parametrize(
    ("given", "true", "scores"),
    [
        ([1], [1, 2], ["top1_accuracy"]),
        ([], [], None),
        (["a"], ["a"], ["bleu4"]),
        (["a"], [[]], ["cider"]),
        ([2], [1], ["recall"]),
        ([1], [1], ["accuracy"]),
    ],
)
def test_values_that_do_not_fit_are_one_error(given, true, scores):
    with pytest.raises(UsageError):
        utility(given, true, scores)


def test_the_bootstrap_covers_the_mean_of_normal_values(draw):
    values = draw.normal(size=400)
    found = estimate([(v, 1.0) for v in values], confidence=0.95)
    half = 1.96 * values.std() / 20
    assert found.low == CLOSE(values.mean() - half, abs=0.02)
    assert found.high == CLOSE(values.mean() + half, abs=0.02)
    again = estimate([(v, 1.0) for v in draw.permutation(values)], confidence=0.95)
    assert again == found


def test_the_wilson_interval():
    p, n, z = 0.3, 20, 1.959964
    middle, half = (
        (p + z * z / 40) / (1 + z * z / 20),
        z * math.sqrt(p * 0.7 / 20 + z * z / 1600) / (1 + z * z / 20),
    )
    found = wilson(6, n)
    assert (found.low, found.high) == CLOSE((middle - half, middle + half), abs=1e-6)
    assert math.isnan(wilson(0, 0).value)


def test_what_the_data_do_not_define_is_nan_with_a_count():
    columns = {"quality": QUALITY_SCORES, "cheating": CHEATING_SCORES, "privacy": PRIVACY_SCORES}
    for dimension, column in columns.items():
        found = reduce(dimension, [None, row(column, faces=[], faces_before=[])], SCORES[dimension], 0.95)
        assert (found["rows"], found["rows_without_pair"]) == (2, 1)
        for score in SCORES[dimension]:
            assert math.isnan(found[score]), score
            assert found[f"{score}_n"] == 0
