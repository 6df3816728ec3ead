"""What the compiler made of the attention kernels: registers, spills, and the instructions they are written for."""

import re

import pytest
from compiled import machine_code, read_object, usage

from tiledattn.backends import native_library

KERNELS = {"attention_sm80": 8, "attention_sm90": 4}  # dtypes times head dims


def architectures(name):
    built = native_library.build_report().get("cuda_architectures", [])
    if name == "attention_sm90":
        return [a for a in built if a == "sm_90a"]
    return [a for a in built if a in ("sm_80", "sm_90a")]  # those that the configurations were chosen for


@pytest.fixture(scope="module", params=KERNELS)
def name(request):
    read_object("tiles", "--list-elf")  # skips where nothing was built
    if not architectures(request.param):
        pytest.skip("not built for sm_90a")
    return request.param


def test_nothing_is_spilled(name):
    kernels = [row for row in usage(name) if "attention_fwd" in row.function]
    assert len(kernels) == KERNELS[name] * len(architectures(name))
    for row in kernels:
        assert (row.stack, row.local) == (0, 0), row
    for function, text in machine_code(name).items():
        assert not re.search(r"\b(LDL|STL)\b", text), function


def test_the_matrix_units_are_used(name):
    wanted = {
        "attention_sm80": ["HMMA.16", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.LTC128B.128"],
        "attention_sm90": ["HGMMA.64x128x16.F32", "UTMALDG.5D", "SYNCS", "USETMAXREG"],
    }
    kernels = {function: text for function, text in machine_code(name).items() if "attention_fwd" in function}
    assert len(kernels) == KERNELS[name]
    for function, text in kernels.items():
        assert [word for word in wanted[name] if word not in text] == [], function


def test_products_of_sm90_stay_asynchronous():
    """A compiler that has to wait after every product says so with a wait of its own: two or three per product."""
    for function, text in machine_code("attention_sm90").items():
        if "attention_fwd" in function:
            products, waits = text.count("HGMMA"), text.count("WARPGROUP.DEPBAR")
            assert 0 < waits < products / 2, (function, products, waits)
