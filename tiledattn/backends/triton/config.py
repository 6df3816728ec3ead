"""Launch configurations: a small table instead of a search on a user's first call.

Half-precision kernels of head dims up to 128 spill no register and fit the shared memory of their family; the compile
tests hold them to it. Blocks of queries are at least as high as the padded head dim where matrix instructions belong
to a warp (sm_80, sm_86): otherwise the compiler spreads a row over warps.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch


class AttentionConfig(NamedTuple):
    """One configuration of an attention kernel."""

    block_m: int  # query rows of a program
    block_n: int  # keys of one step; where a program serves keys, it is block_n of them, block_m rows a step
    num_warps: int
    num_stages: int


Rows = dict[int, AttentionConfig]

_IEEE: Rows = {
    64: AttentionConfig(32, 32, 8, 2),
    256: AttentionConfig(16, 16, 8, 1),
}
_TF32: Rows = {
    128: AttentionConfig(128, 32, 8, 2),
    256: AttentionConfig(32, 16, 8, 1),
}
# family, arithmetic -> largest head dim -> configuration
_TABLE: dict[tuple[str, str], Rows] = {
    ("sm_80", "half"): {
        64: AttentionConfig(128, 128, 8, 2),
        128: AttentionConfig(128, 64, 8, 3),
        256: AttentionConfig(32, 32, 8, 2),
    },
    ("sm_86", "half"): {
        64: AttentionConfig(128, 64, 8, 2),
        128: AttentionConfig(128, 32, 8, 3),
        256: AttentionConfig(32, 32, 8, 2),
    },
    ("sm_90", "half"): {
        64: AttentionConfig(128, 64, 4, 3),
        128: AttentionConfig(128, 64, 8, 3),
        256: AttentionConfig(128, 32, 8, 2),
    },
    ("sm_100", "half"): {
        64: AttentionConfig(128, 64, 8, 3),
        128: AttentionConfig(128, 64, 8, 3),
        256: AttentionConfig(64, 64, 8, 2),
    },
    ("hip", "half"): {
        64: AttentionConfig(128, 64, 4, 1),
        128: AttentionConfig(128, 32, 4, 1),
        256: AttentionConfig(64, 32, 4, 1),
    },
    ("hip", "ieee"): {
        64: AttentionConfig(64, 32, 4, 1),
        128: AttentionConfig(32, 32, 4, 1),
        256: AttentionConfig(32, 16, 4, 1),
    },
    ("xpu", "half"): {128: AttentionConfig(128, 32, 8, 2), 256: AttentionConfig(64, 32, 8, 2)},
    ("xpu", "ieee"): {256: AttentionConfig(32, 16, 8, 1)},
    ("interpreter", "half"): {256: AttentionConfig(32, 32, 4, 1)},
    ("interpreter", "ieee"): {256: AttentionConfig(32, 32, 4, 1)},
    ("sm_80", "ieee"): _IEEE,
    ("sm_86", "ieee"): _IEEE,
    ("sm_90", "ieee"): _IEEE,
    ("sm_100", "ieee"): _IEEE,
    ("sm_80", "tf32"): _TF32,
    ("sm_86", "tf32"): {64: AttentionConfig(128, 32, 8, 2), 256: AttentionConfig(32, 16, 8, 1)},
    ("sm_90", "tf32"): _TF32,
    ("sm_100", "tf32"): _TF32,
}


@lru_cache(maxsize=64)
def device_family(device: torch.device) -> str:
    """The family of a device: sm_80, sm_86 (little shared memory), sm_90, sm_100, hip, xpu or interpreter."""
    if device.type == "cpu":
        return "interpreter"
    if device.type == "xpu":
        return "xpu"
    if torch.version.hip is not None:
        return "hip"
    return capability_family(*torch.cuda.get_device_capability(device))


def capability_family(major: int, minor: int) -> str:
    """The family of a CUDA compute capability; consumer cards of any generation count as sm_86."""
    if major == 8:
        return "sm_80" if minor == 0 else "sm_86"
    return {9: "sm_90", 10: "sm_100", 11: "sm_100"}.get(major, "sm_86")


def arithmetic(family: str, dtype: torch.dtype) -> str:
    """How products are computed: "half", or for float32 "ieee", or "tf32" where PyTorch's own may use it."""
    if dtype != torch.float32:
        return "half"
    if not family.startswith("sm_") or torch.backends.cuda.matmul.fp32_precision in ("ieee", "none"):
        return "ieee"
    return "tf32"


