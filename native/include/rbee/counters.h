// The counters of the arena: two lists, one for each process, and one of histograms.
//
// Owns the lists. The arena's lines (layout.h), the binding and all that Python shows of them are generated from these.
// A new counter is a line at the end of its list, and the place that counts. Offsets never change, so that an observer
// of another build reads its own.
//
//   X(type, field, name for Python, kind, help)
//
// `count` only grows, `gauge` is a present value, `status` is a time, a state or a pid.

#pragma once

// clang-format off
#define RBEE_ENGINE_COUNTERS(X) \
    X(std::uint64_t, heartbeat_ns, engine_heartbeat_ns, status, "When the engine last beat, CLOCK_MONOTONIC; or 0.") \
    X(std::uint32_t, state, engine_state, status, "What the engine does; see rbee.transport.EngineState.") \
    X(std::uint32_t, pid, engine_pid, status, "The engine process.") \
    X(std::uint64_t, steps, steps, count, "Commits that published something.") \
    X(std::uint64_t, tokens, tokens, count, "Tokens committed.") \
    X(std::uint64_t, wakes_written, wakes_written, count, "Commits that wrote the eventfd.") \
    X(std::uint64_t, wakes_elided, wakes_elided, count, "Commits that needed no eventfd: the server was awake.") \
    X(std::uint64_t, full_ring_pauses, full_ring_pauses, count, "Times that a ring was found full.") \
    X(std::uint64_t, preemptions, preemptions, count, "Sequences preempted.") \
    X(std::uint32_t, sequences_running, sequences_running, gauge, "Sequences that run.") \
    X(std::uint32_t, sequences_waiting, sequences_waiting, gauge, "Sequences that wait.") \
    X(std::uint32_t, kv_blocks, kv_blocks, gauge, "Blocks of the KV cache.") \
    X(std::uint32_t, kv_blocks_used, kv_blocks_used, gauge, "Blocks of the KV cache in use.") \
    X(std::uint64_t, prompt_tokens, prompt_tokens, count, "Prompt tokens of requests that began to run.") \
    X(std::uint64_t, cached_prompt_tokens, cached_prompt_tokens, count, "Prompt tokens found in the prefix cache.") \
    X(std::uint64_t, progress, progress, count, "Chunks of work done within steps and while loading.")

#define RBEE_SERVER_COUNTERS(X) \
    X(std::uint64_t, heartbeat_ns, server_heartbeat_ns, status, "When the server last beat, CLOCK_MONOTONIC; or 0.") \
    X(std::uint32_t, state, server_state, status, "What the server does; see rbee.transport.ServerState.") \
    X(std::uint32_t, rings_in_use, rings_in_use, gauge, "Rings that belong to a request.") \
    X(std::uint64_t, drains, drains, count, "Turns of the drain loop.") \
    X(std::uint64_t, tokens_drained, tokens_drained, count, "Records drained: tokens and side records.") \
    X(std::uint64_t, finishes, finishes, count, "Rings that finished.") \
    X(std::uint64_t, cancels, cancels, count, "Cancels.") \
    X(std::uint64_t, engine_wakes, engine_wakes, count, "Times that the engine had to be sent Wake.") \
    X(std::uint64_t, stale_wakeups, stale_wakeups, count, "Wakeups that were lost.") \
    X(std::uint64_t, direct_tokens, direct_tokens, count, "Tokens rendered and sent by the native drain.") \
    X(std::uint64_t, direct_sends, direct_sends, count, "System calls of the native drain that sent tokens.") \
    X(std::uint64_t, blocked_sends, blocked_sends, count, "Sends of the native drain that found the socket full.") \
    X(std::uint64_t, drain_ns, drain_ns, count, "Time in drains, up to the return to Python.") \
    X(std::uint64_t, render_ns, render_ns, count, "Time in drains for detokenizing and framing.") \
    X(std::uint64_t, send_ns, send_ns, count, "Time in drains in send(2).") \
    X(std::uint64_t, gc_pauses, gc_pauses, count, "Garbage collections of the server's Python.") \
    X(std::uint64_t, gc_pause_ns, gc_pause_ns, count, "Time in garbage collections of the server's Python.")

//  X(name, unit, help); the unit is `ns` or `tokens`. The engine counts `step` and the last six, the server the others.
#define RBEE_HISTOGRAMS(X) \
    X(step, ns, "One engine step, schedule to commit.") \
    X(wakeup, ns, "A step's commit to the start of the drain that found it.") \
    X(delivery, ns, "A token's commit to its bytes handed to the socket.") \
    X(loop_lag, ns, "How late a timer of the server's event loop was.") \
    X(first_token, ns, "A request received to its first content handed to the socket.") \
    X(token_gap, ns, "Between two successive tokens of a stream handed to the socket; 0 within one write.") \
    X(cancel_to_free, ns, "A cancel to the return of its ring; its KV blocks are free by then.") \
    X(queue_time, ns, "A request received to a sequence of it admitted: it has a seat and KV blocks.") \
    X(prefill_time, ns, "A sequence admitted to its first token.") \
    X(decode_time, ns, "A sequence's first token to its end.") \
    X(inference_time, ns, "A sequence admitted to its end.") \
    X(request_prompt_tokens, tokens, "Prompt tokens of a sequence that was admitted and has ended.") \
    X(request_generation_tokens, tokens, "Tokens generated for a sequence that was admitted and has ended.")
// clang-format on
