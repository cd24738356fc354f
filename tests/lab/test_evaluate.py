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
    assert table.target_bpp.isna().all() and table.reached.all()
    assert evaluation.misses(table) == []
    means = evaluation.mean_table(table)
    assert tuple(means[means.codec == "webp"].quality) == codec.get_codec("webp").qualities
    expected = table.groupby(["codec", "quality"], sort=False).bpp.mean()
    np.testing.assert_allclose(means.bpp, expected)


def test_given_qualities_are_the_rows(photos):
    table = evaluation.evaluate_qualities(photos[:2], "jpeg444", [90, 30], workers=1)
    assert table.quality.tolist() == [90, 30, 90, 30]
    assert set(table.codec) == {"jpeg444"}
    image = read_image(photos[0])
    raw = codec.get_codec("jpeg444").encode(image, 90)
    assert table.bpp[0] == 8 * len(raw) / (image.shape[0] * image.shape[1])
    assert table.target_bpp.isna().all()


def test_parallel_table_equals_the_serial_one(photos, at_rates):
    steps = []
    table = evaluation.evaluate(
        photos, ["webp", "jpeg420"], [0.8, 2.0], workers=2, progress=lambda *step: steps.append(step)
    )
    pd.testing.assert_frame_equal(table, at_rates, rtol=1e-9)
    assert steps == [(count, 6) for count in range(1, 7)]


def test_lossless_decode_has_infinite_psnr_and_no_error(tmp_path):
    Image.new("RGB", (32, 24), (128, 128, 128)).save(tmp_path / "flat.png")
    table = evaluation.evaluate_qualities([tmp_path / "flat.png"], "jpeg444", [75], workers=1)
    assert (table.mse[0], table.psnr[0], table.ciede2000[0]) == (0, np.inf, 0)


# --------------------------------------------------------------------------------- refusals


def test_unknown_codec_names_the_nearest_before_any_image_is_read(tmp_path):
    with pytest.raises(UsageError, match="unknown codec 'wepb': did you mean 'webp'"):
        evaluation.evaluate([tmp_path / "none.png"], ["webp", "wepb"], workers=1)


@pytest.mark.parametrize("targets", [[1.0, 0], [1.0, -1], [np.nan], [np.inf], []])
def test_rates_that_are_no_positive_numbers_or_none_are_refused(photos, targets):
    with pytest.raises(UsageError, match=r"target bpp|no rate to evaluate at"):
        evaluation.evaluate(photos[:1], ["webp"], targets, workers=1)


@pytest.mark.parametrize("function", ["evaluate", "evaluate_qualities"])
def test_two_images_of_one_name_are_refused(photos, tmp_path, function):
    (tmp_path / "face.jpg").write_bytes(photos[0].read_bytes())
    paths = [*photos, tmp_path / "face.jpg"]
    arguments = (["webp"],) if function == "evaluate" else ("webp", [50])
    with pytest.raises(DataError, match="two images are named face: rename one"):
        getattr(evaluation, function)(paths, *arguments, workers=1)


@pytest.mark.parametrize("workers", [1, 2])
def test_unreadable_image_is_refused_by_name(photos, tmp_path, workers):
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text\.png: not an image"):
        evaluation.evaluate([*photos[2:], tmp_path / "text.png"], ["webp"], workers=workers)


@pytest.mark.parametrize("target", [0.001, 24])
def test_rate_out_of_reach_names_the_nearest_file(photos, target):
    names = ["jpeg444", "jpeg420"]
    table = evaluation.evaluate(photos[:2], names, [2.0, target], workers=1)
    assert len(table) == 8  # the rows of the other rate are not lost
    with pytest.raises(DataError, match=f"target {target:g} bpp is out of reach") as error:
        evaluation.check_reach(table)
    ends = {}
    for name in names:
        used = codec.get_codec(name)
        for path in photos[:2]:
            image = read_image(path)
            file = used.encode(
                image, used.quality_range.coarsest if target < 1 else used.quality_range.finest
            )
            ends[f"{name} on {path.stem}"] = codec.bits_per_pixel(file, image)
    nearest = (min if target < 1 else max)(ends, key=ends.get)
    assert str(error.value).endswith(f"the nearest file has {ends[nearest]:.3f} bpp ({nearest})")


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
    assert set(means.images) == {3}
    assert set(means.identical) == {0}


def rows(**columns):
    """A table in `evaluate`'s form with one codec at one rate."""
    count = len(next(iter(columns.values())))
    keys = {"image": [f"i{n}" for n in range(count)], "codec": "x", "quality": 1.0, "target_bpp": 1.0}
    return pd.DataFrame(keys | {"bpp": 1.0, "reached": True} | columns)


