"""What clients see of the model: its name, tokenizer, chat template, formats, end tokens, defaults and pooling.

Owns how these are read from a model folder. Does not know weights and shapes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rbee.config import SYNTHETIC
from rbee.errors import ConfigError, ModelError
from rbee.models import gguf_of, synthetic
from rbee.models.chat_templates import DEFAULT, FILE, read_file, read_templates
from rbee.models.digest import model_digest
from rbee.models.json_files import read_object
from rbee.models.pooling import ModelPooling, NoPooling, read_pooling
from rbee.models.sampling_defaults import sampling_defaults
from rbee.server.text import output
from rbee.server.text.chat_template import ChatTemplate
from rbee.server.text.special_tokens import SpecialTokens
from rbee.server.text.tokenizer import TextCodec

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rbee.models.pooling import PoolingChoice

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_WITH_TOOLS = "tool_use"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedModel:
    """A model as clients see it."""

    name: str  # what requests call it
    codec: TextCodec  # text to token ids and back
    chat_template: ChatTemplate | None  # None for a model that cannot chat
    end_token_ids: frozenset[int]  # end a sequence unless a request ignores them
    sampling_defaults: Mapping[str, float] = field(default_factory=dict)  # of requests that leave them out
    no_chat_reason: str = "has no chat template"  # completes "The model X ..." if chat_template is None
    digest: str = ""  # of what it computes with, see `rbee.models.digest`
    pooling: ModelPooling | NoPooling = field(default_factory=NoPooling)  # how its vectors are made
    output_format: output.ModelFormat = field(default_factory=partial(output.output_format, None))
    vocabulary: str = SYNTHETIC  # as `rbee.grammars.vocabulary.load` takes it


def check_template_file(path: str) -> None:
    """Raise ConfigError unless this file has a chat template; "" is no file."""
    if path:
        _own_template(path, {}, SpecialTokens())


def load(
    name: str,
    folder: Path,
    *,
    use_generation_config: bool = True,
    trust_content: bool = False,
    pooling: PoolingChoice = "auto",
    tool_parser: str = output.AUTO,
    reasoning_parser: str = output.AUTO,
    template_file: str = "",
) -> ServedModel:
    """Read a model folder (tokenizer.json, tokenizer_config.json, chat templates, generation_config.json, pooling).

    `use_generation_config` says whether the model's recommended sampling parameters become defaults. With
    `trust_content` special tokens in messages are special tokens; without it they are text. For `pooling` see
    `read_pooling`, for the parsers `output_format`. `template_file` has a chat template in place of the model's own.

    Raises:
        ConfigError: there is no such parser, or no template in that file.
        ModelError: a file is missing or unreadable.
    """
    codec = TextCodec.load(folder)
    settings = read_object(folder / "tokenizer_config.json")
    generation = read_object(folder / "generation_config.json")
    special_tokens = {key: token for key in _SPECIAL_TOKENS if (token := _content(settings.get(key))) is not None}
    in_messages = SpecialTokens(() if trust_content else codec.special_tokens)
    chat_template: ChatTemplate | None
    problem: str | None
    if template_file:
        own = _own_template(template_file, special_tokens, in_messages)
        chat_template, problem, sources = own, None, [own.source]
    else:
        templates = read_templates(folder)
        chat_template, problem = _chat_template(templates, special_tokens, in_messages)
        sources = list(templates.values())
        if beside := _template_beside(folder):
            _log.warning(
                "%s is not read: the model's chat template is that of its GGUF file. --chat-template %s takes this one",
                beside,
                beside,
            )
    defaults = sampling_defaults(generation) if use_generation_config else {}
    if defaults:
        shown = ", ".join(f"{key} {value:g}" for key, value in defaults.items())
        _log.info("Where a request leaves them out, %s: the model's own (--generation-config none ignores it)", shown)
    output_format = output.output_format(
        "\n".join(sources),
        codec.special_tokens,
        codec.added_token_ids().get,
        tool_parser=tool_parser,
        reasoning_parser=reasoning_parser,
    )
    _log.info(
        "Tool calls are read as %s, reasoning as %s (--tool-parser, --reasoning-parser)",
        output_format.tool_parser,
        output_format.reasoning_parser,
    )
    return ServedModel(
        name=name,
        codec=codec,
        chat_template=chat_template,
        end_token_ids=_end_token_ids(folder, generation, codec, special_tokens.get("eos_token")),
        sampling_defaults=defaults,
        digest=model_digest(folder),
        pooling=read_pooling(folder, pooling),
        output_format=output_format,
        vocabulary=str(folder),
        **({"no_chat_reason": problem} if problem else {}),
    )


def load_synthetic(name: str, *, pooling: PoolingChoice = "auto", template_file: str = "") -> ServedModel:
    """The synthetic model: a token is a byte, and nothing ends a sequence but its length."""
    own = _own_template(template_file, {}, SpecialTokens()) if template_file else None
    return ServedModel(
        name=name,
        codec=TextCodec(synthetic.tokenizer()),
        chat_template=own or ChatTemplate(synthetic.CHAT_TEMPLATE, {}),
        end_token_ids=frozenset(),
        digest="synthetic",
        pooling=ModelPooling("mean" if pooling == "auto" else pooling, dimensions=()),
    )


def _own_template(path: str, special_tokens: dict[str, str], in_messages: SpecialTokens) -> ChatTemplate:
    """The chat template in a file that the user has named."""
    try:
        return ChatTemplate(read_file(Path(path)), special_tokens, in_messages)
    except ModelError as error:
        raise ConfigError(f"--chat-template is {path}, which cannot be used: {error}") from error


def _chat_template(
    templates: dict[str, str], special_tokens: dict[str, str], in_messages: SpecialTokens
) -> tuple[ChatTemplate | None, str | None]:
    """The default chat template, and what is wrong with it; a model with a broken one still completes texts.

    A template of the name tool_use is for conversations with tools, as in transformers.
    """
    source, with_tools = templates.get(DEFAULT), templates.get(_WITH_TOOLS)
    if others := templates.keys() - {DEFAULT, _WITH_TOOLS}:
        _log.info("The chat templates %s of the model are not used", ", ".join(sorted(others)))
    if source is None:
        return None, None
    try:
        return ChatTemplate(source, special_tokens, in_messages, with_tools=with_tools), None
    except ModelError as error:
        _log.warning("%s Until then chat requests are refused.", error)
        return None, "has a chat template that does not compile"


def _template_beside(folder: Path) -> Path | None:
    """A file with a template beside the GGUF file that `folder` stands for: it is not the model's, and not read."""
    gguf = gguf_of(folder)
    if gguf is None or gguf.parent == folder:
        return None
    file = gguf.parent / FILE
    return file if file.is_file() else None


def _end_token_ids(
    folder: Path, generation: Mapping[str, Any], codec: TextCodec, eos_token: str | None
) -> frozenset[int]:
    """The ids of generation_config.json (else config.json), and the tokenizer's eos_token, which ends a chat turn."""
    given = generation.get("eos_token_id")
    if given is None:
        given = read_object(folder / "config.json").get("eos_token_id")
    token_ids = set(given if isinstance(given, list) else [given])
    if eos_token is not None:
        token_ids.add(codec.token_id(eos_token))
    return frozenset(token_ids - {None})


def _content(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token  # both forms are in use
