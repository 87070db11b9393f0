// The passes themselves, written once over a vector type. A file that includes this defines, in its own unnamed namespace,
//   FASTRL_TARGET  the attribute that lets a function use the instruction set
//   Vec            width, Reg, load, store, load_part, store_part, set1, add, sub, mul, fma, div, max, copy_sign, zero_below,
//                  exp2, reduce_add, reduce_max
// load_part(row, count, filler) and store_part(row, count, values) are for the last, incomplete vector of a row.
// Vec::zero_below(x, u, least) is 0 where u < least, and x elsewhere (where u is NaN, too).
// Vec::max(a, b) returns b where either is NaN; Vec::exp2 is within 1 ulp for x <= 0 and 0 below about -150.

constexpr int64_t block = 4096;  // elements between two flushes of the fp32 sums; a block stays in L1
constexpr float negative_infinity = -std::numeric_limits<float>::infinity();
constexpr float log2_floor = -200.0f;  // e^u is 0 there in fp32, and -inf·0 never arises
constexpr double ln2 = 0.69314718055994530942;

template <class Element>
FASTRL_TARGET float block_maximum(const Element* row, int64_t count) {
    Vec::Reg first = Vec::set1(negative_infinity), second = first;
    int64_t j = 0;
    for (; j + 2 * Vec::width <= count; j += 2 * Vec::width) {
        first = Vec::max(first, Vec::load(row + j));
        second = Vec::max(second, Vec::load(row + j + Vec::width));
    }
    for (; j + Vec::width <= count; j += Vec::width) first = Vec::max(first, Vec::load(row + j));
    if (j < count) second = Vec::max(second, Vec::load_part(row + j, count - j, negative_infinity));
    return Vec::reduce_max(Vec::max(first, second));
}

struct Accumulators {
    Vec::Reg sum;
    Vec::Reg weighted;
};

FASTRL_TARGET inline void accumulate(Accumulators& into, Vec::Reg logits, Vec::Reg maximum, Vec::Reg log2_scale) {
    const Vec::Reg u = Vec::max(Vec::set1(log2_floor), Vec::mul(Vec::sub(logits, maximum), log2_scale));
    const Vec::Reg e = Vec::exp2(u);
    into.sum = Vec::add(into.sum, e);
    into.weighted = Vec::fma(e, u, into.weighted);
}

// Adds a block to `sums`, whose `weighted` is in base 2 here.
template <class Element>
FASTRL_TARGET void add_block(const Element* row, int64_t count, float log2_scale_value, RowSums& sums) {
    const Vec::Reg maximum = Vec::set1(sums.maximum), log2_scale = Vec::set1(log2_scale_value);
    Accumulators first{Vec::set1(0.0f), Vec::set1(0.0f)}, second = first;
    int64_t j = 0;
    for (; j + 2 * Vec::width <= count; j += 2 * Vec::width) {
        accumulate(first, Vec::load(row + j), maximum, log2_scale);
        accumulate(second, Vec::load(row + j + Vec::width), maximum, log2_scale);
    }
    for (; j + Vec::width <= count; j += Vec::width) accumulate(first, Vec::load(row + j), maximum, log2_scale);
    if (j < count) accumulate(second, Vec::load_part(row + j, count - j, negative_infinity), maximum, log2_scale);
    sums.sum += Vec::reduce_add(Vec::add(first.sum, second.sum));
    sums.weighted += Vec::reduce_add(Vec::add(first.weighted, second.weighted));
}

// One sweep over memory: each block is read for its maximum, then again, from L1, for its sums.
template <class Element>
FASTRL_TARGET RowSums row_sums(const void* data, int64_t vocab, float log2_scale) {
    const auto* row = static_cast<const Element*>(data);
    RowSums sums{negative_infinity, 0.0, 0.0};
    for (int64_t start = 0; start < vocab; start += block) {
        const int64_t count = std::min(block, vocab - start);
        const float maximum = std::max(sums.maximum, block_maximum(row + start, count));
        if (maximum == negative_infinity) continue;
        if (sums.sum > 0 && maximum > sums.maximum) {
            const double shift = (static_cast<double>(sums.maximum) - maximum) * log2_scale;
            const double factor = std::exp2(shift);
            sums.weighted = factor * (sums.weighted + shift * sums.sum);
            sums.sum *= factor;
        }
        sums.maximum = maximum;
        add_block(row + start, count, log2_scale, sums);
    }
    sums.weighted *= ln2;
    return sums;
}

FASTRL_TARGET inline Vec::Reg gradient_of(Vec::Reg logits, Vec::Reg maximum, const GradientTerms& terms) {
    const Vec::Reg u =
        Vec::max(Vec::set1(log2_floor), Vec::mul(Vec::sub(logits, maximum), Vec::set1(terms.log2_scale)));
    const Vec::Reg gradient = Vec::mul(Vec::exp2(u), Vec::fma(Vec::set1(terms.per_log2), u, Vec::set1(terms.constant)));
    return Vec::zero_below(gradient, u, Vec::set1(terms.log2_least));
}

