// The splines of a group-KAN layer on a CPU, for models/group_features.py.
//
// A value is looked up among its group's knots and becomes the polynomial of its interval. Eight
// values at a time: knots are compared with all eight, and the polynomials, each four numbers (or
// eight, from order 4 on) side by side in memory, are turned into vectors of equal powers by
// shuffles. Looking up costs the same for even and uneven knots.
//
// Given by the compiler's command line: T, float or double; ORDER of the splines; M, the number of
// knots, without which the compiler would not unroll the comparisons; GELU, whether the base is
// that, in float, or is given.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

using Index = std::conditional<sizeof(T) == 4, std::int32_t, std::int64_t>::type;
constexpr int LANES = 8;
constexpr int SIZE = (ORDER / 4 + 1) * 4;  // numbers of a polynomial, with padding
typedef T Values __attribute__((vector_size(LANES * sizeof(T))));
typedef Index Indices __attribute__((vector_size(LANES * sizeof(T))));
typedef T Four __attribute__((vector_size(4 * sizeof(T))));

// What is known of the layer. `knots` (groups, M); `table` (groups, M + 1, SIZE) the coefficients,
// lowest power first, of the polynomials before the first knot, on each interval, and behind the
// last.
struct Layer {
    std::ptrdiff_t groups, channels;
    const T *knots, *table;
};

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
    return Values{} + value;
}

// Four rows of eight, of which the halves are rows of four, to four columns; and back.
static inline void transpose(Values &a, Values &b, Values &c, Values &d)
{
    const Values ab = __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
    const Values AB = __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
    const Values cd = __builtin_shufflevector(c, d, 0, 8, 1, 9, 4, 12, 5, 13);
    const Values CD = __builtin_shufflevector(c, d, 2, 10, 3, 11, 6, 14, 7, 15);
    a = __builtin_shufflevector(ab, cd, 0, 1, 8, 9, 4, 5, 12, 13);
    b = __builtin_shufflevector(ab, cd, 2, 3, 10, 11, 6, 7, 14, 15);
    c = __builtin_shufflevector(AB, CD, 0, 1, 8, 9, 4, 5, 12, 13);
    d = __builtin_shufflevector(AB, CD, 2, 3, 10, 11, 6, 7, 14, 15);
}

#if GELU
// e^x for x <= 0, to 2 units in the last place.
static inline Values exponential(Values x)
{
    x = x > all(-87) ? x : all(-87);  // 1e-38
    const Values shift = all(12582912);  // 1.5 · 2^23, to which added a number is rounded
    const Values rounded = x * all(1.44269504f) + shift;
    const Values n = rounded - shift;
    const Values r = x - n * all(0.693359375f) + n * all(2.12194440e-4f);  // ln 2 in two parts
    Values value = all(1 / 720.0f);
    for (const T factor : {1 / 120.0f, 1 / 24.0f, 1 / 6.0f, 0.5f, 1.0f, 1.0f})
        value = value * r + all(factor);
    Indices bits, exponent;
    std::memcpy(&bits, &value, sizeof bits);
    std::memcpy(&exponent, &rounded, sizeof exponent);
    bits += exponent << 23;  // times 2^n
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// The base x · Φ(x), with Φ(x) = (1 + erf(x / √2)) / 2, and its slope. Abramowitz and Stegun,
// 7.1.26, whose error in erf is at most 1.5e-7.
struct Base {
    Values value, slope;

    explicit Base(Values x)
    {
        const Values size = x < all(0) ? -x : x;
        const Values density = exponential(all(-0.5f) * size * size);  // but for 1 / √(2 π)
        const Values t = all(1) / (all(1) + all(0.3275911f * 0.707106781f) * size);
        Values tail = all(1.061405429f);
        for (const T factor : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f})
            tail = tail * t + all(factor);
        tail = all(0.5f) * tail * t * density;  // Φ(-|x|)
        const Values cdf = x < all(0) ? tail : all(1) - tail;
        value = x * cdf;
        slope = cdf + x * density * all(0.398942280f);
    }
};
#endif

