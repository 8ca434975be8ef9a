"""What every client of `make compat` should see: the answers that plain HTTP requests get, and what is known of them.

Owns the kinds of plain answers and how an observation is compared. Does not know the clients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.compat.clients.observing import UNKNOWN_MODEL, tokens
from tests.compat.questions import MAX_TOKENS, PROMPT

if TYPE_CHECKING:
    import httpx

Facts = dict[str, Any]


class Expected:
    """Asks a server once for each kind of answer; `client` sends the key, if there is one.

    Attributes:
        model: the name that it serves.
        stop: a word within its answer to PROMPT.
        facts: of each kind of observation.
    """

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        [card] = client.get("/v1/models").raise_for_status().json()["data"]
        self.model: str = card["id"]
        self.facts: dict[str, Facts] = {
            "models": {"names": [self.model]},
            "arrival": {"running": True},  # the first line of a stream is there while its answer is still made
        }
        self._chats()
        self._completions()
        self._responses()
        self._messages()
        self._errors()
        self._embeddings()

    def _ask(self, path: str, **fields: Any) -> Any:
        body = {"model": self.model} | fields
        return self._client.post(path, json=body).raise_for_status().json()

    def _chats(self) -> None:
        messages = [{"role": "user", "content": PROMPT}]

        def facts(**fields: Any) -> Facts:
            answer = self._ask(
                "/v1/chat/completions", messages=messages, max_tokens=MAX_TOKENS, temperature=0, **fields
            )
            [choice] = answer["choices"]
            return {
                "text": choice["message"]["content"],
                "end": choice["finish_reason"],
                "tokens": tokens(answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]),
                "status": 200,
            }

        self.facts["chat"] = whole = facts()
        assert whole["end"] == "length", whole
        self.stop = whole["text"].split()[-3]
        self.facts["stopped chat"] = stopped = facts(stop=[self.stop])
        assert stopped["end"] == "stop", stopped
        assert whole["text"].startswith(stopped["text"] + self.stop), stopped

    def _completions(self) -> None:
        def facts(prompt: str | list[str]) -> tuple[list[str], Any]:
            answer = self._ask("/v1/completions", prompt=prompt, max_tokens=MAX_TOKENS, temperature=0)
            return [choice["text"] for choice in answer["choices"]], answer

        [text], answer = facts(PROMPT)
        self.facts["completion"] = {
            "text": text,
            "end": answer["choices"][0]["finish_reason"],
            "tokens": tokens(answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]),
        }
        # Each prompt alone: a batch of them must not get other texts.
        self.facts["completions"] = {"texts": [text, *facts(self.stop)[0]]}

    def _responses(self) -> None:
        for kind, end, limit in (
            ("response", "incomplete", {"max_output_tokens": MAX_TOKENS}),
            ("complete response", "completed", {}),
        ):
            answer = self._ask("/v1/responses", input=PROMPT, temperature=0, **limit)
            assert answer["status"] == end, answer
            self.facts[kind] = {
                "text": answer["output"][0]["content"][0]["text"],
                "end": end,
                "tokens": tokens(answer["usage"]["input_tokens"], answer["usage"]["output_tokens"]),
            }
        assert self.facts["response"]["text"] == self.facts["chat"]["text"]

    def _messages(self) -> None:
        messages = [{"role": "user", "content": PROMPT}]
        for kind, of_chat, fields, end in (
            ("message", "chat", {}, "max_tokens"),
            ("stopped message", "stopped chat", {"stop_sequences": [self.stop]}, "stop_sequence"),
        ):
            answer = self._ask("/v1/messages", messages=messages, max_tokens=MAX_TOKENS, temperature=0, **fields)
            usage = answer["usage"]
            prompt = usage["input_tokens"] + usage["cache_read_input_tokens"]
            self.facts[kind] = {
                "text": answer["content"][0]["text"],
                "end": end,
                "tokens": tokens(prompt, usage["output_tokens"]),
            }
            assert answer["stop_reason"] == end, answer
            assert self.facts[kind]["text"] == self.facts[of_chat]["text"]
        self.facts["token count"] = {"count": self.facts["message"]["tokens"]["prompt"]}

    def _errors(self) -> None:
        unknown = {"model": UNKNOWN_MODEL, "messages": [{"role": "user", "content": PROMPT}]}
        self.facts["unknown model"] = _facts_of_error(self._client.post("/v1/chat/completions", json=unknown), 404)
        if "Authorization" in self._client.headers:  # a server without a key takes any
            stranger = self._client.get("/v1/models", headers={"Authorization": "Bearer wrong"})
            self.facts["wrong key"] = _facts_of_error(stranger, 401)

    def _embeddings(self) -> None:
        vector = self._ask("/v1/embeddings", input=PROMPT)["data"][0]["embedding"]
        self.facts["embedding"] = {"vector": [round(number, 5) for number in vector]}


def differences(expected: Facts, saw: Facts) -> list[str]:
    """A sentence for each fact that is another one; a client may wrap an error's message in words of its own."""
    return [
        f"{name} is {fact!r}, not {expected.get(name)!r}"
        for name, fact in saw.items()
        if not (expected.get(name) == fact or (name == "message" and expected[name] in fact))
    ]


def _facts_of_error(answer: httpx.Response, status: int) -> Facts:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    return {"status": status, "message": error["message"], "code": error["code"]}
