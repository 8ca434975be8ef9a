# ruff: noqa: PYI021 - this file is where the native module is documented
"""Token ids of a text by a byte-level byte-pair vocabulary, in C++; see native/include/rbee/byte_pairs.h."""

class BytePairEncoder:
    """What `tokenizers` does with such a vocabulary, for most texts. Safe to use from several threads."""

    def __init__(
        self,
        *,
        llama3: bool,
        contractions: int,
        most_digits: int,
        alone: int,
        vocabulary: bytes,
        merges: bytes,
        added: list[tuple[str, int]],
        removed: bytes,
        ignore_merges: bool,
        only_composed: bool,
    ) -> None:
        """A vocabulary and how its texts are cut.

        Args:
            llama3: how words are cut: see native/include/rbee/words.h.
            contractions: 0: 's; 1: 'S too; 2: also with the old long s.
            most_digits: of a word, as Llama 3 has it.
            alone: which characters are words of their own. 0: none; 1: numbers as a regular expression has them; 2: as
                the step Digits has them.
            vocabulary: JSON, an object of token ids by names in GPT-2's alphabet for bytes.
            merges: JSON, an array of two names each, with a space between them or as an array; the first one is the
                soonest.
            added: tokens that stand for themselves wherever a text has them.
            removed: bytes that become no token, and over which nothing merges. Other bytes that are no token become
                none either.
            ignore_merges: a word that is a token stays one.
            only_composed: no text may have a character that Unicode's form NFC might change.

        Raises:
            ValueError: there is other JSON, a merge is not of tokens, or an added token is empty.
        """
    def encode(self, text: str, limit: int) -> list[int] | int | None:
        """The token ids of `text`, without those that a tokenizer puts around one.

        If there are more than `limit`, how many; None if the text has what it may not. Python's lock is kept for texts
        of up to 8 KiB.
        """
