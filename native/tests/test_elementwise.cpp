// Norms, quantization, rotation and gates against double precision, with every instruction set that this machine has:
// for every length, in memory of exactly that size, in place or not, and for numbers that overflow if one lets them.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <vector>

#include "check.h"
#include "rbee_kernels/instruction_sets.h"

namespace {

using namespace rbee::kernels;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kGreatest = std::numeric_limits<float>::max();
constexpr double kUnit = 0x1p-24;

/// Calls with the functions of every set.
template <typename Function>
void with_each_set(Function function) {
    for (const char* name : {"portable", "avx2", "avx512"}) {
        if (const InstructionSet* set = find_instruction_set(name)) {
            function(set->elementwise);
        }
    }
}

/// Memory of exactly this size, so that AddressSanitizer sees a step beyond it.
class Floats {
public:
    explicit Floats(std::size_t size) : values_(new float[size]), size_(size) {}
    Floats(const Floats& other) : Floats(other.size_) { std::copy(other.begin(), other.end(), begin()); }
    Floats& operator=(const Floats&) = delete;

    float* data() const { return values_.get(); }
    std::size_t size() const { return size_; }
    float* begin() const { return data(); }
    float* end() const { return data() + size_; }
    float& operator[](std::size_t i) const { return values_[i]; }

private:
    std::unique_ptr<float[]> values_;
    std::size_t size_;
};

/// Between -spread and spread.
Floats random_floats(Random& random, std::size_t size, float spread) {
    Floats numbers(size);
    for (float& number : numbers) {
        number = (static_cast<float>(random.below(1U << 24U)) * 0x1p-23F - 1) * spread;
    }
    return numbers;
}

/// Every length up to three vectors and some usual ones.
std::vector<std::size_t> lengths() {
    std::vector<std::size_t> all{63, 64, 65, 80, 127, 128, 129, 576, 1000, 1536, 4096};
    for (std::size_t n = 1; n <= 50; ++n) {
        all.push_back(n);
    }
    return all;
}

bool near(float value, double expected, double tolerance) { return std::fabs(double{value} - expected) <= tolerance; }

bool same_bits(const Floats& a, const Floats& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void norms_are_accurate() {
    Random random{21};
    for (const std::size_t n : lengths()) {
        for (const float spread : {1e-4F, 1.0F, 300.0F, 1e15F}) {
            const Floats x = random_floats(random, n, spread), weight = random_floats(random, n, 3);
            double squares = 0;
            for (const float value : x) {
                squares += double{value} * double{value};
            }
            const double root = std::sqrt(squares / static_cast<double>(n) + double{1e-5F});
            with_each_set([&](const ElementwiseFunctions& functions) {
                Floats out(n);
                functions.rms_norm(x.data(), weight.data(), 1e-5F, n, out.data());
                for (std::size_t i = 0; i < n; ++i) {
                    const double expected = double{x[i]} / root * double{weight[i]};
                    // Three roundings, and half the error of the sum of squares; 3 is the greatest seen.
                    CHECK(near(out[i], expected, 6 * kUnit * std::fabs(expected)));
                }
                const Floats in_place(x);
                functions.rms_norm(in_place.data(), weight.data(), 1e-5F, n, in_place.data());
                CHECK(same_bits(in_place, out));
            });
        }
    }
}

void norms_of_zeros_and_nan() {
    with_each_set([](const ElementwiseFunctions& functions) {
        for (const std::size_t n : std::vector<std::size_t>{1, 16, 31, 100}) {
            Floats x(n), weight(n), out(n);
            std::fill(x.begin(), x.end(), 0.0F);
            std::fill(weight.begin(), weight.end(), 2.0F);
            functions.rms_norm(x.data(), weight.data(), 1e-6F, n, out.data());
            CHECK(std::all_of(out.begin(), out.end(), [](float value) { return value == 0; }));
            for (std::size_t bad = 0; bad < n; ++bad) {
                Floats with_nan(x);
                with_nan[bad] = kNaN;
                functions.rms_norm(with_nan.data(), weight.data(), 1e-6F, n, out.data());
                CHECK(std::all_of(out.begin(), out.end(), [](float value) { return std::isnan(value); }));
            }
        }
    });
}

/// In memory of exactly its size.
struct Quantized {
    explicit Quantized(std::size_t n)
        : groups((n + 31) / 32),
          quants(new std::int8_t[groups * 32]),
          scales(groups),
          sums(groups),
          biases(new std::int32_t[groups]),
          half_sums(new HalfSums[groups]) {
        std::memset(quants.get(), 55, groups * 32);
    }
    QuantizedRow row() const { return {quants.get(), scales.data(), sums.data(), biases.get(), half_sums.get()}; }

    std::size_t groups;
    std::unique_ptr<std::int8_t[]> quants;
    Floats scales, sums;
    std::unique_ptr<std::int32_t[]> biases;
    std::unique_ptr<HalfSums[]> half_sums;
};

void quants_are_the_nearest() {
    Random random{22};
    for (const std::size_t n : lengths()) {
        for (const float spread : {1e-20F, 1.0F, 1e10F, kGreatest}) {
            const Floats x = random_floats(random, n, spread);
            for (std::size_t i = 0; i + 32 < n; i += 64) {
                std::fill_n(x.data() + i, 32, random.below(2) == 0 ? 0.0F : x[i]);
            }
            with_each_set([&](const ElementwiseFunctions& functions) {
                const Quantized result(n);
                functions.quantize(x.data(), n, result.row());
                for (std::size_t group = 0; group < result.groups; ++group) {
                    float greatest = 0;
                    int half_sums[2] = {};
                    for (std::size_t i = 32 * group; i < std::min(n, 32 * group + 32); ++i) {
                        greatest = std::max(greatest, std::fabs(x[i]));
                    }
                    const float scale = result.scales[group];
                    CHECK(scale == greatest / 127);
                    for (std::size_t i = 32 * group; i < 32 * group + 32; ++i) {
                        const int quant = result.quants[i];
                        half_sums[i % 32 / 16] += quant;
                        if (i < n && scale != 0) {
                            const double exact = double{x[i]} / double{scale};
                            CHECK(quant >= -127 && std::fabs(quant - exact) <= 0.5 + 127 * 3 * kUnit);
                        } else {
                            CHECK(quant == 0);
                        }
                    }
                    CHECK(result.sums[group] == scale * static_cast<float>(half_sums[0] + half_sums[1]));
                    CHECK(result.biases[group] == -128 * (half_sums[0] + half_sums[1]));
                    CHECK(result.half_sums[group].of[0] == half_sums[0]);
                    CHECK(result.half_sums[group].of[1] == half_sums[1]);
                }
            });
        }
    }
}

void quants_of_what_is_not_finite() {
    Random random{23};
    with_each_set([&](const ElementwiseFunctions& functions) {
        for (const float bad : {kNaN, kInf, -kInf}) {
            for (std::size_t at = 0; at < 70; ++at) {
                for (const bool alone : {false, true}) {
                    const Floats x = random_floats(random, 70, alone ? 0.0F : 1.0F);
                    x[at] = bad;
                    const Quantized result(70);
                    functions.quantize(x.data(), 70, result.row());
                    for (std::size_t group = 0; group < 3; ++group) {
                        CHECK(std::isnan(result.scales[group]) == (at / 32 == group));
                        CHECK(std::isnan(result.sums[group]) == (at / 32 == group));
                    }
                }
            }
        }
        // All NaN; and what is too small for the inverse of its scale.
        for (const float each : {kNaN, 1e-45F, -1e-38F, 1e-31F}) {
            const Floats x(33);
            std::fill(x.begin(), x.end(), each);
            const Quantized result(33);
            functions.quantize(x.data(), 33, result.row());
            for (std::size_t group = 0; group < 2; ++group) {
                CHECK(std::isnan(each) ? std::isnan(result.scales[group]) : result.scales[group] == 0);
            }
            const std::int8_t* quants = result.quants.get();
            CHECK(std::all_of(quants, quants + 64, [](std::int8_t quant) { return quant == 0; }));
        }
    });
}

void rotation_turns_pairs() {
    Random random{24};
    for (const std::size_t half : lengths()) {
        const Floats head = random_floats(random, 2 * half, 10);
        const Floats cosines(half), sines(half);
        for (std::size_t i = 0; i < half; ++i) {
            const double angle = random.below(1000);
            cosines[i] = static_cast<float>(std::cos(angle));
            sines[i] = static_cast<float>(std::sin(angle));
        }
        with_each_set([&](const ElementwiseFunctions& functions) {
            const Floats out(head);
            functions.rotate(out.data(), cosines.data(), sines.data(), 2 * half);
            for (std::size_t i = 0; i < half; ++i) {
                const double a = head[i], b = head[half + i], c = cosines[i], s = sines[i];
                CHECK(near(out[i], a * c - b * s, 2 * kUnit * (std::fabs(a * c) + std::fabs(b * s))));
                CHECK(near(out[half + i], b * c + a * s, 2 * kUnit * (std::fabs(b * c) + std::fabs(a * s))));
            }
        });
    }
}

struct Activated {
    double value;
    double units;  // that the result may be off: half of those in the last place
};

Activated activated(Activation activation, double x) {
    if (activation == Activation::kSilu) {
        return {x / (1 + std::exp(-x)), 6};
    }
    if (activation == Activation::kRelu2) {
        return {x > 0 ? x * x : 0, 2};
    }
    const double exponent = 2 * std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x);
    return {x / (1 + std::exp(-exponent)), 6 + 3 * std::max(0.0, -exponent)};  // that it is rounded makes a difference
}

void gates_are_accurate() {
    Random random{25};
    for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh, Activation::kRelu2}) {
        for (const std::size_t n : lengths()) {
            for (const float spread : {1e-10F, 1.0F, 5.0F, 30.0F, 200.0F}) {
                const Floats gates = random_floats(random, n, spread), up = random_floats(random, n, 2);
                with_each_set([&](const ElementwiseFunctions& functions) {
                    const Floats out(n);
                    functions.gate(activation, gates.data(), up.data(), n, out.data());
                    for (std::size_t i = 0; i < n; ++i) {
                        const Activated exact = activated(activation, double{gates[i]});
                        const double expected = exact.value * double{up[i]};
                        CHECK(near(out[i], expected, exact.units * kUnit * std::fabs(expected) + 1e-35));
                    }
                    const Floats over_gate(gates), over_up(up);
                    functions.gate(activation, over_gate.data(), up.data(), n, over_gate.data());
                    functions.gate(activation, gates.data(), over_up.data(), n, over_up.data());
                    CHECK(same_bits(over_gate, out) && same_bits(over_up, out));

                    const Floats alone(n), ones(n), in_place(gates);
                    std::fill(ones.begin(), ones.end(), 1.0F);
                    functions.activate(activation, gates.data(), n, alone.data());
                    functions.activate(activation, in_place.data(), n, in_place.data());
                    functions.gate(activation, gates.data(), ones.data(), n, out.data());
                    CHECK(same_bits(alone, out) && same_bits(in_place, out));
                });
            }
        }
    }
}

