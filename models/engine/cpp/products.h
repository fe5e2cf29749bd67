// Products of matrices that are in the cache, for kernels that make their factors there.
//
// A tile of the sums stays in registers while its products are added up, one column of the left factor
// and one row of the right one at a time (Goto and van de Geijn, "Anatomy of high-performance matrix
// multiplication", 2008).

#include "vectors.h"

// A tile: six rows of so many vectors, which leave a few registers for the factors.
constexpr int ROWS = 6;
constexpr int VECTORS = BYTES == 64 ? 4 : 2;

static inline std::ptrdiff_t rounded_up(std::ptrdiff_t number, std::ptrdiff_t multiple)
{
    return (number + multiple - 1) / multiple * multiple;
}

// The first factor: its numbers are so far apart from row to row, and from column to column.
struct Left {
    const T *at;
    std::ptrdiff_t row, column;
};

// sums (R, V · LANES) = left (R, depth) · right (depth, V · LANES), or added to what is there. The
// left factor is not given as a `Left`: one on the stack would be waited for.
template <int R, int V>
__attribute__((noinline)) static void tile(
    std::ptrdiff_t depth, const T *left, std::ptrdiff_t left_row, std::ptrdiff_t left_column,
    const T *right, std::ptrdiff_t right_row, T *sums, std::ptrdiff_t sums_row, bool add)
{
    Values sum[R][V];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            sum[r][v] = add ? load<Values>(sums + r * sums_row + v * LANES) : Values{};
#pragma GCC unroll 1
    for (std::ptrdiff_t k = 0; k < depth; k++) {
        Values row[V];
        for (int v = 0; v < V; v++)
            row[v] = load<Values>(right + k * right_row + v * LANES);
        for (int r = 0; r < R; r++) {
            const Values factor = all(left[r * left_row + k * left_column]);
            for (int v = 0; v < V; v++)
                sum[r][v] += factor * row[v];
        }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            store(sums + r * sums_row + v * LANES, sum[r][v]);
}

// The same for as many rows of those that are there as a tile may have, and returns how many.
template <int R = ROWS, int V = VECTORS, class... Rest>
static int tile_of(std::ptrdiff_t rows, std::ptrdiff_t vectors, Rest... rest)
{
    if constexpr (R > 1)
        if (rows < R)
            return tile_of<(R > 4 ? 4 : R / 2), V>(rows, vectors, rest...);
    if constexpr (V > 1)
        if (vectors < V)
            return tile_of<R, V - 1>(rows, vectors, rest...);
    tile<R, V>(rest...);
    return R;
}

// Calls step(first, count) on each tile of so many columns, which are whole vectors.
template <class Step>
static inline void for_tiles(std::ptrdiff_t columns, Step step)
{
    const std::ptrdiff_t vectors = columns / LANES;
    std::ptrdiff_t tiles = (vectors + VECTORS - 1) / VECTORS;
    for (std::ptrdiff_t at = 0; tiles > 0; tiles--) {
        const std::ptrdiff_t wide = (vectors - at + tiles - 1) / tiles;  // about as wide as the others
        step(at * LANES, wide * LANES);
        at += wide;
    }
}

// sums (rows, columns) = left (rows, depth) · right (depth, columns), or added to what is there.
// Rows of `right` are `right_row` apart; or, if that is 0, it is packed, one tile behind the other.
__attribute__((noinline)) static void multiply(
    std::ptrdiff_t rows, std::ptrdiff_t columns, std::ptrdiff_t depth, Left left, const T *right,
    std::ptrdiff_t right_row, T *sums, std::ptrdiff_t sums_row, bool add)
{
    for_tiles(columns, [&](auto first, auto count) {
        const T *tile_right = right + first * (right_row == 0 ? depth : 1);
        for (std::ptrdiff_t r = 0; r < rows;)
            r += tile_of(
                rows - r, count / LANES, depth, left.at + r * left.row, left.row, left.column, tile_right,
                right_row == 0 ? count : right_row, sums + r * sums_row + first, sums_row, add);
    });
}

// Rows whose factors are in the cache at a time.
constexpr std::ptrdiff_t ROWS_AT_ONCE = 16 * ROWS;

// Calls step(first row, rows) on some rows, so many at a time.
template <class Step>
static inline void for_rows(std::ptrdiff_t first, std::ptrdiff_t count, Step step)
{
    for (std::ptrdiff_t at = first; at < first + count; at += ROWS_AT_ONCE)
        step(at, std::min(ROWS_AT_ONCE, first + count - at));
}

// How far apart rows of so many columns should be in the cache: rows that are a power of two apart
// would be in each other's way there.
static inline std::ptrdiff_t row_apart(std::ptrdiff_t columns)
{
    return columns + (columns / LANES % 2 == 0 ? LANES : 0);
}

// Copies rows of so many columns from where they are padded.
static inline void copy_rows(
    std::ptrdiff_t rows, std::ptrdiff_t columns, const T *from, std::ptrdiff_t from_row, T *to)
{
    for (std::ptrdiff_t r = 0; r < rows; r++)
        std::memcpy(to + r * columns, from + r * from_row, columns * sizeof(T));
}
