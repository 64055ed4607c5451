"""Our engine beside others: pictures of its benchmark's ratios (`qubic_lab.bench.engine`)."""

from matplotlib.figure import Figure

from qubic_lab.bench.engine import EngineResult
from qubic_lab.studies.style import Dot, dots, rows

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
}
"""What ours is compared with, by the name of the ratio."""


def speed_ratios(result: EngineResult) -> Figure:
    """Draw our speed divided by each other one's: the median of the pairs, the lowest and the highest.

    Rows end with the requests at once, or the slots a lane in comparisons of ours with ours.
    """
    found = [(label, each) for name, label in COLUMNS.items() for each in result.ratios.get(name, ())]
    with rows([f"{label}, {each.batch}" for label, each in found]) as (figure, axes):
        values = [Dot(each.median, each.low, each.high) for _, each in found]
        axes.axvline(1.0, linewidth=0.8, color="black")
        dots(axes, range(len(found)), values, across=True, label=f"{result.model}, {result.repeat} pairs")
        axes.set_xlim(left=0.0)
        axes.set_xlabel("tokens/s, ours ÷ theirs")
    return figure
