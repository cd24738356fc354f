"""Names with hints, and exit codes."""

import pytest

from mcml.base import errors
from mcml.base.errors import UsageError


def test_choose_returns_a_known_name():
    assert errors.choose("codec", "webp", {"webp": 1, "jpeg420": 2}) == "webp"


def test_choose_names_the_nearest_and_all_known():
    with pytest.raises(UsageError) as error:
        errors.choose("codec", "jpg420", ["webp", "jpeg420"])
    assert str(error.value) == "unknown codec 'jpg420': did you mean 'jpeg420'? known are jpeg420, webp"


def test_choose_gives_no_hint_where_nothing_is_near():
    with pytest.raises(UsageError) as error:
        errors.choose("codec", "zzzz", ["webp"])
    assert str(error.value) == "unknown codec 'zzzz': known are webp"


def test_exit_codes_are_2_for_usage_and_1_for_data():
    assert (UsageError.exit_code, errors.DataError.exit_code) == (2, 1)
