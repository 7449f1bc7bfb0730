/* Products with packed weights, for CPU, float32: y = x @ weight.T + bias.
 *
 * Weights lie in panels of panel_width() outputs, [panels][depth][width], the last padded with zeros: a product reads
 * them once from front to back, whatever the number of rows. A tile is as many rows of x by as many columns of y as fit
 * into registers (Goto & van de Geijn 2008); one row takes four panels at once, so that enough reads are under way.
 */
#include <stdint.h>
#include <string.h>

#ifdef __AVX512F__
#define LANES 16
#else
#define LANES 8
#endif
#define WIDTH (2 * LANES)
#define ROWS 6              /* of the largest tile: 12 sums, two weights and one value are 15 of 16 registers */
#define WORTH_THREADS 65536 /* multiplications */

typedef int64_t i64;
typedef float vec __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

/* What a tile needs: x and y at its first row, weight, bias (or null) and y at its first column. */
struct task {
    const float *x, *weight, *bias;
    float *y;
    i64 x_row, depth, out, columns; /* columns: those of y from here on */
};

static void store(const struct task *t, float *y, const float *sums, i64 count) {
    for (i64 c = 0; c < count && c < t->columns; c++) y[c] = sums[c] + (t->bias ? t->bias[c] : 0.0f);
}

/* Sums must be an array of constant size for the compiler to keep them in registers: hence a macro. */
#define TILE(R, P)                                                                                                  \
    static void tile_##R##_##P(const struct task *t) {                                                              \
        vec sums[R][2 * P];                                                                                         \
        memset(sums, 0, sizeof sums);                                                                               \
        for (i64 i = 0; i < t->depth; i++) {                                                                        \
            vec weight[2 * P];                                                                                      \
            _Pragma("GCC unroll 8") for (int c = 0; c < 2 * P; c++) weight[c] =                                     \
                *(const vec *)(t->weight + (c / 2 * t->depth + i) * WIDTH + c % 2 * LANES);                         \
            _Pragma("GCC unroll 8") for (int r = 0; r < R; r++) {                                                   \
                const float value = t->x[r * t->x_row + i];                                                         \
                _Pragma("GCC unroll 8") for (int c = 0; c < 2 * P; c++) sums[r][c] += value * weight[c];            \
            }                                                                                                       \
        }                                                                                                           \
        for (int r = 0; r < R; r++) store(t, t->y + r * t->out, (const float *)sums[r], P * WIDTH);                 \
    }
TILE(1, 1) TILE(2, 1) TILE(3, 1) TILE(4, 1) TILE(5, 1) TILE(6, 1) TILE(1, 4)

static void (*const TILES[ROWS + 1])(const struct task *) = {
    0, tile_1_1, tile_2_1, tile_3_1, tile_4_1, tile_5_1, tile_6_1,
};

i64 panel_width(void) { return WIDTH; }

/* x [rows, depth] with its stride -> y [rows, out], contiguous. */
void linear(const float *x, const float *weight, const float *bias, float *y, i64 rows, i64 depth, i64 out, i64 x_row) {
    const i64 panels = (out + WIDTH - 1) / WIDTH, step = rows == 1 ? 4 : 1, groups = panels / step;
#pragma omp parallel for schedule(static) if (rows * depth * out > WORTH_THREADS)
    for (i64 index = 0; index < groups + panels % step; index++) {
        const i64 panel = index < groups ? index * step : groups * step + index - groups, column = panel * WIDTH;
        struct task t = {x, weight + panel * depth * WIDTH, bias ? bias + column : 0, y + column, x_row, depth, out,
                         out - column};
        if (step > 1 && index < groups) {
            tile_1_4(&t);
            continue;
        }
        for (i64 row = 0; row < rows; row += ROWS, t.x += ROWS * x_row, t.y += ROWS * out)
            TILES[rows - row < ROWS ? rows - row : ROWS](&t);
    }
}
