// The frames of one stream: token records in, bytes for the socket out.
//
// Owns when a frame is written and with which numbers and text. What it looks like is its template's. Does not know
// sockets.

#pragma once

#include <algorithm>
#include <memory>
#include <utility>

#include "rbee/consumer.h"
#include "rbee/frame_template.h"
#include "rbee/vocabulary.h"

namespace rbee {

/// The ordinary ends, with their codes in rbee.messages.FinishReason.
struct NamedFinish {
    const char* name;
    std::uint8_t reason;
};

class FrameStream {
public:
    /// `strip`: see TokenText. `stop_tokens` are counted but not shown. `keep_text`: text() is all that was shown.
    FrameStream(std::shared_ptr<const Vocabulary> vocabulary, bool strip, FrameTemplate frames,
                std::uint32_t prompt_tokens, std::vector<std::uint32_t> stop_tokens, bool keep_text = false)
        : vocabulary_(std::move(vocabulary)),
          text_(*vocabulary_, strip),
          stop_tokens_(std::move(stop_tokens)),
          prompt_tokens_(prompt_tokens),
          keep_text_(keep_text),
          frames_(std::move(frames)) {}

    /// Appends the frames of a batch of tokens; one for each that shows text. With an ordinary `finish` the last frame
    /// and the template's end follow (the finish's detail is how many of the prompt's tokens were cached). With any
    /// other one the text that is left follows, and the caller writes the rest.
    void render(const Records& records, FinishCode finish, std::string& out) {
        const bool has_token = records.size() != 0;
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
        if (const FrameTemplate::LastFrames* last = last_frames(reason_of(finish))) {
            append_last_frame(*last, detail_of(finish), has_token, out);
        } else {
            append_text_frame(has_token, out);
        }
    }

    std::uint32_t num_tokens() const { return num_tokens_; }
    /// Frames with text.
    std::uint32_t num_frames() const { return index_; }
    /// The inside of a JSON string; empty unless it is kept.
    const std::string& text() const { return text_so_far_; }
    bool has_end() const { return frames_.has_end; }

    static constexpr std::uint8_t kStop = 1;
    static constexpr std::uint8_t kLength = 2;
    static constexpr std::uint8_t kDeadline = 5;
    static constexpr NamedFinish kOrdinary[] = {{"STOP", kStop}, {"LENGTH", kLength}, {"DEADLINE", kDeadline}};

private:
    /// The last frames of an ordinary end; null for any other. Without a single token nothing was in time.
    const FrameTemplate::LastFrames* last_frames(std::uint8_t reason) const {
        switch (reason) {
            case kStop: return &frames_.stop;
            case kLength: return &frames_.length;
            case kDeadline: return num_tokens_ != 0 ? &frames_.deadline : nullptr;
            default: return nullptr;
        }
    }

    SlotValues values(std::uint32_t cached_tokens, bool has_token) const {
        return {shown_, index_, num_tokens_, prompt_tokens_, cached_tokens, committed_ns_, has_token};
    }

    void append_text_frame(bool has_token, std::string& out) {
        if (shown_.empty()) {
            return;
        }
        frames_.append(index_ == 0 ? frames_.first : frames_.next, values(0, has_token), out);
        count_text_frame();
    }

    void append_last_frame(const FrameTemplate::LastFrames& last, std::uint32_t cached_tokens, bool has_token,
                           std::string& out) {
        const bool first = index_ == 0;
        const FrameTemplate::Frame frame =
            shown_.empty() ? (first ? last.empty : last.last) : (first ? last.first_last : last.next_last);
        frames_.append(frame, values(cached_tokens, has_token), out);
        if (!shown_.empty()) {
            count_text_frame();
        }
        frames_.append(frames_.end, values(cached_tokens, has_token), out);
    }

    void count_text_frame() {
        ++index_;
        if (keep_text_) {
            text_so_far_ += shown_;
        }
        shown_.clear();
    }

    std::uint64_t committed_ns_ = 0;  // of the token that was pushed last
    std::uint32_t num_tokens_ = 0;
    std::uint32_t index_ = 0;  // text frames so far
    std::string shown_;        // the text of the token that was pushed last
    std::shared_ptr<const Vocabulary> vocabulary_;
    TokenText text_;
    std::vector<std::uint32_t> stop_tokens_;
    std::uint32_t prompt_tokens_;
    bool keep_text_;
    std::string text_so_far_;  // what was shown, if it is kept
    FrameTemplate frames_;
};

}  // namespace rbee
