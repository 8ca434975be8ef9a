// From rings to sockets: text that is cut anywhere, sockets that are full at any time. What the frames look like in
// detail is compared with the Python way in tests/server/streams/test_direct_reply.py; here the sanitizers look on.

#include <fcntl.h>
#include <sys/socket.h>

#include "check.h"
#include "rbee/delivery.h"
#include "rbee/producer.h"

namespace {

/// The text of all bytes at once, as the inside of a JSON string.
std::string whole(std::string_view bytes) {
    rbee::Utf8Stream utf8;
    std::string out;
    utf8.push(bytes, out);
    utf8.flush(out);
    return out;
}

void characters_come_out_whole() {
    CHECK(whole("plain") == "plain");
    CHECK(whole("\xf0\x9f\x90\x9d \xc3\xa9") == "\xf0\x9f\x90\x9d \xc3\xa9");
    CHECK(whole(std::string_view("\"\\\n\x00\x1f\x7f", 6)) == "\\\"\\\\\\n\\u0000\\u001f\x7f");
    const std::string bad = "\xef\xbf\xbd";
    CHECK(whole("\xff\x41") == bad + "A");
    CHECK(whole("\xe2\x82") == bad);                  // cut short: one
    CHECK(whole("\xe2\x82\x41") == bad + "A");        // the A begins anew
    CHECK(whole("\xed\xa0\x80") == bad + bad + bad);  // a surrogate is no character, nor is any part of it
    CHECK(whole("\xf4\x90\x80\x80") == bad + bad + bad + bad);
    CHECK(whole("\xc0\xaf") == bad + bad);
}

void text_does_not_depend_on_where_it_is_cut() {
    Random random{11};
    for (int round = 0; round < 20000; ++round) {
        std::string bytes;
        for (std::uint32_t n = random.below(12); n != 0; --n) {
            // Mostly bytes that begin or continue something.
            bytes += static_cast<char>(random.below(3) == 0 ? random.below(256) : 0x80 + random.below(0x78));
        }
        rbee::Utf8Stream utf8;
        std::string out;
        for (std::size_t at = 0; at < bytes.size();) {
            const std::size_t size = 1 + random.below(3);
            utf8.push(std::string_view(bytes).substr(at, size), out);
            at += size;
        }
        utf8.flush(out);
        CHECK(out == whole(bytes));
    }
}

void an_emoji_waits_for_the_next_character() {
    rbee::Vocabulary vocabulary;
    for (const char* piece : {"\xf0\x9f\x91", "\x8b", "\xf0\x9f\x8f\xbd", " \"x\"", "\xe2\x80\x8d"}) {
        vocabulary.add(piece, false);
    }
    vocabulary.add("\xf0\x9f\x90\x9d", true);
    const std::string waving = "\xf0\x9f\x91\x8b\xf0\x9f\x8f\xbd";
    rbee::TokenText text(vocabulary, false);
    std::string out;
    for (const std::uint32_t token : {0U, 1U, 2U, 4U, 0U}) {
        text.push(token, out);
        CHECK(out.empty());  // also where the bytes of the next one have begun
    }
    text.push(5, out);  // is text, so that those bytes are no character
    CHECK(out == waving + "\xe2\x80\x8d\xef\xbf\xbd");
    out.clear();
    text.push(3, out);
    CHECK(out == "\xf0\x9f\x90\x9d \\\"x\\\"");
    text.push(5, out);
    text.flush(out);
    CHECK(out == "\xf0\x9f\x90\x9d \\\"x\\\"\xf0\x9f\x90\x9d");
}

/// A connection whose server end takes little before it is full.
struct Connection {
    Connection() {
        CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends) == 0);
        const int bytes = 4096;
        CHECK(setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes) == 0);
    }
    ~Connection() {
        close(ends[0]);
        close(ends[1]);
    }
    Connection(const Connection&) = delete;
    Connection& operator=(const Connection&) = delete;

    void read_some(std::size_t most) {
        std::string piece(most, ' ');
        const ssize_t size = recv(ends[1], piece.data(), most, 0);
        received.append(piece, 0, size > 0 ? static_cast<std::size_t>(size) : 0);
    }

    /// As an event loop that must write what the drain could not.
    void write_all(std::string_view rest) {
        while (!rest.empty()) {
            const ssize_t sent = send(ends[0], rest.data(), rest.size(), MSG_NOSIGNAL);
            rest.remove_prefix(sent > 0 ? static_cast<std::size_t>(sent) : 0);
            read_some(65536);
        }
    }

    /// What was received, without the framing of its chunks.
    std::string body() const {
        std::string text;
        for (std::size_t at = 0; at < received.size();) {
            const std::size_t line = received.find("\r\n", at);
            CHECK(line != std::string::npos);
            const std::size_t size = std::stoul(received.substr(at, line - at), nullptr, 16);
            CHECK(received.compare(line + 2 + size, 2, "\r\n") == 0);
            text.append(received, line + 2, size);
            at = line + 2 + size + 2;
        }
        return text;
    }

    int ends[2] = {-1, -1};
    std::string received;
};

std::shared_ptr<const rbee::Vocabulary> letters() {
    auto vocabulary = std::make_shared<rbee::Vocabulary>();
    for (char letter = 'a'; letter <= 'z'; ++letter) {
        vocabulary->add(std::string_view(&letter, 1), false);
    }
    return vocabulary;
}

constexpr rbee::LastFrameSources last_frames(std::string_view with_text, std::string_view without) {
    return {with_text, with_text, without, without};
}
constexpr rbee::FrameSources kFrames{
    "<\1>", "<\1>", last_frames("<\1.", "."), last_frames("<\1!", "!"), last_frames("<\1?", "?"), "$"};

