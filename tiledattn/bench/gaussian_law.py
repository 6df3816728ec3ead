"""The law that tiled sampling of a Gaussian random field ends in, computed exactly.

A stationary Gaussian field x ~ N(0, C) has a known best denoiser. Of y = x + sigma n, with n white noise, a tile that
sees the positions s and answers for the positions r predicts the Wiener filter

    E[x_r | y_s] = C_rs (C_ss + sigma^2 I)^-1 y_s,

which is what a model trained on such tiles without any error would say. The tiles go through `extract_tiles`,
`pad_tiles` (the halo) and `blend_tiles`, so what the result lacks, tiling has lost. Every step of a sampler is linear
in y, hence the result is Gaussian too, and its covariance follows from the start's by applying each step M to both
sides: S -> M S M^T (+ the variance of added noise). Nothing is drawn at random.

The canvas is periodic and the step divides it, so S does not change when both positions move by one step: the rows of
the positions of one *cell* (of `step` positions per axis) stand for all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import tiledattn as ta

Floats = NDArray[np.float64]
Step = Callable[[Tensor], Tensor]
SAMPLERS = ("heun", "ddim", "ancestral")


@dataclass(frozen=True)
class Field:
    """A stationary field of variance 1 with covariance exp(-r / length) * product over axes of cos(2 pi d / period).

    Args:
        name: what it is called.
        length: how far it is correlated, in tiles; 0 is white noise.
        period: of its regular structure, in tiles; None has none.
    """

    name: str
    length: float
    period: float | None = None

    def covariance(self, size: Sequence[int], tile: int) -> Floats:
        """Covariance of position 0 with each position of a periodic canvas of shape `size`, tiles `tile` long."""
        if not self.length:
            white = np.zeros(size)
            white.flat[0] = 1.0
            return white
        # Images of the field a canvas apart, until they no longer count.
        reach = [math.ceil(30 * self.length * tile / n) + 1 for n in size]
        total = np.zeros(size)
        for shifts in itertools.product(*(range(-count, count + 1) for count in reach)):
            axes = [np.arange(n) + n * shift for n, shift in zip(size, shifts, strict=True)]
            offsets = np.meshgrid(*axes, indexing="ij")
            value = np.exp(-np.sqrt(sum(np.square(d, dtype=np.float64) for d in offsets)) / (self.length * tile))
            if self.period is not None:
                for d in offsets:
                    value *= np.cos(2 * np.pi * d / (self.period * tile))
            total += value
        return np.asarray(total / total.flat[0])


@dataclass(frozen=True)
class Setting:
    """How a canvas is sampled: a layout that wraps on every axis, blend window, halo in positions, sampler."""

    layout: ta.TileLayout
    window: str = "hann"
    halo: int = 0
    sampler: str = "heun"
    steps: int = 240

    def __post_init__(self) -> None:
        step = [tile - overlap for tile, overlap in zip(self.layout.tile, self.layout.overlap, strict=True)]
        if not all(self.layout.wrap) or any(n % s for n, s in zip(self.layout.size, step, strict=True)):
            raise ValueError(f"layout: got {self.layout}; it must wrap on every axis, and its step divide its size")
        if any(tile + 2 * self.halo > n for tile, n in zip(self.layout.tile, self.layout.size, strict=True)):
            raise ValueError(f"halo: got {self.halo}; tile + 2 * halo must be at most the canvas's {self.layout.size}")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler: got {self.sampler!r}; known are {', '.join(SAMPLERS)}")

    @property
    def step(self) -> tuple[int, ...]:
        """The distance between tile origins, per axis; the shape of a cell."""
        return tuple(tile - overlap for tile, overlap in zip(self.layout.tile, self.layout.overlap, strict=True))

    @property
    def computed(self) -> float:
        """Positions computed per canvas position."""
        return self.layout.num_tiles * self.layout.tile_positions / math.prod(self.layout.size)

    @property
    def seen(self) -> float:
        """Positions that the tiles' denoisers take in, halos included, per canvas position."""
        inputs = math.prod(tile + 2 * self.halo for tile in self.layout.tile)
        return self.layout.num_tiles * inputs / math.prod(self.layout.size)

    @property
    def sigmas(self) -> list[float]:
        """Noise levels, largest first, a constant factor apart, and 0 at the end."""
        return [*np.geomspace(3000.0, 1e-3, self.steps).tolist(), 0.0]

    @cached_property
    def moved(self) -> Tensor:
        """Where a row's values of S^T lie in the rows of S, flat, [cell, canvas]: the rows of a cell stand for all."""
        size, step = np.array(self.layout.size), np.array(self.step)
        places = positions(self.layout.size)
        base = places // step * step
        column = np.ravel_multi_index(tuple((places - base).T), self.step)
        row = np.moveaxis((positions(self.step)[:, None] - base) % size, -1, 0)
        return torch.from_numpy(column * len(places) + np.ravel_multi_index(tuple(row), self.layout.size))

    @cached_property
    def cell(self) -> Tensor:
        """Canvas indices of the first cell's positions, [cell]."""
        return torch.from_numpy(np.ravel_multi_index(tuple(positions(self.step).T), self.layout.size))


