"""The table of slices against libtpu, and against the data sheets' own arithmetic."""

import pytest

from wan_tpu.errors import InputError
from wan_tpu.planner.compile import slice_devices
from wan_tpu.planner.hardware import CHIPS, accelerator_types, find_slice, peak_flops


@pytest.mark.parametrize("name", accelerator_types())
def test_libtpu_knows_every_slice(name):
    where = find_slice(name)
    devices = slice_devices(where)
    assert len(devices) == where.num_devices
    assert {d.device_kind for d in devices} == {where.chip.device_kind}
    assert len({d.process_index for d in devices}) == where.num_hosts
    assert len({tuple(d.coords) for d in devices}) == where.num_chips


@pytest.mark.parametrize(
    ("name", "chips", "devices", "hosts"),
    [
        ("v6e-1", 1, 1, 1),
        ("v6e-8", 8, 8, 1),
        ("v6e-16", 16, 16, 4),
        ("V6E-256", 256, 256, 64),
        ("v5litepod-8", 8, 8, 1),
        ("v5p-8", 4, 4, 1),
        ("v5p-32", 16, 16, 4),
        ("v7x-8", 4, 8, 1),
        ("tpu7x-16", 8, 16, 2),
    ],
)
def test_google_s_names(name, chips, devices, hosts):
    where = find_slice(name)
    assert (where.num_chips, where.num_devices, where.num_hosts) == (chips, devices, hosts)


def test_the_peak_of_a_device_that_is_here():
    assert peak_flops("TPU v6 lite") == 918e12
    assert peak_flops("TPU7x") == CHIPS["v7x"].bf16_flops
    assert peak_flops("cpu") is None


@pytest.mark.parametrize("name", ["v6e", "v6e-3", "v6e-", "v9-8", "v5p-7", "v5p-2", "", "v6e-8-2"])
def test_an_unknown_slice_says_what_there_is(name):
    with pytest.raises(InputError, match=r"known: v6e-1, v6e-4, v6e-8, v6e-16"):
        find_slice(name)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=str)
def test_jax_agrees_with_the_data_sheets(chip):
    from jax._src.pallas.mosaic import tpu_info

    version = tpu_info.chip_version_from_device_kind(chip.device_kind)
    assert version is not None
    info = tpu_info._get_tpu_info_impl(version, 1)
    cores = version.num_physical_tensor_cores_per_chip // chip.devices_per_chip
    assert chip.bf16_flops == pytest.approx(cores * info.bf16_ops_per_second, rel=0.01)
    int8 = info.int8_ops_per_second or info.bf16_ops_per_second
    assert chip.int8_flops == pytest.approx(cores * int8, rel=0.01)
    assert chip.hbm_bytes == pytest.approx(cores * info.hbm_capacity_bytes, rel=0.1)
    # jax 0.10.2 has 2.46 TB/s for v5p, the data sheet 2.765.
    assert chip.hbm_bandwidth == pytest.approx(cores * info.mem_bw_bytes_per_second, rel=0.13)


@pytest.mark.parametrize(
    ("name", "closed"),
    [
        ("v6e-8", (False, False)),
        ("v6e-16", (False, False)),
        ("v6e-128", (False, True)),  # 8x16
        ("v6e-256", (True, True)),
        ("v5p-16", (False, False, False)),
        ("v5p-64", (False, False, False)),  # 2x4x4: no whole cube
        ("v5p-128", (True, True, True)),
    ],
)
def test_axes_that_close_to_a_ring(name, closed):
    assert find_slice(name).closed == closed
