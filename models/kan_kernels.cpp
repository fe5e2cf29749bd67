// The features of a KAN layer on a CPU, [b(x), B_1(x) ... B_n(x)], for models/kan_kernels.py; and its
// weights in the order of the features, for models/kan_weights.py.
//
// A value is looked up among the knots of its feature. The ORDER + 1 B-splines that are not zero
// there are polynomials: of even knots always the same, of others looked up as well. Each of the n
// functions then is one of them, or zero.

#include "vectors.h"

constexpr int POWERS = ORDER + 1;
constexpr int LOCAL = (ORDER / 4 + 1) * 4;  // functions that are not zero, with padding
constexpr int COUNT = M - ORDER - 1;  // functions
constexpr int FIRST = BASE != NONE;  // features before the splines
constexpr int FEATURES = FIRST + COUNT;
constexpr std::ptrdiff_t TABLE = (M + 1) * POWERS * LOCAL;  // numbers of one input
// Of uneven knots, inputs and rows at a time, so that the inputs' tables stay in the cache.
constexpr std::ptrdiff_t INPUTS = 2 * LANES, ROWS = 8;

// What is known of the layer. `knots` (M, width); `steps` (2, width) the distance between knots and
// its inverse, or null if they are not even; `table` (width, M + 1, POWERS, LOCAL) the
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

// The B-splines that are not zero at a vector of neighbours in a row of x.
struct Local : Place {
    Values value[LOCAL], slope[LOCAL];

    // Of even knots, of which there are `per_unit` in one.
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
        Values own{};
        for (int r = 0; r < POWERS; r++) {
            const Indices here = interval == static_cast<Index>(j + 1 + ORDER - r) + Indices{};
            own = here ? local[r] : own;
        }
        return own;
    }
};

// Calls step(window, row, place) for some inputs of some rows; FULL, if they fill a vector.
template <bool EVEN, bool FULL, class Step>
static inline void for_inputs(
    const Layer &layer, std::ptrdiff_t first_row, std::ptrdiff_t last_row, std::ptrdiff_t begin,
    std::ptrdiff_t end, const T *x, Step step)
{
    const std::ptrdiff_t width = layer.width;
    for (std::ptrdiff_t row = first_row; row < last_row; row++)
        for (std::ptrdiff_t i = begin; i < end; i += LANES) {
            const std::ptrdiff_t at = FULL && i + LANES > width ? width - LANES : i;
            const Window<FULL> window{at, width < LANES ? width : LANES};
            const Values value = window.load_from(x + row * width);
            const auto knot = [&](int m) { return window.load_from(layer.knots + m * width); };
            if (EVEN) {
                const Values apart = window.load_from(layer.steps);
                const Values per_unit = window.load_from(layer.steps + width);
                const Place place(value, knot(0), knot(M - 1), apart, per_unit);
                step(window, row, Local(place, per_unit));
                continue;
            }
            const T *tables[LANES];
            for (int lane = 0; lane < LANES; lane++)
                tables[lane] = layer.table + (at + (FULL || lane < width ? lane : 0)) * TABLE;
            step(window, row, Local(Place(value, knot), tables));
        }
}

// The same for all; the last vector of a row may overlap the one before.
template <bool EVEN, class Step>
static inline void for_blocks(const Layer &layer, std::ptrdiff_t rows, const T *x, Step step)
{
    if (layer.width < LANES)
        for_inputs<EVEN, false>(layer, 0, rows, 0, 1, x, step);
    else if (EVEN)
        for_inputs<EVEN, true>(layer, 0, rows, 0, layer.width, x, step);
    else
        for (std::ptrdiff_t first = 0; first < rows; first += ROWS) {
            const std::ptrdiff_t last = first + ROWS < rows ? first + ROWS : rows;
            for (std::ptrdiff_t begin = 0; begin < layer.width; begin += INPUTS) {
                const std::ptrdiff_t end = begin + INPUTS;
                for_inputs<EVEN, true>(
                    layer, first, last, begin, end < layer.width ? end : layer.width, x, step);
            }
        }
}

template <class Step>
static inline void for_each(const Layer &layer, std::ptrdiff_t rows, const T *x, Step step)
{
    if (layer.steps == nullptr)
        for_blocks<false>(layer, rows, x, step);
    else
        for_blocks<true>(layer, rows, x, step);
}

// x and grad_x are (rows, width), out and grad (rows, FEATURES, width), contiguous.

