"""Cells of the fusion experiment: real files at one luma, bytes saved, intervals."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from helpers import portrait, tiny_scalar
from PIL import Image

from mcml.base.errors import DataError, UsageError
from mcml.data.sets import image_set
from mcml.lab import luma_for_color as experiment
from mcml.metrics import distortion as metrics
from mcml.metrics.color import rgb_to_ycbcr

RATES, SHARES = (1.0, 2.0), (-7.0, 5.0, 17.0)
CONDITIONS = {"no": "color", "luma": "luma"}


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """Two tiny models that share their luma, by name; what differs is luma's place in colour."""
    made = {}
    for decoder, prior in (("none", "no"), ("codes", "luma")):
        name, variant = f"{decoder}_{prior}_16_0", {"none": "independent", "codes": "fusion"}[decoder]
        folder, settings = tmp_path_factory.mktemp("cells") / name, {"model.condition": CONDITIONS[prior]}
        made[name] = tiny_scalar(folder, variant, **settings)
    return made


@pytest.fixture(scope="module")
def folders(cells):
    return {name: codec.folder for name, codec in cells.items()}


def points_of(bytes_of, metric_of, *, seeds=(0, 1), images=("a", "b", "c")):
    """Make up points of cells (decoder, prior, features) from functions of seed, image and share."""
    rows = []
    for (decoder, prior, features), (size, value) in bytes_of.items():
        for seed in seeds:
            for image in images:
                for share in SHARES:
                    row = {"decoder": decoder, "prior": prior, "features": features, "seed": seed}
                    row |= {"image": image, "target_bpp": 0.3, "share": share, "luma_bytes": 1000.0}
                    row["file_bytes"] = 1000 + size(share)
                    for column, sign in experiment.GAINED.items():
                        row[column] = value(share) if sign < 0 else 40 - value(share)
                    row["psnr"] = metric_of(share)
                    rows.append(row)
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------- cells


def test_a_cell_is_what_its_name_says():
    assert experiment.Cell.named("codes_no_32_1") == ("codes", "no", 32, 1)
    for wrong in ("codes_no_32", "luma_no_32_0", "none_maybe_32_0", "codes_no_many_0"):
        with pytest.raises(UsageError, match="decoder_prior_features_seed"):
            experiment.Cell.named(wrong)


def test_places_are_told_by_slope_and_saturation():
    image = np.full((16, 32, 3), 128, np.uint8)
    image[:, 16:] = (200, 40, 40)  # luma 88: strong colour beyond an edge of 40 grey levels
    places = experiment.places_of(image)
    assert (places[:, :15] == 0).all() and (places[:, 17:] == 1).all()
    assert (places[:, 15] == 2).all() and (places[:, 16] == 3).all()


# -------------------------------------------------------------------------------------- measured


def test_points_are_those_of_files_and_their_decodes(cells, folders):
    image = portrait()
    rows = experiment.picture_points(("face", image), folders, RATES, SHARES)
    assert len(rows) == len(cells) * len(RATES) * len(SHARES)
    planes = rgb_to_ycbcr(image)
    for row in rows:
        codec = cells[f"{row['decoder']}_{row['prior']}_{row['features']}_{row['seed']}"]
        data = codec.encode(image, row["quality"], color_share=row["share"])
        assert row["file_bytes"] == len(data) and row["image"] == "face"
        decoded = codec.decode(data)
        own = metrics.compare(image, decoded)
        errors = np.mean((planes - rgb_to_ycbcr(decoded)) ** 2, axis=(0, 1))
        wanted = {"psnr": own.psnr, "ciede2000": own.ciede2000, "rgb_angle": own.rgb_angle}
        wanted |= {"psnr_color": metrics.psnr_from_mse(errors[1:].mean()), "bpp": 8 * len(data) / 128 / 160}
        assert {name: row[name] for name in wanted} == pytest.approx(wanted, rel=2e-5)
    of_rate = pd.DataFrame(rows).groupby("target_bpp")
    assert (of_rate.luma_bytes.nunique() == 1).all() and (of_rate.quality.nunique() == 1).all()
    at_share = pd.DataFrame(rows).query("decoder == 'none' and share == 5")
    assert (at_share.bpp / at_share.target_bpp - 1).abs().max() < 0.02  # a few bytes of a small file


def test_cells_of_another_luma_are_refused(cells, folders, tmp_path):
    other = tiny_scalar(tmp_path / "other", "fusion", seed=1)
    with pytest.raises(DataError, match="another luma"):
        experiment.picture_points(
            ("face", portrait()), {**folders, "codes_no_16_0": other.folder}, RATES[:1], SHARES[:1]
        )
    with pytest.raises(DataError, match="at most a side"):
        experiment.FixedLuma(np.zeros((8, 1100, 3), np.uint8))


