"""All recorded outputs."""

from __future__ import annotations

from tests.server.text.output import recorded_json_parts, recorded_other_parts, recorded_python_parts

RECORDED = [
    *recorded_json_parts.HERMES,
    *recorded_json_parts.QWEN3_CODER,
    *recorded_json_parts.LLAMA,
    *recorded_python_parts.PYTHONIC,
    *recorded_python_parts.LFM2,
    *recorded_json_parts.MISTRAL,
    *recorded_json_parts.GRANITE,
    *recorded_other_parts.FUNCTIONARY,
    *recorded_other_parts.DEEPSEEK,
    *recorded_other_parts.DSML,
    *recorded_other_parts.HARMONY,
    *recorded_other_parts.REASONING,
]
WHOLE = [output for output in RECORDED if output.is_whole and output.tool_parser != "none"]
