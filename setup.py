"""Build script: metadata lives in pyproject.toml; the native library is built from csrc/ by the rules below.

One shared library on the stable ABI of torch 2.10, without a symbol of Python: CPU kernels for several instruction
sets, chosen at run time, and CUDA kernels where nvcc is there and works. Without a compiler or torch's headers the
package is pure Python, and `tiledattn doctor` says why.

Environment:
    TILEDATTN_NO_EXT      1: pure Python; 0: fail rather than fall back to pure Python.
    TILEDATTN_CUDA        0: no CUDA kernels; 1: fail where they can't be built.
    TILEDATTN_CUDA_ARCHS  such as "80;90a" (the default), "100a", "120", at least 80; PTX of the lowest plain one too.
    TILEDATTN_SANITIZE    1: AddressSanitizer and UndefinedBehaviorSanitizer (see `make test-sanitize`).
    CXX, NVCC             the compilers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SOURCES = ROOT / "csrc"
COMMAND = ".command"  # beside an output, where there is no ninja: how it was made
REPORT = "_build.json"  # beside the package's modules: what was built, or why nothing was
LIBRARY = "tiledattn._C"
ARCHITECTURES = "80;90a"
LEAST_ARCHITECTURE = 80  # mma.sync of 16 columns, asynchronous copies
HOPPER = "90a"  # what sources that end in _sm90 are for
OLDEST_TORCH = "0x020a000000000000"

X86_FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
}
X86_FLAGS["avx512_bf16"] = [*X86_FLAGS["avx512"], "-mavx512bf16"]
X86_FLAGS["amx"] = [*X86_FLAGS["avx512_bf16"], "-DTILEDATTN_ISA_AVX512_BF16"]  # its own instructions are assembly


class CannotBuildError(Exception):
    """Why there is no native library, in one line; the package is pure Python then."""


class Step(NamedTuple):
    """One output file, what it is made of, and how; `depfile` is what the compiler writes its headers to."""

    output: Path
    inputs: list[Path]
    command: list[str]
    depfile: Path | None


def find_torch() -> Path:
    """Torch's folder, also from an isolated build: pip hides installed packages from it, but not where they are."""
    spec = importlib.util.find_spec("torch")
    places = [Path(spec.origin).parent] if spec is not None and spec.origin else []
    places += [Path(sysconfig.get_path(name)) / "torch" for name in ("purelib", "platlib")]
    for place in places:
        if (place / "include/torch/csrc/stable/library.h").is_file():
            check_torch(place)
            return place
    raise CannotBuildError(
        "torch was not installed when tiledattn was; install torch, then "
        "`pip install --no-build-isolation --force-reinstall --no-deps .` in the source tree"
    )


def check_torch(place: Path) -> None:
    found = re.search(r"__version__ = '(\d+)\.(\d+)", (place / "version.py").read_text())
    if found and (int(found[1]), int(found[2])) < (2, 10):
        raise CannotBuildError(f"torch {found[1]}.{found[2]} was installed; the native library needs 2.10 or newer")


def find_compiler() -> list[str]:
    if platform.system() != "Linux":
        raise CannotBuildError(f"the native library is built on Linux only so far, not on {platform.system()}")
    asked = os.environ.get("CXX")
    for name in [asked] if asked else ["g++", "clang++", "c++"]:
        words = shlex.split(name)
        if words and shutil.which(words[0]):
            return words
    raise CannotBuildError(f"no C++ compiler was found ({asked or 'g++, clang++ and c++'} not on PATH)")


def assembles_amx(compiler: list[str]) -> bool:
    """Whether the assembler knows AMX, as GNU's does from binutils 2.36 on; all else is in flags of GCC 10 already."""
    source = 'void f() { asm volatile("tilezero %tmm0"); }'
    command = [*compiler, "-x", "c++", "-c", "-", "-o", os.devnull]
    return not subprocess.run(command, input=source, capture_output=True, text=True, check=False).returncode


def host_compiler(words: list[str]) -> str:
    """The program in a compiler's command, which may start with launchers (ccache) and end with options."""
    programs = [word for word in words if not word.startswith("-") and shutil.which(word)]
    return programs[-1] if programs else words[0]


def find_nvcc() -> Path | None:
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    asked = os.environ.get("NVCC")
    found = shutil.which(asked) if asked else shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")
    return Path(found) if found else None


def run(command: list[str]) -> str:
    """A command's output.

    Raises:
        CannotBuildError: it failed; all that it printed goes to stderr.
    """
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        printed = done.stdout + done.stderr
        print(printed, file=sys.stderr)
        raise CannotBuildError(failure(command, printed, done.returncode))
    return done.stdout


