"""A model's formats are recognized by its chat template, or chosen by name."""

from __future__ import annotations

import dataclasses
import re

import pytest

from rbee.config import ServerConfig
from rbee.errors import ConfigError
from rbee.server.text.output import output_format
from rbee.server.text.output.formats import REASONING_FORMATS, TOOL_FORMATS

# What the templates of models have of calls and reasoning, in a few lines each.
TEMPLATES = {
    "Hermes 2 Pro, Qwen2.5": (
        (
            'return {"name": <function-name>} within <tool_call></tool_call> XML tags'
            "{{- '\\n<tool_call>\\n{\"name\": \"' }}{{- '}\\n</tool_call>' }}"
        ),
        ("hermes", "none"),
    ),
    "Qwen3": (
        "{%- set content = message.content.split('</think>')[-1] %}{{- '<think>\\n\\n</think>\\n\\n' }}<tool_call>",
        ("hermes", "qwen3"),
    ),
    "Qwen3-Coder": (
        "<tool_call>\\n<function=example_function_name>\\n<parameter=example_parameter_1>\\nvalue_1\\n</parameter>",
        ("qwen3_coder", "none"),
    ),
    "Llama 3.1": (
        "<|start_header_id|>{{- 'Environment: ipython\\n' }}{{- '<|python_tag|>' + tool_call.name + '.call(' }}",
        ("llama3_json", "none"),
    ),
    "Llama 3.2": (
        (
            "<|start_header_id|>system<|end_header_id|>{{- 'Environment: ipython\\n' }}"
            '{{- \'Respond in the format {"name": function name, "parameters": dictionary of argument name\' }}'
        ),
        ("llama3_json", "none"),
    ),
    "Mistral Nemo": ("{{- '[TOOL_CALLS][' }}{{- '[/AVAILABLE_TOOLS]' }}", ("mistral", "none")),
    "Magistral": ("{{- '[THINK]' + block['thinking'] + '[/THINK]' }}{{- '[TOOL_CALLS]' }}", ("mistral", "mistral")),
    "Granite 3.0": ("<|start_of_role|>{{- '<|tool_call|>' }}", ("granite", "none")),
    "Granite 3.3": (
        "respond with <|tool_call|>; your thoughts between <think></think>, your answer between <response></response>",
        ("granite", "granite"),
    ),
    "Functionary v3.1": ("<|start_header_id|>{{ '<function=' + name + '>' }}ipython", ("functionary_v3_1", "none")),
    "Functionary v3.2": (
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n>>>all\\n' }}",
        ("functionary_v3_2", "none"),
    ),
    "DeepSeek R1": (
        (
            "<｜Assistant｜>{% set content = content.split('</think>')[-1] %}"
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + '\\n' + '```json' + '\\n'"
        ),
        ("deepseek_v3", "deepseek_r1"),
    ),
    "DeepSeek V3.1": (
        "<｜Assistant｜></think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ tool['name'] + '<｜tool▁sep｜>'",
        ("deepseek_v31", "deepseek_r1"),
    ),
    "DeepSeek V3.2": (
        (
            "{%- set dsml_token = '｜DSML｜' %}<｜User｜>{{ content }}<｜Assistant｜></think>"
            "{{- '<' + dsml_token + 'function_calls>' }}<｜tool▁call▁begin｜>"
        ),
        ("deepseek_v32", "deepseek_r1"),
    ),
    "LFM2": ("{{- 'List of tools: <|tool_list_start|>[' }}{{- '<|tool_response_start|>' }}", ("lfm2", "none")),
    "LFM2.5": ("{{- '<|tool_call_start|>[' + calls + ']<|tool_call_end|>' }}</think>", ("lfm2", "qwen3")),
    "LFM2.5, no calls": ("{{- 'List of tools: [' }}{% set content = c.split('</think>')[-1] %}", ("lfm2", "qwen3")),
    "Llama 4, asked for Python": (
        "<|header_start|>system<|header_end|>Use exact format: [func_name1(param1=value1), func_name2(...)]",
        ("pythonic", "none"),
    ),
    "Llama 3.2, asked for Python": (
        (
            "<|start_header_id|>system<|end_header_id|>{{- 'Environment: ipython\\n' }}put it in the format of "
            "[func_name1(params_name1=params_value1, params_name2=params_value2...), func_name2(params)]"
        ),
        ("pythonic", "none"),
    ),
    "gpt-oss": ("<|start|>assistant<|channel|>analysis<|message|>", ("openai", "openai")),
    "without either": ("<|im_start|>{{ message.role }}\\n", ("hermes", "none")),
}


@pytest.mark.parametrize("model", TEMPLATES)
def test_recognized_by_the_template(model):
    """Each family by what its templates have."""
    template, formats = TEMPLATES[model]
    found = output_format(template)
    assert (found.tool_parser, found.reasoning_parser) == formats
    assert found.has_reasoning == (formats[1] != "none")


def test_no_template():
    """Then nothing is known of the model."""
    found = output_format(None)
    assert (found.tool_parser, found.reasoning_parser) == ("hermes", "none")


def chosen(option, name):
    """The name of the format that the option gives a model whose template shows others."""
    template, _ = TEMPLATES["Qwen3"]
    if option == "--tool-parser":
        return output_format(template, tool_parser=name).tool_parser
    return output_format(template, reasoning_parser=name).reasoning_parser


@pytest.mark.parametrize(
    ("option", "known"), [("--tool-parser", TOOL_FORMATS), ("--reasoning-parser", REASONING_FORMATS)]
)
def test_chosen_by_name(option, known):
    """An option counts more than the template."""
    for name, one in known.items():
        for spelling in (name, *one.other_names):
            assert chosen(option, spelling) == name
    assert chosen(option, "none") == "none"


@pytest.mark.parametrize("option", ["--tool-parser", "--reasoning-parser"])
def test_names_that_do_not_exist(option):
    """The error names the option and all that there are."""
    with pytest.raises(ConfigError, match=rf"{option} is 'qwen'; .*auto, none or one of .*mistral"):
        chosen(option, "qwen")


@pytest.mark.parametrize(("option", "known"), [("tool_parser", TOOL_FORMATS), ("reasoning_parser", REASONING_FORMATS)])
def test_help_has_all_names(option, known):
    """That of the option of the command line."""
    [field] = [field for field in dataclasses.fields(ServerConfig) if field.name == option]
    assert set(known) <= set(re.findall(r"\w+", field.metadata["help"]))
