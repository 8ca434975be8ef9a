// A word's modification order is the order of its messages. The variants of a step are counted and taken in the same
// order: a variant is a number from 0.

#include "memory_model.h"

#include <string>

namespace model {
namespace {

bool acquires(std::memory_order order) {
    return order == std::memory_order_acquire || order == std::memory_order_acq_rel;
}
bool releases(std::memory_order order) {
    return order == std::memory_order_release || order == std::memory_order_acq_rel;
}

std::uint8_t one_more(std::uint8_t& count) {
    if (count == UINT8_MAX) {
        violated("too many accesses to a piece of plain memory for the explorer's views");
    }
    return ++count;
}

}  // namespace

void Memory::restart() {
    for (Thread& thread : threads_) {
        thread.view = {};
        thread.history = {};
        thread.ended = false;
    }
    for (Place& place : places_) {
        place.messages.assign(place.plain ? 0 : 1, Message{place.initial});
        place.counts = {};
        place.content = 0;
    }
    fence_view_ = {};
}

void Memory::announce(std::size_t thread, const Operation& operation) {
    Thread& me = threads_[thread];
    me.next = operation;
    me.place = operation.kind == Kind::fence ? 0 : word_at(operation);
}

std::size_t Memory::variants(std::size_t number) const {
    const Thread& thread = threads_[number];
    if (thread.ended) {
        return 0;
    }
    if (thread.next.kind == Kind::fence) {
        return 1;
    }
    const Place& place = places_[thread.place];
    const std::size_t known = thread.view.at[place.slot];
    const std::size_t size = place.messages.size();
    switch (thread.next.kind) {
        case Kind::load: return size - known;
        case Kind::await: return place.messages.back().value != 0;
        case Kind::store: {
            std::size_t count = 1;  // at the end, or before any message that did not read the one in front of it
            for (std::size_t i = known + 1; i < size; ++i) {
                count += !place.messages[i].continues();
            }
            return count;
        }
        case Kind::compare_exchange: {
            std::size_t count = 1;  // with the newest message, or failing with an older one
            for (std::size_t i = known; i + 1 < size; ++i) {
                count += place.messages[i].value != thread.next.expected;
            }
            return count;
        }
        default: {
            std::size_t count = 1;  // behind the newest message, or before fetch_ors whose result is unused
            for (std::size_t i = size - 1; i > known && place.messages[i].kind == Kind::fetch_or; --i) {
                ++count;
            }
            return count;
        }
    }
}

std::uint64_t Memory::execute(std::size_t thread, std::size_t variant) {
    Thread& me = threads_[thread];
    const std::uint64_t read = take(me, variant);
    me.history.add(static_cast<std::uint64_t>(me.next.kind) << 32 | me.place);
    me.history.add(me.next.operand);
    me.history.add(read);
    return read;
}

std::uint64_t Memory::take(Thread& me, std::size_t variant) {
    const Operation& next = me.next;
    if (next.kind == Kind::fence) {
        me.view.join(fence_view_);
        fence_view_.join(me.view);
        return 0;
    }
    Place& place = places_[me.place];
    const std::size_t known = me.view.at[place.slot];
    std::size_t at = place.messages.size();  // behind the place in the modification order
    switch (next.kind) {
        case Kind::load:
        case Kind::await: return read(me, place, at - 1 - variant);
        case Kind::store:
            while (variant != 0) {
                variant -= !place.messages[--at].continues();
            }
            write(me, place, at, next.operand, {});
            return 0;
        case Kind::compare_exchange: {
            if (variant == 0 && place.messages[at - 1].value == next.expected) {
                break;
            }
            std::size_t from = at - 1;
            while (variant != 0) {
                variant -= place.messages[--from].value != next.expected;
            }
            me.view.at[place.slot] = static_cast<std::uint8_t>(std::max(known, from));
            return place.messages[from].value;
        }
        default: at -= variant;
    }
    const std::uint64_t old = read(me, place, at - 1);
    const std::uint64_t value = next.kind == Kind::fetch_add  ? old + next.operand
                                : next.kind == Kind::fetch_or ? old | next.operand
                                                              : next.operand;
    const View continued = place.messages[at - 1].view;
    write(me, place, at, value, continued);
    return old;
}

std::uint64_t Memory::read(Thread& me, const Place& place, std::size_t from) {
    const Message& message = place.messages[from];
    if (acquires(me.next.order)) {
        me.view.join(message.view);
    }
    me.view.at[place.slot] = static_cast<std::uint8_t>(from);
    return message.value;
}

void Memory::write(Thread& me, Place& place, std::size_t at, std::uint64_t value, const View& continued) {
    if (place.messages.size() == UINT8_MAX) {
        violated("too many writes to " + program_.name_of(place.address) + " for the explorer's views");
    }
    if (at < place.messages.size()) {
        make_room(place.slot, at);
    }
    me.view.at[place.slot] = static_cast<std::uint8_t>(at);
    Message message{value, me.next.operand, me.next.kind, continued};
    if (releases(me.next.order)) {
        message.view.join(me.view);
    }
    message.view.at[place.slot] = static_cast<std::uint8_t>(at);
    place.messages.insert(place.messages.begin() + static_cast<std::ptrdiff_t>(at), message);
    for (std::size_t i = at + 1; i < place.messages.size() && place.messages[i].continues(); ++i) {
        place.messages[i].value = place.messages[i - 1].value | place.messages[i].operand;
        place.messages[i].view.join(place.messages[i - 1].view);
    }
}

/// Renumbers the messages of a word from `at` on.
void Memory::make_room(std::size_t slot, std::size_t at) {
    const auto shift = [slot, at](View& view) {
        view.at[slot] = static_cast<std::uint8_t>(view.at[slot] + (view.at[slot] >= at));
    };
    for (Thread& thread : threads_) {
        shift(thread.view);
    }
    shift(fence_view_);
    for (Place& place : places_) {
        for (Message& message : place.messages) {
            shift(message.view);
        }
    }
}

void Memory::read_plain(std::size_t thread, const void* memory) {
    Thread& me = threads_[thread];
    Place& place = plain_at(memory);
    if (me.view.at[place.slot] != place.counts[0]) {
        violated("data race: " + program_.name_of(memory) + " is read beside its writing");
    }
    me.view.at[place.slot + 1 + thread] = one_more(place.counts[1 + thread]);
    me.history.add(place.content);
}

void Memory::write_plain(std::size_t thread, void* memory, const void* value, std::size_t bytes) {
    Thread& me = threads_[thread];
    Place& place = plain_at(memory);
    for (std::size_t i = 0; i < place.counts.size(); ++i) {
        if (i != 1 + thread && me.view.at[place.slot + i] != place.counts[i]) {
            violated("data race: " + program_.name_of(memory) + " is written beside its " +
                     (i == 0 ? "writing" : "reading"));
        }
    }
    me.view.at[place.slot] = one_more(place.counts[0]);
    std::memcpy(memory, value, bytes);
    Hash hash;
    for (std::size_t i = 0; i < bytes; ++i) {
        hash.add(static_cast<const unsigned char*>(value)[i]);
    }
    place.content = hash.a;
}

Hash Memory::state() const {
    View oldest;
    for (const Place& place : places_) {
        if (place.plain) {
            for (std::size_t i = 0; i < place.counts.size(); ++i) {  // only whether the last one was seen matters
                oldest.at[place.slot + i] = static_cast<std::uint8_t>(std::max<int>(place.counts[i], 1) - 1);
            }
            continue;
        }
        std::size_t least = place.messages.size() - 1;
        for (std::size_t thread = 0; thread < program_.threads.size(); ++thread) {
            if (!threads_[thread].ended) {
                least = std::min<std::size_t>(least, threads_[thread].view.at[place.slot]);
            }
        }
        oldest.at[place.slot] = static_cast<std::uint8_t>(least);
    }
    const auto relative = [&oldest](View view) {
        for (std::size_t i = 0; i < kSlots; ++i) {
            view.at[i] = static_cast<std::uint8_t>(std::max(view.at[i], oldest.at[i]) - oldest.at[i]);
        }
        return view;
    };
    Hash hash;
    for (std::size_t thread = 0; thread < program_.threads.size(); ++thread) {
        hash.add(threads_[thread].ended);
        hash.add(threads_[thread].history.a);
        hash.add(threads_[thread].history.b);
        hash.add(relative(threads_[thread].view));
    }
    hash.add(relative(fence_view_));
    for (const Place& place : places_) {
        hash.add(place.content);
        for (std::size_t i = oldest.at[place.slot]; i < place.messages.size(); ++i) {
            const Message& message = place.messages[i];
            hash.add(message.value);
            hash.add(message.operand);
            hash.add(static_cast<std::uint64_t>(message.kind));
            hash.add(relative(message.view));
        }
        hash.add(place.slot);  // where the next place begins
    }
    return hash;
}

std::uint64_t Memory::final_value(const void* word) const {
    const auto found = index_.find(word);
    return found == index_.end() ? 0 : places_[found->second].messages.back().value;
}

Place& Memory::place_at(const void* address, bool plain, std::size_t slots) {
    const auto [found, fresh] = index_.emplace(address, places_.size());
    if (fresh) {
        if (used_slots_ + slots > kSlots) {
            violated("the program has more shared words than the explorer's views have slots");
        }
        places_.push_back({address, used_slots_, plain});
        used_slots_ += slots;
    }
    return places_[found->second];
}

std::size_t Memory::word_at(const Operation& operation) {
    Place& place = place_at(operation.word, false, 1);
    if (place.messages.empty()) {
        place.initial = operation.initial;
        place.messages.push_back({place.initial});
    }
    return static_cast<std::size_t>(&place - places_.data());
}

}  // namespace model