def failure(command: list[str], printed: str, status: int) -> str:
    """Which program failed, and the first line of what it printed that says why."""
    ninja = re.search(r"^FAILED: .*\n(.*)\n", printed, re.MULTILINE)  # the program is the one that ninja ran
    if ninja:
        command, printed = shlex.split(ninja[1]), printed[ninja.end() :]
    errors = [line.strip() for line in printed.splitlines() if re.search("error|fatal", line, re.IGNORECASE)]
    why = errors[0] if errors else f"exit status {status}"
    return f"{Path(command[0]).name} failed when tiledattn was built: {why}"


def why_no_cuda() -> str | None:
    """Why there are no CUDA kernels, as far as is known before nvcc has run."""
    if sanitized():
        return "built with sanitizers"
    if os.environ.get("TILEDATTN_CUDA") == "0":
        return "built with TILEDATTN_CUDA=0"
    if not list((SOURCES / "cuda").glob("*.cu")):
        return "this version has no CUDA kernels"
    if find_nvcc() is None:
        asked = os.environ.get("NVCC")
        places = f"NVCC={asked}" if asked else "PATH, NVCC, CUDA_HOME"
        return f"no nvcc was found when tiledattn was built ({places})"
    return None


def cuda_is_asked_for() -> bool:
    return os.environ.get("TILEDATTN_CUDA") == "1"


