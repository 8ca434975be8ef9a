// The Python face of the engine's side, in rbee.transport._native. Its documentation is rbee/transport/_native.pyi.
//
// Owns conversions, and the progress that a runner counts in, which outlives the side. Does not know where tokens come
// from.

#include <memory>
#include <optional>
#include <stdexcept>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include "rbee/producer.h"
#include "rbee/progress.h"

#include "arena_side.h"
#include "python_memory.h"
#include "transport_module.h"

using namespace nb::literals;

namespace {

class Producer : public Side<rbee::Producer> {
public:
    Producer(nb::handle arena, int doorbell_fd) : Side(arena, doorbell_fd) { progress_->bind(core().progress()); }
    ~Producer() { progress_->unbind(); }
    Producer(const Producer&) = delete;
    Producer& operator=(const Producer&) = delete;

    /// Outlives this object: without an arena it counts for itself.
    const std::shared_ptr<rbee::Progress>& progress() const { return progress_; }

    void close() {
        progress_->unbind();
        Side::close();
    }

    std::uint64_t commit(nb::handle ring_array, nb::handle token_array, nb::handle logprob_array,
                         nb::handle finished_array, nb::handle finish_array) {
        const Column<std::uint32_t> rings(ring_array, "rings"), tokens(token_array, "tokens");
        const Column<float> logprobs(logprob_array, "logprobs");
        const Column<std::uint32_t> finished(finished_array, "finished");
        const Column<rbee::FinishCode> finishes(finish_array, "finishes");
        if (tokens.size() != rings.size() || logprobs.size() != rings.size()) {
            throw std::invalid_argument("rings, tokens and logprobs must have one entry per token each.");
        }
        if (finishes.size() != finished.size()) {
            throw std::invalid_argument("finished and finishes must have one entry per finished ring each.");
        }
        return core().commit({rings.size(), rings.data(), tokens.data(), logprobs.data(), finished.size(),
                              finished.data(), finishes.data()});
    }

    std::vector<std::uint32_t> take_cancelled() {
        std::vector<std::uint32_t> cancelled;
        core().take_cancelled(cancelled);
        return cancelled;
    }

    /// A sequence without a token has no `decode_ns`.
    void note_ended(std::uint64_t prompt_tokens, std::uint64_t generation_tokens, std::uint64_t inference_ns,
                    std::optional<std::uint64_t> decode_ns) {
        rbee::Histograms& histograms = core().histograms();
        histograms.request_prompt_tokens.add(prompt_tokens);
        histograms.request_generation_tokens.add(generation_tokens);
        histograms.inference_time.add(inference_ns);
        if (decode_ns) {
            histograms.decode_time.add(*decode_ns);
        }
    }

private:
    std::shared_ptr<rbee::Progress> progress_ = std::make_shared<rbee::Progress>();
};

}  // namespace

void bind_producer(nb::module_& m) {
    nb::class_<rbee::Progress>(m, "Progress")
        .def(nb::init<>())
        .def("advance", &rbee::Progress::advance)
        .def_prop_ro("chunks", &rbee::Progress::chunks);

    nb::class_<Producer>(m, "Producer")
        .def(nb::init<nb::handle, int>(), "arena"_a, "doorbell_fd"_a)
        .def(
            "open", [](Producer& p, std::uint32_t ring, std::uint32_t generation) { p.core().open(ring, generation); },
            "ring"_a, "generation"_a)
        .def(
            "note_start", [](Producer& p, std::uint32_t ring) { p.core().note_start(ring); }, "ring"_a)
        .def("commit", &Producer::commit, "rings"_a, "tokens"_a, "logprobs"_a, nb::arg("finished").none() = nb::none(),
             nb::arg("finishes").none() = nb::none())
        .def(
            "free_space", [](Producer& p, std::uint32_t ring) { return p.core().free_space(ring); }, "ring"_a)
        .def("take_cancelled", &Producer::take_cancelled)
        .def("arm_wait", [](Producer& p) { p.core().arm_wait(); })
        .def_prop_ro("progress", &Producer::progress)
        .def(
            "beat", [](Producer& p, std::uint32_t state) { p.core().beat(state); }, "state"_a)
        .def(
            "report",
            [](Producer& p, std::uint64_t step_ns, std::uint32_t running, std::uint32_t waiting, std::uint32_t blocks,
               std::uint32_t blocks_used, std::uint64_t preemptions, std::uint64_t prompt_tokens,
               std::uint64_t cached_prompt_tokens) {
                p.core().report(
                    step_ns, {running, waiting, blocks, blocks_used, preemptions, prompt_tokens, cached_prompt_tokens});
            },
            "step_ns"_a, nb::kw_only(), "sequences_running"_a, "sequences_waiting"_a, "kv_blocks"_a, "kv_blocks_used"_a,
            "preemptions"_a, "prompt_tokens"_a, "cached_prompt_tokens"_a)
        .def(
            "note_admitted",
            [](Producer& p, std::uint64_t queue_ns) { p.core().histograms().queue_time.add(queue_ns); }, "queue_ns"_a)
        .def(
            "note_first_token",
            [](Producer& p, std::uint64_t prefill_ns) { p.core().histograms().prefill_time.add(prefill_ns); },
            "prefill_ns"_a)
        .def("note_ended", &Producer::note_ended, nb::kw_only(), "prompt_tokens"_a, "generation_tokens"_a,
             "inference_ns"_a, "decode_ns"_a.none())
        .def("close", &Producer::close);
}
