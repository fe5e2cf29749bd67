// What the kernels of this folder share: a vector of values at a time, by the vector extensions
// of GCC and Clang.
//
// Given by the compiler's command line: T, float or double; ORDER of the splines; M, the number of
// knots, without which the compiler would not unroll loops over them; BASE, the activation beside
// the splines, one of those below.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

enum { NONE, SILU, GELU, RELU, TANH, IDENTITY };

#ifdef __AVX512F__
constexpr int BYTES = 64;
#else
constexpr int BYTES = 32;
#endif
constexpr int LANES = BYTES / sizeof(T);
using Index = std::conditional<sizeof(T) == 4, std::int32_t, std::int64_t>::type;
typedef T Values __attribute__((vector_size(LANES * sizeof(T))));
typedef Index Indices __attribute__((vector_size(LANES * sizeof(T))));
typedef T Four __attribute__((vector_size(4 * sizeof(T))));

template <class Vector>
static inline Vector load(const T *from)
{
    Vector vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}

template <class Vector>
static inline void store(T *to, Vector vector)
{
    std::memcpy(to, &vector, sizeof vector);
}

static inline Values all(T value)
{
    return value - Values{};  // a sum would be computed, since 0 + -0 is not -0
}

// Of two vectors, numbers A to D of the first four of both, and so of all fours.
template <int A, int B, int C, int D, std::size_t... I>
static inline Values shuffled(Values a, Values b, std::index_sequence<I...>)
{
    constexpr int chosen[] = {A, B, C, D};
    constexpr auto of = [](int i, const int *from) {
        const int in_four = from[i % 4];
        return in_four % 4 + i / 4 * 4 + (in_four < 4 ? 0 : LANES);
    };
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, of(I, chosen)...);
#else
    return __builtin_shuffle(a, b, Indices{of(I, chosen)...});
#endif
}

template <int A, int B, int C, int D>
static inline Values shuffle(Values a, Values b)
{
    return shuffled<A, B, C, D>(a, b, std::make_index_sequence<LANES>{});
}

// Four rows, of which each four numbers are a row of four, to four columns; and back.
static inline void transpose(Values &a, Values &b, Values &c, Values &d)
{
    const Values ab = shuffle<0, 4, 1, 5>(a, b), AB = shuffle<2, 6, 3, 7>(a, b);
    const Values cd = shuffle<0, 4, 1, 5>(c, d), CD = shuffle<2, 6, 3, 7>(c, d);
    a = shuffle<0, 1, 4, 5>(ab, cd);
    b = shuffle<2, 3, 6, 7>(ab, cd);
    c = shuffle<0, 1, 4, 5>(AB, CD);
    d = shuffle<2, 3, 6, 7>(AB, CD);
}