class Rules:
    """Every step of the build, in order of need; the last one links the library. `no_cuda`: why without CUDA."""

    def __init__(self, folder: Path, no_cuda: str | None = None) -> None:
        self.folder, self.library = folder, folder / "_C.abi3.so"
        self.torch, self.compiler = find_torch(), find_compiler()
        self.no_cuda = no_cuda or why_no_cuda()
        self.nvcc = None if self.no_cuda else find_nvcc()
        machine = platform.machine()
        self.instruction_sets = dict(X86_FLAGS) if machine in ("x86_64", "AMD64") else {"portable": []}
        if "amx" in self.instruction_sets and not assembles_amx(self.compiler):
            del self.instruction_sets["amx"]
        self.steps: list[Step] = []
        self._compile_all()
        self._link()

    @property
    def _common(self) -> list[str]:
        flags = ["-std=c++17", "-O3", f"-I{SOURCES / 'include'}", f"-I{SOURCES}"]
        flags += [] if "amx" in self.instruction_sets else ["-DTILEDATTN_WITHOUT_AMX"]
        return flags + (["-g", "-O1", "-fno-omit-frame-pointer"] if sanitized() else [])

    @property
    def _host(self) -> list[str]:
        # messages of failed checks name files as the repository does
        flags = [
            f"-ffile-prefix-map={ROOT}/=",
            "-fPIC",
            "-fvisibility=hidden",
            "-fvisibility-inlines-hidden",
            "-Wall",
            "-Wextra",
            "-MMD",
        ]
        return flags + sanitizer_flags()

    @property
    def _torch(self) -> list[str]:
        return ["-isystem", str(self.torch / "include"), f"-DTORCH_TARGET_VERSION={OLDEST_TORCH}"]

    def _compile_all(self) -> None:
        for source in sorted(SOURCES.glob("*.cpp")):
            cuda = ["-DTILEDATTN_CUDA"] if self.nvcc else []
            hopper = ["-DTILEDATTN_SM90"] if self.nvcc and HOPPER in architecture_names() else []
            # a name of its own: to build without CUDA, where nvcc fails, leaves nothing to compile again
            self._compile(source, f"{source.stem}.cuda" if self.nvcc else source.stem, [*self._torch, *cuda, *hopper])
        for source in sorted((SOURCES / "cpu").glob("*.cpp")):
            for name, flags in self.instruction_sets.items():
                # no errno, no traps: what stands between the compiler and vectors; the arithmetic stays IEEE's
                flags = [*flags, "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
                flags += ["-fno-tree-loop-distribute-patterns"]  # clearing a row is not worth a call
                defines = [f"-DTILEDATTN_ISA={name}", f"-DTILEDATTN_ISA_{name.upper()}"]
                self._compile(source, f"{source.stem}.{name}", [*flags, *defines])
        if self.nvcc:
            for source in sorted((SOURCES / "cuda").glob("*.cu")):
                if not source.stem.endswith("_sm90"):
                    self._compile_cuda(source, cuda_architectures())
                elif HOPPER in architecture_names():
                    self._compile_cuda(source, ["-gencode", f"arch=compute_{HOPPER},code=sm_{HOPPER}"])

    def _compile(self, source: Path, name: str, flags: list[str]) -> None:
        output = self.folder / f"{name}.o"
        depfile = output.with_suffix(".d")
        command = [*self.compiler, *self._common, *self._host, "-MF", str(depfile), *flags]
        self.steps.append(Step(output, [source], [*command, "-c", str(source), "-o", str(output)], depfile))

    def _compile_cuda(self, source: Path, architectures: list[str]) -> None:
        output = self.folder / f"cuda.{source.stem}.o"
        depfile = output.with_suffix(".d")
        host = ["-Xcompiler", "-fPIC,-fvisibility=hidden", "-MMD", "-MF", str(depfile)]
        flags = ["-std=c++17", "-O3", f"-I{SOURCES / 'include'}", f"-I{SOURCES}", "-lineinfo", *architectures]
        command = [str(self.nvcc), "-ccbin", host_compiler(self.compiler), *flags, *host, *self._torch]
        self.steps.append(Step(output, [source], [*command, "-c", str(source), "-o", str(output)], depfile))

    def _link(self) -> None:
        objects = [step.output for step in self.steps]
        # torch is loaded before this library; its sonames, found again by the loader, need no path
        torch = [f"-L{self.torch / 'lib'}", "-Xlinker", "--no-as-needed", "-ltorch", "-ltorch_cpu"]
        if self.nvcc:  # brings the CUDA runtime statically: no version of it to meet at run time
            linker = [str(self.nvcc), "-ccbin", host_compiler(self.compiler), "-cudart", "static", "-shared"]
        else:
            linker = [*self.compiler, "-shared", *sanitizer_flags()]
        command = [*linker, *map(str, objects), *torch, "-o", str(self.library)]
        self.steps.append(Step(self.library, objects, command, None))


def sanitized() -> bool:
    return os.environ.get("TILEDATTN_SANITIZE") == "1"


def sanitizer_flags() -> list[str]:
    return ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if sanitized() else []


def architecture_names() -> list[str]:
    """Those of TILEDATTN_CUDA_ARCHS; none named are the default ones."""
    names = [name for name in re.split(r"[;,\s]+", os.environ.get("TILEDATTN_CUDA_ARCHS", "")) if name]
    for name in names:
        if not re.fullmatch(r"\d{2,3}[af]?", name):
            raise SystemExit(f"TILEDATTN_CUDA_ARCHS: got {name!r}; expected architectures such as '{ARCHITECTURES}'")
        if int(name.rstrip("af")) < LEAST_ARCHITECTURE:
            raise SystemExit(f"TILEDATTN_CUDA_ARCHS: got {name!r}; {LEAST_ARCHITECTURE} is the least")
    return names or ARCHITECTURES.split(";")


def cuda_architectures() -> list[str]:
    """nvcc's -gencode options of TILEDATTN_CUDA_ARCHS."""
    names = architecture_names()
    flags = []
    for name in names:
        flags += ["-gencode", f"arch=compute_{name},code=sm_{name}"]
    plain = sorted(int(name) for name in names if name.isdigit())
    if plain:  # for GPUs that came after this build
        flags += ["-gencode", f"arch=compute_{plain[0]},code=compute_{plain[0]}"]
    return flags


def build(steps: list[Step], folder: Path) -> None:
    """Makes what is out of date, by ninja where it is installed."""
    folder.mkdir(parents=True, exist_ok=True)
    ninja = shutil.which("ninja") or shutil.which("ninja", path=sysconfig.get_path("scripts"))
    if ninja:
        for note in folder.glob(f"*{COMMAND}"):  # what ninja makes, it knows alone
            note.unlink()
        (folder / "build.ninja").write_text(ninja_file(steps))
        run([ninja, "-C", str(folder)])
        return
    (folder / ".ninja_log").unlink(missing_ok=True)
    headers = max(path.stat().st_mtime for path in [*SOURCES.rglob("*.h"), *SOURCES.rglob("*.cuh"), Path(__file__)])

    def make(step: Step) -> None:
        newest = max([headers, *(path.stat().st_mtime for path in step.inputs)])
        note, command = step.output.with_name(step.output.name + COMMAND), shlex.join(step.command)
        made = note.exists() and note.read_text() == command and step.output.exists()
        if not made or step.output.stat().st_mtime < newest:
            note.unlink(missing_ok=True)
            run(step.command)
            note.write_text(command)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(make, steps[:-1]))
    make(steps[-1])


