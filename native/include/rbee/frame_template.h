// The frames of one stream as bytes with slots for what varies.
//
// Owns the slots and how a template is compiled and filled. Does not know protocols: what stands around the slots
// comes rendered from the server's Python, which writes the same bytes on its other path.
//
// A slot is one control byte. JSON text and event streams contain no raw control bytes but tabs and line ends.

#pragma once

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>

namespace rbee {

enum class Slot : unsigned char {
    none = 0,
    text = 1,           // the frame's text, as a JSON string with its quotes
    index = 2,          // text frames before this one, counted from the template's first_index
    num_tokens = 3,     // output tokens so far
    total_tokens = 4,   // the prompt's and the output's so far
    cached_tokens = 5,  // the prompt's that were in the prefix cache
    committed_ns = 6,   // when the newest of the tokens was committed
    token_begin = 7,    // up to token_end: written only if the batch behind the frame has a token
    token_end = 8,
};

struct NamedSlot {
    const char* name;
    Slot slot;
};

/// The names that Python has for the slots.
constexpr NamedSlot kSlots[] = {
    {"TEXT", Slot::text},
    {"INDEX", Slot::index},
    {"NUM_TOKENS", Slot::num_tokens},
    {"TOTAL_TOKENS", Slot::total_tokens},
    {"CACHED_TOKENS", Slot::cached_tokens},
    {"COMMITTED_NS", Slot::committed_ns},
    {"TOKEN_BEGIN", Slot::token_begin},
    {"TOKEN_END", Slot::token_end},
};
constexpr unsigned char kLastSlot = 8;
static_assert(sizeof kSlots / sizeof kSlots[0] == kLastSlot && kLastSlot < '\t');

/// What the slots of one frame stand for.
struct SlotValues {
    std::string_view text;  // the inside of the JSON string
    std::uint32_t index;
    std::uint32_t num_tokens;
    std::uint32_t prompt_tokens;
    std::uint32_t cached_tokens;
    std::uint64_t committed_ns;
    bool has_token;
};

/// The last frame of a stream that ended in an ordinary way, for each state that the stream may be in.
struct LastFrameSources {
    std::string_view first_last;  // has text, and no frame had any before
    std::string_view next_last;   // has text, as frames before it
    std::string_view last;        // has no text; frames before it had
    std::string_view empty;       // the only frame of a stream without any text
};

/// A template as it is written; see rbee/transport/frame_template.py.
struct FrameSources {
    std::string_view first;
    std::string_view next;
    LastFrameSources stop;
    LastFrameSources length;
    LastFrameSources deadline;
    std::string_view end;
    std::uint32_t first_index = 0;
};

/// Compiled: a frame is one run of memory, read in order, because between two steps all of it has left the caches.
class FrameTemplate {
public:
    /// Where a frame starts.
    using Frame = std::uint32_t;
    struct LastFrames {
        Frame first_last, next_last, last, empty;
    };

    /// std::invalid_argument for a control byte that is no slot, a bracket without its other half, a text where there
    /// is none, or cached tokens before the end, when they are not known.
    explicit FrameTemplate(const FrameSources& sources) {
        code_.reserve(size_of(sources) + 64 * sizeof(Segment));
        first = compile(sources.first, kText);
        next = compile(sources.next, kText);
        stop = compile(sources.stop);
        length = compile(sources.length);
        deadline = compile(sources.deadline);
        end = compile(sources.end, kEnd);
        has_end = !sources.end.empty();
        first_index = sources.first_index;
    }

    /// Appends a frame with its slots filled.
    void append(Frame frame, const SlotValues& values, std::string& out) const {
        const char* at = code_.data() + frame;
        for (;;) {
            Segment segment;
            std::memcpy(&segment, at, sizeof segment);
            at += sizeof segment;
            out.append(at, segment.literal_size);
            at += segment.literal_size;
            switch (segment.slot) {
                case Slot::text:
                    out += '"';
                    out += values.text;
                    out += '"';
                    break;
                case Slot::index: append_number(std::uint64_t{first_index} + values.index, out); break;
                case Slot::num_tokens: append_number(values.num_tokens, out); break;
                case Slot::total_tokens:
                    append_number(std::uint64_t{values.prompt_tokens} + values.num_tokens, out);
                    break;
                case Slot::cached_tokens: append_number(values.cached_tokens, out); break;
                case Slot::committed_ns: append_number(values.committed_ns, out); break;
                case Slot::token_begin: at += values.has_token ? 0 : segment.skip; break;
                case Slot::token_end: break;
                case Slot::none: return;
            }
        }
    }

