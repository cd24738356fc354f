"""Tables of any codec on any images, their means, and rate savings against closed forms."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mcml.base.errors import DataError, UsageError
from mcml.codec import interface as codec
from mcml.data.images import read_image
from mcml.lab import evaluate as evaluation
from mcml.metrics import distortion as metrics

CONVENTIONS = ["image", "codec", "target_bpp", "bpp", "mse", "psnr", "y_psnr", "ssim", "ms_ssim", "cmssim",
               "delta_e76", "ciede2000", "rgb_angle", "psnr_b"]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory, astronaut):
    """Three small photographs; their order is not that of their names."""
    folder = tmp_path_factory.mktemp("photos")
    parts = {"face": astronaut[20:84, 40:136], "badge": astronaut[70:, :56], "above": astronaut[:48, :64]}
    for name, pixels in parts.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in parts]


@pytest.fixture(scope="module")
def at_rates(photos):
    return evaluation.evaluate(photos, ["webp", "jpeg420"], [0.8, 2.0], workers=1)


# --------------------------------------------------------------------------------- evaluate


def test_rows_and_columns_have_the_order_of_arguments_and_conventions(at_rates):
    columns = list(at_rates.columns)
    assert columns == [*evaluation.KEYS, *metrics.COLUMNS]
    assert [name for name in columns if name in CONVENTIONS] == CONVENTIONS
    keys = at_rates[["image", "codec", "target_bpp"]].itertuples(index=False, name=None)
    assert list(keys) == list(product(("face", "badge", "above"), ("webp", "jpeg420"), (0.8, 2.0)))


def test_every_row_is_what_encoding_decoding_and_comparing_gives(photos, at_rates):
    paths = {path.stem: path for path in photos}
    for row in at_rates.to_dict("records"):
        image, used = read_image(paths[row["image"]]), codec.get_codec(row["codec"])
        file = used.encode(image, row["quality"])
        assert row["bpp"] == 8 * len(file) / (image.shape[0] * image.shape[1])
        expected = vars(metrics.compare(image, used.decode(file)))
        np.testing.assert_equal({name: row[name] for name in metrics.COLUMNS}, expected)
        assert row["reached"] == (abs(row["bpp"] / row["target_bpp"] - 1) <= 0.02)


def test_rates_are_hit_where_the_quality_is_fine_enough_and_then_nothing_is_missed(photos):
    table = evaluation.evaluate(photos[:2], ["jpeg2000"], [1.0, 3.0], workers=1)
    assert table.reached.all() and evaluation.misses(table) == []
    assert (abs(table.bpp / table.target_bpp - 1) <= 0.02).all()


def test_without_rates_each_codec_runs_its_own_qualities(photos):
    table = evaluation.evaluate(photos[:2], ["webp", "jpeg420"], workers=1)
    for (_, name), rows in table.groupby(["image", "codec"]):
        assert tuple(rows.quality) == codec.get_codec(name).qualities
        assert rows.bpp.is_monotonic_increasing
    assert table.target_bpp.isna().all() and table.reached.all() and evaluation.misses(table) == []
    means = evaluation.mean_table(table)
    assert tuple(means[means.codec == "webp"].quality) == codec.get_codec("webp").qualities
    np.testing.assert_allclose(means.bpp, table.groupby(["codec", "quality"], sort=False).bpp.mean())


def test_parallel_table_equals_the_serial_one(photos, at_rates):
    steps, rates = [], [0.8, 2.0]
    table = evaluation.evaluate(
        photos, ["webp", "jpeg420"], rates, workers=2, progress=lambda *step: steps.append(step)
    )
    pd.testing.assert_frame_equal(table, at_rates, rtol=1e-9)
    assert steps == [(count, 6) for count in range(1, 7)]


def test_lossless_decode_has_infinite_psnr_and_no_error(tmp_path):
    Image.new("RGB", (32, 24), (128, 128, 128)).save(tmp_path / "gray.png")
    table = evaluation.evaluate([tmp_path / "gray.png"], ["jpeg444"], workers=1)
    assert (table.mse == 0).all() and (table.psnr == np.inf).all() and (table.ciede2000 == 0).all()


# --------------------------------------------------------------------------------- refusals


def test_unknown_codec_names_the_nearest_before_any_image_is_read(tmp_path):
    with pytest.raises(UsageError, match="unknown codec 'wepb': did you mean 'webp'"):
        evaluation.evaluate([tmp_path / "none.png"], ["webp", "wepb"], workers=1)


@pytest.mark.parametrize("targets", [[1.0, 0], [1.0, -1], [np.nan], [np.inf], []])
def test_rates_that_are_no_positive_numbers_or_none_are_refused(photos, targets):
    with pytest.raises(UsageError, match=r"target bpp|no rate to evaluate at"):
        evaluation.evaluate(photos[:1], ["webp"], targets, workers=1)


def test_two_images_of_one_name_are_refused(photos, tmp_path):
    (tmp_path / "face.jpg").write_bytes(photos[0].read_bytes())
    with pytest.raises(DataError, match="two images are named face: rename one"):
        evaluation.evaluate([*photos, tmp_path / "face.jpg"], ["webp"], workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_unreadable_image_is_refused_by_name(photos, tmp_path, workers):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text\.png: not an image"):
        evaluation.evaluate([*photos[2:], tmp_path / "text.png"], ["webp"], workers=workers)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_image_that_one_codec_cannot_code_or_that_is_gone_is_left_out_with_all_codecs(
    photos, tmp_path, workers
):
    wide, gone, kept, lost = tmp_path / "wide.png", tmp_path / "gone.png", [], []
    Image.new("RGB", (16400, 8), (90, 120, 60)).save(wide)  # WebP ends at 16383 pixels a side
    given = [wide, gone, photos[0]]
    table = evaluation.evaluate(
        given, ["jpeg420", "webp"], [1.0], workers=workers,
        keep=kept.extend, failed=lambda path, error: lost.append((path, str(error))),
    )  # fmt: skip
    assert list(table.image) == ["face", "face"] and [row["image"] for row in kept] == [
        "wide",
        "face",
        "face",
    ]
    (first, why), (second, reason) = lost
    assert (first, second) == (wide, gone) and reason == f"{gone}: no such file"
    assert why and "Error" not in why
    with pytest.raises(DataError):
        evaluation.evaluate(given, ["webp"], [1.0], workers=workers)


@pytest.mark.parametrize("target, end, nearest", [(0.001, "coarsest", min), (24, "finest", max)])
def test_rate_out_of_reach_names_the_nearest_file(photos, target, end, nearest):
    names, ends = ["jpeg444", "jpeg420"], {}
    table = evaluation.evaluate(photos[:2], names, [2.0, target], workers=1)
    assert len(table) == 8  # the rows of the other rate are not lost
    with pytest.raises(DataError, match=f"target {target:g} bpp is out of reach") as error:
        evaluation.check_reach(table)
    for name, path in product(names, photos[:2]):
        used, image = codec.get_codec(name), read_image(path)
        file = used.encode(image, getattr(used.quality_range, end))
        ends[f"{name} on {path.stem}"] = codec.bits_per_pixel(file, image)
    name = nearest(ends, key=ends.get)
    assert str(error.value).endswith(f"the nearest file has {ends[name]:.3f} bpp ({name})")


# ------------------------------------------------------------------------- misses and means


def test_rate_that_one_codec_misses_gives_a_sentence_for_it_only(photos):
    table = evaluation.evaluate(photos[:2], ["webp", "jpeg420"], [0.25, 2.0], workers=1)
    missed = table[(table.codec == "jpeg420") & (table.target_bpp == 0.25)]
    assert not missed.reached.any()
    off = 100 * (missed.bpp / 0.25 - 1)
    (sentence,) = [text for text in evaluation.misses(table) if text.startswith("jpeg420 missed 0.25 bpp")]
    assert f"on 2 image(s) ({off.min():+.1f} to {off.max():+.1f} %)" in sentence
    groups = table[~table.reached.astype(bool)].groupby(["codec", "target_bpp"])
    assert len(evaluation.misses(table)) == len(groups)


def test_mean_table_is_the_mean_over_images_of_each_codec_and_rate(at_rates):
    means = evaluation.mean_table(at_rates)
    keys = list(means[["codec", "target_bpp"]].itertuples(index=False, name=None))
    assert keys == [("webp", 0.8), ("webp", 2.0), ("jpeg420", 0.8), ("jpeg420", 2.0)]
    columns = ["quality", "bpp", *metrics.COLUMNS]
    expected = at_rates.groupby(["codec", "target_bpp"], sort=False)[columns].mean().reset_index(drop=True)
    pd.testing.assert_frame_equal(means[columns], expected, check_dtype=False, rtol=1e-9)
    assert set(means.images) == {3} and set(means.identical) == {0}


def test_infinite_and_missing_values_are_left_out_of_their_mean_unless_there_are_no_others():
    keys = {"image": ["a", "b", "c"], "codec": "x", "quality": 1.0, "target_bpp": [1, 1, 2], "bpp": 1.0}
    values = {"mse": [0.0, 2.0, 0.0], "psnr": [np.inf, 40, np.inf], "ssim": [1.0, np.nan, np.nan]}
    table = pd.DataFrame(keys | {"reached": True} | values)
    first, second = evaluation.mean_table(table).to_dict("records")
    assert (first["psnr"], first["ssim"], first["mse"]) == (40, 1.0, 1.0)
    assert (first["images"], first["identical"]) == (2, 1)
    assert second["psnr"] == np.inf and np.isnan(second["ssim"]) and second["identical"] == 1


# ---------------------------------------------------------------------------------- bd_rate

RATES = np.array([0.1, 0.2, 0.3, 0.5, 0.8])
PSNR = [27, 30, 32, 34, 35.0]


def curve(name, bpp, values, column="psnr"):
    return pd.DataFrame({"codec": name, "bpp": bpp, column: values})


def saving(*curves, column="psnr"):
    """Rate difference and overlap of the last curve to the first."""
    table = evaluation.bd_rate(pd.concat(curves), curves[0].codec.iloc[0], column)
    assert list(table.columns) == ["codec", "anchor", "column", "bd_rate_percent", "overlap"]
    assert set(table.column) == {column}
    assert table.codec.tolist() == [c.codec.iloc[0] for c in curves]
    return table.bd_rate_percent.iloc[-1], table.overlap.iloc[-1]


@pytest.mark.parametrize("column", ["psnr", "ciede2000", "mse", "delta_e76", "rgb_angle"])
@pytest.mark.parametrize("factor", [0.5, 1.0, 1.37])
def test_curve_at_a_constant_factor_in_rate_saves_exactly_that(column, factor):
    values = np.array([27.0, 30.1, 31.9, 34.0, 35.2]) * (1 if column == "psnr" else -1) + 40
    percent, overlap = saving(
        curve("a", RATES, values, column), curve("b", factor * RATES, values, column), column=column
    )
    assert percent == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert overlap == 1


def test_curves_over_different_ranges_are_compared_where_both_are():
    def line(bpp):
        return 30 + 5 * np.log2(bpp)  # PCHIP of a straight line is the line

    low, high = np.array([1, 2, 4.0]), np.array([2, 4, 8.0])
    percent, overlap = saving(curve("a", low, line(low)), curve("b", 0.9 * high, line(high)))
    assert percent == pytest.approx(-10, abs=1e-9)
    assert overlap == pytest.approx(5 / 15)  # 35..40 of 30..45


def test_anchor_against_itself_is_zero_and_anchors_are_reciprocal():
    both = pd.concat([curve("a", RATES, PSNR), curve("b", 0.7 * RATES, [27.3, 30, 31, 33.9, 35.1])])
    table = evaluation.bd_rate(both, "a", "psnr").set_index("codec").bd_rate_percent
    back = evaluation.bd_rate(both, "b", "psnr").set_index("codec").bd_rate_percent
    assert table["a"] == pytest.approx(0, abs=1e-9)
    assert (1 + table["b"] / 100) * (1 + back["a"] / 100) == pytest.approx(1)
    with pytest.raises(UsageError, match="BD-rate anchor 'c' is not in the table"):
        evaluation.bd_rate(both, "c", "psnr")


def test_order_of_rows_dominated_and_lossless_points_do_not_matter():
    a, b = curve("a", RATES, PSNR), curve("b", 0.8 * RATES, PSNR)
    worse = curve("b", [0.3], [29.5])  # more bits than the second point for less quality
    percent, _ = saving(a[::-1], pd.concat([b, worse, curve("b", [3], [np.inf])])[::-1])
    assert percent == pytest.approx(-20, abs=1e-9)


@pytest.mark.parametrize(
    "other", [curve("b", RATES, [37, 40, 42, 44, 45.0]), curve("b", [0.3], [32.0]), curve("b", [1], [np.inf])]
)
def test_curves_without_common_range_or_with_one_point_have_no_saving(other):
    percent, overlap = saving(curve("a", RATES, PSNR), other)
    assert np.isnan(percent) and overlap == 0
