"""What a CPU attains, as `qubic-lab plan --devices` takes it: bandwidth and compute, from layers of several batches."""

from collections.abc import Mapping
from dataclasses import dataclass

from qubic_lab.model.cost import PartCost

MOST_FLOPS_PER_S = 1e15
"""Where further rows cost nothing."""


@dataclass(frozen=True)
class Attained:
    """Figures of one rank while all ranks compute; `error` is the largest of its layers' times by them, by batch."""

    weights: str
    ranks: int
    gb_per_s: float
    gflops: float
    error: float

    def text(self) -> str:
        """Return it for `--devices`, but for the memory."""
        return (
            f"plan with --devices cpu=…GB@{self.gb_per_s:.3g}GB/s@{self.gflops:.3g}GFLOPS "
            f"(times of layers within {self.error:.1%})"
        )


def attained(layer_s: Mapping[int, float], layer: PartCost, weights: str, ranks: int) -> Attained | None:
    """Return the figures by which reading and operations together take what layers took, by batch; None: too few.

    Least squares of the relative errors, with neither figure below 0.
    """
    if len(layer_s) <= 2:  # any two are met exactly
        return None
    rows = [(layer.step_bytes(n) / took, layer.flops * n / took) for n, took in layer_s.items()]
    read2, both, compute2 = (sum(a[i] * a[j] for a in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    read, compute = (sum(a[i] for a in rows) for i in (0, 1))
    area = read2 * compute2 - both * both
    a_byte_s, an_operation_s = (read * compute2 - compute * both) / area, (compute * read2 - read * both) / area
    if an_operation_s * MOST_FLOPS_PER_S < 1:
        a_byte_s, an_operation_s = read / read2, 1 / MOST_FLOPS_PER_S
    if a_byte_s <= 0:
        return None
    errors = [abs(a_byte_s * of_bytes + an_operation_s * of_operations - 1) for of_bytes, of_operations in rows]
    return Attained(weights, ranks, 1e-9 / a_byte_s, 1e-9 / an_operation_s, max(errors))