    Frame first, next;
    LastFrames stop, length, deadline;
    Frame end;
    bool has_end;
    std::uint32_t first_index;

private:
    /// Stands before its literal; the slot is filled behind that. A frame's last segment has Slot::none.
    struct Segment {
        std::uint32_t literal_size;
        std::uint32_t skip;  // of a token_begin: bytes from behind its literal to behind the literal of its token_end
        Slot slot;
    };

    enum Has : unsigned { kText = 1, kEnd = 2 };

    static std::size_t size_of(const LastFrameSources& last) {
        return last.first_last.size() + last.next_last.size() + last.last.size() + last.empty.size();
    }

    static std::size_t size_of(const FrameSources& sources) {
        return sources.first.size() + sources.next.size() + size_of(sources.stop) + size_of(sources.length) +
               size_of(sources.deadline) + sources.end.size();
    }

    static void append_number(std::uint64_t number, std::string& out) {
        char digits[20];
        out.append(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
    }

    LastFrames compile(const LastFrameSources& sources) {
        return {compile(sources.first_last, kText | kEnd), compile(sources.next_last, kText | kEnd),
                compile(sources.last, kEnd), compile(sources.empty, kEnd)};
    }

    Frame compile(std::string_view source, unsigned has) {
        constexpr std::size_t kClosed = SIZE_MAX;
        const std::size_t start = code_.size();
        std::size_t open = kClosed;  // where the segment of an open bracket stands
        std::size_t open_end = 0;    // behind its literal
        std::size_t literal = 0;
        for (std::size_t i = 0; i < source.size(); ++i) {
            const auto byte = static_cast<unsigned char>(source[i]);
            if (byte >= 0x20 || byte == '\n' || byte == '\r' || byte == '\t') {
                continue;
            }
            if (byte == 0 || byte > kLastSlot) {
                throw std::invalid_argument("A frame template has the control byte " + std::to_string(byte) +
                                            ", which is no slot.");
            }
            const Slot slot{byte};
            if (slot == Slot::text && (has & kText) == 0) {
                throw std::invalid_argument("A frame template has TEXT in a frame that has no text.");
            }
            if (slot == Slot::cached_tokens && (has & kEnd) == 0) {
                throw std::invalid_argument("A frame template has CACHED_TOKENS in a frame that is not the last.");
            }
            if (slot == Slot::token_begin ? open != kClosed : slot == Slot::token_end && open == kClosed) {
                throw std::invalid_argument(
                    "A frame template has a TOKEN_BEGIN inside of another, or a TOKEN_END "
                    "without a TOKEN_BEGIN.");
            }
            const std::size_t segment = add_segment(source.substr(literal, i - literal), slot);
            if (slot == Slot::token_begin) {
                open = segment;
                open_end = code_.size();
            } else if (slot == Slot::token_end) {
                set_skip(open, code_.size() - open_end);
                open = kClosed;
            }
            literal = i + 1;
        }
        if (open != kClosed) {
            throw std::invalid_argument("A frame template has a TOKEN_BEGIN without a TOKEN_END.");
        }
        add_segment(source.substr(literal), Slot::none);
        return static_cast<Frame>(start);
    }

    /// Returns where the segment stands.
    std::size_t add_segment(std::string_view literal, Slot slot) {
        const std::size_t at = code_.size();
        const Segment segment{static_cast<std::uint32_t>(literal.size()), 0, slot};
        code_.append(reinterpret_cast<const char*>(&segment), sizeof segment);
        code_ += literal;
        return at;
    }

    void set_skip(std::size_t at, std::size_t bytes) {
        const auto skip = static_cast<std::uint32_t>(bytes);
        std::memcpy(code_.data() + at + offsetof(Segment, skip), &skip, sizeof skip);
    }

    std::string code_;
};

}  // namespace rbee
