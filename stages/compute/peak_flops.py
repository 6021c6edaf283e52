"""The most operations a second that a known GPU does; what a stage's MFU is a share of."""

import re

# Dense bfloat16 products with float32 sums, operations a second, by NVIDIA's data sheets. The
# first name whose words are in the device's own counts.
_PEAKS = (
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("A100", 312e12),
    ("B200", 2250e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("RTX 4090", 165e12),
)


def peak_operations(device_name: str, dtype: str) -> float | None:
    """Operations a second of a known GPU in half precision; None for what is not known."""
    if dtype == "float32":
        return None
    return next(
        (peak for name, peak in _PEAKS if re.search(rf"\b{name}\b", device_name)),
        None,
    )
