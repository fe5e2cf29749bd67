// The functions of a group-KAN layer on a CPU, for models/group_features.py.
//
// A value is looked up among its group's knots and becomes the polynomial of its interval, to which
// the base is added. The polynomials, each four numbers (or eight, from order 4 on) side by side in
// memory, are turned into vectors of equal powers by shuffles.

#include "vectors.h"

#include <vector>

constexpr int SIZE = (ORDER / 4 + 1) * 4;  // numbers of a polynomial, with padding
constexpr std::ptrdiff_t TABLE = (M + 1) * SIZE;  // those of a group

// What is known of the layer. `knots` (groups, M); `steps` (2, groups) the distance between knots and
// its inverse, or null if they are not even; `table` (groups, M + 1, SIZE) the coefficients,
// lowest power first, of the polynomials before the first knot, on each interval, and behind the
// last.
struct Layer {
    std::ptrdiff_t groups, channels;
    const T *knots, *steps, *table;
};

// A vector of a group's values in its spline.
struct InGroup : Place {
    std::ptrdiff_t row[LANES];  // where each one's polynomial is in the group's table

    explicit InGroup(const Place &place)
        : Place(place)
    {
        for (int i = 0; i < LANES; i++)
            row[i] = SIZE * interval[i];
    }

    // The coefficients at each value, by power.
    void coefficients(const T *table, Values *by_power) const
    {
        const T *from[LANES];
        for (int i = 0; i < LANES; i++)
            from[i] = table + row[i];
        for (int part = 0; part < SIZE; part += 4)
            look_up(from, part, by_power + part);
    }

    // Adds weight · distance^p to each value's interval, in one of four sums: neighbours are often
    // in the same interval, and each would wait for the last.
    void add_moments(Values weight, T *sums) const
    {
        Values power[SIZE];
        for (int i = 0; i < SIZE; i++) {
            power[i] = i <= ORDER ? weight : all(0);
            weight *= distance;
        }
        for (int part = 0; part < SIZE; part += 4) {
            Values *own = power + part;
            transpose(own[0], own[1], own[2], own[3]);
            for (int i = 0; i < 4; i++) {
                Four fours[LANES / 4];
                std::memcpy(fours, own + i, sizeof fours);
                for (int j = 0; j < LANES / 4; j++) {
                    T *sum = sums + i * TABLE + row[i + 4 * j] + part;
                    store(sum, load<Four>(sum) + fours[j]);
                }
            }
        }
    }
};

// Calls step(window, place, group, seen) on all values of some rows. The last vector of a group's
// channels may overlap the one before, which had `seen` of them.
template <class Step>
static inline void for_each(const Layer &layer, std::ptrdiff_t rows, const T *x, Step step)
{
    const std::ptrdiff_t n = layer.channels;
    std::ptrdiff_t at = 0;
    for (std::ptrdiff_t row = 0; row < rows; row++)
        for (std::ptrdiff_t group = 0; group < layer.groups; group++, at += n) {
            const T *knots = layer.knots + group * M;
            const auto find = [&](Values value) {
                const auto knot = [&](int m) { return all(knots[m]); };
                if (layer.steps == nullptr)
                    return Place(value, knot);
                const T *steps = layer.steps + group;
                return Place(value, knot(0), knot(M - 1), all(steps[0]), all(steps[layer.groups]));
            };
            if (n < LANES) {
                const Window<false> window{at, n};
                step(window, InGroup(find(window.load_from(x))), group, 0);
                continue;
            }
            for (std::ptrdiff_t i = 0; i < n; i += LANES) {
                const std::ptrdiff_t first = i + LANES > n ? n - LANES : i;
                const Window<true> window{at + first, LANES};
                step(window, InGroup(find(window.load_from(x))), group, i - first);
            }
        }
}

static void values(const Layer &layer, std::ptrdiff_t rows, const T *x, T *out)
{
    for_each(layer, rows, x, [&](auto window, const InGroup &place, auto group, auto) {
        Values c[SIZE];
        place.coefficients(layer.table + group * TABLE, c);
        Values value = c[ORDER];
        for (int i = ORDER - 1; i >= 0; i--)
            value = value * place.distance + c[i];
        const Base base(window.load_from(x));
        window.store_to(out, base.value + value);
    });
}

static void gradients(
    const Layer &layer, std::ptrdiff_t rows, const T *x, const T *grad, T *out, T *grad_x,
    T *moments)
{
    Indices lane;
    for (int i = 0; i < LANES; i++)
        lane[i] = i;
    std::vector<T> sums(4 * layer.groups * TABLE);
    for_each(layer, rows, x, [&](auto window, const InGroup &place, auto group, auto seen) {
        Values c[SIZE];
        place.coefficients(layer.table + group * TABLE, c);
        Values value = c[ORDER], slope{};
        for (int i = ORDER - 1; i >= 0; i--) {
            slope = slope * place.distance + value;
            value = value * place.distance + c[i];
        }
        const Base base(window.load_from(x));
        const Values weight = window.load_from(grad);
        window.store_to(out, base.value + value);
        window.store_to(grad_x, (base.slope + slope) * weight);
        const Indices is_new = lane >= static_cast<Index>(seen);
        place.add_moments(is_new ? weight : all(0), sums.data() + 4 * group * TABLE);
    });
    for (std::ptrdiff_t group = 0; group < layer.groups; group++)
        for (std::ptrdiff_t i = 0; i < TABLE; i++) {
            const T *sum = sums.data() + 4 * group * TABLE + i;
            moments[group * TABLE + i] = sum[0] + sum[TABLE] + sum[2 * TABLE] + sum[3 * TABLE];
        }
}

// All of x, grad, out and grad_x are (rows, groups, channels), contiguous.

// Writes the base plus the splines of x into out.
extern "C" void group_values(
    std::ptrdiff_t groups, std::ptrdiff_t channels, std::ptrdiff_t rows, std::ptrdiff_t parts,
    const T *knots, const T *steps, const T *table, const T *x, T *out)
{
    const Layer layer{groups, channels, knots, steps, table};
    in_parts(rows, parts, [&](auto first, auto count, auto) {
        const std::ptrdiff_t at = first * groups * channels;
        values(layer, count, x + at, out + at);
    });
}

// The same, from the gradient grad in that the one in x into grad_x, and for each part of the rows
// that in the table into moments (parts, groups, M + 1, SIZE).
extern "C" void group_gradients(
    std::ptrdiff_t groups, std::ptrdiff_t channels, std::ptrdiff_t rows, std::ptrdiff_t parts,
    const T *knots, const T *steps, const T *table, const T *x, const T *grad, T *out, T *grad_x,
    T *moments)
{
    const Layer layer{groups, channels, knots, steps, table};
    in_parts(rows, parts, [&](auto first, auto count, auto part) {
        const std::ptrdiff_t at = first * groups * channels;
        gradients(
            layer, count, x + at, grad + at, out + at, grad_x + at,
            moments + part * groups * TABLE);
    });
}
