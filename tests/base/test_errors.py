"""Names with hints, and exit codes."""

import pytest

from mcml.base import errors
from mcml.base.errors import UsageError

CODECS = ["webp", "jpegxl", "jpeg444", "jpeg420"]


def test_choose_returns_a_known_name():
    assert errors.choose("codec", "webp", {"webp": 1, "jpeg420": 2}) == "webp"


@pytest.mark.parametrize(
    "name, hint",
    [
        ("JPEG42", "did you mean 'jpeg420'? "),  # whatever the case
        ("jpg420", "did you mean 'jpeg420'? "),
        ("jpeg", "did you mean 'jpeg420', 'jpeg444' or 'jpegxl'? "),  # the beginning of several
        ("zzzz", ""),
        ("", ""),
    ],
)
def test_choose_hints_at_what_is_near_and_names_all_known(name, hint):
    with pytest.raises(UsageError) as error:
        errors.choose("codec", name, CODECS)
    assert str(error.value) == f"unknown codec '{name}': {hint}known are jpeg420, jpeg444, jpegxl, webp"


def test_exit_codes_are_2_for_usage_and_1_for_data():
    assert (UsageError.exit_code, errors.DataError.exit_code) == (2, 1)


def test_the_face_of_the_room_holds_what_callers_catch():
    from mcml import base

    assert base.DataError is errors.DataError and base.UsageError is errors.UsageError
    assert issubclass(base.DataError, base.McmlError) and issubclass(base.UsageError, base.McmlError)
