"""Training patches: whose pixels they are, and how evenly they are drawn."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import chisquare

from mcml.base.errors import DataError
from mcml.data.patches import PatchStore

SIZES = [(5, 4), (3, 6), (1, 9), (2, 2), (6, 1)]  # two of them too small for a patch of 2
CORNERS = {0: 4 * 3, 1: 2 * 5, 3: 1}


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


def counts(images, size, draws, *, augment, seed=0):
    """How often each crop (and flip) was drawn; KeyError for a patch that is no crop."""
    known = {}
    for place, crop in slices(images, size).items():
        for number, version in enumerate(flips(crop) if augment else [crop]):
            known[version.tobytes()] = (place, number)
    found = dict.fromkeys(known.values(), 0)
    patches = PatchStore(images).sample(draws, size, seeded(seed), augment=augment)
    assert patches.dtype == torch.uint8
    assert patches.shape == (draws, 3, size, size)
    for patch in patches.permute(0, 2, 3, 1).numpy():
        found[known[patch.tobytes()]] += 1
    return found


# --------------------------------------------------------------------------------- patches


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_patch_is_a_crop_and_every_crop_is_drawn_equally_often(size):
    images = numbered(SIZES)
    found = counts(images, size, 6000, augment=False)
    assert set(found) == {(place, 0) for place in slices(images, size)}
    assert chisquare(list(found.values())).pvalue > 0.001


@pytest.mark.parametrize("size", [2, 3])
def test_all_eight_flips_and_transposes_are_drawn_equally_often(size):
    images = numbered(SIZES)
    found = counts(images, size, 12000, augment=True)
    assert len(found) == 8 * len(slices(images, size))
    assert chisquare(list(found.values())).pvalue > 0.001


def test_large_images_are_drawn_as_much_more_often_as_they_have_corners():
    found = counts(numbered(SIZES), 2, 6000, augment=False)
    share = {i: sum(n for ((image, *_), _), n in found.items() if image == i) / 6000 for i in CORNERS}
    total = sum(CORNERS.values())
    assert share == pytest.approx({i: n / total for i, n in CORNERS.items()}, abs=0.02)
    assert sum(share.values()) == pytest.approx(1)  # none from the narrow images


def test_real_photograph_gives_its_own_crops(astronaut):
    patches = PatchStore([astronaut[:64, :48], astronaut]).sample(20, 56, seeded(), augment=False)
    crops = {crop.tobytes() for crop in slices([astronaut], 56).values()}
    assert all(patch.permute(1, 2, 0).numpy().tobytes() in crops for patch in patches)


def test_patch_as_large_as_the_image_is_the_image():
    (image,) = numbered([(7, 7)])
    patch = PatchStore([image]).sample(1, 7, seeded(), augment=False)
    np.testing.assert_array_equal(patch[0].permute(1, 2, 0), image)


def test_seeds_repeat_and_the_generator_goes_on():
    store = PatchStore(numbered([(40, 50)]))
    generator = seeded(5)
    first, second = store.sample(8, 4, generator), store.sample(8, 4, generator)
    assert not torch.equal(first, second)
    again = seeded(5)
    assert torch.equal(store.sample(8, 4, again), first)
    assert torch.equal(store.sample(8, 4, again), second)
    assert not torch.equal(store.sample(8, 4, seeded(6)), first)


def test_several_patch_sizes_from_one_store_do_not_disturb_each_other():
    store, fresh = PatchStore(numbered(SIZES)), PatchStore(numbered(SIZES))
    store.sample(4, 3, seeded())
    assert torch.equal(store.sample(9, 2, seeded(1)), fresh.sample(9, 2, seeded(1)))


def test_length_is_the_number_of_photographs():
    assert len(PatchStore(numbered(SIZES))) == 5


# --------------------------------------------------------------------------------- refusals


def test_patch_larger_than_every_image_is_refused_with_both_sizes():
    with pytest.raises(DataError, match=r"patch of 9 x 9: the nearest is 6 x 8"):
        PatchStore(numbered([(8, 6), (2, 3)])).sample(1, 9, seeded())


def test_largest_image_of_the_sentence_exists():
    store = PatchStore(numbered([(30, 4), (4, 20)]))
    with pytest.raises(DataError) as error:
        store.sample(1, 10, seeded())
    assert "4 x 30" in str(error.value) or "20 x 4" in str(error.value)


def test_no_images_are_refused():
    with pytest.raises(DataError, match="no images"):
        PatchStore([])
    with pytest.raises(DataError, match="no images"):
        PatchStore.from_files([])


@pytest.mark.parametrize("bad", [np.zeros((6, 6), np.uint8), np.zeros((6, 6, 3), np.float32)])
def test_arrays_that_are_not_8_bit_rgb_are_refused(bad):
    with pytest.raises(DataError, match="uint8"):
        PatchStore([*numbered([(5, 5)]), bad])


# ------------------------------------------------------------------------------------ files


def test_store_of_files_holds_their_pixels_one_photograph_after_another(photo_folder):
    paths = sorted(photo_folder.iterdir())
    store = PatchStore.from_files(paths)
    pixels = [np.array(Image.open(path)) for path in paths]
    assert torch.stack((store.heights, store.widths), 1).tolist() == [[128, 160], [128, 96]]
    np.testing.assert_array_equal(store.pixels, np.concatenate([p.reshape(-1, 3) for p in pixels]))


def test_missing_and_unreadable_photographs_are_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"none\.png: no such file"):
        PatchStore.from_files([Path("none.png")])
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match=r"text\.png: not an image"):
        PatchStore.from_files([tmp_path / "text.png"])
