// A KAN layer on a CPU, for kernels.py: features [b(x), B_1(x) ... B_n(x)] times weights.
//
// A value is looked up among the knots of its feature. The ORDER + 1 B-splines that are not zero
// there are polynomials: on uniform knots always the same, on others looked up as well. Each of the
// n functions is one of them, or zero.

#include "products.h"

constexpr int POWERS = ORDER + 1;
constexpr int LOCAL = (ORDER / 4 + 1) * 4;  // functions that are not zero, with padding
constexpr int COUNT = M - ORDER - 1;  // functions
constexpr int FIRST = BASE != NONE;  // features before the splines
constexpr int FEATURES = FIRST + COUNT;
constexpr int AT_ONCE = COUNT < 4 ? COUNT : 4;  // weights of an edge
constexpr std::ptrdiff_t TABLE = (M + 1) * POWERS * LOCAL;  // numbers of one input
// On knots that are not uniform, inputs and rows at a time: the inputs' tables stay in the cache.
constexpr std::ptrdiff_t TABLES = 2 * LANES, TABLE_ROWS = 8;

// The layer's sizes and tables. `knots` (M, width); `steps` (2, width) the distance between knots and
// its inverse, or null if they are not uniform; `table` (width, M + 1, POWERS, LOCAL) the
// coefficients, lowest power first, of the polynomials before the first knot, on each interval, and
// behind the last.
struct Layer {
    std::ptrdiff_t width;
    const T *knots, *steps, *table;
};

// The B-splines of knots at the integers that are not zero between 0 and 1, as polynomials: by
// function and power, by the recursion of Cox and de Boor.
struct Cardinal {
    double of[POWERS][POWERS] = {};

    constexpr Cardinal()
    {
        of[0][0] = 1;
        for (int k = 1; k <= ORDER; k++)
            for (int r = k; r >= 0; r--)  // each from itself and the one before, of degree k - 1
                for (int power = k; power >= 0; power--) {
                    double sum = (r + 1) * of[r][power];
                    if (power > 0)
                        sum -= of[r][power - 1];
                    if (r > 0)
                        sum += (k - r) * of[r - 1][power];
                    if (r > 0 && power > 0)
                        sum += of[r - 1][power - 1];
                    of[r][power] = sum / k;
                }
    }
};

// The B-splines that are not zero at a vector of neighbors in a row of x.
struct Local : Place {
    Values value[LOCAL], slope[LOCAL];

    // On uniform knots, with `per_unit` of them in a unit of x.
    Local(const Place &place, Values per_unit)
        : Place(place)
    {
        constexpr Cardinal cardinal;
        const Values t = distance * per_unit;
        for (int r = 0; r < POWERS; r++) {
            value[r] = all(T(cardinal.of[r][ORDER]));
            slope[r] = Values{};
            for (int power = ORDER - 1; power >= 0; power--) {
                slope[r] = slope[r] * t + value[r];
                value[r] = value[r] * t + all(T(cardinal.of[r][power]));
            }
            slope[r] *= per_unit;
        }
    }

    Local(const Place &place, const T *const *tables)
        : Place(place)
    {
        const T *from[LANES];
        for (int i = 0; i < LANES; i++)
            from[i] = tables[i] + interval[i] * (POWERS * LOCAL);
        for (int part = 0; part < LOCAL; part += 4) {
            look_up(from, ORDER * LOCAL + part, value + part);
            for (int r = part; r < part + 4; r++)
                slope[r] = Values{};
            for (int power = ORDER - 1; power >= 0; power--) {
                Values c[4];
                look_up(from, power * LOCAL + part, c);
                for (int r = 0; r < 4; r++) {
                    slope[part + r] = slope[part + r] * distance + value[part + r];
                    value[part + r] = value[part + r] * distance + c[r];
                }
            }
        }
    }

