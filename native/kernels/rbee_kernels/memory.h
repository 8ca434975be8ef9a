// Memory of the kernels: aligned, uninitialized, on huge pages where it is large.
//
// A step reads all weights once, in order: on pages of 4 KiB the processor would look up tens of thousands of addresses
// and stop reading ahead at each page's end. So weights are copied from their mapped file (timed by hand, with and
// without huge pages, on a 2-core machine: about a tenth of a step of one stream).

#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#include <sys/mman.h>

namespace rbee::kernels {

/// Anonymous memory, zero until it is written, and not there until then.
class Region {
public:
    Region() = default;
    explicit Region(std::size_t bytes) : bytes_(bytes + kHugePage) {
        void* map = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (map == MAP_FAILED) {
            throw std::bad_alloc();
        }
        map_ = static_cast<unsigned char*>(map);
        (void)madvise(map_, bytes_, MADV_HUGEPAGE);  // a hint
    }
    Region(Region&& other) noexcept
        : map_(std::exchange(other.map_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Region& operator=(Region&& other) noexcept {
        std::swap(map_, other.map_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~Region() {
        if (map_ != nullptr) {
            munmap(map_, bytes_);
        }
    }

    /// Aligned to a huge page.
    unsigned char* data() const {
        const auto address = reinterpret_cast<std::uintptr_t>(map_);
        return map_ + ((kHugePage - address % kHugePage) % kHugePage);
    }

private:
    static constexpr std::size_t kHugePage = std::size_t{2} << 20;
    unsigned char* map_ = nullptr;
    std::size_t bytes_ = 0;
};

/// Numbers aligned to a line of the cache; what was in it is lost when it grows.
template <typename T>
class Buffer {
public:
    Buffer() = default;
    Buffer(Buffer&& other) noexcept
        : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~Buffer() { std::free(data_); }

    void reserve(std::size_t size) {
        if (size <= size_) {
            return;
        }
        std::free(data_);
        data_ = nullptr;
        size_ = 0;
        const std::size_t bytes = (size * sizeof(T) + 63) / 64 * 64;
        data_ = static_cast<T*>(std::aligned_alloc(64, bytes));
        if (data_ == nullptr) {
            throw std::bad_alloc();
        }
        size_ = size;
    }
    T* data() const { return data_; }
    std::size_t size() const { return size_; }
    T& operator[](std::size_t index) const { return data_[index]; }

private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

}  // namespace rbee::kernels
