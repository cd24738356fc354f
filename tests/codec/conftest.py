"""The smallest networks with an entropy coder, made once for all tests of the codec."""

import pytest
from helpers import tiny_codec


@pytest.fixture(scope="session")
def codecs(tmp_path_factory):
    """One codec a variant, made when first asked for."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def get(variant):
        if variant not in made:
            made[variant] = tiny_codec(folder / variant, variant)
        return made[variant]

    return get


@pytest.fixture(scope="session")
def fusion(codecs):
    """The poster's codec, tiny."""
    return codecs("fusion")
