"""From the bytes of a job to a generation and its dialect, or to all that is wrong with it.

Owns that every error of a field is found before anything is refused, and what the fields mean to the engine. Runs in
the event loop or in a thread, and changes nothing.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from rbee.server.errors import Refusal
from rbee.server.protocols.fields import FieldReader, decode_object
from rbee.server.protocols.generation_reader import GenerationReader
from rbee.server.protocols.jobs.dialect import JobDialect
from rbee.server.protocols.jobs.refusals import FieldError, InvalidJob
from rbee.server.protocols.jobs.schemas import CancelBody, JobBody, limit_errors
from rbee.server.protocols.parameters import GenerationRequest, parameter_refusals

if TYPE_CHECKING:
    from collections.abc import Callable

    from rbee.messages import Ready
    from rbee.server.streams.generation import Generation
    from rbee.server.text.served_model import ServedModel

_MOST_ERRORS = 32  # of one answer


class Asked(NamedTuple):
    """What a job asks for."""

    generation: Generation
    dialect: JobDialect
    ignored: list[str]  # fields that are not followed


class JobReader:
    """Reads the jobs for one model; for `engine_memory` see `JobDialect`."""

    def __init__(
        self,
        model: ServedModel,
        *,
        num_rings: int,
        ring_capacity: int,
        lenient: bool,
        engine_memory: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._engine_memory = engine_memory
        self._reader = GenerationReader(model, num_rings=num_rings, ring_capacity=ring_capacity)
        self._lenient = lenient

    def read(self, body: bytes, deadlines: list[str], engine: Ready, received_ns: int) -> Asked:
        """`deadlines` are the values of the X-Request-Deadline headers; for `received_ns` see `Generation`.

        Raises:
            Refusal: an `InvalidJob` for the fields; another one for what depends on the model.
        """
        fields = FieldReader(lenient=self._lenient)
        job = read_body(decode_object(body), fields)
        request = _request(job)
        self._reader.check_model(job.model)
        generation = self._reader.generation(
            request,
            self._reader.text_prompt(job.prompt or "", engine),
            max_tokens=job.max_tokens,
            deadlines=deadlines,
            engine=engine,
            received_ns=received_ns,
        )
        # The end of a stream has the time that decoding took.
        generation = dataclasses.replace(generation, timings=True)
        return Asked(generation, JobDialect(self._reader.model.name, self._engine_memory), fields.ignored)


def read_body(given: dict[str, Any], reader: FieldReader) -> JobBody:
    """The fields of a job.

    Raises:
        InvalidJob: with every field that is unknown, missing, of a wrong type or outside of its limits.
    """
    errors: list[FieldError] = []
    try:
        body = reader.read(given, JobBody, {})
    except Refusal:  # the first one; the others are to be found too
        sound = {}
        reader.ignored.clear()
        for name, value in given.items():
            try:
                reader.read({name: value}, JobBody, {})
            except Refusal as refusal:
                errors.append(FieldError.from_refusal(refusal, value))
                if len(errors) == _MOST_ERRORS:
                    break
            else:
                sound[name] = value
        body = FieldReader(lenient=True).read(sound, JobBody, {})
    blamed = {error.field for error in errors}
    errors += [error for error in limit_errors(body) if error.field not in blamed]
    if errors:
        raise InvalidJob(errors[:_MOST_ERRORS])
    return body


def read_cancel(body: bytes) -> str:
    """The id of the job that POST /v1/cancel means."""
    return FieldReader(lenient=False).read(decode_object(body), CancelBody, {}).job_id


def _request(body: JobBody) -> GenerationRequest:
    """The parameters in the words that all protocols share.

    Raises:
        InvalidJob: a value that is within the protocol's limits and that the engine cannot follow.
    """
    greedy = body.top_p == 0  # the most likely token alone reaches it
    request = GenerationRequest(
        model=body.model,
        max_tokens=body.max_tokens,
        temperature=body.temperature,
        top_p=1.0 if greedy else body.top_p,
        top_k=1 if greedy else body.top_k,
        min_p=body.min_p,
        repetition_penalty=body.repetition_penalty,
        stop=body.stop,
        seed=None if body.seed is None else body.seed % 2**63,
    )
    errors = [FieldError.from_refusal(refusal) for refusal in parameter_refusals(request)]
    if errors:
        raise InvalidJob(errors)
    return request