    // Of the j-th function, given what the local ones have.
    Values of_function(int j, const Values *local) const
    {
        Values selected{};
        for (int r = 0; r < POWERS; r++) {
            const Indices here = interval == static_cast<Index>(j + 1 + ORDER - r) + Indices{};
            selected = here ? local[r] : selected;
        }
        return selected;
    }
};

// Calls step(window, row, place) for the inputs from `begin` to `end` of some rows.
template <bool UNIFORM, class Step>
static inline void for_inputs(
    const Layer &layer, std::ptrdiff_t first_row, std::ptrdiff_t last_row, std::ptrdiff_t begin,
    std::ptrdiff_t end, const T *x, Step step)
{
    const std::ptrdiff_t width = layer.width;
    const auto at_window = [&](auto window, std::ptrdiff_t row) {
        const Values value = window.load_from(x + row * width);
        const auto knot = [&](int m) { return window.load_from(layer.knots + m * width); };
        if (UNIFORM) {
            const Values apart = window.load_from(layer.steps);
            const Values per_unit = window.load_from(layer.steps + width);
            const Place place(value, knot(0), knot(M - 1), apart, per_unit);
            return step(window, row, Local(place, per_unit));
        }
        const T *tables[LANES];
        for (int lane = 0; lane < LANES; lane++)
            tables[lane] = layer.table + (window.at + (lane < window.count ? lane : 0)) * TABLE;
        step(window, row, Local(Place(value, knot), tables));
    };
    for (std::ptrdiff_t row = first_row; row < last_row; row++)
        for (std::ptrdiff_t i = begin; i < end; i += LANES)
            if (i + LANES <= end)
                at_window(Window<true>{i, LANES}, row);
            else
                at_window(Window<false>{i, end - i}, row);
}

// A block of the inputs: those from `begin` to `end`, whose features are padded to whole vectors.
struct Block {
    std::ptrdiff_t begin, end;

    std::ptrdiff_t inputs() const { return rounded_up(end - begin, LANES); }
    std::ptrdiff_t columns() const { return FEATURES * inputs(); }
    std::ptrdiff_t row() const { return row_apart(columns()); }
};

template <class Step>
static inline void for_each(
    const Layer &layer, std::ptrdiff_t rows, Block block, const T *x, Step step)
{
    if (layer.steps != nullptr)
        return for_inputs<true>(layer, 0, rows, block.begin, block.end, x, step);
    for (std::ptrdiff_t first = 0; first < rows; first += TABLE_ROWS)
        for (std::ptrdiff_t i = block.begin; i < block.end; i += TABLES)
            for_inputs<false>(
                layer, first, std::min(first + TABLE_ROWS, rows), i, std::min(i + TABLES, block.end),
                x, step);
}

// Writes the features of a block of some rows of x (rows, width) into `features`, (FEATURES, inputs)
// in each row.
static void write_features(
    const Layer &layer, std::ptrdiff_t rows, Block block, const T *x, T *features)
{
    for_each(layer, rows, block, x, [&](auto window, auto row, const Local &place) {
        T *to = features + row * block.row() + window.at - block.begin;
        if (FIRST)
            store(to, Base(window.load_from(x + row * layer.width)).value);
        for (int j = 0; j < COUNT; j++)
            store(to + (FIRST + j) * block.inputs(), place.of_function(j, place.value));
    });
}

// The same, and from the features' gradient grad, which lies like them, that in x into grad_x.
static void write_gradients(
    const Layer &layer, std::ptrdiff_t rows, Block block, const T *x, const T *grad, T *features,
    T *grad_x)
{
    for_each(layer, rows, block, x, [&](auto window, auto row, const Local &place) {
        const std::ptrdiff_t at = row * block.row() + window.at - block.begin;
        Values total{};
        if (FIRST) {
            const Base base(window.load_from(x + row * layer.width));
            store(features + at, base.value);
            total = base.slope * load<Values>(grad + at);
        }
        for (int j = 0; j < COUNT; j++) {
            const std::ptrdiff_t column = at + (FIRST + j) * block.inputs();
            store(features + column, place.of_function(j, place.value));
            total += place.of_function(j, place.slope) * load<Values>(grad + column);
        }
        window.store_to(grad_x + row * layer.width, total);
    });
}