template <int N = LANES>
static inline auto join(const Four *fours)
{
#if defined(__clang__) || __GNUC__ >= 12
    if constexpr (N > 4) {
        const auto eight = [](Four a, Four b) {
            return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
        };
        if constexpr (N > 8)
            return __builtin_shufflevector(
                eight(fours[0], fours[1]), eight(fours[2], fours[3]),
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        else
            return eight(fours[0], fours[1]);
    } else
#endif
        return load<Values>(reinterpret_cast<const T *>(fours));
}

// Rows of N numbers from as many places as there are lanes, to four columns; those behind N are zeros.
template <int N = 4>
static inline void look_up(const T *const *from, std::ptrdiff_t at, Values *columns)
{
    for (int i = 0; i < 4; i++) {
        Four fours[LANES / 4] = {};
        for (int j = 0; j < LANES / 4; j++)
            std::memcpy(fours + j, from[i + 4 * j] + at, N * sizeof(T));
        columns[i] = join(fours);
    }
    transpose(columns[0], columns[1], columns[2], columns[3]);
}

// Calls step(lane, four) on the rows of four columns, which are lost.
template <class Step>
static inline void for_fours(Values *columns, Step step)
{
    transpose(columns[0], columns[1], columns[2], columns[3]);
    for (int i = 0; i < 4; i++) {
        Four fours[LANES / 4];
        std::memcpy(fours, columns + i, sizeof fours);
        for (int j = 0; j < LANES / 4; j++)
            step(i + 4 * j, fours[j]);
    }
}

// The places of a vector's values among the knots of each. Where the last interval is to be closed, its
// end is given as the next number.
struct Place {
    Indices interval;  // 0 before the first knot, M behind the last
    Values distance;  // from the interval's first knot

    // knot(m): the m-th knots, as a vector.
    template <class Knot>
    Place(Values x, Knot knot)
    {
        const Values first = knot(0), last = knot(M - 1);
        Values start = first;
        interval = Indices{};
        for (int m = 0; m < M; m++) {
            const Values next = knot(m);
            const Indices reached = x >= next;  // -1 where it has
            interval -= reached;
            start = reached ? next : start;
        }
        measure(x, first, last, start);
    }

    // On uniform knots, `step` apart and so `per_unit` in a unit of x. Beside a knot, rounding may choose the
    // interval on its other side; from order 2 on the functions and their slopes hardly differ there.
    Place(Values x, Values first, Values last, Values step, Values per_unit)
    {
        Values number = (x - first) * per_unit + all(1);
        number = number > all(0) ? number : all(0);
        number = number < all(M) ? number : all(M);
        interval = __builtin_convertvector(number, Indices);
        const Values whole = __builtin_convertvector(interval, Values);
        measure(x, first, last, first + (whole - all(1)) * step);
    }

private:
    void measure(Values x, Values first, Values last, Values start)
    {
        x = x < first ? first : x;  // so that infinities, in polynomials of zeros, give no NaN
        x = x > last ? last : x;
        distance = x - start;
    }
};

// A vector of neighbors in memory from a place on; or `count`, if there are fewer.
template <bool FULL>
struct Window {
    std::ptrdiff_t at, count;

    Values load_from(const T *from) const
    {
        if (FULL)
            return load<Values>(from + at);
        Values vector{};
        std::memcpy(&vector, from + at, count * sizeof(T));
        return vector;
    }

    void store_to(T *to, Values vector) const
    {
        if (FULL)
            store(to + at, vector);
        else
            std::memcpy(to + at, &vector, count * sizeof(T));
    }
};

// e^x for x <= 0; in float to 2 units in the last place.
static inline Values exponential(Values x)
{
    if constexpr (sizeof(T) == 8) {
        for (int i = 0; i < LANES; i++)
            x[i] = std::exp(x[i]);
        return x;
    }
    const Indices none = x < all(-87);  // less than 1e-37
    x = none ? all(-87) : x;
    const Values shift = all(12582912);  // 1.5 · 2^23, to which added a number is rounded
    const Values rounded = x * all(T(1.44269504)) + shift;
    const Values n = rounded - shift;
    const Values r = x - n * all(T(0.693359375)) + n * all(T(2.12194440e-4));  // ln 2 in two parts
    Values value = all(T(1) / 720);
    for (const T divisor : {120, 24, 6, 2, 1, 1})
        value = value * r + all(1 / divisor);
    Indices bits, exponent;
    std::memcpy(&bits, &value, sizeof bits);
    std::memcpy(&exponent, &rounded, sizeof exponent);
    bits += exponent << 23;  // times 2^n
    std::memcpy(&value, &bits, sizeof value);
    return none ? all(0) : value;
}

// The standard normal distribution function, and its density without the factor 1 / √(2 π). In float by
// Abramowitz and Stegun, 7.1.26, whose error in erf is at most 1.5e-7.
static inline void normal(Values x, Values &cdf, Values &density)
{
    density = exponential(all(T(-0.5)) * x * x);
    if constexpr (sizeof(T) == 8) {
        for (int i = 0; i < LANES; i++)
            cdf[i] = std::erfc(-x[i] * std::sqrt(0.5)) / 2;
        return;
    }
    const Values size = x < all(0) ? -x : x;
    const Values t = all(1) / (all(1) + all(T(0.3275911 * 0.70710678)) * size);
    Values tail = all(T(1.061405429));
    for (const T factor : {-1.453152027, 1.421413741, -0.284496736, 0.254829592})
        tail = tail * t + all(factor);
    tail = all(T(0.5)) * tail * t * density;  // of -|x|
    cdf = x < all(0) ? tail : all(1) - tail;
}

// The base activation at a vector of places, and its slope.
struct Base {
    Values value, slope;

    explicit Base(Values x)
    {
        if constexpr (BASE == SILU) {
            const Values tail = exponential(x < all(0) ? x : -x);
            const Values share = (x < all(0) ? tail : all(1)) / (all(1) + tail);  // sigmoid
            value = x * share;
            slope = share * (all(1) + x * (all(1) - share));
        } else if constexpr (BASE == GELU) {
            Values cdf, density;
            normal(x, cdf, density);
            value = x * cdf;
            slope = cdf + x * density * all(T(0.3989422804014327));
        } else if constexpr (BASE == RELU) {
            value = x < all(0) ? all(0) : x;
            slope = x > all(0) ? all(1) : all(0);
        } else if constexpr (BASE == TANH) {
            const Values tail = exponential(all(2) * (x < all(0) ? x : -x));
            const Values size = (all(1) - tail) / (all(1) + tail);
            value = x < all(0) ? -size : size;
            value = x == x ? value : x;  // a NaN's bits may give anything in `exponential`
            slope = all(1) - size * size;
        } else {
            value = BASE == IDENTITY ? x : all(0);
            slope = all(BASE == IDENTITY);
        }
    }
};

// Runs job(first row, rows, part) on equal shares of the rows, a thread each.
template <class Job>
static inline void in_parts(std::ptrdiff_t rows, std::ptrdiff_t parts, Job job)
{
    const auto run = [&](std::ptrdiff_t part) {
        const std::ptrdiff_t first = rows * part / parts;
        job(first, rows * (part + 1) / parts - first, part);
    };
#ifdef _OPENMP
#pragma omp parallel for num_threads(parts) schedule(static, 1)
    for (std::ptrdiff_t part = 0; part < parts; part++)
        run(part);
#else
    std::vector<std::thread> others;
    for (std::ptrdiff_t part = 1; part < parts; part++)
        others.emplace_back(run, part);
    run(0);
    for (std::thread &other : others)
        other.join();
#endif
}
