"""The arrays of a step, as the runner gets them from the core."""

from __future__ import annotations

from tests.engine.engine_parts import InProcessEngine, ScriptedRunner


def test_batch_asks_for_the_logits_that_score_a_prompt():
    """The row before each prompt token scores it, behind the rows that sample; nothing is scored twice."""
    runner = ScriptedRunner()
    with InProcessEngine(runner, max_num_batched_tokens=5) as engine:
        engine.submit([9], max_tokens=3)
        engine.core.step()
        engine.submit([1, 2, 3, 4, 5, 6], max_tokens=2, num_prompt_logprobs=0)
        engine.run()
        asked = [
            (
                batch.logits_rows.tolist(),
                [
                    (sequence.num_prompt_tokens, position)
                    for sequence, position in zip(
                        batch.row_sequences, batch.positions[batch.logits_rows].tolist(), strict=True
                    )
                ],
                batch.num_sampling,
            )
            for batch in runner.batches
        ]
        assert asked == [
            ([0], [(1, 0)], 1),
            ([0, 1, 2, 3, 4], [(1, 1), (6, 0), (6, 1), (6, 2), (6, 3)], 1),
            ([0, 2, 1], [(1, 2), (6, 5), (6, 4)], 2),
            ([0], [(6, 6)], 1),
        ]


def test_batch_puts_decodes_first_and_addresses_the_right_slots():
    """Rows of one token lead, positions continue where each sequence is, and slots follow its block table."""
    runner = ScriptedRunner()
    with InProcessEngine(runner, block_size=4, max_num_batched_tokens=8) as engine:
        engine.submit([5, 6, 7], max_tokens=50)
        engine.core.step()
        engine.submit([30] * 10 + [31])
        engine.core.step()
        engine.core.step()
        first, second = runner.batches[1], runner.batches[2]
        assert first.token_ids.tolist() == [8] + [30] * 7
        assert first.positions.tolist() == [3, *range(7)]
        assert second.token_ids.tolist() == [9, 30, 30, 30, 31]
        assert second.positions.tolist() == [4, 7, 8, 9, 10]
        assert second.context_lens.tolist() == [5, 11]
        assert (first.num_decodes, first.logits_rows.tolist()) == (1, [0])
        assert (second.num_decodes, second.logits_rows.tolist()) == (1, [0, 4])
        tables = second.block_tables
        wanted = [tables[0, 1] * 4] + [tables[1, p // 4] * 4 + p % 4 for p in (7, 8, 9, 10)]
        assert second.slot_mapping.tolist() == wanted