// The inputs in blocks, and a few rows at a time, so that a block's features are in the cache when
// they are multiplied.
struct Blocks {
    // features of a row, and weights of them, in a block
    static constexpr std::ptrdiff_t COLUMNS = 64 * LANES, WEIGHTS = (1 << 13) * LANES;

    std::ptrdiff_t width, out, inputs;  // these, in all blocks but perhaps the last

    Blocks(std::ptrdiff_t width, std::ptrdiff_t out)
        : width(width), out(out)
    {
        const std::ptrdiff_t most = std::min(COLUMNS, WEIGHTS / out) / FEATURES;
        const std::ptrdiff_t fitting = std::max<std::ptrdiff_t>(most / LANES, 1) * LANES;
        const std::ptrdiff_t count = (width + fitting - 1) / fitting;
        inputs = rounded_up((width + count - 1) / count, LANES);
    }

    std::ptrdiff_t count() const { return (width + inputs - 1) / inputs; }
    Block block(std::ptrdiff_t number) const
    {
        return {number * inputs, std::min((number + 1) * inputs, width)};
    }
    std::ptrdiff_t padded_out() const { return rounded_up(out, LANES); }
    // of numbers, for all blocks
    std::ptrdiff_t columns() const { return FEATURES * rounded_up(width, LANES); }
    // what a caller has to give for each part of the rows: features, their gradient, and sums
    std::ptrdiff_t memory() const { return ROWS_AT_ONCE * (2 * block(0).row() + padded_out()); }
};

// The parameters: base and scaler (out, width), or null; spline (out, width, COUNT).
struct Weights {
    const T *base, *spline, *scaler;
};

// Calls step(first, known) on AT_ONCE functions of an edge at a time; of the last ones the first `known`
// were there before.
template <class Step>
static inline void for_functions(Step step)
{
    for (int j = 0; j < COUNT; j += 4) {
        const int first = std::min(j, COUNT - AT_ONCE);
        step(first, j - first);
    }
}

// Packs weights as the right factor of a block's features, (columns, out): a tile of it, for `count`
// outputs from `first` on, where those that are not there may be anything.
static void pack_forward(
    const Blocks &blocks, Weights weights, Block block, std::ptrdiff_t first, std::ptrdiff_t count,
    T *packed)
{
    if (block.end - block.begin < block.inputs())
        std::memset(packed, 0, count * block.columns() * sizeof(T));
    for (std::ptrdiff_t i = block.begin; i < block.end; i++)
        for (std::ptrdiff_t o = 0; o < count; o += LANES) {
            Values base{}, scale = all(1);
            const T *spline[LANES];
            for (int lane = 0; lane < LANES; lane++) {
                const std::ptrdiff_t output = std::min(first + o + lane, blocks.out - 1);
                const std::ptrdiff_t edge = output * blocks.width + i;
                spline[lane] = weights.spline + edge * COUNT;
                if (FIRST)
                    base[lane] = weights.base[edge];
                if (weights.scaler != nullptr)
                    scale[lane] = weights.scaler[edge];
            }
            T *to = packed + (i - block.begin) * count + o;
            const std::ptrdiff_t apart = block.inputs() * count;  // from feature to feature
            if (FIRST)
                store(to, base);
            for_functions([&](int j, int) {
                Values coefficients[4];
                look_up<AT_ONCE>(spline, j, coefficients);
                for (int r = 0; r < AT_ONCE; r++)
                    store(to + (FIRST + j + r) * apart, scale * coefficients[r]);
            });
        }
}