void gates_of_what_overflows() {
    with_each_set([](const ElementwiseFunctions& functions) {
        for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh}) {
            const auto of = [&](float x) {
                const float one = 1;
                float out = 0;
                functions.gate(activation, &x, &one, 1, &out);
                return out;
            };
            for (const float great : {100.0F, 1e4F, 1e15F, 1e30F, kGreatest}) {
                CHECK(of(great) == great && of(-great) == 0);
            }
            CHECK(of(0) == 0 && of(kInf) == kInf && std::isnan(of(kNaN)));
            CHECK(of(1e-45F) >= 0 && of(1e-45F) <= 1e-45F);
        }
    });
}

void sums_and_products_are_exact() {
    Random random{26};
    for (const std::size_t n : lengths()) {
        const Floats x = random_floats(random, n, 100), y = random_floats(random, n, 100);
        x[0] = kNaN;
        with_each_set([&](const ElementwiseFunctions& functions) {
            const Floats sum(x), product(n), in_place(x);
            functions.add(sum.data(), y.data(), n);
            functions.scale(x.data(), 0.3F, n, product.data());
            functions.scale(in_place.data(), 0.3F, n, in_place.data());
            CHECK(std::isnan(sum[0]) && std::isnan(product[0]) && std::isnan(in_place[0]));
            for (std::size_t i = 1; i < n; ++i) {
                CHECK(sum[i] == x[i] + y[i] && product[i] == x[i] * 0.3F && in_place[i] == product[i]);
            }
        });
    }
}

}  // namespace

extern const Test kElementwiseTests[];
const Test kElementwiseTests[] = {
    {"RMS norms are accurate", norms_are_accurate},
    {"RMS norms of zeros and of NaN", norms_of_zeros_and_nan},
    {"quants are the nearest", quants_are_the_nearest},
    {"quants of what is not finite, or as good as zero", quants_of_what_is_not_finite},
    {"rotation turns pairs", rotation_turns_pairs},
    {"gates are accurate", gates_are_accurate},
    {"gates of what would overflow", gates_of_what_overflows},
    {"sums and products are exact", sums_and_products_are_exact},
    {nullptr, nullptr},
};
