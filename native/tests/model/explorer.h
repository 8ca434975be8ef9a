// An exhaustive search through everything that a few threads can do to a few shared words under the C++ memory model,
// in the manner of loom, relacy and CDSChecker.
//
// Does not know rbee. A word is a list of messages in modification order, and each thread and message has a view: up to
// which message of each word it has seen. A load may read any message that its thread's view does not already
// exclude, a release puts the thread's view into the message, an acquire joins the message's view: the release/acquire
// views of RC11 (Lahav et al., Repairing Sequential Consistency in C/C++11, 2017; Kang et al., A Promising Semantics,
// 2017), with the release sequences of C++20. Plain memory is checked for data races with the same views.
//
//   Modelled:  stale loads, stores that another processor sees late or in another order (a store may also take a place
//              in the middle of the modification order), the failing compare-and-swap that reads something old, and a
//              fetch_or whose result is unused becoming visible only after what follows it in its thread.
//   Not:       other cases of load buffering, where a load is made after a store that follows it in its thread. RC11
//              forbids them, C++ does not; code that relies on a load being made first must order it itself.
//              seq_cst operations: there are none in the core. seq_cst fences have their effect on each other only.
//
// Every thread is a function of what it has read, so two executions that bring the same messages, views and histories
// continue in the same way, and only the first of them is continued: the search is exhaustive, not repetitive.

#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace model {

enum class Kind : std::uint8_t { load, store, exchange, fetch_add, fetch_or, compare_exchange, await, fence };

/// A thread's next operation on a word. `await` is enabled once the word is not 0, and reads its newest value.
struct Operation {
    Kind kind;
    std::memory_order order = std::memory_order_relaxed;
    const void* word = nullptr;
    std::uint64_t initial = 0;  // the word's value before the threads started
    std::uint64_t operand = 0;
    std::uint64_t expected = 0;
};

/// The threads of one execution. They own no heap memory on their stacks, because an execution that is given up is not
/// unwound; `at_end` looks at what they left behind when all have ended.
struct Program {
    std::vector<std::function<void()>> threads;
    std::function<void()> at_end = [] {};
    std::function<std::string(const void*)> name_of = [](const void*) { return std::string(); };
};

struct Result {
    std::string violation;  // empty if there is none
    std::string trace;      // the execution that led there, one operation a line
    std::uint64_t states = 0;
    std::uint64_t executions = 0;
    double seconds = 0;
};

/// Makes a program again and again until all of its executions are done or one is wrong: a violated(), an exception, a
/// data race, a sleep without end (no thread that has not ended can go on), or an execution that does not end.
Result explore(const std::function<Program()>& make);

/// True in the threads of a program; what happens before they start is just the past.
bool exploring();

/// One step of the calling thread; returns the value that it read.
std::uint64_t perform(const Operation& operation);

void read_plain(const void* memory, std::size_t bytes);
void write_plain(void* memory, const void* value, std::size_t bytes);

/// Ends the execution and the search.
[[noreturn]] void violated(const std::string& what);

/// For at_end: the last message of a word.
std::uint64_t final_value(const void* word);

}  // namespace model
