// The threads are fibers of one thread, and an execution is given up by going back to the stack of the search. The next
// one starts anew and follows the path of choices up to the last point that has an alternative left.

#undef _FORTIFY_SOURCE  // its longjmp() refuses to go to another stack
#include "explorer.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <csetjmp>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>

#include <ucontext.h>

namespace model {
namespace {

constexpr std::size_t kMaxThreads = 4;
constexpr std::size_t kPlainSlots = 1 + kMaxThreads;  // of a piece of plain memory: writes, reads of each thread
constexpr std::size_t kSlots = 64;                    // one of each word, kPlainSlots of each piece of plain memory
constexpr std::size_t kMaxSteps = 1'000;              // an execution that is longer does not end
constexpr std::size_t kStackBytes = 1 << 17;

/// Up to which message of each word a thread or message has seen; for plain memory, which of its writes and reads.
struct View {
    std::array<std::uint8_t, kSlots> at{};

    void join(const View& other) {
        for (std::size_t i = 0; i < kSlots; ++i) {
            at[i] = std::max(at[i], other.at[i]);
        }
    }
};

struct Hash {
    std::uint64_t a = 0x9e3779b97f4a7c15;
    std::uint64_t b = 0xc2b2ae3d27d4eb4f;

    void add(std::uint64_t value) {
        a = (a ^ value) * 0xff51afd7ed558ccd;
        a ^= a >> 32;
        b = (b + value) * 0xc4ceb9fe1a85ec53;
        b ^= b >> 29;
    }
    void add(const View& view) {
        for (std::size_t i = 0; i < kSlots; i += sizeof(std::uint64_t)) {
            std::uint64_t eight;
            std::memcpy(&eight, &view.at[i], sizeof eight);
            add(eight);
        }
    }
    bool operator==(const Hash& other) const { return a == other.a && b == other.b; }
};

struct HashOfHash {
    std::size_t operator()(const Hash& hash) const { return hash.a; }
};

/// One value in a word's modification order, and the view that an acquire of it joins.
struct Message {
    std::uint64_t value = 0;
    std::uint64_t operand = 0;
    Kind kind = Kind::store;
    View view{};

    bool continues() const { return kind != Kind::store; }  // a read-modify-write: right behind what it read
};

/// A word, or a piece of plain memory. Keeps its index and its slots from one execution to the next.
struct Place {
    const void* address = nullptr;
    std::size_t slot = 0;
    bool plain = false;
    std::uint64_t initial = 0;
    std::vector<Message> messages{};                 // of a word
    std::array<std::uint8_t, kPlainSlots> counts{};  // of plain memory: how many accesses of each sort there were
    std::uint64_t content = 0;                       // of plain memory: a hash
};

/// A stack of its own. ucontext starts it; from then on _setjmp and _longjmp do, because they make no system calls.
struct Fiber {
    ucontext_t start{};
    std::jmp_buf position{};
    bool started = false;
    std::unique_ptr<char[]> stack{};
};

[[gnu::noinline]] void switch_to(Fiber& from, Fiber& to) {
    if (_setjmp(from.position) == 0) {
        if (to.started) {
            _longjmp(to.position, 1);
        }
        to.started = true;
        setcontext(&to.start);
    }
}

struct Thread {
    Fiber fiber{};
    View view{};
    Hash history{};  // everything that it has done and read: its local state
    Operation next{Kind::load};
    std::size_t place = 0;  // of the next operation
    bool ended = false;
};

/// A point where something had to be chosen, and what is being tried: the thread and the variant of its operation.
struct Choice {
    std::size_t chosen;
    std::size_t count;
    std::size_t thread;
    std::size_t variant;
};

const char* const kNames[] = {"load",  "store", "exchange", "fetch_add", "fetch_or", "compare_exchange",
                              "await", "fence"};

bool acquires(std::memory_order order) {
    return order == std::memory_order_acquire || order == std::memory_order_acq_rel;
}
bool releases(std::memory_order order) {
    return order == std::memory_order_release || order == std::memory_order_acq_rel;
}

class Search {
public:
    explicit Search(const std::function<Program()>& make) : make_(make) {
        for (Thread& thread : threads_) {
            thread.fiber.stack = std::make_unique<char[]>(kStackBytes);
        }
    }

    Result run() {
        const auto start = std::chrono::steady_clock::now();
        do {
            execute_once();
        } while (violation_.empty() && go_back());
        Result result;
        result.violation = violation_;
        result.states = visited_.size();
        result.executions = executions_;
        if (!violation_.empty()) {
            violation_.clear();
            tracing_ = true;
            execute_once();  // path_ leads there again
            result.trace = trace_;
        }
        result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        return result;
    }

