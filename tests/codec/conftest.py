"""The smallest networks with an entropy coder, made once for all tests of the codec."""

import numpy as np
import pytest
from helpers import tiny_codec, tiny_scalar


@pytest.fixture(scope="session")
def codecs(tmp_path_factory):
    """One codec a variant and settings, made when first asked for."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def get(variant, make=tiny_codec, **settings):
        key = " ".join([variant, *(f"{name}={value}" for name, value in settings.items())])
        if make is tiny_scalar:
            key = f"scalar_{key}"
        if key not in made:
            made[key] = make(folder / key, variant, **settings)
        return made[key]

    return get


@pytest.fixture(scope="session")
def fusion(codecs):
    """The poster's codec, tiny."""
    return codecs("fusion")


@pytest.fixture(scope="session")
def latents(codecs):
    """A codec of scalar latents, tiny."""
    return codecs("fusion", tiny_scalar)


@pytest.fixture(scope="session")
def crop(astronaut):
    """A picture of 80 x 72 pixels: four tiles of 64."""
    return np.ascontiguousarray(astronaut[30:102, 40:120])
