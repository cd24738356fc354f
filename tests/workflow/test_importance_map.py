"""What importance maps cost: the kept table is what the kept points say."""

import importlib.util

import pandas as pd
import pytest
from helpers import ROOT

KEPT = ROOT / "results" / "released" / "importance_map"
spec = importlib.util.spec_from_file_location("importance_map", ROOT / "workflow/scripts/importance_map.py")
importance_map = importlib.util.module_from_spec(spec)
spec.loader.exec_module(importance_map)


def test_the_kept_price_is_that_of_the_kept_points():
    points = pd.read_csv(KEPT / "points.csv")
    assert points.groupby("codec").image.nunique().to_dict() == {"adaptive": 24, "uniform": 24}
    pd.testing.assert_frame_equal(importance_map.price(points), pd.read_csv(KEPT / "bd_rate.csv"))


def test_twice_the_bytes_of_the_same_decodes_are_a_hundred_percent_more():
    one = pd.DataFrame(
        {"image": "a", "bpp": [0.1, 0.2, 0.4], "psnr": [25.0, 27, 29], "ciede2000": [5.0, 4, 3]}
    )
    both = pd.concat([one.assign(codec="uniform"), one.assign(codec="adaptive", bpp=2 * one.bpp)])
    assert importance_map.price(both).bd_rate_percent.tolist() == pytest.approx([100, 100], abs=1e-6)
