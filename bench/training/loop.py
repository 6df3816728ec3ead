"""A training loop: warm-up and cosine decay, averaged weights, checkpoints that survive an interruption."""

from __future__ import annotations

import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

StepLoss = Callable[[int, torch.Generator], torch.Tensor]


def save_atomically(state: object, path: Path) -> None:
    """Write a checkpoint so that a reader sees the old one or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, path)


class Loop:
    """Trains ``model`` for ``steps`` steps, resuming from ``path`` if that exists."""

    def __init__(
        self, name: str, model: nn.Module, path: Path, *, steps: int, lr: float, decay: float, seed: int
    ) -> None:
        self.name, self.model, self.path = name, model, path
        self.steps, self.lr, self.decay = steps, lr, decay
        self.average = copy.deepcopy(model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
        self.generator = torch.Generator().manual_seed(seed)
        self.step, self.loss, self.seconds = 0, math.nan, 0.0
        if path.exists():
            self._restore(torch.load(path, weights_only=False))

    def _restore(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])
        self.step, self.loss, self.seconds = state["step"], state["loss"], state["seconds"]

    def save(self) -> None:
        """Write the checkpoint."""
        save_atomically(
            {
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generator": self.generator.get_state(),
                "rng": torch.get_rng_state(),
                "step": self.step,
                "loss": self.loss,
                "seconds": self.seconds,
            },
            self.path,
        )

    def _rate(self) -> float:
        warm = min(1.0, (self.step + 1) / 200)
        return self.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.step / self.steps))))

    def _advance(self, step_loss: StepLoss) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        loss = step_loss(self.step, self.generator)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.decay, self.step / (self.step + 10))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                mean.lerp_(value, 1 - decay)
        value = float(loss.detach())
        self.loss = value if math.isnan(self.loss) else 0.99 * self.loss + 0.01 * value

    def run(self, step_loss: StepLoss, every: int, report: Callable[[], None]) -> None:
        """Train to the end; every ``every`` steps, and when interrupted, write the checkpoint."""
        bar = tqdm(total=self.steps, initial=self.step, desc=self.name, unit="step", mininterval=5)
        started = time.monotonic()
        try:
            while self.step < self.steps:
                self._advance(step_loss)
                bar.update()
                if self.step % every == 0 or self.step == self.steps:
                    now = time.monotonic()
                    self.seconds, started = self.seconds + now - started, now
                    self.save()
                    self._log()
                    report()
                bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
        except KeyboardInterrupt:
            self.seconds += time.monotonic() - started
            self.save()
            raise
        finally:
            bar.close()

    def _log(self) -> None:
        line = {"stage": self.name, "step": self.step, "loss": self.loss, "seconds": round(self.seconds)}
        with self.path.with_name("log.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")
