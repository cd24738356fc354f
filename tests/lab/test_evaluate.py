"""Tables of any codec on any images, their means, and rate savings against closed forms."""

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


def test_columns_have_the_names_and_the_order_of_the_conventions(at_rates):
    columns = list(at_rates.columns)
    assert columns == [*evaluation.KEYS, *metrics.COLUMNS]
    assert [name for name in columns if name in CONVENTIONS] == CONVENTIONS


def test_rows_follow_the_order_of_the_arguments(at_rates):
    expected = [
        (image, name, target)
        for image in ("face", "badge", "above")
        for name in ("webp", "jpeg420")
        for target in (0.8, 2.0)
    ]
    keys = at_rates[["image", "codec", "target_bpp"]]
    assert list(keys.itertuples(index=False, name=None)) == expected


def test_every_row_is_what_encoding_decoding_and_comparing_gives(photos, at_rates):
    paths = {path.stem: path for path in photos}
    for row in at_rates.to_dict("records"):
        image, used = read_image(paths[row["image"]]), codec.get_codec(row["codec"])
        file = used.encode(image, row["quality"])
        assert row["bpp"] == 8 * len(file) / (image.shape[0] * image.shape[1])
        expected = vars(metrics.compare(image, used.decode(file)))
        np.testing.assert_equal({name: row[name] for name in metrics.COLUMNS}, expected)
        assert row["reached"] == (abs(row["bpp"] / row["target_bpp"] - 1) <= 0.02)


def test_rates_are_hit_where_the_dial_is_fine_enough(photos):
    table = evaluation.evaluate(photos[:2], ["jpeg2000"], [1.0, 3.0], workers=1)
    assert table.reached.all()
    assert (abs(table.bpp / table.target_bpp - 1) <= 0.02).all()


def test_without_rates_each_codec_runs_its_own_qualities(photos):
    table = evaluation.evaluate(photos[2:], ["webp", "jpeg420"], workers=1)
    for name, rows in table.groupby("codec"):
        assert tuple(rows.quality) == codec.get_codec(name).qualities
        assert rows.bpp.is_monotonic_increasing
    assert table.target_bpp.isna().all()
    assert table.reached.all()


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
    pd.testing.assert_frame_equal(table, at_rates, check_exact=True)
    assert steps == [(count, 6) for count in range(1, 7)]


def test_lossless_decode_has_infinite_psnr_and_no_error(tmp_path):
    Image.new("RGB", (32, 24), (128, 128, 128)).save(tmp_path / "flat.png")
    table = evaluation.evaluate_qualities([tmp_path / "flat.png"], "jpeg444", [75], workers=1)
    assert (table.mse[0], table.psnr[0], table.ciede2000[0]) == (0, np.inf, 0)


# --------------------------------------------------------------------------------- refusals


def test_unknown_codec_names_the_nearest_before_any_image_is_read(tmp_path):
    with pytest.raises(UsageError, match="unknown codec 'wepb': did you mean 'webp'"):
        evaluation.evaluate([tmp_path / "none.png"], ["webp", "wepb"], workers=1)


@pytest.mark.parametrize("target", [0, -1, float("nan"), float("inf")])
def test_rate_that_is_no_positive_number_is_refused(photos, target):
    with pytest.raises(UsageError, match="target bpp"):
        evaluation.evaluate(photos[:1], ["webp"], [1.0, target], workers=1)


def test_empty_list_of_rates_does_not_take_qualities_for_rates(photos):
    try:
        table = evaluation.evaluate(photos[2:], ["jpeg2000"], [], workers=1)
    except UsageError:
        return
    assert table.target_bpp.isna().all()


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


def test_table_that_hits_every_rate_has_no_misses(photos):
    hit = evaluation.evaluate(photos[:2], ["jpeg2000"], [1.0], workers=1)
    assert evaluation.misses(hit) == []
    assert evaluation.misses(evaluation.evaluate(photos[2:], ["webp"], workers=1)) == []


def test_mean_table_is_the_mean_over_images_of_each_codec_and_rate(at_rates):
    means = evaluation.mean_table(at_rates)
    keys = list(means[["codec", "target_bpp"]].itertuples(index=False, name=None))
    assert keys == [("webp", 0.8), ("webp", 2.0), ("jpeg420", 0.8), ("jpeg420", 2.0)]
    columns = ["quality", "bpp", *metrics.COLUMNS]
    expected = at_rates.groupby(["codec", "target_bpp"], sort=False)[columns].mean().reset_index(drop=True)
    pd.testing.assert_frame_equal(means[columns], expected, check_dtype=False, rtol=1e-12)
    assert set(means.images) == {3}
    assert set(means.identical) == {0}


