import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nfcl_jax import points as grid
from nfcl_jax.geometry import radiological

SHAPES = [(5, 4, 3), (4, 7, 6, 2), (1, 1, 1), (4, 9, 1, 3), (2, 8, 8, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_coordinates_are_a_linspace_per_axis_with_time_last(shape):
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in shape]
    expected = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(shape))
    expected = np.roll(expected, -(len(shape) - 3), axis=1)
    coords = grid.index_to_coords(jnp.arange(len(expected)), grid.VoxelGrid(jnp.array(shape)))
    np.testing.assert_allclose(coords, expected, atol=1e-6)


def nearest_voxel(coords, shape):
    """By numpy, in double precision, the flat index of the voxel nearest to each coordinate."""
    first_time = np.roll(np.float64(coords), len(shape) - 3, axis=1)
    places = np.rint((first_time + 1) / 2 * (np.array(shape) - 1)).astype(int)
    return np.ravel_multi_index(tuple(places.T), shape)


@pytest.mark.parametrize("shape", [*SHAPES, (4, 512, 428, 18)])
def test_every_voxel_has_a_coordinate_of_its_own(shape):
    index = np.random.default_rng(0).integers(np.prod(shape), size=10_000)
    coords = grid.index_to_coords(jnp.asarray(index, jnp.int32), grid.VoxelGrid(jnp.array(shape)))
    np.testing.assert_array_equal(nearest_voxel(coords, shape), index)


def test_frames_are_at_the_times_of_the_paper():
    first_of_frame = jnp.arange(4) * 24
    coords = grid.index_to_coords(first_of_frame, grid.VoxelGrid(jnp.array((4, 2, 3, 4))))
    np.testing.assert_allclose(coords[:, 3], [-1, -1 / 3, 1 / 3, 1], atol=1e-6)
    np.testing.assert_array_equal(coords[:, :3], -1)


def test_frames_are_contiguous_in_the_patients_own_size():
    voxels = grid.VoxelGrid(jnp.array((4, 2, 3, 5)))
    ranges = grid.index_ranges(jnp.array([[0, 1], [2, 4]]), voxels)
    np.testing.assert_array_equal(ranges, [[0, 30], [60, 120]])
    known = grid.inside(jnp.arange(120), ranges)
    np.testing.assert_array_equal(known, np.repeat([True, False, True, True], 30))


@pytest.mark.parametrize("ranges", [[[7, 17]], [[7, 9], [20, 25], [30, 33]]])
def test_samples_are_uniform_over_the_ranges_and_never_outside(ranges):
    points = grid.sample_points(jax.random.key(0), 100_000, jnp.array(ranges))
    values, counts = np.unique(points.index, return_counts=True)
    np.testing.assert_array_equal(values, np.concatenate([np.arange(*own) for own in ranges]))
    assert np.abs(counts - 10_000).max() < 6 * 100  # six standard deviations
    assert (points.weights == 1).all()


