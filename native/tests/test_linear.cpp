// Products of packed matrices with activations, on every instruction set of this machine, against sums in double.
//
// Matrices are made of random bits here, by the layout that weights.h describes, so that every quant, the extreme ones
// too, meets every position. Results are compared with the sum of the absolute products: that is what rounding is
// relative to.

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "rbee_kernels/instruction_sets.h"
#include "rbee_kernels/memory.h"

#include "check.h"
#include "packed_layout.h"

using namespace rbee::kernels;
using namespace rbee::kernels::test;

namespace {

// Of the sum of absolute products: that many roundings, a column each, to half a unit in the last place, all in the
// same direction; twice as many where multiplying and adding are two operations. A column that is left out or taken
// twice makes several times as much.
double tolerance(std::size_t cols) { return static_cast<double>(cols) * 0x1p-24; }

/// Floats, and all that packed_layout.h knows: no format is left out.
std::vector<WeightFormat> formats() {
    std::vector<WeightFormat> all = {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16};
    for (const PackedFormat& packed : kPackedFormats) {
        all.push_back(packed.format);
    }
    CHECK(all.size() == kNumWeightFormats);
    return all;
}

/// `cols`, or so many more that they are whole blocks.
std::size_t whole_blocks(WeightFormat format, std::size_t cols) {
    return (cols + block_cols(format) - 1) / block_cols(format) * block_cols(format);
}

std::vector<const InstructionSet*> instruction_sets() {
    std::vector<const InstructionSet*> sets;
    for (const char* name : {"portable", "avx2", "avx512"}) {
        if (const InstructionSet* set = find_instruction_set(name)) {
            sets.push_back(set);
        }
    }
    return sets;
}

/// A packed matrix of random bits, and what it stands for.
struct TestMatrix {
    TestMatrix(WeightFormat format, std::size_t rows, std::size_t cols, Random& random)
        : matrix{format, rows, cols, nullptr} {
        // The last byte is the last of an allocation, so that AddressSanitizer reports a read beyond it.
        memory.reserve(matrix.bytes());
        matrix.data = memory.data();
        weights.resize(matrix.num_panels() * kPanelRows * cols);
        for (std::size_t panel = 0; panel < matrix.num_panels(); ++panel) {
            std::uint8_t* bytes = memory.data() + panel * panel_bytes(format, cols);
            float* values = weights.data() + panel * kPanelRows * cols;
            is_quantized(format) ? fill_quantized(bytes, values, random) : fill_floats(bytes, values, random);
        }
    }

    float weight(std::size_t row, std::size_t col) const { return weights[row * matrix.cols + col]; }

    Matrix matrix;
    Buffer<std::uint8_t> memory;
    std::vector<float> weights;  // [panels * 16][cols]

private:
    void fill_floats(std::uint8_t* bytes, float* values, Random& random) {
        for (std::size_t k = 0; k < matrix.cols; ++k) {
            for (std::size_t r = 0; r < kPanelRows; ++r) {
                const std::size_t i = k * kPanelRows + r;
                float value = static_cast<float>(static_cast<int>(random.below(20001)) - 10000) / 8192.0F;
                if (matrix.format == WeightFormat::kF16) {
                    const auto half = static_cast<std::uint16_t>(random.below(0x4000) | (random.below(2) << 15));
                    std::memcpy(bytes + 2 * i, &half, 2);
                    value = half_to_float(half);
                } else if (matrix.format == WeightFormat::kBF16) {
                    std::uint32_t bits;
                    std::memcpy(&bits, &value, 4);
                    const auto upper = static_cast<std::uint16_t>(bits >> 16);
                    std::memcpy(bytes + 2 * i, &upper, 2);
                    bits &= 0xFFFF0000U;
                    std::memcpy(&value, &bits, 4);
                } else {
                    std::memcpy(bytes + 4 * i, &value, 4);
                }
                values[r * matrix.cols + k] = value;
            }
        }
    }

    /// Scales and minimums of any sign and of very different sizes, subnormal ones among them.
    static float random_half(std::uint8_t* at, Random& random) {
        const auto bits = static_cast<std::uint16_t>(random.below(0x3000) | (random.below(2) << 15));
        std::memcpy(at, &bits, 2);
        return half_to_float(bits);
    }

