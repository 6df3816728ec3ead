"""Cases are found by name."""

import subprocess
import sys

import pytest
import torch

from tiledattn.bench import app, registry, ways

CPU = torch.device("cpu")


def labels(*patterns, device="cpu", **options):
    return [registry.label(*pair) for pair in registry.chosen(torch.device(device), patterns, **options)]


def test_labels_are_unique():
    for device in ("cpu", "cuda"):
        found = labels(device=device)
        assert len(set(found)) == len(found) > 5


def test_cases_are_chosen_by_globs_or_parts_dtype_and_quickness():
    assert all(label.startswith("blending/") for label in labels("blending"))
    assert labels("BLEND*/float32") == labels("blending/*float32") != []
    assert labels("blending/float32") == []
    assert labels("no such thing") == []
    assert set(labels("blending", "extraction")) == {*labels("blending"), *labels("extraction")}
    assert all(label.endswith("/bfloat16") for label in labels(dtypes=["bfloat16"]))
    assert set(labels(quick=True)) <= set(labels())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [("a/b", True), ("A*", True), ("b*", False), ("?/b/c", True), ("[ax]/*", True), ("", True), ("x", False)],
)
def test_patterns(pattern, expected):
    assert registry.matches("a/B/c", [pattern]) == expected


def test_dtypes_of_the_program_are_those_of_cases():
    assert tuple(ways.DTYPES) == app.DTYPES
    for case in registry.cases():
        for names in case.dtypes.values():
            assert set(names) <= set(ways.DTYPES)


def test_gathering_them_loads_no_diffusers():
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "from tiledattn.bench import registry\n"
        "assert len({case.operation for case in registry.cases()}) > 6"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
