"""A choice whose output is parsed, and what it shows."""

from rbee.messages import FinishReason
from rbee.sampling_params import SamplingParams
from rbee.server.streams.choices import ChoiceSink, LogprobsChoice
from rbee.server.streams.parsed_output import ParsedOutput
from rbee.server.streams.records import TokenRecords
from rbee.server.text.stop_strings import StopStrings
from rbee.server.text.token_text import TokenText
from tests.batches import record_batch
from tests.fakes import RecordingSequence
from tests.server.streams.tagged_output import PLAN, WordTokens


class Case:
    """A choice whose tokens are these words, and whose pieces are kept."""

    def __init__(self, words, *, plan=PLAN, stops=(), logprobs=False, keep_text=True, stop_token_ids=()):
        self.pieces = []
        self.reasons = []
        self.words = words
        self.text = TokenText(WordTokens(words), StopStrings(stops) if stops else None, stop_token_ids)
        output = None if plan is None else ParsedOutput(plan, keep_text=keep_text)
        if logprobs:
            records = TokenRecords(SamplingParams(max_tokens=99, num_logprobs=0), [1])
            self.choice: ChoiceSink = LogprobsChoice(0, self, self.text, records, logprobs=True, output=output)
        else:
            self.choice = ChoiceSink(0, self, self.text, output=output)
        self.sequence = RecordingSequence()
        self.choice.sequence = self.sequence  # type: ignore[assignment] # a fake

    def show(self, choice, pieces, reason):
        """Keep them."""
        assert choice is self.choice
        self.pieces += pieces
        self.reasons += [reason] if reason else []

    def fail(self, error):
        """None of these tests fails."""
        raise error

    def deliver(self, reason=FinishReason.STOP, *, each=False):
        """All tokens, at once or each alone, and the end."""
        numbers = range(len(self.words))
        if each:
            for number in numbers:
                self.choice.deliver(record_batch([(number, -1.0)], reason if number == len(self.words) - 1 else 0))
        else:
            self.choice.deliver(record_batch([(number, -1.0) for number in numbers], reason))
        return self

    def shown(self):
        """What each piece says: its kind, its text, and how many calls there are by then."""
        return [(piece.kind, piece.text, piece.num_calls) for piece in self.pieces]

    def listed(self):
        """For each piece its text and the tokens that are listed with it, as words."""
        return [(piece.text, [self.words[entry.token_id] for entry in piece.entries]) for piece in self.pieces]