def test_measuring_goes_on_and_refuses_other_points(folders, tmp_path):
    for name in ("one", "two"):
        image = np.roll(portrait(), 40 * (name == "two"), axis=0)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "photos" / f"{name}.png")
    images, folder = image_set(str(tmp_path / "photos")), tmp_path / "points"
    whole = experiment.measure(folders, images, folder, RATES[:1], workers=1)
    lines = (folder / "points.csv").read_text("utf-8").splitlines()
    first = [line for line in lines if ",one," in line]
    (folder / "points.csv").write_text("\n".join([lines[0], *first]) + "\n", "utf-8")
    done = []
    again = experiment.measure(
        folders, images, folder, RATES[:1], workers=1, progress=lambda n, total: done.append((n, total))
    )
    assert done == [(1, 1)]
    assert sorted(again.itertuples(index=False)) == sorted(whole.itertuples(index=False))
    record = json.loads((folder / "run.json").read_text("utf-8"))
    assert record["cells"].keys() == folders.keys() and "points.csv" in record["files"]
    second = {"none_no_16_1": tiny_scalar(tmp_path / "second", "independent", seed=0).folder}  # the same luma
    more = experiment.measure(second, images, folder, RATES[:1], workers=1)
    assert len(more) == 1.5 * len(whole) and (more.groupby("image").quality.nunique() == 1).all()
    assert json.loads((folder / "run.json").read_text("utf-8"))["cells"].keys() == {*folders, *second}
    with pytest.raises(UsageError, match="of other cells"):
        experiment.measure({"none_no_16_0": folders["codes_luma_16_0"]}, images, folder, RATES[:1])
    with pytest.raises(UsageError, match="of other rates_bpp"):
        experiment.measure(folders, images, folder, RATES, workers=1)


# ------------------------------------------------------------------------------------------ read


NOTHING, DECODER = ("none", "no", 32), ("codes", "no", 32)


def test_half_of_colours_bytes_saved_is_read_as_such():
    value = lambda share: 5 - 0.1 * share  # noqa: E731
    points = points_of(
        {NOTHING: (lambda s: 400 * 1.02**s, value), DECODER: (lambda s: 200 * 1.02**s, value)},
        lambda share: 30 + share / 10,
    )
    table = experiment.effects(points, {"decoder": (DECODER, NOTHING)}, by_rate=False)
    assert list(table.column) == list(experiment.JUDGED)
    assert table[["seeds", "images"]].drop_duplicates().to_numpy().tolist() == [[2, 3]]
    base = 400 * 1.02**5
    for _, row in table.iterrows():
        assert row.color_percent == pytest.approx(-50, abs=1e-6)
        assert row.bytes_percent == pytest.approx(-100 * base / 2 / (1000 + base), abs=1e-6)
        assert row.color_percent_low == pytest.approx(-50) == row.color_percent_high


def test_a_curve_that_falls_at_its_end_is_read_as_far_as_it_rises():
    falls = lambda s: {-7.0: 5.0, 5.0: 4.0, 17.0: 4.5}[s]  # noqa: E731
    points = points_of(
        {NOTHING: (lambda s: 400 * 1.02**s, lambda s: 4.3), DECODER: (lambda s: 400 * 1.02**s, falls),
         ("none", "luma", 32): (lambda s: 400 * 1.02**s, lambda s: 5 - s / 100)},
        lambda share: 30 + share / 10,
    )  # fmt: skip
    of = {"falls": (DECODER, NOTHING), "never so good": (("none", "luma", 32), NOTHING)}
    table = experiment.effects(points, of, by_rate=False).query("column == 'ciede2000'").set_index("question")
    assert -24 < table.color_percent["falls"] < 0  # between the first two points, not behind the third
    assert np.isnan(table.color_percent["never so good"]) and table.images["never so good"] == 0


def test_gains_are_read_at_equal_bytes_and_lower_is_better_where_it_is():
    curve = lambda share: 400 * 1.02**share  # noqa: E731
    points = points_of(
        {NOTHING: (curve, lambda s: 5 - 0.1 * s), DECODER: (curve, lambda s: 4.5 - 0.1 * s)},
        lambda share: 30 + share / 10,
    )
    table = experiment.gains(points, {"decoder": (DECODER, NOTHING)}).set_index("column")
    assert table.gain["ciede2000"] == pytest.approx(0.5) == table.gain["flat_grey"]
    assert table.gain["psnr_color"] == pytest.approx(0.5) and table.gain["psnr"] == pytest.approx(0)
    assert experiment.gains(points, {"prior": (("none", "luma", 32), NOTHING)}).empty


def test_intervals_hold_the_spread_of_pictures_and_of_seeds():
    images, seeds = range(400), range(3)
    rng = np.random.default_rng(5)
    noise = rng.normal(size=len(images))
    rows = [{"seed": s, "image": i, "x": noise[i]} for s in seeds for i in images]
    mean, low, high, count = experiment.interval(pd.DataFrame(rows), "x")
    assert (mean, count) == (pytest.approx(noise.mean()), 400)
    assert high - low == pytest.approx(2 * 1.96 * noise.std() / math.sqrt(len(images)), rel=0.1)
    rows = [{"seed": s, "image": i, "x": float(s)} for s in seeds for i in images]
    mean, low, high, count = experiment.interval(pd.DataFrame(rows), "x")
    assert (mean, low) == (1, pytest.approx(0, abs=1 / 3 + 1e-9)) and high >= 5 / 3
    rows += [{"seed": 0, "image": "lacking elsewhere", "x": 99.0}]
    assert experiment.interval(pd.DataFrame(rows), "x")[0] == 1
    nothing = experiment.interval(pd.DataFrame(columns=["seed", "image", "x"]), "x")
    assert np.isnan(nothing[:3]).all() and nothing[3] == 0


def test_the_questions_set_one_change_beside_what_lacks_it():
    for cell, reference in experiment.contrasts(8).values():
        changed = [a != b for a, b in zip(cell, reference, strict=True)]
        assert cell[2] == reference[2] == 8 and changed[:2].count(True) in (1, 2)
    assert experiment.contrasts(8)["in the decoder too"] == (("codes", "luma", 8), ("none", "luma", 8))