void templates_are_compiled_or_refused() {
    const auto with_first = [](std::string_view first) {
        rbee::FrameSources sources = kFrames;
        sources.first = first;
        return rbee::FrameTemplate(sources);
    };
    const rbee::SlotValues values{"t", 1, 2, 3, 4, 5, true};
    rbee::SlotValues without = values;
    without.has_token = false;
    const auto fill = [](const rbee::FrameTemplate& frames, const rbee::SlotValues& slots) {
        std::string out;
        frames.append(frames.first, slots, out);
        return out;
    };
    CHECK(fill(with_first(""), values).empty());
    CHECK(fill(with_first("plain\r\n\t"), values) == "plain\r\n\t");
    CHECK(fill(with_first("\1\2\3\4\6"), values) == "\"t\"1255");
    CHECK(fill(with_first("a\7b\2c\10d"), values) == "ab1cd");
    CHECK(fill(with_first("a\7b\2c\10d"), without) == "ad");
    CHECK(fill(with_first("\7\10\7x\10"), without).empty());
    CHECK(fill(with_first("\7x\10"), values) == "x");
    for (const std::string_view bad : {"\5", "\13", "\7", "\10", "\7\7\10", "\7\10\10"}) {
        CHECK_THROWS(std::invalid_argument, with_first(bad));
    }
    CHECK_THROWS(std::invalid_argument, with_first(std::string_view("\0", 1)));
}

/// Every stream is exactly its tokens, however often its socket is full and however its tokens are batched.
void full_sockets_lose_nothing() {
    constexpr std::uint32_t kStreams = 5;
    constexpr std::uint32_t kTokens = 3000;
    const TestArena memory(64, 256);
    rbee::Producer producer(memory.attach(), memory.doorbell());
    rbee::Consumer consumer(memory.attach(), memory.doorbell());
    rbee::Delivery delivery(consumer, consumer.num_rings());
    std::vector<Connection> connections(kStreams);
    std::vector<std::string> expected(kStreams);
    std::vector<std::uint32_t> left(kStreams, kTokens);
    for (std::uint32_t ring = 0; ring < kStreams; ++ring) {
        rbee::Consumer::Assigned assigned{};
        CHECK(consumer.assign(assigned) && assigned.ring == ring);
        producer.open(ring, assigned.generation);
        rbee::FrameStream stream(letters(), false, rbee::FrameTemplate(kFrames), 3, {});
        rbee::Outlet outlet{connections[ring].ends[0], false, {}, 0, std::move(stream)};
        delivery.attach(ring, std::make_shared<rbee::Outlet>(std::move(outlet)));
    }
    Random random{5};
    rbee::Drained drained;
    rbee::Deliveries deliveries;
    std::uint32_t ended = 0;
    std::uint32_t times_blocked = 0;
    while (ended < kStreams) {
        std::vector<std::uint32_t> rings, tokens, finished;
        std::vector<rbee::FinishCode> reasons;
        for (std::uint32_t ring = 0; ring < kStreams; ++ring) {
            std::uint32_t space = left[ring] == 0 ? 0 : producer.free_space(ring);
            for (std::uint32_t n = random.below(9); n != 0 && space != 0 && left[ring] != 0; --n, --space) {
                const std::uint32_t token = random.below(26);
                rings.push_back(ring);
                tokens.push_back(token);
                const bool last = --left[ring] == 0;
                const char letter = static_cast<char>('a' + token);
                expected[ring] += std::string("<\"") + letter + '"' + (last ? "!" : ">");
                if (last) {
                    expected[ring] += '$';
                    finished.push_back(ring);
                    reasons.push_back(rbee::FrameStream::kLength);
                }
            }
        }
        const std::vector<float> logprobs(tokens.size());
        producer.commit({rings.size(), rings.data(), tokens.data(), logprobs.data(), finished.size(), finished.data(),
                         reasons.data()});
        delivery.drain(1 + random.below(200), rbee::Then::arm, drained, deliveries);
        CHECK(drained.records.empty() && deliveries.broken.empty());
        for (const rbee::Deliveries::Rest& rest : deliveries.blocked) {
            ++times_blocked;
            connections[rest.ring].write_all(rest.bytes);
            bool has_ended = false;
            for (const rbee::Deliveries::End& end : deliveries.ended) {
                has_ended = has_ended || end.ring == rest.ring;
            }
            if (!has_ended) {
                consumer.resume(rest.ring);
            }
        }
        for (const rbee::Deliveries::End& end : deliveries.ended) {
            CHECK(end.finish == rbee::FrameStream::kLength);
            ++ended;
        }
        connections[random.below(kStreams)].read_some(random.below(300));
    }
    CHECK(times_blocked > 10 && consumer.in_use() == 0);
    for (std::uint32_t ring = 0; ring < kStreams; ++ring) {
        connections[ring].read_some(1 << 20);
        CHECK(connections[ring].body() == expected[ring]);
    }
}

}  // namespace

extern const Test kDeliveryTests[];
const Test kDeliveryTests[] = {{"characters come out whole", characters_come_out_whole},
                               {"text does not depend on where it is cut", text_does_not_depend_on_where_it_is_cut},
                               {"an emoji waits for the next character", an_emoji_waits_for_the_next_character},
                               {"templates are compiled or refused", templates_are_compiled_or_refused},
                               {"full sockets lose nothing", full_sockets_lose_nothing},
                               {nullptr, nullptr}};
