// A group-KAN layer on a CPU, for kernels.py: one spline per group of channels, then weights.
//
// A value is looked up among its group's knots and becomes the polynomial of its interval, to which
// the base is added. The values of a few rows at a time are in the cache when they are multiplied.

#include "products.h"

constexpr int SIZE = (ORDER / 4 + 1) * 4;  // numbers of a polynomial, with padding
constexpr std::ptrdiff_t TABLE = (M + 1) * SIZE;  // those of a group

// The layer's sizes and tables. `knots` (groups, M); `steps` (2, groups) the distance between knots and
// its inverse, or null if they are not uniform; `table` the coefficients, lowest power first, of the
// polynomials before the first knot, on each interval, and behind the last, see `looked_up`.
struct Layer {
    std::ptrdiff_t groups, channels;
    const T *knots, *steps, *table;

    std::ptrdiff_t width() const { return groups * channels; }
    std::ptrdiff_t padded_width() const { return rounded_up(width(), LANES); }
    std::ptrdiff_t row() const { return row_apart(padded_width()); }
    // what a caller has to give for each part of the rows: values, their gradient, sums of products,
    // and of the table
    std::ptrdiff_t memory(std::ptrdiff_t out) const
    {
        return ROWS_AT_ONCE * (2 * row() + rounded_up(out, LANES)) + LANES * groups * TABLE;
    }
};

// Where two vectors hold the coefficients of one power, they are looked up in these; else those of a
// polynomial, four (or eight, from order 4 on) side by side in memory, become vectors by shuffles.
#if defined(__AVX512F__) && !defined(__clang__)
#define LOOK_UP_IN_VECTORS
#endif
constexpr std::ptrdiff_t ENTRIES = 2 * LANES;
#ifdef LOOK_UP_IN_VECTORS
constexpr bool IN_VECTORS = M + 1 <= ENTRIES;
#else
constexpr bool IN_VECTORS = false;
#endif
constexpr std::ptrdiff_t LOOKED_UP = IN_VECTORS ? SIZE * ENTRIES : TABLE;  // numbers of a group

// A table (groups, M + 1, SIZE) as it is looked up: as it is, or as (groups, SIZE, ENTRIES).
static std::vector<T> looked_up(std::ptrdiff_t groups, const T *table)
{
    if (!IN_VECTORS)
        return std::vector<T>(table, table + groups * TABLE);
    std::vector<T> by_power(groups * LOOKED_UP);
    for (std::ptrdiff_t group = 0; group < groups; group++)
        for (int power = 0; power < SIZE; power++) {
            const T *from = table + group * TABLE + power;
            for (int i = 0; i <= M; i++)
                by_power[(group * SIZE + power) * ENTRIES + i] = from[i * SIZE];
        }
    return by_power;
}

// A vector of a group's values in its spline.
struct InGroup : Place {
    Values x;

    InGroup(Values x, const Place &place)
        : Place(place), x(x)
    {
    }

    // The coefficients at each value, by power.
    void coefficients(const T *table, Values *by_power) const
    {
#ifdef LOOK_UP_IN_VECTORS
        if constexpr (IN_VECTORS) {
            for (int power = 0; power <= ORDER; power++) {
                const Values first = load<Values>(table + power * ENTRIES);
                const Values second = load<Values>(table + power * ENTRIES + LANES);
                by_power[power] = M < LANES ? __builtin_shuffle(first, interval)
                                            : __builtin_shuffle(first, second, interval);
            }
            return;
        }
#endif
        const T *from[LANES];
        for (int i = 0; i < LANES; i++)
            from[i] = table + SIZE * interval[i];
        for (int part = 0; part < SIZE; part += 4)
            look_up(from, part, by_power + part);
    }

    // Adds weight · distance^p to each value's interval, in sums of each lane: neighbors are often in
    // the same interval, and each would wait for the last.
    void add_moments(Values weight, T *sums) const
    {
        std::ptrdiff_t row[LANES];
        for (int i = 0; i < LANES; i++)
            row[i] = SIZE * interval[i];
        Values power[SIZE];
        for (int i = 0; i < SIZE; i++) {
            power[i] = i <= ORDER ? weight : all(0);
            weight *= distance;
        }
        for (int part = 0; part < SIZE; part += 4)
            for_fours(power + part, [&](int lane, Four four) {
                T *sum = sums + lane * TABLE + row[lane] + part;
                store(sum, load<Four>(sum) + four);
            });
    }
};

// A vector of neighbors in a row, of which `count` from lane `first` on are of one group.
struct WindowOfGroup {
    std::ptrdiff_t at, first, count;