// Packs them as the right factor of the gradient, (out, columns): those of output o. `row` has space
// for them.
static void pack_backward(
    const Blocks &blocks, Weights weights, Block block, std::ptrdiff_t o, T *packed, T *row)
{
    const std::ptrdiff_t width = blocks.width, begin = block.begin, end = block.end;
    const T *spline = weights.spline + o * width * COUNT;
    const T *scale = weights.scaler == nullptr ? nullptr : weights.scaler + o * width;
    if (end - begin < block.inputs())
        std::memset(row, 0, block.columns() * sizeof(T));
    if (FIRST)
        std::memcpy(row, weights.base + o * width + begin, (end - begin) * sizeof(T));
    for (int j = 0; j < COUNT; j++) {
        T *to = row + (FIRST + j) * block.inputs() - begin;
#pragma GCC ivdep
        for (std::ptrdiff_t i = begin; i < end; i++)
            to[i] = (scale == nullptr ? T(1) : scale[i]) * spline[i * COUNT + j];
    }
    for_tiles(block.columns(), [&](auto first, auto count) {
        std::memcpy(packed + first * blocks.out + o * count, row + first, count * sizeof(T));
    });
}

// How many numbers the packed weights need, and each thread; see `_memory` in kernels.py.
extern "C" void memory_needed(
    std::ptrdiff_t width, std::ptrdiff_t out, std::ptrdiff_t *weights, std::ptrdiff_t *thread)
{
    const Blocks blocks(width, out);
    *weights = blocks.columns() * blocks.padded_out();
    *thread = blocks.memory();
}

// y (rows, out) of x (rows, width).
extern "C" void kan_forward(
    std::ptrdiff_t width, std::ptrdiff_t out, std::ptrdiff_t rows, std::ptrdiff_t parts,
    const T *knots, const T *steps, const T *table, const T *x, const T *base, const T *spline,
    const T *scaler, T *packed, T *y)
{
    const Layer layer{width, knots, steps, table};
    const Blocks blocks(width, out);
    const std::ptrdiff_t y_row = blocks.padded_out();
    T *memory = packed + blocks.columns() * y_row;
    const auto weights = [&](Block block) { return packed + block.begin * FEATURES * y_row; };
    in_parts(parts, parts, [&](auto part, auto, auto) {
        std::ptrdiff_t tiles = 0;  // of which each thread takes its share
        for (std::ptrdiff_t number = 0; number < blocks.count(); number++)
            for_tiles(y_row, [&](auto first, auto count) {
                const Block block = blocks.block(number);
                T *to = weights(block) + first * block.columns();
                if (tiles++ % parts == part)
                    pack_forward(blocks, {base, spline, scaler}, block, first, count, to);
            });
    });
    in_parts(rows, parts, [&](auto first, auto count, auto part) {
        T *features = memory + part * blocks.memory();
        T *padded = features + ROWS_AT_ONCE * blocks.block(0).row();
        for_rows(first, count, [&](auto at, auto n) {
            T *sums = y_row == out ? y + at * out : padded;
            for (std::ptrdiff_t number = 0; number < blocks.count(); number++) {
                const Block block = blocks.block(number);
                write_features(layer, n, block, x + at * width, features);
                multiply(
                    n, y_row, block.columns(), {features, block.row(), 1}, weights(block), 0, sums,
                    y_row, number > 0);
            }
            if (sums == padded)
                copy_rows(n, out, padded, y_row, y + at * out);
        });
    });
}

