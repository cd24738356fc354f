"""Curves of real files: where they begin and end, what is kept, and tables at equal bytes."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from mcml.base.errors import UsageError
from mcml.codec import interface as codec
from mcml.data.images import read_image
from mcml.data.sets import image_set
from mcml.lab import curves
from mcml.lab import evaluate as evaluation
from mcml.metrics import distortion as metrics

RATES = (0.4, 1.0)


@pytest.fixture
def photos(tmp_path, astronaut):
    """A set of two small photographs."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, pixels in {"face": astronaut[20:84, 40:136], "badge": astronaut[70:, :56]}.items():
        Image.fromarray(np.ascontiguousarray(pixels)).save(folder / f"{name}.png")
    return image_set(str(folder))


@pytest.fixture
def measured(monkeypatch):
    """Every (codec, quality) that is encoded from now on."""
    calls, get = [], codec.get_codec

    def counted(name):
        own = get(name)
        encoder = own.encoder
        encode = lambda image: lambda quality: calls.append((name, quality)) or encoder(image)(quality)  # noqa: E731
        own_copy = type("Counted", (), {**vars(own), "encoder": staticmethod(encode), "decode": own.decode})
        return own_copy()

    monkeypatch.setattr(codec, "get_codec", counted)
    return calls


# ------------------------------------------------------------------------------------ points


def test_a_curve_encloses_the_rates_with_no_more_points_than_that_needs(photos):
    path = next(path for path in photos.paths if path.stem == "face")
    image, webp = read_image(path), codec.get_codec("webp")
    rows = curves.picture_curve(path, "webp", RATES, {})
    bpp = {q: codec.bits_per_pixel(webp.encode(image, q), image) for q in webp.qualities}
    under = max(q for q in webp.qualities if bpp[q] <= RATES[0])
    over = min(q for q in webp.qualities if bpp[q] >= RATES[1])
    assert [row["quality"] for row in rows] == [q for q in webp.qualities if under <= q <= over]
    assert under > webp.qualities[0]
    for row in rows:
        file = webp.encode(image, row["quality"])
        exact = {"bpp": bpp[row["quality"]]} | vars(metrics.compare(image, webp.decode(file)))
        assert {name: row[name] for name in exact} == pytest.approx(exact, rel=1e-5, nan_ok=True)


def test_a_folder_grows_by_codecs_and_measures_nothing_twice(photos, tmp_path, measured):
    folder = tmp_path / "curves"
    curves.extend(folder, photos, ["webp"], RATES, workers=1)
    first, count = pd.read_csv(folder / "points.csv"), len(measured)
    assert list(first.columns) == ["image", "codec", "quality", "bpp", *metrics.COLUMNS]
    assert len(first) == count == len(set(zip(first.image, first.quality, strict=True)))
    means, saved = curves.extend(folder, photos, ["webp", "jpeg2000"], RATES, workers=1)
    assert {name for name, _ in measured[count:]} == {"jpeg2000"}
    both = pd.read_csv(folder / "points.csv")
    pd.testing.assert_frame_equal(both[both.codec == "webp"].reset_index(drop=True), first)
    for name, table in (("means", means), ("bd_rate", saved)):
        pd.testing.assert_frame_equal(pd.read_csv(folder / f"{name}.csv"), table, check_dtype=False)
    assert list(means.codec) == ["webp"] * 2 + ["jpeg2000"] * 2 and set(means.images) == {2}
    assert set(saved.anchor) == {"jpeg2000"} and set(saved.column) == {"psnr", "ciede2000"}
    record = json.loads((folder / "run.json").read_text())
    assert [run["codecs"] for run in record["runs"]] == [["webp"], ["webp", "jpeg2000"]]
    assert record["data_hash"] == photos.digest and set(record["files"]) == {
        "points.csv", "means.csv", "bd_rate.csv",
    }  # fmt: skip
    assert all(run["seconds"] >= 0 for run in record["runs"])


def test_a_run_that_was_stopped_goes_on_after_the_last_picture(photos, tmp_path, measured):
    folder = tmp_path / "curves"

    def stop(done, _):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        curves.extend(folder, photos, ["webp"], RATES, workers=1, progress=stop)
    kept = pd.read_csv(folder / "points.csv")
    assert list(kept.image.unique()) == [photos.paths[0].stem] and len(measured) == len(kept)
    assert json.loads((folder / "run.json").read_text())["runs"][0]["seconds"] is None
    curves.extend(folder, photos, ["webp"], RATES, workers=1)
    assert len(pd.read_csv(folder / "points.csv")) == len(measured)


def test_points_of_other_settings_and_on_demand_all_are_measured_anew(photos, tmp_path, measured):
    folder = tmp_path / "curves"
    curves.extend(folder, photos, ["webp", "jpeg444"], RATES, workers=1)
    record = json.loads((folder / "run.json").read_text())
    assert record["settings"]["webp"] == "{'method': 6}"
    record["settings"]["webp"] = "{'method': 4}"
    (folder / "run.json").write_text(json.dumps(record))
    before = len(measured)
    curves.extend(folder, photos, ["webp", "jpeg444"], RATES, workers=1)
    assert {name for name, _ in measured[before:]} == {"webp"}
    before = len(measured)
    curves.extend(folder, photos, ["jpeg444"], RATES, workers=1, anew=True)
    assert {name for name, _ in measured[before:]} == {"jpeg444"}
    assert not pd.read_csv(folder / "points.csv").duplicated(["image", "codec", "quality"]).any()