    Indices in_group() const
    {
        Indices lane;
        for (int i = 0; i < LANES; i++)
            lane[i] = i;
        return lane >= static_cast<Index>(first) & lane < static_cast<Index>(first + count);
    }

    // With zeros for other groups.
    Values load_from(const T *row) const
    {
        return in_group() ? load<Values>(row + at) : all(0);
    }

    // What is written behind the group is for the next window to overwrite.
    void store_to(T *row, Values vector) const
    {
        store(row + at, first == 0 ? vector : in_group() ? vector : load<Values>(row + at));
    }
};

// Calls step(window, row, place, group) on all values of some rows, from left to right.
template <class Step>
static inline void for_each(const Layer &layer, std::ptrdiff_t rows, const T *x, Step step)
{
    const std::ptrdiff_t width = layer.width(), n = layer.channels;
    for (std::ptrdiff_t row = 0; row < rows; row++, x += width)
        for (std::ptrdiff_t group = 0; group < layer.groups; group++) {
            const T *knots = layer.knots + group * M;
            const auto at_window = [&](auto window) {
                const Values value = window.load_from(x);
                const auto knot = [&](int m) { return all(knots[m]); };
                if (layer.steps == nullptr)
                    return step(window, row, InGroup(value, Place(value, knot)), group);
                const Values apart = all(layer.steps[group]);
                const Values per_unit = all(layer.steps[layer.groups + group]);
                const Place place(value, knot(0), knot(M - 1), apart, per_unit);
                step(window, row, InGroup(value, place), group);
            };
            if (width < LANES)
                at_window(Window<false>{group * n, n});
            for (std::ptrdiff_t i = 0; width >= LANES && i < n; i += LANES) {
                const std::ptrdiff_t at = std::min(group * n + i, width - LANES);
                const std::ptrdiff_t count = std::min<std::ptrdiff_t>(n - i, LANES);
                at_window(WindowOfGroup{at, group * n + i - at, count});
            }
        }
}

// Writes the base plus the splines of some rows of x (rows, width) into `out`, whose rows are row()
// apart.
static void write_values(const Layer &layer, std::ptrdiff_t rows, const T *x, T *out)
{
    for_each(layer, rows, x, [&](auto window, auto row, const InGroup &place, auto group) {
        Values c[SIZE];
        place.coefficients(layer.table + group * LOOKED_UP, c);
        Values value = c[ORDER];
        for (int i = ORDER - 1; i >= 0; i--)
            value = value * place.distance + c[i];
        window.store_to(out + row * layer.row(), Base(place.x).value + value);
    });
}

// The same, and from the gradient grad in it, whose rows are as far apart, that in x into grad_x; that
// in the table is added to `sums`, which are LANES tables of a group side by side.
static void write_gradients(
    const Layer &layer, std::ptrdiff_t rows, const T *x, const T *grad, T *out, T *grad_x, T *sums)
{
    for_each(layer, rows, x, [&](auto window, auto row, const InGroup &place, auto group) {
        Values c[SIZE];
        place.coefficients(layer.table + group * LOOKED_UP, c);
        Values value = c[ORDER], slope{};
        for (int i = ORDER - 1; i >= 0; i--) {
            slope = slope * place.distance + value;
            value = value * place.distance + c[i];
        }
        const Base base(place.x);
        const Values weight = window.load_from(grad + row * layer.row());
        window.store_to(out + row * layer.row(), base.value + value);
        window.store_to(grad_x + row * layer.width(), (base.slope + slope) * weight);
        place.add_moments(weight, sums + LANES * group * TABLE);
    });
}

// How many numbers the packed weights need, and each thread; see `_memory` in kernels.py.
extern "C" void memory_needed(
    std::ptrdiff_t groups, std::ptrdiff_t channels, std::ptrdiff_t out, std::ptrdiff_t *weights,
    std::ptrdiff_t *thread)
{
    const Layer layer{groups, channels, nullptr, nullptr, nullptr};
    *weights = layer.padded_width() * rounded_up(out, LANES);
    *thread = layer.memory(out);
}