template <class Element>
FASTRL_TARGET void row_gradient(void* data, int64_t vocab, const GradientTerms& terms_in) {
    auto* row = static_cast<Element*>(data);
    const GradientTerms terms = terms_in;  // a copy that the stores below cannot alias
    const Vec::Reg maximum = Vec::set1(terms.maximum);
    int64_t j = 0;
    for (; j + 2 * Vec::width <= vocab; j += 2 * Vec::width) {
        const Vec::Reg first = Vec::load(row + j), second = Vec::load(row + j + Vec::width);
        Vec::store(row + j, gradient_of(first, maximum, terms));
        Vec::store(row + j + Vec::width, gradient_of(second, maximum, terms));
    }
    for (; j < vocab; j += Vec::width) {
        const int64_t count = vocab - j;
        if (count >= Vec::width)
            Vec::store(row + j, gradient_of(Vec::load(row + j), maximum, terms));
        else
            Vec::store_part(row + j, count, gradient_of(Vec::load_part(row + j, count, negative_infinity), maximum, terms));
    }
}

// softcap·tanh(x/softcap) as softcap·(1 − 2/(e^(2x/softcap) + 1)), the exponent turned non-positive by symmetry.
FASTRL_TARGET inline Vec::Reg capped(Vec::Reg x, Vec::Reg softcap) {
    const Vec::Reg zero = Vec::set1(0.0f), one = Vec::set1(1.0f);
    const Vec::Reg magnitude = Vec::max(Vec::sub(zero, x), x);
    const Vec::Reg exponent = Vec::div(Vec::mul(Vec::set1(-2.88539008177792681472f), magnitude), softcap);
    const Vec::Reg e = Vec::exp2(Vec::max(Vec::set1(log2_floor), exponent));
    const Vec::Reg value = Vec::mul(softcap, Vec::div(Vec::sub(one, e), Vec::add(one, e)));
    return Vec::copy_sign(value, x);
}

template <class Element>
FASTRL_TARGET void apply_head_tail(const void* data, float* out, int64_t vocab, const HeadTail& tail) {
    const auto* row = static_cast<const Element*>(data);
    const Vec::Reg scale = Vec::set1(tail.scale), softcap = Vec::set1(tail.softcap);
    for (int64_t j = 0; j < vocab; j += Vec::width) {
        const int64_t count = std::min<int64_t>(Vec::width, vocab - j);
        const bool is_whole = count == Vec::width;
        Vec::Reg x = is_whole ? Vec::load(row + j) : Vec::load_part(row + j, count, 0.0f);
        if (tail.bias) x = Vec::add(x, is_whole ? Vec::load(tail.bias + j) : Vec::load_part(tail.bias + j, count, 0.0f));
        x = Vec::mul(x, scale);
        if (tail.softcap != 0.0f) x = capped(x, softcap);
        if (is_whole)
            Vec::store(out + j, x);
        else
            Vec::store_part(out + j, count, x);
    }
}

template <class Element>
FASTRL_TARGET void row_tail_gradient(const float* values, void* data, int64_t vocab, const GradientTerms& terms,
                                     const HeadTail& tail) {
    auto* row = static_cast<Element*>(data);
    const Vec::Reg maximum = Vec::set1(terms.maximum), scale = Vec::set1(tail.scale);
    const Vec::Reg inverse_cap = Vec::set1(tail.softcap != 0.0f ? 1.0f / tail.softcap : 0.0f);
    for (int64_t j = 0; j < vocab; j += Vec::width) {
        const int64_t count = std::min<int64_t>(Vec::width, vocab - j);
        const bool is_whole = count == Vec::width;
        const Vec::Reg s = is_whole ? Vec::load(values + j) : Vec::load_part(values + j, count, 0.0f);
        Vec::Reg gradient = Vec::mul(gradient_of(s, maximum, terms), scale);
        if (tail.softcap != 0.0f) {
            const Vec::Reg relative = Vec::mul(s, inverse_cap);
            gradient = Vec::mul(gradient, Vec::sub(Vec::set1(1.0f), Vec::mul(relative, relative)));
        }
        if (is_whole)
            Vec::store(row + j, gradient);
        else
            Vec::store_part(row + j, count, gradient);
    }
}

constexpr Sweeps make_sweeps(const char* name) {
    return {name,
            {apply_head_tail<float>, apply_head_tail<BFloat16>, apply_head_tail<Float16>},
            {row_sums<float>, row_sums<BFloat16>, row_sums<Float16>},
            {row_gradient<float>, row_gradient<BFloat16>, row_gradient<Float16>},
            {row_tail_gradient<float>, row_tail_gradient<BFloat16>, row_tail_gradient<Float16>}};
}
