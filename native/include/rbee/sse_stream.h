// The SSE frames of one OpenAI stream: token records in, bytes for the socket out.
//
// Owns when a frame is written and what varies in it. What is constant comes rendered from
// rbee/server/protocols/openai/frames.py, the one place that knows the chunks' JSON; the server's other path
// (rbee/server/streams/replies.py) writes the same bytes. Knows no sockets.

#pragma once

#include <algorithm>
#include <charconv>
#include <memory>
#include <utility>

#include "rbee/consumer.h"
#include "rbee/vocabulary.h"

namespace rbee {

/// The constant bytes of a stream's frames, around the JSON string of a token's text.
struct FrameParts {
    std::string first;         // before the text, in the first frame
    std::string next;          // before the text, in the others
    std::string empty;         // in place of the text, in a last frame that has none
    std::string after;         // after the text, while more may come
    std::string after_stop;    // after the last text, when the model or a stop token ended it
    std::string after_length;  // after the last text, when a limit ended it
    std::string after_deadline;  // after the last text, when its time was over
    std::string usage;         // before the usage of the chunk that has nothing else; empty: there is no such chunk
    std::string done;          // after everything
};

/// What a stream's client asked for beside the text.
struct FrameExtras {
    bool timing;  // each chunk says when its token was committed
    bool usage;   // each chunk counts the tokens so far
};

class SseStream {
public:
    SseStream(std::shared_ptr<const Vocabulary> vocabulary, bool strip, FrameParts parts, FrameExtras extras,
              std::uint32_t prompt_tokens, std::vector<std::uint32_t> stop_tokens)
        : vocabulary_(std::move(vocabulary)), text_(*vocabulary_, strip), parts_(std::move(parts)), extras_(extras),
          prompt_tokens_(prompt_tokens), stop_tokens_(std::move(stop_tokens)) {}

    /// Appends the frames of a batch of tokens; one for each that shows text. With an ordinary `finish` the last frame,
    /// the token counts (the finish's detail is how many of the prompt's were cached) and [DONE] follow; with any other one all text that there is, and the caller says the rest.
    void render(const Records& records, FinishCode finish, std::string& out) {
        shown_.clear();
        for (std::uint32_t i = 0; i < records.size(); ++i) {
            append_text_frame(true, out);
            const Record record = records[i];
            ++num_tokens_;
            committed_ns_ = record.commit_ns;
            if (std::find(stop_tokens_.begin(), stop_tokens_.end(), record.token_id) == stop_tokens_.end()) {
                text_.push(record.token_id, shown_);
            }
        }
        if (finish != 0) {
            text_.flush(shown_);
        }
        if (const std::string* after = after_last(reason_of(finish))) {
            append_last_frame(*after, detail_of(finish), records.size() != 0, out);
        } else {
            append_text_frame(records.size() != 0, out);
        }
    }

    std::uint32_t num_tokens() const { return num_tokens_; }

    // As rbee.messages.FinishReason has them.
    static constexpr std::uint8_t kStop = 1;
    static constexpr std::uint8_t kLength = 2;
    static constexpr std::uint8_t kDeadline = 5;

private:
    static void append_number(std::uint64_t number, std::string& out) {
        char digits[20];
        out.append(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
    }

    /// What follows the last text of an ordinary end; null for any other. Without a single token nothing was in time.
    const std::string* after_last(std::uint8_t reason) const {
        switch (reason) {
            case kStop: return &parts_.after_stop;
            case kLength: return &parts_.after_length;
            case kDeadline: return num_tokens_ != 0 ? &parts_.after_deadline : nullptr;
            default: return nullptr;
        }
    }

    /// The token counts, without their closing brace.
    void append_usage(std::string& out) const {
        out += R"(,"usage":{"prompt_tokens":)";
        append_number(prompt_tokens_, out);
        out += R"(,"completion_tokens":)";
        append_number(num_tokens_, out);
        out += R"(,"total_tokens":)";
        append_number(std::uint64_t{prompt_tokens_} + num_tokens_, out);
    }

    void append_extras(std::string& out) const {
        if (extras_.timing) {
            out += R"(,"timing":{"committed_ns":)";
            append_number(committed_ns_, out);
            out += '}';
        }
        if (extras_.usage) {
            append_usage(out);
            out += '}';
        }
    }

    void append_shown(std::string& out) {
        out += first_ ? parts_.first : parts_.next;
        out += '"';
        out += shown_;
        out += '"';
        first_ = false;
        shown_.clear();
    }

    /// What the extras say is about a token of this batch, if it has one.
    void append_text_frame(bool has_token, std::string& out) {
        if (shown_.empty()) {
            return;
        }
        append_shown(out);
        out += parts_.after;
        if (has_token) {
            append_extras(out);
        }
        out += "}\n\n";
    }

    void append_last_frame(const std::string& after, std::uint32_t cached_tokens, bool has_token, std::string& out) {
        if (!shown_.empty() || first_) {
            append_shown(out);
        } else {
            out += parts_.empty;
        }
        out += after;
        if (has_token) {
            append_extras(out);
        }
        out += "}\n\n";
        if (!parts_.usage.empty()) {
            out += parts_.usage;
            append_usage(out);
            out += R"(,"prompt_tokens_details":{"cached_tokens":)";
            append_number(cached_tokens, out);
            out += "}}}\n\n";
        }
        out += parts_.done;
    }

    std::shared_ptr<const Vocabulary> vocabulary_;
    TokenText text_;
    FrameParts parts_;
    FrameExtras extras_;
    std::uint32_t prompt_tokens_;
    std::vector<std::uint32_t> stop_tokens_;

    bool first_ = true;
    std::uint32_t num_tokens_ = 0;
    std::uint64_t committed_ns_ = 0;  // of the token that was pushed last
    std::string shown_;               // its text
};

}  // namespace rbee