def positions(shape: Sequence[int]) -> NDArray[np.int64]:
    """All positions of a box in row-major order, [positions, axes]."""
    return np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=-1)


class TiledDenoiser:
    """The best prediction of every tile, blended: y [B, 1, *size] and a noise level -> [B, 1, *size].

    Args:
        covariance: of position 0 with each position, [*size].
        setting: layout, window and halo.
    """

    def __init__(self, covariance: Floats, setting: Setting) -> None:
        self.setting = setting
        seen = positions([tile + 2 * setting.halo for tile in setting.layout.tile]) - setting.halo
        own = np.all((seen >= 0) & (seen < np.array(setting.layout.tile)), axis=1)
        offsets = (seen[:, None] - seen) % np.array(covariance.shape)
        values, vectors = np.linalg.eigh(covariance[tuple(np.moveaxis(offsets, -1, 0))])
        self.values, self.vectors = torch.from_numpy(values), torch.from_numpy(vectors)
        self.own = self.vectors[torch.from_numpy(own)]

    def __call__(self, noisy: Tensor, sigma: float) -> Tensor:
        """The blended prediction of the field under `noisy`, whose noise has the standard deviation `sigma`."""
        setting = self.setting
        tiles = ta.extract_tiles(noisy, setting.layout)
        seen = ta.pad_tiles(tiles, setting.layout, setting.halo) if setting.halo else tiles
        wiener = (self.own * (self.values / (self.values + sigma**2))) @ self.vectors.T
        predicted = seen.reshape(-1, wiener.shape[1]) @ wiener.T
        return ta.blend_tiles(predicted.reshape(tiles.shape), setting.layout, setting.window)


def stages(denoiser: TiledDenoiser) -> list[tuple[Step, float]]:
    """The sampler's steps: a linear map of [B, 1, *size], and the standard deviation of the noise added after it.

    "ddim" (Song et al., 2021) is Euler's method in sigma, "heun" its second order (Karras et al., 2022). "ancestral"
    has the steps of DDPM (Ho et al., 2020): it goes below the next noise level, and noise brings it back up.
    """
    sampler, sigmas = denoiser.setting.sampler, denoiser.setting.sigmas
    return [_stage(denoiser, sampler, now, after) for now, after in itertools.pairwise(sigmas)]


def _levels(sampler: str, now: float, after: float) -> tuple[float, float]:
    """The noise level that a step aims at, and the noise that then brings it to `after`."""
    added = after * math.sqrt(1 - (after / now) ** 2) if sampler == "ancestral" else 0.0
    return math.sqrt(after**2 - added**2), added


def _stage(denoiser: TiledDenoiser, sampler: str, now: float, after: float) -> tuple[Step, float]:
    target, added = _levels(sampler, now, after)

    def step(noisy: Tensor) -> Tensor:
        slope = (noisy - denoiser(noisy, now)) / now
        reached = noisy + (target - now) * slope
        if sampler == "heun" and after:
            slope = (slope + (reached - denoiser(reached, after)) / after) / 2
            reached = noisy + (after - now) * slope
        return reached

    return step, added


def law(covariance: Floats, setting: Setting) -> Floats:
    """The covariance of what tiled sampling ends in, of the first cell's positions with all, [cell, canvas].

    Args:
        covariance: the field's, of position 0 with each position, [*size].
        setting: how it is sampled.
    """
    denoiser = TiledDenoiser(covariance, setting)
    rows = torch.zeros(setting.moved.shape, dtype=torch.float64)
    diagonal = torch.arange(len(rows)), setting.cell
    rows[diagonal] = setting.sigmas[0] ** 2
    for step, added in stages(denoiser):
        for _ in range(2):
            rows = step(rows.reshape(-1, 1, *setting.layout.size)).reshape(rows.shape)
            rows = rows.reshape(-1)[setting.moved]
        rows[diagonal] += added**2
    return np.asarray(rows.numpy())


