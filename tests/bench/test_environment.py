"""What identifies a run: the machine's names as the system has them, versions of what was called."""

import os
from importlib import metadata

from tiledattn.bench import environment

CPU_INFO = """processor\t: 0
vendor_id\t: MadeUp
cpu family\t: 26
model\t\t: 2
model name\t: A Processor 9000
flags\t\t: fpu avx2
"""


def test_the_cpu(tmp_path, monkeypatch):
    source = tmp_path / "cpuinfo"
    source.write_text(CPU_INFO)
    monkeypatch.setattr(environment, "CPU_INFO", source)
    assert environment.cpu_model() == "A Processor 9000 (MadeUp, 26, 2)"
    assert " (MadeUp, family 26, model 2) with AVX2, " in environment.cpu_name()
    monkeypatch.setattr(environment, "CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr(environment.platform, "processor", lambda: "")
    assert environment.cpu_model() is None
    assert " with " not in environment.cpu_name()


def test_huge_pages(tmp_path):
    source = tmp_path / "enabled"
    source.write_text("always [madvise] never\n")
    assert environment.huge_pages(source) == "madvise"
    source.write_text("odd")
    assert environment.huge_pages(source) is None
    assert environment.huge_pages(tmp_path / "missing") is None


def test_versions_of_what_is_installed(monkeypatch):
    def version(name):
        if name == "natten":
            raise metadata.PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(environment.metadata, "version", version)
    found = environment.packages()
    assert "natten" not in found
    assert found["monai"] == found["diffusers"] == "1.2"


def test_a_run_has_them_all(monkeypatch):
    about = environment.examine("cpu")
    assert {"cpu_model", "kernel", "huge_pages", "packages"} <= set(about)
    assert about["packages"]["numpy"]
    monkeypatch.setattr(os, "getloadavg", lambda: (1.234, 0, 0), raising=False)
    assert environment.load() == 1.23
    monkeypatch.delattr(os, "getloadavg")
    assert environment.load() is None