    /// Chooses the entry of a factor that is at `at`; `shared` is what goes with it, chosen already.
    static float random_factor(char kind, std::uint8_t* at, float shared, Random& random) {
        const auto byte = static_cast<std::uint8_t>(random.below(256));
        switch (kind) {
            case '-': return 0;
            case 'h': return random_half(at, random);
            case 'f': {
                const float value =
                    std::ldexp(static_cast<float>(random.below(4001)) - 2000.0F, -static_cast<int>(random.below(30)));
                std::memcpy(at, &value, 4);
                return value;
            }
            case 'l': *at = byte & 15; return shared * static_cast<float>(*at);
            case 'u':
                *at = static_cast<std::uint8_t>(*at | (byte & 0xF0));
                return shared * static_cast<float>(*at >> 4);
            case 'p': *at = static_cast<std::uint8_t>(120 + random.below(16)); return std::ldexp(1.0F, *at - 128);
            case 's': *at = byte; return shared * static_cast<float>(static_cast<std::int8_t>(byte));
            default: *at = byte; return shared * static_cast<float>(byte);
        }
    }

    void fill_quantized(std::uint8_t* bytes, float* values, Random& random) {
        PackedPanel panel(matrix.format, bytes);
        const PackedFormat& format = panel.format();
        float scales[kPanelRows] = {}, minimums[kPanelRows] = {};
        for (std::size_t g = 0; g < matrix.cols / kGroup; ++g) {
            const std::uint32_t kind = random.below(4);  // all at one end, all at the other, or anything
            const std::uint32_t most = (1U << panel.bits()) - 1, low = format.offset == 128 ? 0x80 : 0,
                                high = format.offset == 128 ? 0x7F : most;
            for (std::size_t r = 0; r < kPanelRows; ++r) {
                if (PackedPanel::is_shared(format.scale) && g % 8 == 0) {
                    scales[r] = random_half(panel.shared_scale(g, r), random);
                }
                if (PackedPanel::is_shared(format.minimum) && g % 8 == 0) {
                    minimums[r] = random_half(panel.shared_minimum(g, r), random);
                }
                for (std::size_t half = 0; half < panel.halves(); ++half) {
                    const float scale = random_factor(format.scale, panel.scale(g, half, r), scales[r], random);
                    const float minimum = random_factor(format.minimum, panel.minimum(g, half, r), minimums[r], random);
                    const std::size_t cols = kGroup / panel.halves();
                    for (std::size_t k = half * cols; k < (half + 1) * cols; ++k) {
                        const std::uint32_t quant = kind == 0 ? low : kind == 1 ? high : random.below(most + 1);
                        panel.set_quant(g, r, k, quant);
                        values[r * matrix.cols + g * kGroup + k] =
                            static_cast<float>(panel.number(quant)) * scale + minimum;
                    }
                }
            }
        }
    }
};

/// Rows of quantized activations, and the floats that they stand for.
struct TestActivations {
    TestActivations(std::size_t num_rows, std::size_t num_cols, Random& random) : rows(num_rows), cols(num_cols) {
        const std::size_t groups = (cols + kGroup - 1) / kGroup;
        values.resize(rows * cols);
        quants.resize(rows * groups * kGroup);
        scales.resize(rows * groups);
        sums.resize(rows * groups);
        biases.resize(rows * groups);
        half_sums.resize(rows * groups);
        for (std::size_t row = 0; row < rows; ++row) {
            for (std::size_t g = 0; g < groups; ++g) {
                const std::size_t at = row * groups + g;
                const std::uint32_t kind = random.below(4);
                scales[at] = kind == 3 ? 0.0F : std::ldexp(1.0F + static_cast<float>(random.below(100)), -12);
                std::int32_t sum = 0;
                for (std::size_t i = 0; i < kGroup && g * kGroup + i < cols; ++i) {
                    const int quant = kind == 0 ? 127 : kind == 1 ? -127 : static_cast<int>(random.below(255)) - 127;
                    quants[at * kGroup + i] = static_cast<std::int8_t>(quant);
                    sum += quant;
                    half_sums[at].of[i / 16] = static_cast<std::int16_t>(half_sums[at].of[i / 16] + quant);
                    values[row * cols + g * kGroup + i] = scales[at] * static_cast<float>(quant);
                }
                sums[at] = scales[at] * static_cast<float>(sum);
                biases[at] = -128 * sum;
            }
        }
    }

    Activations view(bool exact) const {
        return {rows,          values.data(), cols,          exact ? nullptr : quants.data(),
                scales.data(), sums.data(),   biases.data(), half_sums.data()};
    }