@pytest.mark.parametrize("num_points", [1, 7, 10, 29, 30, 31, 75])
@pytest.mark.parametrize("ranges", [[[7, 37]], [[7, 9], [20, 25], [30, 53]]])
def test_a_pass_takes_every_index_of_the_ranges(ranges, num_points):
    """Once if it can, and else once more at most in a step of so few indices, or in a pass."""
    wanted = np.concatenate([np.arange(*own) for own in ranges])
    steps = -(-30 // num_points)
    passes = []
    for step in range(3 * steps):
        points = grid.spread_points(jax.random.key(0), step, num_points, jnp.array(ranges))
        assert points.index.shape == (num_points,) and (points.weights == 1).all()
        passes.append(points.index)
    passes = np.concatenate(passes).reshape(3, -1)
    for own in passes:
        values, counts = np.unique(own, return_counts=True)
        np.testing.assert_array_equal(values, wanted)
        least = max(num_points // 30, 1)
        assert set(counts) <= ({1} if 30 % num_points == 0 else {least, least + 1})
    assert num_points == 1 or not np.array_equal(passes[0], passes[1])


@pytest.mark.parametrize("size", [1, 2, 3, 7, 20, 160])
def test_a_shuffle_is_a_permutation_and_each_place_goes_anywhere(size):
    count = 20_000
    keys = jax.random.bits(jax.random.key(1), (count,), jnp.uint32)
    places = jnp.arange(size, dtype=jnp.uint32)[:, None]
    shape = (size, count)
    flat = [jnp.broadcast_to(x, shape).ravel() for x in (places, jnp.uint32(size), keys)]
    moved = np.asarray(grid.shuffled(*flat)).reshape(shape).astype(int)
    assert (np.sort(moved, axis=0) == np.arange(size)[:, None]).all()
    expected = count / size
    for own in (moved[0], moved[-1], moved[size // 2]):
        counts = np.bincount(own, minlength=size)
        assert np.abs(counts - expected).max() <= 5 * np.sqrt(expected)
    if size > 2:  # nor are two neighbours any nearer to each other than two others
        apart = np.bincount((moved[1] - moved[0]) % size, minlength=size)
        expected = count / (size - 1)
        assert apart[0] == 0
        assert np.abs(apart[1:] - expected).max() <= 6 * np.sqrt(expected)


def test_passes_take_every_index_equally_often():
    """Where strata differ in length, too: by chance those of one are taken twice in a pass."""
    of_step = jax.vmap(
        lambda step: grid.spread_points(jax.random.key(0), step, 7, jnp.array([[5, 14]])).index
    )
    values, counts = np.unique(of_step(jnp.arange(20_000)), return_counts=True)
    np.testing.assert_array_equal(values, np.arange(5, 14))
    assert np.abs(counts / counts.mean() - 1).max() < 0.03


def test_all_points_are_each_weighted_once():
    points = grid.all_points(8, jnp.array([[10, 15]]))
    np.testing.assert_array_equal(points.index[points.weights > 0], np.arange(10, 15))
    assert points.weights.sum() == 5
    values = jnp.arange(30.0)
    np.testing.assert_array_equal(grid.take(values, points), values[points.index])
    shifted = points.counted_from(jnp.int32(10))
    np.testing.assert_array_equal(grid.take(values[10:], shifted), values[points.index])


def test_all_points_of_ranges_have_no_weight_between_them():
    points = grid.all_points(9, jnp.array([[10, 12], [15, 17]]))
    np.testing.assert_array_equal(points.index, np.arange(10, 19))
    np.testing.assert_array_equal(points.index[points.weights > 0], [10, 11, 15, 16])


def test_continuous_coordinates_keep_the_frames_time():
    shape = grid.VoxelGrid(jnp.array((4, 5, 6, 7)))
    points = grid.sample_points(jax.random.key(0), 5000, jnp.array([[0, 420]]))
    coords = grid.sample_coords(jax.random.key(1), points, shape)
    np.testing.assert_allclose(np.unique(coords[:, 3]), [-1, -1 / 3], atol=1e-6)
    np.testing.assert_allclose(coords[:, :3].min(0), -1, atol=0.01)
    np.testing.assert_allclose(coords[:, :3].max(0), 1, atol=0.01)
    assert len(np.unique(coords[:, 0])) > 4000


def test_frames_have_the_times_that_a_grid_gives_them():
    shape = jnp.array((3, 2, 3, 4))
    index = jnp.arange(72)
    times = jnp.array([0.25, -1.0, 0.5])
    coords = grid.index_to_coords(index, grid.VoxelGrid(shape, times))
    np.testing.assert_array_equal(coords[:, 3], np.repeat(times, 24))
    equidistant = grid.index_to_coords(index, grid.VoxelGrid(shape))
    np.testing.assert_array_equal(coords[:, :3], equidistant[:, :3])
    same = grid.index_to_coords(index, grid.VoxelGrid(shape, jnp.array([-1.0, 0.0, 1.0])))
    np.testing.assert_array_equal(same, equidistant)


def test_slices_are_shown_as_radiologists_see_them():
    """With the patient's left, or back, at the right, and the back, or the feet, at the bottom."""
    right, front, head = np.eye(3)
    for axes, expected in (
        ((-right, -front, head), ((), False)),  # axial, as DICOM has it
        ((right, front, head), ((0, 1), False)),  # as templates have it
        ((front, head, right), ((0, 1), False)),  # sagittal
        ((-head, -front, right), ((), True)),
        ((head, -right, front), ((0,), True)),  # coronal, on its side
    ):
        affine = np.eye(4)
        affine[:3, :3] = np.stack(axes, axis=1) * [1, 2, 5]
        assert radiological(affine) == expected