// From grad (rows, out), the gradient in x and those in the parameters that are there. Without grad_x,
// or without grad_spline, the one or the others are left out.
extern "C" void kan_backward(
    std::ptrdiff_t width, std::ptrdiff_t out, std::ptrdiff_t rows, std::ptrdiff_t parts,
    const T *knots, const T *steps, const T *table, const T *x, const T *base, const T *spline,
    const T *scaler, const T *grad, T *packed, T *grad_x, T *grad_base, T *grad_spline,
    T *grad_scaler)
{
    const Layer layer{width, knots, steps, table};
    const Blocks blocks(width, out);
    const auto place = [&](Block block) { return block.begin * FEATURES * out; };
    const std::ptrdiff_t size = blocks.columns() * out;
    T *memory = packed + blocks.columns() * blocks.padded_out();
    T *weight_sums = memory + parts * blocks.memory();
    if (grad_x != nullptr)
        in_parts(out, std::min(parts, out), [&](auto first, auto count, auto part) {
            for (std::ptrdiff_t number = 0; number < blocks.count(); number++)
                for (std::ptrdiff_t o = first; o < first + count; o++) {
                    const Block block = blocks.block(number);
                    pack_backward(
                        blocks, {base, spline, scaler}, block, o, packed + place(block),
                        memory + part * blocks.memory());
                }
        });
    in_parts(rows, parts, [&](auto first, auto count, auto part) {
        T *features = memory + part * blocks.memory();
        T *grad_features = features + ROWS_AT_ONCE * blocks.block(0).row();
        for (std::ptrdiff_t number = 0; number < blocks.count(); number++) {
            const Block block = blocks.block(number);
            for_rows(first, count, [&](auto at, auto n) {
                const T *grad_rows = grad + at * out, *x_rows = x + at * width;
                if (grad_x == nullptr) {
                    write_features(layer, n, block, x_rows, features);
                } else {
                    multiply(
                        n, block.columns(), out, {grad_rows, out, 1}, packed + place(block), 0,
                        grad_features, block.row(), false);
                    write_gradients(
                        layer, n, block, x_rows, grad_features, features, grad_x + at * width);
                }
                if (grad_spline != nullptr)
                    multiply(
                        out, block.columns(), n, {grad_rows, 1, out}, features, block.row(),
                        weight_sums + part * size + place(block), block.columns(), at > first);
            });
        }
    });
    if (grad_spline == nullptr)
        return;
    in_parts(out, std::min(parts, out), [&](auto first, auto count, auto) {
        const auto at_window = [&](auto window, Block block, const T *sums) {
            const auto sum = [&](int feature) {
                Values total{};
                for (std::ptrdiff_t part = 0; part < parts; part++)
                    total += load<Values>(sums + part * size + feature * block.inputs());
                return total;
            };
            if (FIRST)
                window.store_to(grad_base, sum(0));
            const T *coefficients[LANES];
            for (int lane = 0; lane < LANES; lane++)
                coefficients[lane] = spline + (window.at + (lane < window.count ? lane : 0)) * COUNT;
            const Values scale = scaler == nullptr ? all(1) : window.load_from(scaler);
            Values in_scale{};
            for_functions([&](int j, int known) {
                Values weight[4], total[4] = {};
                look_up<AT_ONCE>(coefficients, j, weight);
                for (int r = 0; r < AT_ONCE; r++) {
                    const Values gradient = sum(FIRST + j + r);
                    in_scale += r < known ? Values{} : gradient * weight[r];
                    total[r] = scale * gradient;
                }
                for_fours(total, [&](int lane, Four four) {
                    if (lane < window.count)
                        std::memcpy(
                            grad_spline + (window.at + lane) * COUNT + j, &four,
                            AT_ONCE * sizeof(T));
                });
            });
            if (scaler != nullptr)
                window.store_to(grad_scaler, in_scale);
        };
        for (std::ptrdiff_t o = first; o < first + count; o++)
            for (std::ptrdiff_t number = 0; number < blocks.count(); number++) {
                const Block block = blocks.block(number);
                const T *sums = weight_sums + place(block) + o * block.columns();
                for (std::ptrdiff_t i = block.begin; i < block.end; i += LANES, sums += LANES)
                    if (i + LANES <= block.end)
                        at_window(Window<true>{o * width + i, LANES}, block, sums);
                    else
                        at_window(Window<false>{o * width + i, block.end - i}, block, sums);
            }
    });
}
