"""The smallest networks with an entropy coder, made once for all tests of the codec."""

import numpy as np
import pytest
from helpers import tiny_codec


@pytest.fixture(scope="session")
def codecs(tmp_path_factory):
    """One codec a variant and settings, made when first asked for."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def get(variant, **settings):
        key = " ".join([variant, *(f"{name}={value}" for name, value in settings.items())])
        if key not in made:
            made[key] = tiny_codec(folder / key, variant, **settings)
        return made[key]

    return get


@pytest.fixture(scope="session")
def fusion(codecs):
    """The poster's codec, tiny."""
    return codecs("fusion")


@pytest.fixture(scope="session")
def crop(astronaut):
    """A picture of 80 x 72 pixels: four tiles of 64."""
    return np.ascontiguousarray(astronaut[30:102, 40:120])