def test_infinite_and_missing_values_are_left_out_of_their_mean_unless_there_are_no_others():
    table = rows(mse=[0.0, 2.0, 4.0], psnr=[np.inf, 40.0, 30.0], ssim=[1.0, np.nan, 0.5])
    (mean,) = evaluation.mean_table(table).to_dict("records")
    assert (mean["psnr"], mean["ssim"]) == (35, 0.75)
    assert (mean["mse"], mean["images"], mean["identical"]) == (2, 3, 1)
    (mean,) = evaluation.mean_table(rows(mse=[0.0, 0.0], psnr=[np.inf] * 2, ms_ssim=[np.nan] * 2)).to_dict(
        "records"
    )
    assert mean["psnr"] == np.inf and np.isnan(mean["ms_ssim"]) and mean["identical"] == 2


# ---------------------------------------------------------------------------------- bd_rate

RATES = np.array([0.1, 0.2, 0.3, 0.5, 0.8])
PSNR = [27, 30, 32, 34, 35.0]


def curve(name, bpp, psnr, **columns):
    return pd.DataFrame({"codec": name, "bpp": bpp, "psnr": psnr} | columns)


def saving(*curves, column="psnr"):
    """Rate difference and overlap of the last curve to the first."""
    table = evaluation.bd_rate(pd.concat(curves), curves[0].codec.iloc[0], column)
    assert list(table.columns) == ["codec", "anchor", "column", "bd_rate_percent", "overlap"]
    assert set(table.column) == {column}
    assert table.codec.tolist() == [c.codec.iloc[0] for c in curves]
    return table.bd_rate_percent.iloc[-1], table.overlap.iloc[-1]


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.0, 1.37])
def test_curve_at_a_constant_factor_in_rate_saves_exactly_that(factor):
    psnr = [27.0, 30.1, 31.9, 34.0, 35.2]
    percent, overlap = saving(curve("a", RATES, psnr), curve("b", factor * RATES, psnr))
    assert percent == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert overlap == 1


def test_curves_over_different_ranges_are_compared_where_both_are():
    def line(bpp):
        return 30 + 5 * np.log2(bpp)  # PCHIP of a straight line is the line

    low, high = np.array([1, 2, 4.0]), np.array([2, 4, 8.0])
    percent, overlap = saving(curve("a", low, line(low)), curve("b", 0.9 * high, line(high)))
    assert percent == pytest.approx(-10, abs=1e-9)
    assert overlap == pytest.approx(5 / 15)  # 35..40 of 30..45


@pytest.mark.parametrize("column", ["ciede2000", "mse", "delta_e76", "rgb_angle"])
def test_of_metrics_that_fall_the_lower_curve_saves_too(column):
    value = {column: [6.0, 4.5, 3.9, 3.0, 2.5]}
    percent, overlap = saving(
        curve("a", RATES, 0, **value), curve("b", 0.75 * RATES, 0, **value), column=column
    )
    assert percent == pytest.approx(-25, abs=1e-9)
    assert overlap == 1


def test_anchor_against_itself_is_zero_and_anchors_are_reciprocal():
    both = pd.concat([curve("a", RATES, PSNR), curve("b", 0.7 * RATES, [27.3, 30, 31, 33.9, 35.1])])
    table = evaluation.bd_rate(both, "a", "psnr").set_index("codec").bd_rate_percent
    back = evaluation.bd_rate(both, "b", "psnr").set_index("codec").bd_rate_percent
    assert table["a"] == pytest.approx(0, abs=1e-9)
    assert (1 + table["b"] / 100) * (1 + back["a"] / 100) == pytest.approx(1)


def test_order_of_rows_and_dominated_points_do_not_matter():
    a, b = curve("a", RATES, PSNR), curve("b", 0.8 * RATES, PSNR)
    worse = curve("b", [0.3], [29.5])  # more bits than the second point for less quality
    percent, _ = saving(a[::-1], pd.concat([b, worse]).sample(frac=1, random_state=0))
    assert percent == pytest.approx(-20, abs=1e-9)


def test_curves_without_common_range_or_with_one_point_have_no_saving():
    a = curve("a", RATES, PSNR)
    for other in (
        curve("b", RATES, [37, 40, 42, 44, 45.0]),
        a[2:3].assign(codec="b"),
        curve("b", [1], [np.inf]),
    ):
        percent, overlap = saving(a, other)
        assert np.isnan(percent) and overlap == 0


def test_lossless_point_is_left_out():
    psnr = [*PSNR[:4], np.inf]
    percent, _ = saving(curve("a", RATES, psnr), curve("b", 0.8 * RATES, psnr))
    assert percent == pytest.approx(-20, abs=1e-9)


def test_unknown_anchor_is_refused_by_name():
    with pytest.raises(UsageError, match="BD-rate anchor 'c' is not in the table"):
        evaluation.bd_rate(curve("a", RATES, RATES), "c", "psnr")