def ninja_file(steps: list[Step]) -> str:
    def path(value: Path) -> str:
        return str(value).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    lines = []
    for number, step in enumerate(steps):
        lines += [f"rule make{number}", "  command = " + shlex.join(step.command).replace("$", "$$")]
        if step.depfile:
            lines += [f"  depfile = {step.depfile}", "  deps = gcc"]
        lines.append(f"build {path(step.output)}: make{number} {' '.join(map(path, step.inputs))}")
    return "\n".join(lines) + "\n"


def make_library(folder: Path) -> Rules:
    """Builds the library, without CUDA where that fails and wasn't asked for.

    Raises:
        CannotBuildError: there is none, or none with the CUDA kernels that were asked for.
    """
    rules = Rules(folder)
    if cuda_is_asked_for() and rules.no_cuda:
        raise CannotBuildError(rules.no_cuda)
    try:
        build(rules.steps, folder)
    except CannotBuildError as problem:
        if rules.nvcc is None or cuda_is_asked_for():
            raise
        print(f"tiledattn: no CUDA kernels: {problem}", file=sys.stderr)
        rules = Rules(folder, no_cuda=str(problem))
        build(rules.steps, folder)
    return rules


class BuildLibrary(build_ext):
    """Builds the library; where it can't, leaves the reason beside the package."""

    def run(self) -> None:
        if self.extensions:
            super().run()
        elif self.inplace:
            leave_pure(ROOT / "tiledattn", NO_EXTENSION)

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name))
        folder = ROOT / "build" / ("sanitize" if sanitized() else f"native-{platform.machine()}")
        library.parent.mkdir(parents=True, exist_ok=True)
        try:
            rules = make_library(folder)
            shutil.copy2(rules.library, library)
            report = describe(rules)
        except CannotBuildError as problem:
            if cuda_is_asked_for():
                raise SystemExit(f"TILEDATTN_CUDA=1, but the CUDA kernels can't be built: {problem}") from problem
            if os.environ.get("TILEDATTN_NO_EXT") == "0":
                raise SystemExit(f"TILEDATTN_NO_EXT=0, but the native library can't be built: {problem}") from problem
            library.unlink(missing_ok=True)
            print(f"tiledattn: no native library: {problem}", file=sys.stderr)
            report = {"reason": str(problem)}
        write_report(library.parent, report)

    def copy_extensions_to_source(self) -> None:
        """An editable install: what was built, or the reason, next to the sources."""
        package = ROOT / "tiledattn"
        (package / "_C.abi3.so").unlink(missing_ok=True)  # a loaded library must not change under its users
        super().copy_extensions_to_source()
        shutil.copy2(Path(self.build_lib) / "tiledattn" / REPORT, package / REPORT)

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".abi3.so"


class WithReport(build_py):
    """Pure Python: the reason is all there is to say."""

    def run(self) -> None:
        super().run()
        if not self.distribution.ext_modules:
            folder = ROOT / "tiledattn" if self.editable_mode else Path(self.build_lib) / "tiledattn"
            leave_pure(folder, NO_EXTENSION)


def describe(rules: Rules) -> dict[str, object]:
    report: dict[str, object] = {
        "reason": None,
        "compiler": run([*rules.compiler, "--version"]).splitlines()[0],
        "instruction_sets": list(rules.instruction_sets),
        "cuda": None,
        "cuda_reason": rules.no_cuda,
    }
    if rules.nvcc:
        found = re.search(r"release (\S+),", run([str(rules.nvcc), "--version"]))
        report["cuda"] = found[1] if found else "unknown"
        report["cuda_architectures"] = [flag.split("code=")[1] for flag in cuda_architectures() if "code=" in flag]
    return report


def write_report(folder: Path, report: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / REPORT).write_text(json.dumps(report, indent=2) + "\n")


def leave_pure(folder: Path, reason: str | None) -> None:
    write_report(folder, {"reason": reason})
    (folder / "_C.abi3.so").unlink(missing_ok=True)


def why_pure() -> str | None:
    """Why no library is even tried, else None: wheels without one are for every platform."""
    if os.environ.get("TILEDATTN_NO_EXT") == "1":
        return "built with TILEDATTN_NO_EXT=1"
    try:
        find_compiler()
        find_torch()
    except CannotBuildError as problem:
        return None if os.environ.get("TILEDATTN_NO_EXT") == "0" or cuda_is_asked_for() else str(problem)
    return None


NO_EXTENSION = why_pure()

if __name__ == "__main__":
    setup(
        ext_modules=[] if NO_EXTENSION else [Extension(LIBRARY, sources=[], py_limited_api=True, optional=True)],
        cmdclass={"build_ext": BuildLibrary, "build_py": WithReport},
        options={} if NO_EXTENSION else {"bdist_wheel": {"py_limited_api": "cp310"}},
    )
