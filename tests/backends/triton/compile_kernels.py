"""Compiles kernels ahead of time, without a GPU, and reports what the compiler made of them.

Run as a script in a process of its own (kernels that are interpreted cannot be compiled): reads a list of cases as
JSON from standard input and writes one report a case to standard output.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tiledattn.backends.triton.config import attention_config, backward_configs

TYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}
BUNDLED = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def target_of(arch):
    if arch.startswith("gfx"):
        return GPUTarget("hip", arch, 64 if arch.startswith("gfx9") else 32)
    return GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)


def family_of(arch):
    if arch.startswith("gfx"):
        return "hip"
    return arch if arch in ("sm_80", "sm_90", "sm_100") else "sm_86"


def compile_kernel(kernel, arch, types, constants, options):
    """`types` by argument name; pointers are promised to be aligned to 16 bytes, as torch's allocations are."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    attributes = {
        (names.index(name),): [["tt.divisibility", 16]] for name, kind in signature.items() if kind.startswith("*")
    }
    constants = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target_of(arch), options=options)


def attention(arch, dtype, head_dim, halo=True, bias=False, mask=False, wide=False, rows=4096, config=None, tf32=False):
    from tiledattn.backends.triton import attention_kernel as module

    kind, size = TYPES[dtype], 4 if dtype == "float32" else 2
    precision = "half" if size == 2 else "tf32" if tf32 else "ieee"
    block_m, block_n, warps, stages = config or attention_config(family_of(arch), precision, head_dim, rows)
    types = {f"{name}_ptr": f"*{kind}" for name in ("q", "k", "v", "out")}
    types |= {"lse_ptr": "*fp32", "mask_ptr": "*u8", "class_ptr": "*i32", "starts_ptr": "*i64"}
    types |= {"index_ptr": "*i32", "bias_ptr": "*fp32", "scale": "fp32", "shift": "fp32"}
    types |= dict.fromkeys(module.INTEGERS, "i32") | {"magic": "i64"}
    constants = {
        "D": head_dim,
        "BLOCK_D": triton.next_power_of_2(head_dim),
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "UNIT": 16 // size,
        "WIDE": wide,
        "PRECISION": "tf32" if tf32 else "ieee",
        "STAGES": stages,
    }
    absent = [*([] if mask else ["mask_ptr"]), *([] if bias else ["bias_ptr"])]
    absent += [] if halo else ["class_ptr", "starts_ptr", "index_ptr"]
    constants |= dict.fromkeys(absent)
    options = {"num_warps": warps, "num_stages": stages}
    return compile_kernel(module.cross_tile_attention_fwd_kernel, arch, types, constants, options)


