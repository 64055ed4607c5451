"""Our engine beside others: pictures of its benchmark's ratios (`qubic_lab.bench.engine`)."""

from matplotlib.figure import Figure

from qubic_lab.bench.engine import EngineResult
from qubic_lab.studies.style import DARK, INK, LINES, PALE, WIDE, Dot, dots, plot

COLUMNS = {
    "vs_transformers": "decode, transformers",
    "vs_llamacpp": "decode, llama.cpp",
    "vs_vllm": "decode, vLLM",
    "vs_llamacpp_rpc": "decode, llama.cpp by RPC",
    "vs_vllm_pp": "decode, vLLM's pipeline",
    "vs_vllm_pp_best": "decode, vLLM's pipeline, tuned",
    "pipeline_vs_whole": "decode, our ranks ÷ one of ours",
    "exact_vs_fastest": "decode, our kernels ÷ torch's in our engine",
    "prefill_vs_transformers": "prefill, transformers",
    "prefill_vs_llamacpp": "prefill, llama.cpp",
    "prefill_vs_vllm": "prefill, vLLM",
    "int8_vs_bf16": "decode, int8 ÷ bf16",
    "vs_llamacpp_q8_0": "decode, int8 ÷ llama.cpp's Q8_0",
    "int4_vs_bf16": "decode, int4 ÷ bf16",
    "vs_llamacpp_q4_0": "decode, int4 ÷ llama.cpp's Q4_0",
}
"""What ours is compared with, by the name of the ratio."""
APART = 1.03
"""Comparisons stand side by side, each this many times as far to the right as the one before."""


def speed_ratios(result: EngineResult) -> Figure:
    """Draw our speed divided by each other one's: the median of the pairs, the lowest and the highest.

    Batches are the requests at once, or the slots a lane in comparisons of ours with ours.
    """
    peers = list(dict.fromkeys(label.partition(", ")[2] for label in COLUMNS.values()))
    found = {label: result.ratios[name] for name, label in COLUMNS.items() if result.ratios.get(name)}
    kinds = list(dict.fromkeys(label.partition(", ")[0] for label in found))
    batches = sorted({each.batch for ratios in found.values() for each in ratios})
    size = (WIDE, 3.6)
    with plot((1, max(1, len(kinds))), size, grid="y", fontsize=9, sharey=True, squeeze=False) as (figure, panels):
        for axes, kind in zip(panels[0], kinds, strict=False):
            axes.axhline(1.0, linewidth=0.8, color=INK)
            for label, ratios in found.items():
                peer = peers.index(label.partition(", ")[2])
                look = LINES[peer % len(LINES)] + "osD^vP*X"[peer % 8]
                if label.startswith(kind):
                    at = [each.batch * APART ** (peer - len(peers) / 2) for each in ratios]
                    values = [Dot(each.median, each.low, each.high) for each in ratios]
                    dots(axes, at, values, look, (DARK, "white", PALE)[peer % 3], peers[peer])
            axes.set_xscale("log", base=2)
            axes.set_xticks(batches, list(map(str, batches)))
            axes.minorticks_off()
            axes.set_ylim(bottom=0.0)
            axes.set_xlabel(f"{kind}: batch (number)")
        panels[0][0].set_ylabel("tokens/s, ours ÷ theirs")
    return figure