// y (rows, out) of x (rows, width), with weight (out, width) and bias (out) or null.
extern "C" void group_kan_forward(
    std::ptrdiff_t groups, std::ptrdiff_t channels, std::ptrdiff_t out, std::ptrdiff_t rows,
    std::ptrdiff_t parts, const T *knots, const T *steps, const T *table,
    const T *x, const T *weight, const T *bias, T *packed, T *y)
{
    const std::vector<T> lookup_table = looked_up(groups, table);
    const Layer layer{groups, channels, knots, steps, lookup_table.data()};
    const std::ptrdiff_t width = layer.width(), y_row = rounded_up(out, LANES);
    T *memory = packed + layer.padded_width() * y_row;
    in_parts(width, std::min(parts, width), [&](auto begin, auto inputs, auto) {
        for_tiles(y_row, [&](auto first, auto count) {
            T *to = packed + first * width;
            for (std::ptrdiff_t i = begin; i < begin + inputs; i++)
                for (std::ptrdiff_t o = 0; o < count; o++)
                    to[i * count + o] = first + o < out ? weight[(first + o) * width + i] : 0;
        });
    });
    in_parts(rows, parts, [&](auto first, auto count, auto part) {
        T *values = memory + part * layer.memory(out), *padded = values + ROWS_AT_ONCE * layer.row();
        for_rows(first, count, [&](auto at, auto n) {
            T *sums = y_row == out ? y + at * out : padded;
            for (std::ptrdiff_t r = 0; r < n && bias != nullptr; r++)
                std::memcpy(sums + r * y_row, bias, out * sizeof(T));
            write_values(layer, n, x + at * width, values);
            multiply(
                n, y_row, width, {values, layer.row(), 1}, packed, 0, sums, y_row, bias != nullptr);
            if (sums == padded)
                copy_rows(n, out, padded, y_row, y + at * out);
        });
    });
}

// From grad (rows, out) the gradient in x, that in the table by part (parts, groups, M + 1, SIZE), and
// that in the weights, unless its pointer is null.
extern "C" void group_kan_backward(
    std::ptrdiff_t groups, std::ptrdiff_t channels, std::ptrdiff_t out, std::ptrdiff_t rows,
    std::ptrdiff_t parts, const T *knots, const T *steps, const T *table,
    const T *x, const T *weight, const T *grad, T *packed, T *grad_x, T *grad_table,
    T *grad_weight)
{
    const std::vector<T> lookup_table = looked_up(groups, table);
    const Layer layer{groups, channels, knots, steps, lookup_table.data()};
    const std::ptrdiff_t width = layer.width(), columns = layer.padded_width();
    T *memory = packed + columns * rounded_up(out, LANES);
    T *weight_sums = memory + parts * layer.memory(out);
    in_parts(out, std::min(parts, out), [&](auto begin, auto outputs, auto) {
        for_tiles(columns, [&](auto first, auto count) {
            const std::ptrdiff_t there = std::min(count, width - first);
            for (std::ptrdiff_t o = begin; o < begin + outputs; o++) {
                T *to = packed + first * out + o * count;
                std::memcpy(to, weight + o * width + first, there * sizeof(T));
                std::memset(to + there, 0, (count - there) * sizeof(T));
            }
        });
    });
    in_parts(rows, parts, [&](auto first, auto count, auto part) {
        T *values = memory + part * layer.memory(out), *grad_values = values + ROWS_AT_ONCE * layer.row();
        T *sums = grad_values + ROWS_AT_ONCE * layer.row();
        std::memset(sums, 0, LANES * groups * TABLE * sizeof(T));
        for_rows(first, count, [&](auto at, auto n) {
            const T *grad_rows = grad + at * out;
            multiply(n, columns, out, {grad_rows, out, 1}, packed, 0, grad_values, layer.row(), false);
            write_gradients(
                layer, n, x + at * width, grad_values, values, grad_x + at * width, sums);
            if (grad_weight != nullptr)
                multiply(
                    out, columns, n, {grad_rows, 1, out}, values, layer.row(),
                    weight_sums + part * out * columns, columns, at > first);
        });
        T *total = grad_table + part * groups * TABLE;
        std::memset(total, 0, groups * TABLE * sizeof(T));
        for (std::ptrdiff_t group = 0; group < groups; group++, total += TABLE)
            for (int lane = 0; lane < LANES; lane++, sums += TABLE)
                for (std::ptrdiff_t i = 0; i < TABLE; i++)
                    total[i] += sums[i];
    });
    if (grad_weight == nullptr)
        return;
    in_parts(out, std::min(parts, out), [&](auto first, auto count, auto) {
        for (std::ptrdiff_t o = first; o < first + count; o++) {
            T *total = grad_weight + o * width;
            std::memcpy(total, weight_sums + o * columns, width * sizeof(T));
            for (std::ptrdiff_t part = 1; part < parts; part++)
                for (std::ptrdiff_t i = 0; i < width; i++)
                    total[i] += weight_sums[(part * out + o) * columns + i];
        }
    });
}
