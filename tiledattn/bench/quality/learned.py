"""FID, KID and CLIP score through torchmetrics, where it and the weights are on disk; nothing is downloaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"  # the file that torch-fidelity keeps in torch's hub folder
CLIP = "openai/clip-vit-base-patch16"
CROPS = 512  # of photographs


def missing() -> dict[str, str]:
    """Name of a measure to why it can't be had here; empty where all can."""
    if find_spec("torchmetrics") is None:
        reason = "torchmetrics is not installed: pip install 'torchmetrics[image,multimodal]'"
        return dict.fromkeys(("FID", "KID", "CLIP score"), reason)
    found: dict[str, str] = {}
    inception = None
    if find_spec("torch_fidelity") is None:
        inception = "torch-fidelity is not installed: pip install torch-fidelity"
    elif not inception_weights().is_file():
        inception = f"no Inception weights on disk: put {INCEPTION} into {inception_weights().parent}"
    if inception is not None:
        found |= dict.fromkeys(("FID", "KID"), inception)
    if not clip_on_disk():
        found["CLIP score"] = f"no CLIP weights on disk: hf download {CLIP}"
    return found


def inception_weights() -> Path:
    """Where torch-fidelity looks for its weights."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION


def clip_on_disk() -> bool:
    """Whether the hub's cache holds the CLIP model."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return False
    return any(
        isinstance(try_to_load_from_cache(CLIP, name), str) for name in ("model.safetensors", "pytorch_model.bin")
    )


def learned(
    pictures: Sequence[NDArray[np.float32]],
    prompts: Sequence[str],
    photographs: Sequence[Sequence[Any]],
    tile: tuple[int, int],
    without: Sequence[str] = (),
) -> dict[str, float]:
    """FID and KID of native-size crops to crops of photographs, and the CLIP score of the crops.

    Half of the crops of a strip are centred on seams at overlap 0, half lie between. Few crops bias FID upwards: it
    compares methods of one run, and says nothing beside other papers' figures.

    Args:
        pictures: [S, 3, H, W] in [0, 1], one item a prompt.
        prompts: what was painted.
        photographs: [3, H, W] each, for every prompt; without any there is no FID and no KID.
        tile: native (height, width).
        without: measures to leave out.

    Returns:
        Name to value, of those that can be had.
    """
    crops = [_crops(one, tile) for one in pictures]
    values: dict[str, float] = {}
    if all(photographs) and {"FID", "KID"} - set(without):
        truth = np.concatenate([_photograph_crops(one, tile) for one in photographs])
        if len(truth):
            values |= _inception(np.concatenate(crops), truth, without)
    if "CLIP score" not in without:
        values["CLIP score"] = _clip(crops, prompts)
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _inception(crops: NDArray[np.float32], truth: NDArray[np.float32], without: Sequence[str]) -> dict[str, float]:
    import torch

    values = {}
    if "FID" not in without:
        from torchmetrics.image.fid import FrechetInceptionDistance

        fid = FrechetInceptionDistance(normalize=True)
        fid.update(torch.from_numpy(truth), real=True)
        fid.update(torch.from_numpy(crops), real=False)
        values["FID"] = float(fid.compute())
    if "KID" not in without:
        from torchmetrics.image.kid import KernelInceptionDistance

        kid = KernelInceptionDistance(subset_size=min(50, len(crops), len(truth)), normalize=True)
        kid.update(torch.from_numpy(truth), real=True)
        kid.update(torch.from_numpy(crops), real=False)
        values["KID"] = float(kid.compute()[0])
    return values


def _clip(crops: Sequence[NDArray[np.float32]], prompts: Sequence[str]) -> float:
    import torch
    from torchmetrics.multimodal.clip_score import CLIPScore

    score = CLIPScore(model_name_or_path=CLIP)
    for own, prompt in zip(crops, prompts, strict=True):
        whole = torch.from_numpy((own * 255).round().astype(np.uint8))
        score.update(list(whole), [prompt] * len(whole))
    return float(score.compute())


def _crops(pictures: NDArray[np.float32], tile: tuple[int, int]) -> NDArray[np.float32]:
    """Native-size crops at every half tile of a strip, [crops, 3, h, w]."""
    width = pictures.shape[-1]
    starts = range(0, width, max(1, tile[1] // 2))
    cut = [np.take(pictures, np.arange(start, start + tile[1]) % width, axis=-1) for start in starts]
    return np.ascontiguousarray(np.concatenate(cut).clip(0, 1), dtype=np.float32)


def _photograph_crops(photographs: Sequence[Any], tile: tuple[int, int]) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    found = []
    usable = [one for one in photographs if one.shape[1] >= tile[0] and one.shape[2] >= tile[1]]
    for photograph in usable:
        for _ in range(-(-CROPS // len(usable))):
            top = int(rng.integers(photograph.shape[1] - tile[0] + 1))
            left = int(rng.integers(photograph.shape[2] - tile[1] + 1))
            found.append(photograph[:, top : top + tile[0], left : left + tile[1]])
    return np.asarray(found, dtype=np.float32).reshape(-1, 3, *tile)
