"""polar_resample: the reference against loops in float64, the kernels against the reference, and its manners."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import geoloc_fast
from geoloc_fast.testing import (
    assert_close,
    available_isas,
    force_backend,
    force_isa,
    observe_calls,
    poisoned_outputs,
)

FAMILY = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


def images_of(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 256, shape, generator=generator)
    return values.to(torch.uint8) if dtype == torch.uint8 else (values / 64 - 2).to(dtype)


def brute_force(
    images, size, column0_deg=180.0, radius="inner", center=None, max_radius=None, heading_deg=None, border="zeros"
):  # type: ignore[no-untyped-def]
    batch, channels, in_rows, in_cols = images.shape
    rows, cols = size
    out = torch.zeros(batch, channels, rows, cols, dtype=torch.float64)
    for b in range(batch):
        center_row, center_col = (in_rows / 2, in_cols / 2) if center is None else center[b].tolist()
        reach = min(in_rows, in_cols) / 2 if max_radius is None else float(max_radius[b])
        for i in range(rows):
            r = reach * ((rows - 1 - i) if radius == "inner" else (rows - i)) / rows
            for j in range(cols):
                heading = 0.0 if heading_deg is None else float(heading_deg[b])
                theta = math.radians(column0_deg + heading + 360 * j / cols)
                row, col = center_row - r * math.cos(theta), center_col + r * math.sin(theta)
                row0, col0 = math.floor(row), math.floor(col)
                for y in (row0, row0 + 1):
                    for x in (col0, col0 + 1):
                        weight = (1 - abs(row - y)) * (1 - abs(col - x))
                        inside = 0 <= y < in_rows and 0 <= x < in_cols
                        if weight == 0 or (border == "zeros" and not inside):
                            continue
                        pixel = images[b, :, min(max(y, 0), in_rows - 1), min(max(x, 0), in_cols - 1)]
                        out[b, :, i, j] += weight * pixel.double()
    return out


GEOMETRIES = {
    "defaults": {},
    "paper": {"column0_deg": 0.0, "radius": "outer"},
    "replicate": {"border": "replicate", "radius": "outer", "max_radius": torch.tensor([12.0, 3.0])},
    "moved": {"center": torch.tensor([[1.5, 9.0], [-2.0, 30.0]]), "heading_deg": torch.tensor([17.0, -400.0])},
    "moved, replicate": {
        "center": torch.tensor([[0.25, 0.0], [9.0, 13.0]]),
        "border": "replicate",
        "column0_deg": 33.0,
    },
    "far outside": {"center": torch.tensor([[1e6, 0.0], [0.0, -1e6]])},
}


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_reference_against_loops(geometry: dict) -> None:  # type: ignore[type-arg]
    images = images_of(2, 3, 11, 14, dtype=torch.float64)
    actual = geoloc_fast.polar_resample(images, (5, 12), **geometry)
    assert actual.dtype == torch.float64
    assert torch.allclose(actual, brute_force(images, (5, 12), **geometry), atol=1e-9)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float16])
def test_kernels_against_float64(isa: str, geometry: dict, dtype: torch.dtype) -> None:  # type: ignore[type-arg]
    images = images_of(2, 3, 37, 41, dtype=dtype)
    expected = geoloc_fast.polar_resample(images.double(), (9, 35), **geometry)
    for layout in (torch.contiguous_format, torch.channels_last):
        with force_isa(isa), observe_calls() as calls, poisoned_outputs():
            given_layout = images.contiguous(memory_format=layout)
            as_float = geoloc_fast.polar_resample(given_layout, (9, 35), dtype=torch.float32, **geometry)
            same = geoloc_fast.polar_resample(given_layout, (9, 35), **geometry)
        assert {call[1] for call in calls} == {"cpu"}
        assert all(call[2].split("/")[0] == isa for call in calls)
        assert same.dtype == dtype
        if dtype == torch.uint8:
            assert_close(as_float, expected, "grey_float")
            assert_close(same, expected, "grey_uint8")
        else:
            # Coordinates near 1e6 leave float weights with fewer digits; everything there is 0 or one pixel.
            assert float((as_float - expected).abs().max()) < 2e-4
            assert float((same.double() - expected).abs().max()) < (0.02 if dtype == torch.bfloat16 else 0.003)


@pytest.mark.parametrize(("channels", "rows", "cols"), [(1, 1, 1), (4, 2, 3), (7, 5, 4), (3, 1, 64), (3, 64, 1)])
@pytest.mark.parametrize("border", ["zeros", "replicate"])
def test_odd_sizes(channels: int, rows: int, cols: int, border: str) -> None:
    for dtype in (torch.uint8, torch.float32):
        images = images_of(3, channels, rows, cols, dtype=dtype).contiguous(memory_format=torch.channels_last)
        for size in ((1, 1), (3, 17), (16, 5)):
            actual = geoloc_fast.polar_resample(images, size, border=border, radius="outer", dtype=torch.float32)
            expected = geoloc_fast.polar_resample(images.double(), size, border=border, radius="outer")
            assert_close(actual, expected, "grey_float" if dtype == torch.uint8 else "gradient")


def test_slices_of_larger_tensors_are_read_in_place() -> None:
    big = images_of(4, 6, 40, 50)
    view = big[1::2, 1:4, 3:33:2, 5:40:3]
    assert not view.is_contiguous()
    strided, copied = geoloc_fast.polar_resample(view, (8, 16)), geoloc_fast.polar_resample(view.clone(), (8, 16))
    assert_close(strided, copied.double(), "float32")
    wide = images_of(1, 3, 20, 20).expand(5, -1, -1, -1)
    assert torch.equal(geoloc_fast.polar_resample(wide, (8, 16))[4], geoloc_fast.polar_resample(wide[:1], (8, 16))[0])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_normalisation_is_of_the_interpolated_value(dtype: torch.dtype) -> None:
    images = images_of(2, 3, 30, 30, dtype=dtype)
    mean, std = (10.0, 20.0, 30.0), (2.0, 4.0, 0.5)
    plain = geoloc_fast.polar_resample(images.double(), (8, 16), radius="outer")
    expected = (plain - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    actual = geoloc_fast.polar_resample(images, (8, 16), radius="outer", mean=mean, std=std)
    assert actual.dtype == torch.float32
    assert float((actual - expected).abs().max()) < (1.01 if dtype == torch.uint8 else 1e-4)
    only_std = geoloc_fast.polar_resample(images, (8, 16), radius="outer", std=std, dtype=torch.float32)
    assert float((only_std - plain / torch.tensor(std)[:, None, None]).abs().max()) < 1.01


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_pixel_stays_where_it_is(value: float) -> None:
    images = images_of(1, 1, 32, 32)
    clean = geoloc_fast.polar_resample(images, (16, 32))
    images[0, 0, 3, 16] = value
    for backend in ("cpu", "reference"):
        with force_backend(backend):
            dirty = geoloc_fast.polar_resample(images, (16, 32))
        touched = ~torch.isfinite(dirty)
        assert 0 < int(touched.sum()) < 12
        assert torch.allclose(dirty[~touched], clean[~touched], atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.floats(-360, 360), st.integers(0, 3))
def test_turning_by_one_column_rolls_by_one_column(cols: int, column0_deg: float, seed: int) -> None:
    images = images_of(1, 2, 16, 16, seed=seed)
    still = geoloc_fast.polar_resample(images, (6, cols), column0_deg=column0_deg)
    turned = geoloc_fast.polar_resample(images, (6, cols), column0_deg=column0_deg, heading_deg=360 / cols)
    assert torch.allclose(turned, still.roll(-1, 3), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_threads_do_not_matter(dtype: torch.dtype) -> None:
    images = images_of(5, 3, 64, 64, dtype=dtype).contiguous(memory_format=torch.channels_last)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaf = images.float().requires_grad_()
            geoloc_fast.polar_resample(leaf, (32, 96)).square().sum().backward()
            results.append((geoloc_fast.polar_resample(images, (32, 96), dtype=torch.float32), leaf.grad))
    finally:
        torch.set_num_threads(before)
    for forward, gradient in results[1:]:
        assert torch.equal(forward, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("geometry", list(GEOMETRIES.values())[:5], ids=list(GEOMETRIES)[:5])
def test_gradient_against_the_reference(isa: str, geometry: dict) -> None:  # type: ignore[type-arg]
    leaf = images_of(2, 3, 21, 26).requires_grad_()
    double = leaf.detach().double().requires_grad_()
    weight = torch.randn(2, 3, 7, 24)
    with force_isa(isa):
        (geoloc_fast.polar_resample(leaf, (7, 24), std=(2.0, 3.0, 0.5), **geometry) * weight).sum().backward()
    (geoloc_fast.polar_resample(double, (7, 24), std=(2.0, 3.0, 0.5), **geometry) * weight).sum().backward()
    assert float((leaf.grad - double.grad).abs().max()) < 1e-4


def test_gradcheck_of_the_reference() -> None:
    images = images_of(1, 2, 6, 7, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(
        lambda x: geoloc_fast.polar_resample(x, (4, 9), border="replicate", radius="outer", mean=(1, 2), std=(3, 4)),
        (images,),
    )


def test_it_is_a_torch_operator() -> None:
    images = images_of(2, 3, 16, 16)
    heading = torch.tensor([10.0, 20.0], dtype=torch.float64)
    arguments = (
        images,
        4,
        8,
        180.0,
        False,
        None,
        None,
        heading,
        False,
        [1.0, 2.0, 3.0, 1.0, 1.0, 2.0],
        torch.float32,
    )
    torch.library.opcheck(torch.ops.geoloc_fast.polar_resample.default, arguments)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return geoloc_fast.polar_resample(x, (4, 8), column0_deg=0.0, mean=(1, 2, 3)).square().sum()

    leaf = images.clone().requires_grad_()
    loss(leaf).backward()
    compiled = images.clone().requires_grad_()
    torch.compile(loss, fullgraph=True, backend="aot_eager")(compiled).backward()
    assert torch.equal(leaf.grad, compiled.grad)


def test_autocast_and_inference_mode_change_nothing() -> None:
    images = images_of(2, 3, 16, 16)
    plain = geoloc_fast.polar_resample(images, (4, 8))
    for backend in ("cpu", "reference"):
        with force_backend(backend), torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            assert torch.allclose(geoloc_fast.polar_resample(images, (4, 8)), plain, atol=1e-6)


def test_empty_batches() -> None:
    for backend in ("cpu", "reference"):
        with force_backend(backend):
            assert geoloc_fast.polar_resample(torch.zeros(0, 3, 8, 8), (4, 8)).shape == (0, 3, 4, 8)
    leaf = torch.zeros(0, 3, 8, 8, requires_grad=True)
    geoloc_fast.polar_resample(leaf, (4, 8)).sum().backward()
    assert leaf.grad.shape == leaf.shape


X = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("error", "arguments", "message"),
    [
        (TypeError, {"images": [1]}, r"images: expected a tensor \[B, C, H, W\], got \[1\] \(list\)"),
        (TypeError, {"images": X.long()}, "images: expected dtype uint8.*got a torch.int64 tensor"),
        (ValueError, {"images": X[0]}, r"images: expected shape \[B, C, H, W\], got .*\(3, 8, 8\)"),
        (ValueError, {"images": X[..., :0]}, "images: expected at least one pixel"),
        (ValueError, {"size": (4, 0)}, r"size\[1\]: expected an integer at least 1, got 0"),
        (TypeError, {"size": (4.5, 8)}, r"size\[0\]: expected an integer, got 4.5"),
        (ValueError, {"size": (4,)}, "size: expected .rows, columns"),
        (ValueError, {"column0_deg": math.nan}, "column0_deg: expected a finite number, got nan"),
        (TypeError, {"column0_deg": "north"}, "column0_deg: expected a number, got 'north'"),
        (ValueError, {"radius": "both"}, "radius: expected one of 'inner', 'outer', got 'both'"),
        (ValueError, {"border": "wrap"}, "border: expected one of 'zeros', 'replicate', got 'wrap'"),
        (ValueError, {"center": torch.zeros(3, 2)}, r"center: expected shape \(2, 2\).*got \(3, 2\)"),
        (ValueError, {"center": (math.inf, 1.0)}, "center: expected finite numbers"),
        (TypeError, {"center": "middle"}, "center: expected numbers"),
        (ValueError, {"max_radius": torch.tensor([1.0, math.nan])}, "max_radius: expected finite numbers"),
        (ValueError, {"heading_deg": torch.zeros(2, requires_grad=True)}, "heading_deg: has no gradient here"),
        (ValueError, {"mean": (1.0,)}, "mean: expected 3 numbers, one per channel"),
        (ValueError, {"std": (1.0, 0.0, 1.0)}, "std: expected numbers other than 0"),
        (TypeError, {"dtype": torch.int32}, "dtype: expected uint8 or a floating dtype, got torch.int32"),
        (TypeError, {"images": X.clone().requires_grad_(), "dtype": torch.uint8}, "dtype: expected a floating dtype"),
    ],
)
def test_bad_arguments(error: type, arguments: dict, message: str) -> None:  # type: ignore[type-arg]
    with observe_calls() as calls, pytest.raises(error, match=message):
        geoloc_fast.polar_resample(**{"images": X, "size": (4, 8), **arguments})
    assert calls == []


@pytest.mark.parametrize(
    ("channels", "dtype", "layout", "path"),
    [
        (3, torch.uint8, torch.channels_last, "rgb8"),
        (4, torch.uint8, torch.channels_last, "rgba8"),
        (3, torch.uint8, torch.contiguous_format, "planar8"),
        (1, torch.uint8, torch.channels_last, "planar8"),
        (3, torch.bfloat16, torch.channels_last, "rgb"),
        (4, torch.float32, torch.channels_last, "rgba"),
        (7, torch.float16, torch.contiguous_format, "planar"),
        (7, torch.float32, torch.channels_last, "generic"),
    ],
)
def test_each_layout_has_its_path_and_every_instruction_set_the_same_bits(
    channels: int, dtype: torch.dtype, layout: torch.memory_format, path: str
) -> None:
    images = images_of(9, channels, 33, 29, dtype=dtype).contiguous(memory_format=layout)
    # A slice keeps the path: what lies between its rows is somebody else's, and stays unread or unused.
    for view in (images, images[1:8, :, 2:31, 4:20]):
        results = []
        for isa in available_isas():
            for out in (torch.float32, torch.bfloat16, torch.float16, torch.uint8):
                with force_isa(isa), observe_calls() as calls, poisoned_outputs():
                    result = geoloc_fast.polar_resample(view, (70, 21), border="replicate", radius="outer", dtype=out)
                assert calls == [("polar_resample", "cpu", f"{isa}/{path}")]
                results.append(result)
        for n, result in enumerate(results):
            assert torch.equal(result, results[n % 4])


def test_a_path_ends_where_its_arithmetic_does() -> None:
    images = images_of(2, 3, 16, 16, dtype=torch.uint8)
    for geometry in ({"center": (1e5, 0.0)}, {"max_radius": 1e7}):
        with observe_calls() as calls:
            actual = geoloc_fast.polar_resample(images, (8, 16), dtype=torch.float32, **geometry)
        assert calls[0][2].endswith("/generic")
        assert_close(actual, geoloc_fast.polar_resample(images.double(), (8, 16), **geometry), "grey_float")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradient_has_the_dtype_of_the_images(dtype: torch.dtype) -> None:
    leaf = images_of(2, 3, 12, 14, dtype=dtype).requires_grad_()
    with observe_calls() as calls, poisoned_outputs():
        geoloc_fast.polar_resample(leaf, (6, 20)).sum().backward()  # the gradient of a sum is expanded
    assert [call[:2] for call in calls] == [("polar_resample", "cpu"), ("polar_resample_backward", "cpu")]
    assert calls[1][2] == f"{available_isas()[-1]}/planar"
    assert leaf.grad is not None and leaf.grad.dtype == dtype
    double = leaf.detach().double().requires_grad_()
    geoloc_fast.polar_resample(double, (6, 20)).sum().backward()
    assert double.grad is not None
    assert_close(leaf.grad, double.grad, "gradient" if dtype == torch.float32 else FAMILY[dtype])


def test_a_broken_gradient_reaches_only_the_pixels_it_weighs() -> None:
    leaf = images_of(1, 1, 16, 16).requires_grad_()
    gradient = torch.ones(1, 1, 8, 16)
    gradient[0, 0, 7] = math.nan  # row 7 is the centre itself, pixel (8, 8), and weighs no other
    geoloc_fast.polar_resample(leaf, (8, 16)).backward(gradient)
    assert leaf.grad is not None
    assert leaf.grad.isnan().nonzero().tolist() == [[0, 0, 8, 8]]


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
@pytest.mark.parametrize("border", ["zeros", "replicate"])
def test_the_operator_is_defined_for_any_geometry(value: float, border: str) -> None:
    """The public function refuses these, but under torch.compile and on a GPU it cannot look at them."""
    images = images_of(2, 3, 8, 8, dtype=torch.uint8)
    center = torch.tensor([[value, 4.0], [4.0, 4.0]], dtype=torch.float64)
    for tensors in ((center, None, None), (None, center[:, 0].contiguous(), None)):
        out = torch.ops.geoloc_fast.polar_resample(
            images, 4, 8, 180.0, False, *tensors, border == "replicate", [], torch.float32
        )
        assert bool(out.isfinite().all())
        edge = images[0, :, :1, :1].float() if border == "replicate" else torch.zeros(3, 1, 1)
        assert torch.equal(out[0, :, :3], edge.expand(3, 3, 8))