// Eight values in the spline of one group.
struct Place {
    Index interval[LANES];  // 0 before the first knot, M behind the last
    Values distance;  // from the interval's first knot

    Place(Values x, const T *knots)
    {
        Indices count{};
        Values start = all(knots[0]);
        for (int m = 0; m < M; m++) {
            const Values knot = all(knots[m]);
            // -1 where it has; the last interval is closed
            const Indices reached = m < M - 1 ? x >= knot : x > knot;
            count -= reached;
            start = reached ? knot : start;
        }
        std::memcpy(interval, &count, sizeof count);
        const Values first = all(knots[0]), last = all(knots[M - 1]);
        x = x < first ? first : x;  // so that infinities, in polynomials of zeros, give no NaN
        x = x > last ? last : x;
        distance = x - start;
    }

    // The coefficients at each value, by power.
    void look_up(const T *table, Values *coefficients) const
    {
        for (int part = 0; part < SIZE; part += 4) {
            Values *row = coefficients + part;
            for (int i = 0; i < 4; i++)
                row[i] = __builtin_shufflevector(
                    load<Four>(table + SIZE * interval[i] + part),
                    load<Four>(table + SIZE * interval[i + 4] + part), 0, 1, 2, 3, 4, 5, 6, 7);
            transpose(row[0], row[1], row[2], row[3]);
        }
    }

    // Adds weight · distance^p to each value's interval, in one of four sums: neighbours are often
    // in the same interval, and each would wait for the last.
    void add_moments(Values weight, T *sums, std::ptrdiff_t size) const
    {
        Values power[SIZE];
        for (int i = 0; i < SIZE; i++) {
            power[i] = i <= ORDER ? weight : all(0);
            weight *= distance;
        }
        for (int part = 0; part < SIZE; part += 4) {
            Values *row = power + part;
            transpose(row[0], row[1], row[2], row[3]);
            for (int i = 0; i < LANES; i++) {
                const Values both = row[i % 4];
                T *sum = sums + (i % 4) * size + SIZE * interval[i] + part;
                store(sum, load<Four>(sum) + (i < 4
                    ? __builtin_shufflevector(both, both, 0, 1, 2, 3)
                    : __builtin_shufflevector(both, both, 4, 5, 6, 7)));
            }
        }
    }
};

