"""Outputs of the hardest model there is, which takes any token that it may, are valid under their schemas."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import jsonschema_rs
import numpy as np

from rbee.engine.runners.interface import StepOutput
from rbee.messages import FinishReason
from rbee.server.protocols.output_form import of_schema
from tests.engine.engine_parts import InProcessEngine, ScriptedRunner
from tests.engine.schemas_parts import BY_HAND, Schema, generated

if TYPE_CHECKING:
    from rbee.engine.input_batch import InputBatch

_SCHEMAS = 300
# Of what the model may say it prefers what ends a part, so that most outputs end.
_PREFERRED = {ord('"'): 4.0, ord("}"): 3.0, ord("]"): 3.0, ord(","): 1.0}


class _Undecided(ScriptedRunner):
    """All tokens, which are bytes, are equally likely."""

    def __init__(self) -> None:
        super().__init__()
        self.vocab_size, self.max_model_len, self.num_blocks = 256, 4096, 16384

    def execute(self, batch: InputBatch) -> StepOutput:
        return StepOutput(np.zeros((len(batch.logits_rows), 256), np.float32))


def check(schema: Schema, output: str) -> None:
    """The output is JSON, and valid. Formats are not looked at: of some, this validator knows finer rules."""
    value = json.loads(output, parse_float=lambda number: min(float(number), sys.float_info.max))
    assert jsonschema_rs.validator_for(schema).is_valid(value), (schema, output)


def test_outputs_are_valid():
    """Whatever is drawn; and white space is short."""
    schemas = [*BY_HAND.values(), *generated(_SCHEMAS - len(BY_HAND))]
    assert len({json.dumps(schema) for schema in schemas}) == _SCHEMAS
    finished = 0
    with InProcessEngine(_Undecided()) as engine:
        for start in range(0, _SCHEMAS, 60):
            some = schemas[start : start + 60]
            requests = [
                engine.submit(
                    [1],
                    grammar=of_schema(schema, "x").source,
                    temperature=1.0,
                    logit_bias=_PREFERRED,
                    seed=start + number,
                    max_tokens=1000,
                )
                for number, schema in enumerate(some)
            ]
            engine.run()
            for schema, request in zip(some, requests, strict=True):
                output = bytes(request.tokens)
                assert b"\n" + 21 * b" " not in output
                if request.finish == FinishReason.LENGTH:
                    continue
                assert request.finish == FinishReason.STOP, schema
                check(schema, output.decode())
                finished += 1
        engine.assert_at_baseline()
    assert finished >= 0.95 * _SCHEMAS
