// The progress word: counted up per chunk of work, so that one long step is no hang.
//
// Owns where the word is. Does not know chunks or observers.

#pragma once

#include <cstdint>

#include "rbee/platform.h"

namespace rbee {

/// For one thread at a time. Counts in memory of its own until, and after, it is bound to a shared word.
class Progress {
public:
    Progress() = default;
    Progress(const Progress&) = delete;
    Progress& operator=(const Progress&) = delete;

    /// One more chunk is done. Relaxed: observers conclude nothing about anything else from it.
    void advance() { count(*word_); }

    std::uint64_t chunks() const { return word_->load(std::memory_order_relaxed); }

    void bind(Word<std::uint64_t>& word) { word_ = &word; }
    void unbind() { word_ = &own_; }

private:
    Word<std::uint64_t> own_{0};
    Word<std::uint64_t>* word_ = &own_;
};

}  // namespace rbee