def test_wider_rates_add_points_and_other_pictures_are_refused(photos, tmp_path, astronaut):
    folder = tmp_path / "curves"
    curves.extend(folder, photos, ["webp"], (0.9,), workers=1)
    few = pd.read_csv(folder / "points.csv")
    curves.extend(folder, photos, ["webp"], (0.4, 3.0), workers=1)
    assert len(pd.read_csv(folder / "points.csv")) > len(few)
    Image.fromarray(astronaut[:64, :64].copy()).save(photos.paths[0].parent / "more.png")
    with pytest.raises(UsageError, match="its points are of other pictures than photos"):
        curves.extend(folder, image_set(str(photos.paths[0].parent)), ["webp"], RATES, workers=1)


# ------------------------------------------------------------------------------------ tables


def points(codec_name, image, bpp, psnr):
    """Points whose every other metric is PSNR too, but CIEDE2000, which falls as it rises."""
    rest = dict.fromkeys(curves.COLUMNS, 0.0)
    return [
        rest | {"codec": codec_name, "image": image, "bpp": b, "psnr": p, "ciede2000": 60 - p}
        for b, p in zip(bpp, psnr, strict=True)
    ]


GRID = np.array([0.1, 0.2, 0.4, 0.8, 1.6])


def line(bpp, level):
    return level + 5 * np.log2(np.asarray(bpp))


def test_means_at_equal_bytes_are_those_of_each_pictures_own_curve_and_count_what_was_continued():
    rows = points("near", "a", GRID, line(GRID, 30)) + points("near", "b", GRID * 1.7, line(GRID * 1.7, 38))
    means = curves.mean_of(curves.at_equal_bytes(rows, (0.15, 0.3, 2.0))).set_index("bpp")
    assert means.psnr.to_numpy()[:2] == pytest.approx(line([0.15, 0.3], 34))
    assert list(means.extended) == [1, 0, 1] and set(means.images) == {2}
    assert means.psnr[2.0] == pytest.approx(line(2.0, 34))
    short = curves.mean_of(curves.at_equal_bytes(rows, (0.05,)))
    assert short.extended[0] == 2 and short[list(curves.COLUMNS)].isna().all(axis=None)
    assert curves.continued(short) == [
        "near: at 0.05 bpp the curves of 2 of 2 pictures end before: left blank"
    ]
    assert curves.continued(means.reset_index())[0].endswith(
        "1 of 2 pictures end before: continued by a straight line"
    )


def test_a_bent_curve_of_few_points_is_read_better_by_cubics_than_by_straight_lines():
    bent = 30 + 3 * np.log(GRID) + 0.7 * np.log(GRID) ** 2
    (row,) = curves.at_equal_bytes(points("x", "a", GRID, bent), (0.28,)).to_dict("records")
    true = 30 + 3 * np.log(0.28) + 0.7 * np.log(0.28) ** 2
    straight = np.interp(np.log(0.28), np.log(GRID), bent)
    assert abs(row["psnr"] - true) < 0.2 * abs(straight - true)


def test_rate_differences_are_means_over_pictures_of_what_was_not_continued():
    rows = []
    for image, level, factor in (("a", 30, 0.5), ("b", 38, 0.8)):
        rows += points("jpeg2000", image, GRID, line(GRID, level))
        rows += points("new", image, GRID * factor, line(GRID, level))
    rows += points("short", "a", [0.001, 0.002], [1.0, 2.0]) + points("short", "b", GRID, line(GRID, 38))
    saved = curves.savings(curves.at_equal_bytes(rows, (0.1, 0.2, 0.4, 0.8))).set_index(["column", "codec"])
    for column in ("psnr", "ciede2000"):
        new, short = saved.loc[(column, "new")], saved.loc[(column, "short")]
        assert new.bd_rate_percent == pytest.approx(-35, abs=1e-6) and new.images == 2
        assert new.overlap == pytest.approx((2 / 4 + np.log2(6.4) / np.log2(10)) / 2, abs=0.1)
        assert short.bd_rate_percent == pytest.approx(0, abs=1e-6) and short.images == 1
    assert curves.savings(curves.at_equal_bytes(points("new", "a", GRID, line(GRID, 30)), (0.2,))).empty


def test_the_mean_of_one_picture_agrees_with_a_search_for_the_rate(photos):
    path = photos.paths[0]
    image, used = read_image(path), codec.get_codec("jpeg2000")
    rows = curves.picture_curve(path, "jpeg2000", (1.0,), {})
    (read,) = curves.at_equal_bytes(rows, (1.0,)).to_dict("records")
    file = codec.encode_at_bpp(used, image, 1.0)
    assert read["psnr"] == pytest.approx(metrics.compare(image, used.decode(file.data)).psnr, abs=0.3)
    assert not read["extended"] and evaluation.LOWER_IS_BETTER & set(read)


def test_a_rate_far_beyond_a_curve_s_end_is_left_blank():
    quality = dict.fromkeys(curves.COLUMNS, 1.0)
    points = [
        {"codec": "x", "image": image, "bpp": bpp, **quality}
        for image, least in (("a", 0.1), ("b", 0.1), ("tiny", 20.0))
        for bpp in (least, 2 * least, 4 * least)
    ]
    pictures = curves.at_equal_bytes(points, [0.3])
    assert pictures.beyond.round(3).tolist() == [0.75, 0.75, 66.667]
    means = curves.mean_of(pictures)
    assert means[list(curves.COLUMNS)].isna().all(axis=None) and "left blank" in curves.continued(means)[0]
    near = curves.mean_of(curves.at_equal_bytes(points[:6], [0.3]))
    assert near[list(curves.COLUMNS)].notna().all(axis=None)