    std::size_t rows;
    std::size_t cols;
    std::vector<float> values;
    std::vector<std::int8_t> quants;
    std::vector<float> scales;
    std::vector<float> sums;
    std::vector<std::int32_t> biases;
    std::vector<HalfSums> half_sums;
};

/// What a set computes for all panels, [rows][panels * 16]; `stride` beyond that stays untouched.
std::vector<float> multiply(const InstructionSet& set, const TestMatrix& weights, const Activations& activations) {
    const std::size_t width = weights.matrix.num_panels() * kPanelRows, stride = width + 5;
    std::vector<float> out(activations.rows * stride, 1234.5F);
    Buffer<unsigned char> scratch;
    scratch.reserve(set.linear.scratch_bytes(weights.matrix.cols));
    for (std::size_t panel = 0; panel < weights.matrix.num_panels(); ++panel) {
        const bool last = panel + 1 == weights.matrix.num_panels();
        set.linear.multiply(weights.matrix, panel, activations, last ? nullptr : weights.matrix.panel(panel + 1),
                            scratch.data(), out.data() + panel * kPanelRows, stride);
    }
    std::vector<float> results;
    for (std::size_t row = 0; row < activations.rows; ++row) {
        const float* from = out.data() + row * stride;
        results.insert(results.end(), from, from + width);
        for (std::size_t i = width; i < stride; ++i) {
            CHECK(from[i] == 1234.5F);
        }
    }
    return results;
}

void compare(const InstructionSet& set, const TestMatrix& weights, const TestActivations& activations, bool exact) {
    const std::size_t width = weights.matrix.num_panels() * kPanelRows;
    const std::vector<float> results = multiply(set, weights, activations.view(exact));
    for (std::size_t m = 0; m < activations.rows; ++m) {
        for (std::size_t row = 0; row < width; ++row) {
            double sum = 0, size = 0;
            for (std::size_t k = 0; k < activations.cols; ++k) {
                const double product = static_cast<double>(weights.weight(row, k)) *
                                       static_cast<double>(activations.values[m * activations.cols + k]);
                sum += product;
                size += std::fabs(product);
            }
            const double error = std::fabs(static_cast<double>(results[m * width + row]) - sum);
            if (!(error <= tolerance(activations.cols) * size + 1e-30)) {
                fail(__FILE__, __LINE__,
                     (std::string(set.name) + ", format " + layout_of(weights.matrix.format).name +
                      (exact ? ", exact" : "") + ", " + std::to_string(activations.rows) + " x " +
                      std::to_string(activations.cols) + ", row " + std::to_string(m) + ", column " +
                      std::to_string(row) + ": " + std::to_string(results[m * width + row]) + " instead of " +
                      std::to_string(sum))
                         .c_str());
            }
        }
    }
}

void products_are_right() {
    Random random{2026};
    for (const WeightFormat format : formats()) {
        for (const std::size_t least : std::vector<std::size_t>{32, 64, 96, 288, 576, 1536}) {
            const std::size_t cols = whole_blocks(format, least);
            const TestMatrix weights(format, 2 * kPanelRows + 3, cols, random);
            for (const std::size_t rows :
                 std::vector<std::size_t>{1, 2, 3, 4, 5, 7, 8, 9, 11, 12, 13, 16, 17, 25, 33}) {
                if (rows > 13 && cols > 300) {
                    continue;
                }
                const TestActivations activations(rows, cols, random);
                for (const InstructionSet* set : instruction_sets()) {
                    compare(*set, weights, activations, true);
                    compare(*set, weights, activations, false);
                }
            }
        }
    }
}

void floats_may_have_any_number_of_columns() {
    Random random{7};
    for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16}) {
        for (const std::size_t cols : std::vector<std::size_t>{1, 7, 33, 250, 257}) {
            const TestMatrix weights(format, 16, cols, random);
            const TestActivations activations(6, cols, random);
            for (const InstructionSet* set : instruction_sets()) {
                compare(*set, weights, activations, true);
            }
        }
    }
}

