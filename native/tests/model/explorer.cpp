// The search: which thread takes which step, in one execution after the other.
//
// The threads are fibers of one thread, and an execution is given up by going back to the stack of the search. The next
// one starts anew and follows the path of choices up to the last point that has an alternative left.
//
// Owns the path, the states that have been seen, and the trace. Does not know what a step does to memory.

#include "explorer.h"

#include <array>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <unordered_set>

#include "fiber.h"
#include "memory_model.h"

namespace model {
namespace {

constexpr std::size_t kMaxSteps = 1'000;  // an execution that is longer does not end

/// A point where something had to be chosen, and what is being tried: the thread and the variant of its operation.
struct Choice {
    std::size_t chosen;
    std::size_t count;
    std::size_t thread;
    std::size_t variant;
};

const char* const kNames[] = {"load",  "store", "exchange", "fetch_add", "fetch_or", "compare_exchange",
                              "await", "fence"};

class Search {
public:
    explicit Search(const std::function<Program()>& make) : make_(make) {}

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
        memory_.announce(current_, operation);
        if (starting_) {
            switch_to(fibers_[current_], main_);
        } else {
            choose();
        }
        const std::uint64_t read = memory_.execute(current_, variant_);
        if (tracing_) {
            note(read);
        }
        return read;
    }

    void read_plain(const void* memory) { memory_.read_plain(current_, memory); }

    void write_plain(void* memory, const void* value, std::size_t bytes) {
        memory_.write_plain(current_, memory, value, bytes);
    }

    [[noreturn]] void violated(const std::string& what) {
        if (!exploring_) {
            throw std::logic_error(what);
        }
        violation_ = what;
        switch_to(fibers_[current_], main_);
        std::abort();  // an abandoned execution is never resumed
    }

    bool exploring() const { return exploring_; }

    std::uint64_t final_value(const void* word) const { return memory_.final_value(word); }

private:
    static void run_thread();

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
        memory_.end(current_);
        if (starting_) {
            switch_to(fibers_[current_], main_);
        }
        choose();
    }

    /// One execution: along path_ as far as it goes, then always the first variant.
    void execute_once() {
        ++executions_;
        program_ = make_();
        memory_.restart();
        depth_ = 0;
        completed_ = false;
        exploring_ = true;
        starting_ = true;  // each thread up to its first operation
        for (current_ = 0; current_ < program_.threads.size() && violation_.empty(); ++current_) {
            begin(fibers_[current_], run_thread);
            switch_to(main_, fibers_[current_]);
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
        Fiber& from = current_ < kMaxThreads ? fibers_[current_] : main_;
        if (depth_ == path_.size()) {
            Choice fresh{0, 0, 0, 0};
            for (std::size_t thread = 0; thread < program_.threads.size(); ++thread) {
                fresh.count += memory_.variants(thread);
            }
            if (fresh.count == 0) {
                return finish(from);
            }
            if (fresh.count > 1 && !visited_.insert(memory_.state()).second) {
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
            switch_to(from, fibers_[current_]);
        }
    }

    /// No thread can continue.
    void finish(Fiber& from) {
        std::string asleep;
        for (std::size_t thread = 0; thread < program_.threads.size(); ++thread) {
            if (!memory_.has_ended(thread)) {
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
            const std::size_t count = memory_.variants(choice.thread);
            if (choice.variant < count) {
                return;
            }
            choice.variant -= count;
        }
    }

    std::string label(std::size_t thread) const { return "thread " + std::to_string(thread); }

    void note(std::uint64_t read) {
        const Operation& done = memory_.announced(current_);
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
    Memory memory_{program_};
    std::array<Fiber, kMaxThreads> fibers_;
    Fiber main_{{}, {}, true, {}};
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
