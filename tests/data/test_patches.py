"""Training patches: whose pixels they are, and how evenly they are drawn."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from mcml.base.errors import DataError
from mcml.data.patches import PatchStore

SIZES = [(5, 4), (3, 6), (1, 9), (2, 2), (6, 1)]  # two of them too small for a patch of 2


def numbered(sizes):
    """Images whose pixels are all different: the running number in the first two channels."""
    images, start = [], 0
    for height, width in sizes:
        number = np.arange(start, start + height * width).reshape(height, width)
        images.append(np.stack([number // 256, number % 256, number % 7], axis=-1).astype(np.uint8))
        start += height * width
    return images


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def flips(patch):
    """Return the eight mirrored and transposed versions of an (S, S, 3) array."""
    four = [patch, patch[::-1], patch[:, ::-1], patch[::-1, ::-1]]
    return [*four, *(p.transpose(1, 0, 2) for p in four)]


def slices(images, size):
    """Every crop of every image, the slow way: {(image, top, left): (S, S, 3)}."""
    return {
        (i, top, left): image[top : top + size, left : left + size]
        for i, image in enumerate(images)
        for top in range(image.shape[0] - size + 1)
        for left in range(image.shape[1] - size + 1)
    }


def counts(images, size, draws):
    """How often each flip of each crop was drawn; KeyError for a patch that is no crop."""
    known = {}
    for place, crop in slices(images, size).items():
        for number, version in enumerate(flips(crop)):
            known[version.tobytes()] = (place, number)
    drawn = dict.fromkeys(known.values(), 0)
    patches = PatchStore(images).sample(draws, size, seeded())
    assert (patches.dtype, patches.shape) == (torch.uint8, (draws, 3, size, size))
    for patch in patches.permute(0, 2, 3, 1).numpy():
        drawn[known[patch.tobytes()]] += 1
    return drawn


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_crop_and_each_of_its_flips_is_drawn_equally_often(size):
    images = numbered(SIZES)
    drawn = counts(images, size, 9000)
    assert len(drawn) == (1 if size == 1 else 8) * len(slices(images, size))  # a pixel has no flips
    assert chisquare(list(drawn.values())).pvalue > 0.001


def test_patches_as_large_as_a_photograph_are_flips_of_it_and_of_others_their_own_crops(astronaut):
    square = astronaut[:56, :56]
    patches = PatchStore([square, astronaut[:57, 60:]]).sample(20, 56, seeded()).permute(0, 2, 3, 1)
    crops = [square, *slices([astronaut[:57, 60:]], 56).values()]
    known = {version.tobytes() for crop in crops for version in flips(crop)}
    assert all(patch.numpy().tobytes() in known for patch in patches)


def test_seeds_repeat_whatever_other_sizes_were_drawn_and_the_generator_goes_on():
    store, fresh = PatchStore(numbered([(40, 50)])), PatchStore(numbered([(40, 50)]))
    generator, again = seeded(5), seeded(5)
    first, second = store.sample(8, 4, generator), store.sample(8, 4, generator)
    assert not torch.equal(first, second)
    fresh.sample(4, 3, seeded())
    assert torch.equal(fresh.sample(8, 4, again), first)
    assert torch.equal(fresh.sample(8, 4, again), second)
    assert not torch.equal(store.sample(8, 4, seeded(6)), first)


@pytest.mark.parametrize("sizes, nearest", [([(8, 6), (2, 3)], "6 x 8"), ([(30, 4), (4, 20)], "4 x 30")])
def test_patch_larger_than_every_image_is_refused_with_both_sizes(sizes, nearest):
    with pytest.raises(DataError, match=f"patch of 9 x 9: the nearest is {nearest}"):
        PatchStore(numbered(sizes)).sample(1, 9, seeded())


@pytest.mark.parametrize("bad", [np.zeros((6, 6), np.uint8), np.zeros((6, 6, 3), np.float32)])
def test_no_images_and_arrays_that_are_not_8_bit_rgb_are_refused(bad):
    with pytest.raises(DataError, match="no images"):
        PatchStore([])
    with pytest.raises(DataError, match="uint8"):
        PatchStore([*numbered([(5, 5)]), bad])