def attention_backward(
    arch, dtype, head_dim, part, halo=True, mask=False, wide=False, config=None, tf32=False, sums=None
):
    """`part` is rows (dq), keys (dk and dv) or delta; `sums` is the dtype of the results where it differs."""
    from tiledattn.backends.triton import attention_backward_kernel as module
    from tiledattn.backends.triton import attention_backward_keys_kernel as keys

    kind, size = TYPES[dtype], 4 if dtype == "float32" else 2
    precision = "half" if size == 2 else "tf32" if tf32 else "ieee"
    types = {f"{name}_ptr": f"*{kind}" for name in ("q", "k", "v", "grad", "out")}
    types |= {f"{name}_ptr": f"*{TYPES[sums or dtype]}" for name in ("dq", "dk", "dv")}
    types |= dict.fromkeys(("lse_ptr", "delta_ptr", "grad_lse_ptr"), "*fp32")
    types |= {"mask_ptr": "*u8", "class_ptr": "*i32", "starts_ptr": "*i64", "index_ptr": "*i32"}
    types |= {"items_ptr": "*i64", "places_ptr": "*i32", "borrowers_ptr": "*i32", "scale": "fp32", "shift": "fp32"}
    types["factor"] = "fp32"
    types |= dict.fromkeys({*module.INTEGERS, *keys.INTEGERS}, "i32") | {"magic": "i64"}
    constants = {"D": head_dim, "BLOCK_D": triton.next_power_of_2(head_dim)}
    if part == "delta":
        constants["BLOCK"] = 32
        return compile_kernel(module.attention_delta_kernel, arch, types, constants, {"num_warps": 4})
    place = ("rows", "keys").index(part)
    block_m, block_n, warps, stages = config or backward_configs(family_of(arch), precision, head_dim)[place]
    constants |= {"BLOCK_M": block_m, "BLOCK_N": block_n, "UNIT": 16 // size, "WIDE": wide, "STAGES": stages}
    constants["BASE_2"] = dtype != "float32"
    constants["PRECISION"] = "tf32" if tf32 else "ieee"
    absent = [] if mask else ["mask_ptr"]
    if not halo:
        absent += ["borrowers_ptr"] if part == "keys" else ["class_ptr", "starts_ptr", "index_ptr"]
    constants |= dict.fromkeys(absent)
    kernel = (module.cross_tile_attention_bwd_q_kernel, keys.cross_tile_attention_bwd_kv_kernel)[place]
    return compile_kernel(kernel, arch, types, constants, {"num_warps": warps, "num_stages": stages})


def tiles(arch, dtype, kernel, run=8, covers=(1, 2, 2), wide=False):
    """`kernel` is extract, blend or pad."""
    from tiledattn.backends.triton import tiles_kernel as module

    function = getattr(module, f"{kernel}_tiles_fwd_kernel")
    data = ("canvas_ptr", "tiles_ptr", "out_ptr")
    constants = {"RUN": run, "ROWS": 4, "BLOCK": 1024 // run, "WIDE": wide}
    constants |= dict(zip(("COVERS_Z", "COVERS_Y", "COVERS_X"), covers, strict=True))
    constants = {name: value for name, value in constants.items() if name in function.arg_names}
    types = dict.fromkeys(function.arg_names, "i32")
    for name in function.arg_names:
        if name.endswith("_ptr"):
            types[name] = f"*{TYPES[dtype]}" if name in data else "*fp32" if "weight" in name else "*i32"
    return compile_kernel(function, arch, types, constants, {"num_warps": 4})


def resources(compiled, arch):
    """Registers, spills, shared memory and the matrix instructions in use."""
    found = {"shared": compiled.metadata.shared}
    if arch.startswith("gfx"):
        text = compiled.asm["amdgcn"]
        for name in ("vgpr_count", "agpr_count", "vgpr_spill_count", "sgpr_spill_count"):
            found[name] = int(re.search(rf"\.{name}:\s+(\d+)", text)[1])
        found["registers"] = found["vgpr_count"]
        found["spills"] = found["vgpr_spill_count"]
        found["matrix"] = sorted(set(re.findall(r"v_mfma_\w+", text)))
        return found
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(BUNDLED / "cuobjdump"), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        sass = subprocess.run([str(BUNDLED / "nvdisasm"), "-c", file.name], capture_output=True, text=True).stdout
    for name in ("REG", "STACK", "LOCAL"):
        found[name] = int(re.search(rf"\b{name}:(\d+)", usage)[1])
    found["registers"] = found["REG"]
    found["spills"] = len(re.findall(r"\b(?:STL|LDL)\b", sass)) or found["LOCAL"]
    found["matrix"] = sorted(set(re.findall(r"\b(?:HGMMA|HMMA|UTC\w*MMA|FFMA)\b", sass)))
    found["async_copies"] = len(re.findall(r"\bLDGSTS\b", sass))
    return found


def main():
    for case in json.load(sys.stdin):
        arguments = {name: value for name, value in case.items() if name != "op"}
        begin = time.perf_counter()
        compiled = globals()[case["op"]](**arguments)
        report = resources(compiled, case["arch"]) | {"seconds": round(time.perf_counter() - begin, 2)}
        print(json.dumps(case | report), flush=True)


if __name__ == "__main__":
    main()
