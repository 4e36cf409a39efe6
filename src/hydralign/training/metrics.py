"""Metrics as sums and counts, reduced together over processes, divided once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hydralign.distributed import Distributed


@dataclass
class Sums:
    """Running totals by name. `means` divides each by its own count, over all processes."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, total: Tensor | float, count: Tensor | float) -> None:
        """Add to one metric. Stays on the device: nothing waits for it here."""
        self.totals[name] = self.totals.get(name, torch.zeros(())) + torch.as_tensor(total).detach().double()
        self.counts[name] = self.counts.get(name, torch.zeros(())) + torch.as_tensor(count).detach().double()

    def add_values(self, name: str, values: Tensor, mask: Tensor | None = None) -> None:
        """Add every unmasked value, and their squares under `name/squares`, for `variance`."""
        values = values.detach().double()
        if mask is not None:
            values = values[mask]
        self.add(name, values.sum(), values.numel())
        self.add(f"{name}/squares", values.square().sum(), values.numel())

    def add_all(self, sums: Mapping[str, Tensor], count: Tensor | float) -> None:
        """Add several metrics that share a count."""
        for name, total in sums.items():
            self.add(name, total, count)

    def means(self, processes: Distributed) -> dict[str, float]:
        """Each total ÷ its count, both summed over processes in one message; 0 for a count of 0."""
        if not self.totals:
            return {}
        both = torch.stack([x.to(processes.device) for x in (*self.totals.values(), *self.counts.values())])
        totals, counts = processes.sum(both).view(2, -1).tolist()
        pairs = zip(self.totals, totals, counts, strict=True)
        return {name: total / count if count else 0.0 for name, total, count in pairs}


def variance(means: Mapping[str, float], name: str) -> float:
    """Biased variance of a metric that `add_values` collected."""
    return max(0.0, means[f"{name}/squares"] - means[name] ** 2)