// Writes the features of x into out.
extern "C" void kan_features(
    std::ptrdiff_t width, std::ptrdiff_t rows, std::ptrdiff_t parts, const T *knots,
    const T *steps, const T *table, const T *x, T *out)
{
    const Layer layer{width, knots, steps, table};
    in_parts(rows, parts, [&](auto first, auto count, auto) {
        const T *own_x = x + first * width;
        T *own_out = out + first * FEATURES * width;
        for_each(layer, count, own_x, [&](auto window, auto row, const Local &place) {
            T *to = own_out + row * FEATURES * width;
            if (FIRST) {
                const Base base(window.load_from(own_x + row * width));
                window.store_to(to, base.value);
            }
            for (int j = 0; j < COUNT; j++)
                window.store_to(to + (FIRST + j) * width, place.of_function(j, place.value));
        });
    });
}

// The same, and from the features' gradient grad that in x into grad_x.
extern "C" void kan_gradients(
    std::ptrdiff_t width, std::ptrdiff_t rows, std::ptrdiff_t parts, const T *knots,
    const T *steps, const T *table, const T *x, const T *grad, T *out, T *grad_x)
{
    const Layer layer{width, knots, steps, table};
    in_parts(rows, parts, [&](auto first, auto count, auto) {
        const T *own_x = x + first * width, *own_grad = grad + first * FEATURES * width;
        T *own_out = out + first * FEATURES * width, *own_grad_x = grad_x + first * width;
        for_each(layer, count, own_x, [&](auto window, auto row, const Local &place) {
            T *to = own_out + row * FEATURES * width;
            const T *from = own_grad + row * FEATURES * width;
            Values total{};
            if (FIRST) {
                const Base base(window.load_from(own_x + row * width));
                window.store_to(to, base.value);
                total = base.slope * window.load_from(from);
            }
            for (int j = 0; j < COUNT; j++) {
                const std::ptrdiff_t at = (FIRST + j) * width;
                window.store_to(to + at, place.of_function(j, place.value));
                total += place.of_function(j, place.slope) * window.load_from(from + at);
            }
            window.store_to(own_grad_x + row * width, total);
        });
    });
}

// base and scaler (out, width), or null; spline (out, width, COUNT); packed (out, FEATURES, width).

// Writes the weights into packed.
extern "C" void kan_pack(
    std::ptrdiff_t width, std::ptrdiff_t out, std::ptrdiff_t parts, const T *base, const T *spline,
    const T *scaler, T *packed)
{
    in_parts(out, parts, [&](auto first, auto count, auto) {
        for (std::ptrdiff_t o = first; o < first + count; o++) {
            const T *from = spline + o * width * COUNT;
            T *to = packed + o * FEATURES * width;
            if (FIRST)
                std::memcpy(to, base + o * width, width * sizeof(T));
            for (int j = 0; j < COUNT; j++) {
                T *row = to + (FIRST + j) * width;
                const T *scale = scaler + o * width;
#pragma GCC ivdep
                for (std::ptrdiff_t i = 0; i < width; i++)
                    row[i] = (scaler == nullptr ? T(1) : scale[i]) * from[i * COUNT + j];
            }
        }
    });
}

// From the gradient in packed, grad, writes those in the weights that are there.
extern "C" void kan_unpack(
    std::ptrdiff_t width, std::ptrdiff_t out, std::ptrdiff_t parts, const T *grad, const T *spline,
    const T *scaler, T *grad_base, T *grad_spline, T *grad_scaler)
{
    in_parts(out, parts, [&](auto first, auto count, auto) {
        for (std::ptrdiff_t o = first; o < first + count; o++) {
            const T *from = grad + o * FEATURES * width, *weight = spline + o * width * COUNT;
            T *to = grad_spline + o * width * COUNT;
            if (FIRST)
                std::memcpy(grad_base + o * width, from, width * sizeof(T));
            for (std::ptrdiff_t i = 0; i < width; i++) {
                const T scale = scaler == nullptr ? T(1) : scaler[o * width + i];
                T sum = 0;
                for (int j = 0; j < COUNT; j++) {
                    const T own = from[(FIRST + j) * width + i];
                    to[i * COUNT + j] = scale * own;
                    sum += own * weight[i * COUNT + j];
                }
                if (scaler != nullptr)
                    grad_scaler[o * width + i] = sum;
            }
        }
    });
}