def test_mean_table_of_qualities_groups_by_them(photos):
    table = evaluation.evaluate(photos[:2], ["webp"], workers=1)
    means = evaluation.mean_table(table)
    assert tuple(means.quality) == codec.get_codec("webp").qualities
    np.testing.assert_allclose(means.bpp, table.groupby("quality").bpp.mean())


def rows(**columns):
    """A table in `evaluate`'s form with one codec at one rate."""
    count = len(next(iter(columns.values())))
    keys = {"image": [f"i{n}" for n in range(count)], "codec": "x", "quality": 1.0, "target_bpp": 1.0}
    return pd.DataFrame(keys | {"bpp": 1.0, "reached": True} | columns)


def test_infinite_and_missing_values_are_left_out_of_their_mean_and_identical_counts_them():
    table = rows(mse=[0.0, 2.0, 4.0], psnr=[np.inf, 40.0, 30.0], ssim=[1.0, np.nan, 0.5])
    (mean,) = evaluation.mean_table(table).to_dict("records")
    by_hand = table[["psnr", "ssim"]].replace(np.inf, np.nan).mean()
    assert (mean["psnr"], mean["ssim"]) == (by_hand.psnr, by_hand.ssim) == (35, 0.75)
    assert (mean["mse"], mean["images"], mean["identical"]) == (2, 3, 1)


def test_mean_of_only_infinite_or_only_missing_values_stays_so():
    table = rows(mse=[0.0, 0.0], psnr=[np.inf, np.inf], ms_ssim=[np.nan, np.nan])
    (mean,) = evaluation.mean_table(table).to_dict("records")
    assert mean["psnr"] == np.inf
    assert np.isnan(mean["ms_ssim"])
    assert mean["identical"] == 2


# ---------------------------------------------------------------------------------- bd_rate

RATES = np.array([0.1, 0.2, 0.3, 0.5, 0.8])


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
    a, b = curve("a", RATES, [27, 30, 32, 34, 35.0]), curve("b", 0.7 * RATES, [27.3, 30, 31, 33.9, 35.1])
    table = evaluation.bd_rate(pd.concat([a, b]), "a", "psnr").set_index("codec").bd_rate_percent
    back = evaluation.bd_rate(pd.concat([a, b]), "b", "psnr").set_index("codec").bd_rate_percent
    assert table["a"] == pytest.approx(0, abs=1e-9)
    assert (1 + table["b"] / 100) * (1 + back["a"] / 100) == pytest.approx(1)


def test_order_of_rows_and_dominated_points_do_not_matter():
    a, b = curve("a", RATES, [27, 30, 32, 34, 35.0]), curve("b", 0.8 * RATES, [27, 30, 32, 34, 35.0])
    worse = curve("b", [0.3], [29.5])  # more bits than the second point for less quality
    percent, _ = saving(a[::-1], pd.concat([b, worse]).sample(frac=1, random_state=0))
    assert percent == pytest.approx(-20, abs=1e-9)


def test_curves_without_common_range_or_with_one_point_have_no_saving():
    a, b = curve("a", RATES, [27, 30, 32, 34, 35.0]), curve("b", RATES, [37, 40, 42, 44, 45.0])
    percent, overlap = saving(a, b)
    assert np.isnan(percent)
    assert overlap == 0
    percent, overlap = saving(a, a[2:3].assign(codec="b"))
    assert np.isnan(percent)
    assert overlap == 0


def test_lossless_point_is_left_out_or_leaves_no_number_but_does_not_crash():
    psnr = [27, 30, 32, 34, np.inf]
    percent, _ = saving(curve("a", RATES, psnr), curve("b", 0.8 * RATES, psnr))
    assert np.isnan(percent) or percent == pytest.approx(-20, abs=1e-9)


def test_unknown_anchor_is_refused_by_name():
    with pytest.raises(UsageError, match="BD-rate anchor 'c' is not in the table"):
        evaluation.bd_rate(curve("a", RATES, RATES), "c", "psnr")