/// Whatever rows are computed beside a row: a request's tokens must not depend on other requests.
void a_row_does_not_depend_on_others() {
    Random random{11};
    for (const WeightFormat format : formats()) {
        const std::size_t cols = whole_blocks(format, 320);
        const TestMatrix weights(format, 32, cols, random);
        const TestActivations all(29, cols, random);
        for (const InstructionSet* set : instruction_sets()) {
            for (const bool exact : {false, true}) {
                const std::vector<float> together = multiply(*set, weights, all.view(exact));
                for (std::size_t row = 0; row < all.rows; ++row) {
                    Activations one = all.view(exact);
                    const std::size_t groups = all.cols / kGroup;
                    one.rows = 1;
                    one.values += row * all.cols;
                    one.quants = exact ? nullptr : one.quants + row * all.cols;
                    one.scales += row * groups;
                    one.sums += row * groups;
                    one.biases += row * groups;
                    one.half_sums += row * groups;
                    const std::vector<float> alone = multiply(*set, weights, one);
                    CHECK(std::memcmp(alone.data(), together.data() + row * alone.size(),
                                      alone.size() * sizeof(float)) == 0);
                }
            }
        }
    }
}

/// A row that is not finite spoils itself only.
void nan_stays_in_its_row() {
    Random random{5};
    for (const WeightFormat format : formats()) {
        const std::size_t cols = whole_blocks(format, 64), groups = cols / kGroup;
        const TestMatrix weights(format, 16, cols, random);
        TestActivations activations(5, cols, random);
        const float nan = std::nanf("");
        activations.scales[2 * groups] = nan;
        activations.sums[2 * groups] = nan;
        activations.values[2 * cols + 3] = nan;
        for (const InstructionSet* set : instruction_sets()) {
            for (const bool exact : {false, true}) {
                const std::vector<float> results = multiply(*set, weights, activations.view(exact));
                for (std::size_t i = 0; i < results.size(); ++i) {
                    CHECK(std::isnan(results[i]) == (i / kPanelRows == 2));
                }
            }
        }
    }
}

void rows_are_unpacked() {
    Random random{3};
    for (const WeightFormat format : formats()) {
        const TestMatrix weights(format, 40, whole_blocks(format, 96), random);
        for (const InstructionSet* set : instruction_sets()) {
            for (std::size_t row = 0; row < weights.matrix.rows; ++row) {
                std::vector<float> values(weights.matrix.cols);
                set->linear.unpack_row(weights.matrix, row, values.data());
                for (std::size_t k = 0; k < values.size(); ++k) {
                    // A product and a sum, rounded once or twice.
                    const double error = std::fabs(static_cast<double>(values[k] - weights.weight(row, k)));
                    CHECK(error <= 2e-7 * (std::fabs(static_cast<double>(values[k])) + 4096 * 16));
                    CHECK(std::fabs(values[k]) < 1 || error <= 1e-2 * std::fabs(static_cast<double>(values[k])));
                }
            }
        }
    }
}

void unknown_sets_are_not_found() {
    CHECK(find_instruction_set("portable") != nullptr);
    CHECK(find_instruction_set("auto") != nullptr);
    CHECK(find_instruction_set("sse9") == nullptr);
    CHECK(find_instruction_set("") == nullptr);
}

void the_environment_chooses_for_auto_only() {
    unsetenv("RBEE_INSTRUCTION_SET");
    CHECK(&choose_instruction_set("auto") == find_instruction_set("auto"));
    CHECK_THROWS(std::invalid_argument, choose_instruction_set("sse9"));
    setenv("RBEE_INSTRUCTION_SET", "portable", 1);
    CHECK(&choose_instruction_set("auto") == &rbee::kernels::kPortableSet);
    setenv("RBEE_INSTRUCTION_SET", "sse9", 1);
    CHECK_THROWS(std::invalid_argument, choose_instruction_set("auto"));
    CHECK(&choose_instruction_set("portable") == &rbee::kernels::kPortableSet);
    unsetenv("RBEE_INSTRUCTION_SET");
}

}  // namespace

extern const Test kLinearTests[];
const Test kLinearTests[] = {
    {"products with every format and shape are right", products_are_right},
    {"products with floats take any number of columns", floats_may_have_any_number_of_columns},
    {"a row's product does not depend on the rows beside it", a_row_does_not_depend_on_others},
    {"a row that is not finite spoils no other", nan_stays_in_its_row},
    {"rows are unpacked", rows_are_unpacked},
    {"unknown instruction sets are not found", unknown_sets_are_not_found},
    {"the environment chooses an instruction set for auto only", the_environment_chooses_for_auto_only},
    {nullptr, nullptr},
};