    std::uint64_t perform(const Operation& operation) {
        Thread& me = threads_[current_];
        me.next = operation;
        me.place = operation.kind == Kind::fence ? 0 : word_at(operation);
        if (starting_) {
            switch_to(me.fiber, main_);
        } else {
            choose();
        }
        const std::uint64_t read = execute(me, variant_);
        me.history.add(static_cast<std::uint64_t>(operation.kind) << 32 | me.place);
        me.history.add(operation.operand);
        me.history.add(read);
        if (tracing_) {
            note(read);
        }
        return read;
    }

    void read_plain(const void* memory) {
        Thread& me = threads_[current_];
        Place& place = plain_at(memory);
        if (me.view.at[place.slot] != place.counts[0]) {
            violated("data race: " + program_.name_of(memory) + " is read beside its writing");
        }
        me.view.at[place.slot + 1 + current_] = one_more(place.counts[1 + current_]);
        me.history.add(place.content);
    }

    void write_plain(void* memory, const void* value, std::size_t bytes) {
        Thread& me = threads_[current_];
        Place& place = plain_at(memory);
        for (std::size_t i = 0; i < place.counts.size(); ++i) {
            if (i != 1 + current_ && me.view.at[place.slot + i] != place.counts[i]) {
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

    [[noreturn]] void violated(const std::string& what) {
        if (!exploring_) {
            throw std::logic_error(what);
        }
        violation_ = what;
        switch_to(threads_[current_].fiber, main_);
        std::abort();  // an abandoned execution is never resumed
    }

    bool exploring() const { return exploring_; }

    std::uint64_t final_value(const void* word) const {
        const auto found = index_.find(word);
        return found == index_.end() ? 0 : places_[found->second].messages.back().value;
    }

private:
    static void run_thread();

    std::uint8_t one_more(std::uint8_t& count) {
        if (count == UINT8_MAX) {
            violated("too many accesses to a piece of plain memory for the explorer's views");
        }
        return ++count;
    }

    void run_current() {
        std::string error;
        try {
            program_.threads[current_]();
        } catch (const std::exception& exception) {
            error = exception.what();
        }
        if (!error.empty()) {  // only now: an execution must not be left inside a handler
            violated(error);
        }
        threads_[current_].ended = true;
        if (starting_) {
            switch_to(threads_[current_].fiber, main_);
        }
        choose();
    }

    /// One execution: along path_ as far as it goes, then always the first variant.
    void execute_once() {
        ++executions_;
        program_ = make_();
        for (Place& place : places_) {
            place.messages.assign(place.plain ? 0 : 1, Message{place.initial});
            place.counts = {};
            place.content = 0;
        }
        fence_view_ = {};
        depth_ = 0;
        completed_ = false;
        exploring_ = true;
        starting_ = true;  // each thread up to its first operation
        for (current_ = 0; current_ < program_.threads.size() && violation_.empty(); ++current_) {
            Thread& thread = threads_[current_];
            thread.view = {};
            thread.history = {};
            thread.ended = false;
            thread.fiber.started = false;
            getcontext(&thread.fiber.start);
            thread.fiber.start.uc_stack.ss_sp = thread.fiber.stack.get();
            thread.fiber.start.uc_stack.ss_size = kStackBytes;
            makecontext(&thread.fiber.start, run_thread, 0);
            switch_to(main_, thread.fiber);
        }
        starting_ = false;
        if (violation_.empty()) {
            current_ = kMaxThreads;
            choose();
        }
        exploring_ = false;
        if (completed_) {
            try {
                program_.at_end();
            } catch (const std::exception& exception) {
                violation_ = exception.what();
            }
        }
    }

    /// Goes on with the thread whose turn it is; returns in that thread. Or ends the execution.
    void choose() {
        Fiber& from = current_ < kMaxThreads ? threads_[current_].fiber : main_;
        if (depth_ == path_.size()) {
            Choice fresh{0, 0, 0, 0};
            for (std::size_t thread = 0; thread < program_.threads.size(); ++thread) {
                fresh.count += variants(threads_[thread]);
            }
            if (fresh.count == 0) {
                return finish(from);
            }
            if (fresh.count > 1 && !visited_.insert(state()).second) {
                return switch_to(from, main_);
            }
            path_.push_back(fresh);
        }
        Choice& choice = path_[depth_];
        if (++depth_ == path_.size()) {
            locate(choice);
        }
        if (depth_ > kMaxSteps) {
            violation_ = "an execution does not end after " + std::to_string(kMaxSteps) + " steps";
            return switch_to(from, main_);
        }
        variant_ = choice.variant;
        if (choice.thread != current_) {
            current_ = choice.thread;
            switch_to(from, threads_[current_].fiber);
        }
    }

    /// No thread can continue.
    void finish(Fiber& from) {
        std::string asleep;
        for (std::size_t thread = 0; thread < program_.threads.size(); ++thread) {
            if (!threads_[thread].ended) {
                asleep += (asleep.empty() ? "" : ", ") + label(thread);
            }
        }
        completed_ = asleep.empty();
        if (!completed_) {
            violation_ = "asleep for ever: " + asleep;
        }
        switch_to(from, main_);
    }

    /// Lets the path end with the next alternative of its last point that has one; false if there is none.
    bool go_back() {
        while (!path_.empty() && path_.back().chosen + 1 == path_.back().count) {
            path_.pop_back();
        }
        if (path_.empty()) {
            return false;
        }
        ++path_.back().chosen;
        return true;
    }

    /// Which thread and which variant a choice means, in the state where it is made.
    void locate(Choice& choice) const {
        choice.variant = choice.chosen;
        for (choice.thread = 0;; ++choice.thread) {
            const std::size_t count = variants(threads_[choice.thread]);
            if (choice.variant < count) {
                return;
            }
            choice.variant -= count;
        }
    }

    /// In how many ways a thread can take its next step; 0 if it must wait or has ended.
    std::size_t variants(const Thread& thread) const {
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

    /// Takes the step; returns what was read.
    std::uint64_t execute(Thread& me, std::size_t variant) {
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

    std::uint64_t read(Thread& me, const Place& place, std::size_t from) {
        const Message& message = place.messages[from];
        if (acquires(me.next.order)) {
            me.view.join(message.view);
        }
        me.view.at[place.slot] = static_cast<std::uint8_t>(from);
        return message.value;
    }

    void write(Thread& me, Place& place, std::size_t at, std::uint64_t value, const View& continued) {
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
    void make_room(std::size_t slot, std::size_t at) {
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

    /// Everything on which the rest of an execution depends, with message numbers that count from the oldest one that
    /// a thread can still read.
    Hash state() const {
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

    Place& place_at(const void* address, bool plain, std::size_t slots) {
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

    std::size_t word_at(const Operation& operation) {
        Place& place = place_at(operation.word, false, 1);
        if (place.messages.empty()) {
            place.initial = operation.initial;
            place.messages.push_back({place.initial});
        }
        return static_cast<std::size_t>(&place - places_.data());
    }

    Place& plain_at(const void* address) { return place_at(address, true, kPlainSlots); }

    std::string label(std::size_t thread) const { return "thread " + std::to_string(thread); }

    void note(std::uint64_t read) {
        const Operation& done = threads_[current_].next;
        const auto orders = std::array{"relaxed", "consume", "acquire", "release", "acq_rel", "seq_cst"};
        trace_ += label(current_) + ": " + kNames[static_cast<std::size_t>(done.kind)];
        if (done.kind != Kind::fence) {
            trace_ += "(" + program_.name_of(done.word) + ", " + std::to_string(done.operand) + ", " +
                      orders[static_cast<std::size_t>(done.order)] + ") reads " + std::to_string(read);
        }
        trace_ += "\n";
    }

    std::function<Program()> make_;
    Program program_;
    std::array<Thread, kMaxThreads> threads_;
    Fiber main_{{}, {}, true, {}};
    std::vector<Place> places_;
    std::unordered_map<const void*, std::size_t> index_;  // into places_
    std::size_t used_slots_ = 0;
    View fence_view_;
    std::vector<Choice> path_;
    std::unordered_set<Hash, HashOfHash> visited_;
    std::size_t depth_ = 0;
    std::size_t current_ = 0;
    std::size_t variant_ = 0;
    bool exploring_ = false;
    bool starting_ = false;
    bool completed_ = false;
    bool tracing_ = false;
    std::uint64_t executions_ = 0;
    std::string violation_;
    std::string trace_;
};

Search* running = nullptr;

void Search::run_thread() { running->run_current(); }

}  // namespace

Result explore(const std::function<Program()>& make) {
    Search search(make);
    running = &search;
    const Result result = search.run();
    running = nullptr;
    return result;
}

bool exploring() { return running != nullptr && running->exploring(); }
std::uint64_t perform(const Operation& operation) { return running->perform(operation); }
void read_plain(const void* memory, std::size_t) { running->read_plain(memory); }
void write_plain(void* memory, const void* value, std::size_t bytes) { running->write_plain(memory, value, bytes); }
void violated(const std::string& what) { running->violated(what); }
std::uint64_t final_value(const void* word) { return running->final_value(word); }

}  // namespace model
