"""The peak that MFU is a share of: the data sheet's of the exact card, or a measurement."""

import pytest

from gpt1_ds.engine.peak import peak_flops, peak_of_gpu


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA H100 80GB HBM3", 989, 67),
        ("NVIDIA H100 PCIe", 756, 51),
        ("NVIDIA H100 NVL", 835, 60),
        ("NVIDIA H200", 989, 67),
        ("NVIDIA GH200 480GB", 989, 67),
        ("NVIDIA B200", 2250, 75),
        ("NVIDIA H20", 148, 44),
        ("NVIDIA A100-SXM4-80GB", 312, 19.5),
        ("NVIDIA L40S", 362, 92),
        ("AMD Instinct MI300X", 1307, 163),
    ],
)
def test_a_card_is_known_by_its_exact_name(name: str, half: float, single: float):
    peaks = [peak_of_gpu(name, precision) for precision in ("bf16", "fp16", "fp32")]
    assert peaks == [half * 1e12, half * 1e12, single * 1e12]


def test_another_card_of_a_known_family_is_not_taken_for_it():
    for name in ("NVIDIA H200 MIG 1g.18gb", "NVIDIA H100 XYZ", "NVIDIA B2000", ""):
        assert peak_of_gpu(name, "bf16") is None


def test_a_cpu_is_measured():
    """Between a slow core and what no CPU of today reaches."""
    assert 1e8 < peak_flops("fp32") < 1e15
