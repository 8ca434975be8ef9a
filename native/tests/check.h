// A small test runner that prints what failed where, and an arena in memory that faults on an access outside it.

#pragma once

#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "rbee/layout.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(from, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(from, bytes)
#endif

/// Ends the test. Not inline in the macros, to keep their many uses cheap to compile.
[[noreturn, gnu::noinline]] inline void fail(const char* file, int line, const char* what) {
    throw std::logic_error(std::string(file) + ":" + std::to_string(line) + ": " + what);
}

#define CHECK(condition) ((condition) ? void() : fail(__FILE__, __LINE__, "not true: " #condition))

#define CHECK_THROWS(Error, statement)                                         \
    do {                                                                       \
        bool thrown = false;                                                   \
        try {                                                                  \
            statement;                                                         \
        } catch (const Error&) {                                               \
            thrown = true;                                                     \
        }                                                                      \
        if (!thrown) {                                                         \
            fail(__FILE__, __LINE__, "did not throw " #Error ": " #statement); \
        }                                                                      \
    } while (false)

/// One entry of a test file's array, which a null name ends.
struct Test {
    const char* name;
    void (*run)();
};

/// How often a search is repeated. Fewer times under a sanitizer: that looks at every access, and for rare moments
/// there are the model check and the stress program. All of them: `make test-native-long`.
constexpr std::uint32_t repeats(std::uint32_t all, std::uint32_t under_sanitizer) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return static_cast<void>(all), under_sanitizer;
#else
    return static_cast<void>(under_sanitizer), all;
#endif
}

/// Fast pseudo-random numbers whose sequence depends on nothing but the seed (xorshift64).
struct Random {
    std::uint64_t state;
    std::uint64_t operator()() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return state;
    }
    std::uint32_t below(std::uint32_t limit) { return static_cast<std::uint32_t>((*this)() % limit); }
};

template <typename T>
T one_of(Random& random, std::initializer_list<T> values) {
    return values.begin()[random.below(static_cast<std::uint32_t>(values.size()))];
}

/// A formatted arena between two inaccessible pages, and its eventfd. AddressSanitizer guards the unused lines between
/// the rings as well.
class TestArena {
public:
    TestArena(std::uint32_t num_rings, std::uint32_t ring_capacity, std::uint32_t first_index = 0)
        : geometry_(rbee::plan(num_rings, ring_capacity)), doorbell_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
        const std::size_t inside = (geometry_.total_bytes + kPage - 1) / kPage * kPage;
        mapped_ = inside + 2 * kPage;
        void* map = mmap(nullptr, mapped_, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(map != MAP_FAILED && doorbell_ != -1);
        map_ = static_cast<unsigned char*>(map);
        CHECK(mprotect(map_ + kPage, inside, PROT_READ | PROT_WRITE) == 0);
        rbee::format(base(), geometry_.total_bytes, geometry_, 7, first_index);
        for (std::uint32_t ring = 0; ring < num_rings; ++ring) {
            ASAN_POISON_MEMORY_REGION(attach().ring(ring) + ring_capacity, rbee::kLine);
        }
    }
    ~TestArena() {
        ASAN_UNPOISON_MEMORY_REGION(map_, mapped_);
        munmap(map_, mapped_);
        close(doorbell_);
    }
    TestArena(const TestArena&) = delete;
    TestArena& operator=(const TestArena&) = delete;

    unsigned char* base() const { return map_ + kPage; }
    std::size_t bytes() const { return geometry_.total_bytes; }
    int doorbell() const { return doorbell_; }
    rbee::Arena attach() const { return rbee::attach(base(), bytes()); }

private:
    static constexpr std::size_t kPage = 4096;
    rbee::Geometry geometry_;
    int doorbell_;
    std::size_t mapped_ = 0;
    unsigned char* map_ = nullptr;
};
