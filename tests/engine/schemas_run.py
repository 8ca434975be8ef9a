"""Outputs of the default model under many schemas: `make test-schemas`, or with ARGS="--count 1000 --seed 7".

Owns which schemas, and that each output that ends is valid. Takes minutes, so it is not among the tests.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from functools import partial

from rbee.config import DEFAULT_MODEL
from rbee.engine.runners.context_length import CacheSize
from rbee.engine.runners.native.runner import NativeRunner
from rbee.engine.runners.native.spec import read_spec
from rbee.grammars import vocabulary
from rbee.messages import FinishReason
from rbee.models import ConsoleProgress, prepare
from rbee.models.folder import read_config
from rbee.server.protocols.output_form import of_schema
from rbee.server.text import served_model
from tests.engine.engine_parts import InProcessEngine
from tests.engine.schemas_parts import BY_HAND, generated
from tests.engine.test_schemas import check

_AT_ONCE = 32
_MAX_TOKENS = 400


def main() -> int:
    """Run all; 1 if an output is not valid, or a sequence ends with an error."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500, help="schemas: first those of the tests, then random ones")
    parser.add_argument("--seed", type=int, default=1, help="of the random ones, and of the outputs")
    options = parser.parse_args()
    schemas = [*BY_HAND.values(), *generated(300 - len(BY_HAND)), *generated(options.count, options.seed)]
    schemas = schemas[: options.count]
    path = prepare(DEFAULT_MODEL, progress=ConsoleProgress()).path
    model = served_model.load(DEFAULT_MODEL, path)
    runner = NativeRunner(
        path,
        read_spec(read_config(path), max_model_len=0),
        CacheSize(block_size=16, kv_cache_mib=1024, max_model_len=2048, max_num_seqs=_AT_ONCE),
        quantize="none",
        exact=False,
        threads=0,
        on_loading=lambda *_: None,
    )
    ends, wrong = Counter[str](), 0
    ending = tuple(sorted(model.end_token_ids))
    with InProcessEngine(runner, load_vocabulary=partial(vocabulary.load, str(path))) as engine:
        for start in range(0, len(schemas), _AT_ONCE):
            some = schemas[start : start + _AT_ONCE]
            requests = [
                engine.submit(
                    model.codec.encode(f"JSON schema: {json.dumps(schema)}\nJSON: ", add_special_tokens=False)[-600:],
                    grammar=of_schema(schema, "x").source,
                    grammar_end_ids=ending,
                    stop_token_ids=ending,
                    temperature=1.0,
                    seed=options.seed + start + number,
                    max_tokens=_MAX_TOKENS,
                )
                for number, schema in enumerate(some)
            ]
            engine.run()
            for schema, request in zip(some, requests, strict=True):
                assert request.finish is not None, "all have ended"
                ends[request.finish.name.lower()] += 1
                if request.finish != FinishReason.STOP:
                    continue
                try:
                    check(schema, model.codec.decode(request.tokens))
                except (AssertionError, ValueError) as error:
                    wrong += 1
                    sys.stdout.write(f"not valid: {error}\n")
            sys.stderr.write(f"{start + len(some)} of {len(schemas)}: {dict(ends)}\n")
    sys.stdout.write(f"{len(schemas)} schemas: {dict(ends)}, {wrong} outputs not valid\n")
    return 1 if wrong or ends.keys() - {"stop", "length"} else 0


if __name__ == "__main__":
    sys.exit(main())