// Eight neighbours of a group, from index `at` on, of which the window before had `seen` already;
// or all channels of the group, if these are fewer.
template <bool FULL>
struct Window {
    std::ptrdiff_t group, at, seen, count;

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

// Calls step(window, place) on all values of some rows. The last eight of a group's channels may
// overlap those before.
template <class Step>
static inline void for_each(const Layer &layer, std::ptrdiff_t rows, const T *x, Step step)
{
    const std::ptrdiff_t n = layer.channels;
    std::ptrdiff_t at = 0;
    for (std::ptrdiff_t row = 0; row < rows; row++)
        for (std::ptrdiff_t group = 0; group < layer.groups; group++, at += n) {
            const T *knots = layer.knots + group * M;
            if (n < LANES) {
                const Window<false> window{group, at, 0, n};
                step(window, Place(window.load_from(x), knots));
                continue;
            }
            for (std::ptrdiff_t i = 0; i < n; i += LANES) {
                const std::ptrdiff_t first = i + LANES > n ? n - LANES : i;
                const Window<true> window{group, at + first, i - first, LANES};
                step(window, Place(window.load_from(x), knots));
            }
        }
}

// All of x, base, grad, base_grad, out and grad_x are (rows, groups, channels), contiguous.

static void values(const Layer &layer, std::ptrdiff_t rows, const T *x, const T *base, T *out)
{
    for_each(layer, rows, x, [&](auto window, const Place &place) {
        Values c[SIZE];
        place.look_up(layer.table + window.group * (M + 1) * SIZE, c);
        Values value = c[ORDER];
        for (int i = ORDER - 1; i >= 0; i--)
            value = value * place.distance + c[i];
#if GELU
        const Base of_x(window.load_from(x));
        window.store_to(out, of_x.value + value);
#else
        window.store_to(out, window.load_from(base) + value);
#endif
    });
}

static void gradients(
    const Layer &layer, std::ptrdiff_t rows, const T *x, const T *base, const T *grad,
    const T *base_grad, T *out, T *grad_x, T *moments)
{
    constexpr std::ptrdiff_t size = (M + 1) * SIZE;
    const Indices lane{0, 1, 2, 3, 4, 5, 6, 7};
    std::vector<T> sums(4 * layer.groups * size);
    for_each(layer, rows, x, [&](auto window, const Place &place) {
        Values c[SIZE];
        place.look_up(layer.table + window.group * size, c);
        Values value = c[ORDER], slope{};
        for (int i = ORDER - 1; i >= 0; i--) {
            slope = slope * place.distance + value;
            value = value * place.distance + c[i];
        }
        const Values weight = window.load_from(grad);
#if GELU
        const Base of_x(window.load_from(x));
        window.store_to(out, of_x.value + value);
        window.store_to(grad_x, (of_x.slope + slope) * weight);
#else
        window.store_to(out, window.load_from(base) + value);
        window.store_to(grad_x, window.load_from(base_grad) + slope * weight);
#endif
        const Indices is_new = lane >= static_cast<Index>(window.seen);
        place.add_moments(is_new ? weight : all(0), sums.data() + 4 * window.group * size, size);
    });
    for (std::ptrdiff_t group = 0; group < layer.groups; group++)
        for (std::ptrdiff_t i = 0; i < size; i++) {
            const T *sum = sums.data() + 4 * group * size + i;
            moments[group * size + i] = sum[0] + sum[size] + sum[2 * size] + sum[3 * size];
        }
}

// Runs job(first row, rows, part) on even shares of the rows, a thread each.
template <class Job>
static inline void in_parts(std::ptrdiff_t rows, std::ptrdiff_t parts, Job job)
{
#pragma omp parallel for num_threads(parts) schedule(static, 1)
    for (std::ptrdiff_t part = 0; part < parts; part++) {
        const std::ptrdiff_t first = rows * part / parts;
        job(first, rows * (part + 1) / parts - first, part);
    }
}

// Writes base plus the splines of x into out.
extern "C" void group_values(
    std::ptrdiff_t groups, std::ptrdiff_t channels, std::ptrdiff_t rows, std::ptrdiff_t parts,
    const T *knots, const T *table, const T *x, const T *base, T *out)
{
    const Layer layer{groups, channels, knots, table};
    in_parts(rows, parts, [&](auto first, auto count, auto) {
        const std::ptrdiff_t at = first * groups * channels;
        values(layer, count, x + at, base + at, out + at);
    });
}

// The same, and base_grad plus the splines' slopes times grad into grad_x, and for each part of
// the rows the gradient in the table into moments (parts, groups, M + 1, SIZE).
extern "C" void group_gradients(
    std::ptrdiff_t groups, std::ptrdiff_t channels, std::ptrdiff_t rows, std::ptrdiff_t parts,
    const T *knots, const T *table, const T *x, const T *base, const T *grad, const T *base_grad,
    T *out, T *grad_x, T *moments)
{
    const Layer layer{groups, channels, knots, table};
    in_parts(rows, parts, [&](auto first, auto count, auto part) {
        const std::ptrdiff_t at = first * groups * channels;
        gradients(
            layer, count, x + at, base + at, grad + at, base_grad + at, out + at, grad_x + at,
            moments + part * groups * (M + 1) * SIZE);
    });
}
