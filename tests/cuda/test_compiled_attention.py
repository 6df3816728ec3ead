"""What the compiler made of the attention kernels: registers, spills, and the instructions they are written for."""

import re

import pytest
from compiled import instructions, machine_code, read_object, usage

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


def kernels_of(name, found):
    """The attention kernels among (architecture, function): all that there should be."""
    wanted = architectures(name)
    found = [(arch, function) for arch, function in found if "attention_fwd" in function and arch in wanted]
    assert sorted(arch for arch, _ in found) == sorted(wanted * KERNELS[name])
    return found


def assert_instructions(name, code):
    """Every kernel has every wanted instruction on every architecture."""
    wanted = {
        "attention_sm80": ["HMMA.16", "LDSM.16.M88.4", "LDGSTS.E.BYPASS.LTC128B.128"],
        "attention_sm90": ["HGMMA.64x128x16.F32", "UTMALDG.5D", "SYNCS", "USETMAXREG"],
    }
    for kernel in kernels_of(name, code):
        assert [word for word in wanted[name] if word not in code[kernel]] == [], kernel


def test_nothing_is_spilled(name):
    rows = {(row.architecture, row.function): row for row in usage(name)}
    for kernel in kernels_of(name, rows):
        assert (rows[kernel].stack, rows[kernel].local) == (0, 0), rows[kernel]
    code = machine_code(name)
    for kernel in kernels_of(name, code):
        assert not re.search(r"\b(LDL|STL)\b", code[kernel]), kernel


def test_the_matrix_units_are_used(name):
    assert_instructions(name, machine_code(name))


def test_an_architecture_without_the_instructions_is_noticed(monkeypatch):
    monkeypatch.setattr(native_library, "build_report", lambda: {"cuda_architectures": ["sm_80", "sm_90a"]})
    code = instructions(
        "\n".join(
            f"\nFatbin elf code:\n================\narch = {arch}\n\tcode for {arch}\n"
            + "\n".join(f"\t\tFunction : attention_fwd{i}\n {words}" for i in range(8))
            for arch, words in (("sm_80", "HMMA.16 LDSM.16.M88.4 LDGSTS.E.BYPASS.LTC128B.128"), ("sm_90a", "FFMA"))
        )
    )
    assert len(code) == 16
    with pytest.raises(AssertionError, match="sm_90a"):
        assert_instructions("attention_sm80", code)
    with pytest.raises(AssertionError):
        assert_instructions("attention_sm80", {k: text for k, text in code.items() if k[0] == "sm_80"})


def test_products_of_sm90_stay_asynchronous():
    """A compiler that has to wait after every product says so with a wait of its own: two or three per product."""
    code = machine_code("attention_sm90")
    for kernel in kernels_of("attention_sm90", code):
        products, waits = code[kernel].count("HGMMA"), code[kernel].count("WARPGROUP.DEPBAR")
        assert 0 < waits < products / 2, (kernel, products, waits)