def untiled(covariance: Floats, setting: Setting) -> Floats:
    """What `law` would be with the whole canvas as one tile, [cell, canvas]; the setting's tiles play no part.

    Each Fourier mode of the field is then a number of its own variance: a few formulae, no tiles.
    """
    power = np.fft.fftn(covariance).real
    spread = np.full_like(power, setting.sigmas[0] ** 2)
    for now, after in itertools.pairwise(setting.sigmas):
        target, added = _levels(setting.sampler, now, after)
        slope = now / (power + now**2)
        gain = 1 + (target - now) * slope
        if setting.sampler == "heun" and after:
            gain = 1 + (after - now) * (slope + gain * after / (power + after**2)) / 2
        spread = gain**2 * spread + added**2
    return true_rows(np.fft.ifftn(spread).real, setting)


def draw(covariance: Floats, setting: Setting, count: int, seed: int = 0) -> Floats:
    """`count` canvases drawn by the same sampler from noise, [count, *size]: what `law` is the law of."""
    denoiser = TiledDenoiser(covariance, setting)
    generator = torch.Generator().manual_seed(seed)

    def noise() -> Tensor:
        return torch.randn(count, 1, *setting.layout.size, generator=generator, dtype=torch.float64)

    canvas = noise() * setting.sigmas[0]
    for step, added in stages(denoiser):
        canvas = step(canvas)
        if added:
            canvas = canvas + added * noise()
    return np.asarray(canvas[:, 0].numpy())


def true_rows(covariance: Floats, setting: Setting) -> Floats:
    """The field's own covariance in the shape of `law`, [cell, canvas]."""
    offsets = (positions(setting.layout.size) - positions(setting.step)[:, None]) % np.array(setting.layout.size)
    return np.asarray(covariance[tuple(np.moveaxis(offsets, -1, 0))])


def pairs(rows: Floats, setting: Setting, line: int, lags: Sequence[int]) -> Floats:
    """Covariance of two positions that stand `lag` apart with `line` between them, along the last axis.

    Line p stands between p - 1 and p; of odd lags the two lie equally far from it. Averaged along the line. [lags].
    """
    size, step = setting.layout.size, setting.step
    places = positions((*step[:-1], 1))
    found = []
    for lag in lags:
        first, second = places.copy(), places.copy()
        first[:, -1], second[:, -1] = line - (lag + 1) // 2, line - (lag + 1) // 2 + lag
        base = first // np.array(step) * np.array(step)
        cell = np.ravel_multi_index(tuple((first - base).T), step)
        other = np.ravel_multi_index(tuple(((second - base) % np.array(size)).T), size)
        found.append(rows[cell, other].mean())
    return np.array(found)


def seam(setting: Setting) -> int:
    """The line along the last axis where the tile changes in which a position lies deepest."""
    return setting.step[-1] + setting.layout.overlap[-1] // 2


def distances(rows: Floats, truth: Floats, setting: Setting) -> tuple[float, float]:
    """How far a law is from the truth, both [cell, canvas]: Kullback-Leibler divergence and Wasserstein-2 distance.

    The first is KL(sampled || true) in nats per position, the second sqrt(W2^2 / positions), in units of the field's
    standard deviation. In closed form (of W2: Bures), from the blocks that a Fourier transform over the cells leaves.
    """
    sampled, true = _blocks(rows, setting), _blocks(truth, setting)
    values, vectors = np.linalg.eigh(true)
    values = np.maximum(values, 1e-12)
    root = (vectors * np.sqrt(values)[:, None]) @ vectors.conj().swapaxes(-1, -2)
    inverse = (vectors / values[:, None]) @ vectors.conj().swapaxes(-1, -2)
    count = values.size
    traced = np.einsum("bij,bji->", inverse, sampled).real
    divergence = (traced - count + np.log(values).sum() - np.linalg.slogdet(sampled)[1].sum()) / 2
    shared = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ sampled @ root), 0)).sum()
    squared = np.trace(sampled, axis1=1, axis2=2).real.sum() + values.sum() - 2 * shared
    return float(divergence / count), math.sqrt(max(float(squared), 0.0) / count)


def _blocks(rows: Floats, setting: Setting) -> NDArray[Any]:
    """The covariance as a block per frequency over the cells, [frequencies, cell, cell], Hermitian."""
    axes = len(setting.step)
    shape = [n for size, step in zip(setting.layout.size, setting.step, strict=True) for n in (size // step, step)]
    split = rows.reshape(len(rows), *shape)
    cells = tuple(range(1, 2 * axes, 2))
    transformed = np.moveaxis(np.fft.fftn(split, axes=cells), cells, range(axes))
    blocks = transformed.reshape(-1, len(rows), len(rows))
    return np.asarray((blocks + blocks.conj().swapaxes(-1, -2)) / 2)
