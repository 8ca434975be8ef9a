"""Targets of rbee over HTTP with the default model, and figures of other servers.

40-word prompts, 48 tokens out, greedy, the client on the same two cores. The peers' figures are of one machine and one
day (2026-11-22) that the runs of this repository do not share: a ratio to them is no measurement.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from saving import table


class Figures(NamedTuple):
    """Of one level of concurrency; None: not known, or nothing to reach."""

    tok_s: float
    ttft_ms: float | None = None
    itl_ms: float | None = None


TARGETS = {1: Figures(130, ttft_ms=110), 8: Figures(250), 32: Figures(250)}

CITED = {
    "llama-server Q4_1, 32 slots": {
        1: Figures(55.7, 286, 11.8),
        8: Figures(76.6, 2200, 54),
        32: Figures(70.0, 7300, 237),
    },
    "vLLM 0.32 CPU, fp32": {1: Figures(14.4, 370, 64), 8: Figures(56.2, 2200, 99), 32: Figures(74.7, 7900, 245)},
    "transformers 5.23 serve": {1: Figures(10.2, 326, 87), 8: Figures(27.3, 860, 160)},
    "mistral.rs 0.9.5, in process": {1: Figures(12.5, 3300, 80)},
}

TINY_TARGETS = {1: 1500, 16: 6000, 64: 10000}
"""tok/s with the model of `make_tiny_model.py`, 64 tokens out."""

TINY_CITED = {
    "llama-server": {1: 439, 16: 1287, 64: 1144},
    "vLLM 0.32 CPU": {1: 142, 16: 1571, 64: 2115},
}


def compared(levels: list[dict[str, Any]]) -> str:
    """A table of measured levels beside the cited ones, and whether the targets are met."""
    rows, verdicts = [], []
    for level in levels:
        concurrency = level["concurrency"]
        measured = Figures(level["tok_s"], level["ttft_ms_p50"], level["itl_ms_p50"])
        rows.append([str(concurrency), "rbee", *map(_shown, measured)])
        rows += [
            [str(concurrency), f"{name} (cited)", *map(_shown, of[concurrency])]
            for name, of in CITED.items()
            if concurrency in of
        ]
        if target := TARGETS.get(concurrency):
            met = "met" if measured.tok_s >= target.tok_s else "MISSED"
            verdict = f"c = {concurrency}: {measured.tok_s:g} tok/s (to reach: {target.tok_s:g}): {met}"
            if target.ttft_ms is not None and measured.ttft_ms is not None:
                met = "met" if measured.ttft_ms <= target.ttft_ms else "MISSED"
                verdict += f"; TTFT {measured.ttft_ms:g} ms (at most {target.ttft_ms:g}): {met}"
            verdicts.append(verdict + ".")
    text = table(["c", "", "tok/s", "TTFT p50, ms", "ITL p50, ms"], rows)
    return "\n\n".join([text, *verdicts])


def tiny_verdict(concurrency: int, tok_s: float) -> str:
    """Of a level with the tiny model; empty where there is nothing to compare with."""
    target = TINY_TARGETS.get(concurrency)
    if target is None:
        return ""
    met = "met" if tok_s >= target else "MISSED"
    cited = ", ".join(f"{name} {of[concurrency]:,}" for name, of in TINY_CITED.items())
    return f"c = {concurrency}: {tok_s:,.0f} tok/s (to reach: {target:,}): {met}; cited: {cited}."


def _shown(figure: float | None) -> str:
    return "" if figure is None else f"{figure:g}"
