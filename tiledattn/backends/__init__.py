"""Backends: each a module with the same functions; none imports another, and only tests import the reference.

A backend module has

- `NAME`, the word users type; `DTYPES` it computes in; `RUNS_ON`, one phrase; `PROVEN_ON`, the real devices (with date)
  on which its results were checked;
- `probe() -> str | None`: None where it can run on this machine, else the reason why not;
- `rejects(op, device, dtype, head_dim) -> str | None`: None where it takes such a call, else the reason;
- `cross_tile_attention`, `extract_tiles`, `blend_tiles`, `pad_tiles`, `group_norm_tiles` (any of them may be missing:
  then `rejects` says so), with the signatures of `pytorch.py`.
"""