def attention_config(family: str, kind: str, head_dim: int, rows: int) -> AttentionConfig:
    """The configuration for arithmetic `kind`, head dim `head_dim` and sequences of `rows` queries."""
    table = _TABLE[family, kind]
    config = next(entry for limit, entry in sorted(table.items()) if head_dim <= limit)
    if rows <= 64 and config.block_m > 64 and (head_dim <= 64 or family in ("sm_90", "hip")):
        return config._replace(block_m=64, block_n=min(config.block_n, 64), num_warps=4)
    return config


Pair = tuple[AttentionConfig, AttentionConfig]

_BACKWARD_IEEE: dict[int, Pair] = {
    64: (AttentionConfig(32, 32, 8, 1), AttentionConfig(32, 32, 8, 1)),
    128: (AttentionConfig(32, 16, 8, 1), AttentionConfig(16, 32, 8, 1)),
    256: (AttentionConfig(16, 16, 8, 1), AttentionConfig(16, 16, 8, 1)),
}
_BACKWARD_TF32: dict[int, Pair] = {
    64: (AttentionConfig(128, 32, 8, 1), AttentionConfig(32, 64, 8, 1)),
    128: (AttentionConfig(64, 32, 8, 1), AttentionConfig(32, 32, 8, 1)),
    256: (AttentionConfig(32, 16, 8, 1), AttentionConfig(16, 16, 8, 1)),
}
_BACKWARD_AMPERE: dict[int, Pair] = {
    64: (AttentionConfig(128, 64, 8, 2), AttentionConfig(32, 128, 8, 2)),
    128: (AttentionConfig(128, 32, 8, 2), AttentionConfig(64, 64, 8, 2)),
    256: (AttentionConfig(32, 32, 8, 1), AttentionConfig(32, 32, 8, 1)),
}
# family, arithmetic -> largest head dim -> configurations for queries, and for keys and values
_BACKWARD: dict[tuple[str, str], dict[int, Pair]] = {
    ("sm_80", "half"): _BACKWARD_AMPERE,
    ("sm_86", "half"): _BACKWARD_AMPERE,
    ("sm_90", "half"): {
        64: (AttentionConfig(128, 64, 8, 3), AttentionConfig(64, 128, 8, 2)),
        128: (AttentionConfig(128, 64, 8, 2), AttentionConfig(32, 128, 8, 2)),
        256: (AttentionConfig(128, 32, 8, 1), AttentionConfig(32, 32, 8, 1)),
    },
    ("sm_100", "half"): {
        64: (AttentionConfig(128, 64, 8, 2), AttentionConfig(64, 128, 8, 2)),
        128: (AttentionConfig(128, 64, 8, 2), AttentionConfig(64, 64, 8, 2)),
        256: (AttentionConfig(128, 32, 8, 1), AttentionConfig(32, 32, 8, 1)),
    },
    ("hip", "half"): {
        64: (AttentionConfig(128, 32, 4, 1), AttentionConfig(32, 128, 4, 1)),
        128: (AttentionConfig(64, 32, 4, 1), AttentionConfig(32, 64, 4, 1)),
        256: (AttentionConfig(32, 32, 4, 1), AttentionConfig(16, 64, 4, 1)),
    },
    ("hip", "ieee"): {
        64: (AttentionConfig(32, 32, 4, 1), AttentionConfig(32, 32, 4, 1)),
        128: (AttentionConfig(32, 16, 4, 1), AttentionConfig(16, 32, 4, 1)),
        256: (AttentionConfig(16, 16, 4, 1), AttentionConfig(16, 16, 4, 1)),
    },
    ("xpu", "half"): {
        128: (AttentionConfig(64, 32, 8, 1), AttentionConfig(32, 64, 8, 1)),
        256: (AttentionConfig(32, 32, 8, 1), AttentionConfig(32, 32, 8, 1)),
    },
    ("xpu", "ieee"): {256: (AttentionConfig(32, 16, 8, 1), AttentionConfig(16, 32, 8, 1))},
    ("interpreter", "half"): {256: (AttentionConfig(32, 32, 4, 1), AttentionConfig(32, 32, 4, 1))},
    ("interpreter", "ieee"): {256: (AttentionConfig(32, 32, 4, 1), AttentionConfig(32, 32, 4, 1))},
    **{(family, "ieee"): _BACKWARD_IEEE for family in ("sm_80", "sm_86", "sm_90", "sm_100")},
    **{(family, "tf32"): _BACKWARD_TF32 for family in ("sm_80", "sm_86", "sm_90", "sm_100")},
}


def backward_configs(family: str, kind: str, head_dim: int) -> Pair:
    """The configurations of the backward kernels for queries, and for keys and values."""
    table = _BACKWARD[family, kind]
    return next(entry for limit, entry in sorted(table.items()) if head_dim <= limit)
