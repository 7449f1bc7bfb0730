/* The operations between the matrix products of a step, for CPU, float32. See ops.py for what each computes.
 *
 * Strides are in elements; the last dimension of every tensor is contiguous. Loops of a few microseconds stay on one
 * thread: waking another costs more. Threads are torch's own: this library leaves OpenMP's symbols undefined, and the
 * loader binds them to the libgomp that torch has brought.
 */
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

#define WORTH_THREADS 65536 /* multiplications */
#define BLOCK 64            /* keys between two looks at the maximum */

typedef int64_t i64;

/* e^x, to 2 units in the last place: 2^n * e^r with |r| <= ln(2) / 2, e^r by its Taylor series to the sixth power. */
static inline float exp_(float x) {
    x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
    const float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the sum's low bits are the rounded quotient */
    const float n = shifted - 12582912.0f;
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f; /* ln(2) in two parts */
    const float series =
        1.0f + r * (1.0f + r * (0.5f + r * (1.0f / 6 + r * (1.0f / 24 + r * (1.0f / 120 + r * (1.0f / 720))))));
    const union { float value; int32_t bits; } power = {.bits = ((int32_t)n + 127) << 23};
    return series * power.value;
}

static inline float dot(const float *a, const float *b, i64 size) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (i64 i = 0; i < size; i++) sum += a[i] * b[i];
    return sum;
}

static inline void norm_row(const float *x, const float *weight, float *out, i64 size, float eps) {
    const float scale = 1.0f / sqrtf(dot(x, x, size) / (float)size + eps);
#pragma omp simd
    for (i64 i = 0; i < size; i++) out[i] = x[i] * scale * weight[i];
}

/* x [tokens, heads, size] -> out, contiguous. */
void rms_norm(const float *x, const float *weight, float *out, i64 tokens, i64 heads, i64 size, i64 x_token, i64 x_head,
              float eps) {
#pragma omp parallel for if (tokens * heads * size > WORTH_THREADS)
    for (i64 row = 0; row < tokens * heads; row++)
        norm_row(x + row / heads * x_token + row % heads * x_head, weight, out + row * size, size, eps);
}

/* x, residual [tokens, size] -> total = x + residual, out = its norm; all contiguous. */
void add_rms_norm(const float *x, const float *residual, const float *weight, float *out, float *total, i64 tokens,
                  i64 size, float eps) {
#pragma omp parallel for if (tokens * size > WORTH_THREADS)
    for (i64 token = 0; token < tokens; token++) {
        const i64 row = token * size;
#pragma omp simd
        for (i64 i = row; i < row + size; i++) total[i] = x[i] + residual[i];
        norm_row(total + row, weight, out + row, size, eps);
    }
}

/* x [tokens, heads, 2 * half] -> out, contiguous; cos, sin [tokens, 2 * half]. */
void rotate(const float *x, const float *cos, const float *sin, float *out, i64 tokens, i64 heads, i64 half, i64 x_token,
            i64 x_head) {
#pragma omp parallel for if (tokens * heads * half > WORTH_THREADS)
    for (i64 row = 0; row < tokens * heads; row++) {
        const float *first = x + row / heads * x_token + row % heads * x_head, *second = first + half;
        const float *c = cos + row / heads * 2 * half, *s = sin + row / heads * 2 * half;
        float *to = out + row * 2 * half;
#pragma omp simd
        for (i64 i = 0; i < half; i++) {
            to[i] = first[i] * c[i] - second[i] * s[i];
            to[half + i] = second[i] * c[half + i] + first[i] * s[half + i];
        }
    }
}

/* x [tokens, 2 * size] contiguous -> out [tokens, size]. */
void silu_mul(const float *x, float *out, i64 tokens, i64 size) {
#pragma omp parallel for collapse(2) if (16 * tokens * size > WORTH_THREADS)
    for (i64 token = 0; token < tokens; token++)
        for (i64 block = 0; block < size; block += 256) {
            const float *gate = x + token * 2 * size, *up = gate + size;
            const i64 end = block + 256 < size ? block + 256 : size;
#pragma omp simd
            for (i64 i = block; i < end; i++) out[token * size + i] = gate[i] / (1.0f + exp_(-gate[i])) * up[i];
        }
}

/* k, v [tokens, row], each with its stride, into pools [pages, page_size, row]. */
void store_kv(const float *k, const float *v, float *keys, float *values, const i64 *pages, const i64 *slots, i64 tokens,
              i64 row, i64 k_token, i64 v_token, i64 page) {
    for (i64 token = 0; token < tokens; token++) {
        const i64 place = pages[token] * page + slots[token] * row;
        memcpy(keys + place, k + token * k_token, row * sizeof(float));
        memcpy(values + place, v + token * v_token, row * sizeof(float));
    }
}

/* Products of one query with four keys side by side: one alone would wait for each sum before the next. */
static inline void dot_four(const float *q, const float *keys, const i64 *places, float *out, i64 size) {
    const float *a = keys + places[0], *b = keys + places[1], *c = keys + places[2], *d = keys + places[3];
    float sum_a = 0, sum_b = 0, sum_c = 0, sum_d = 0;
#pragma omp simd reduction(+ : sum_a, sum_b, sum_c, sum_d)
    for (i64 i = 0; i < size; i++) {
        sum_a += q[i] * a[i];
        sum_b += q[i] * b[i];
        sum_c += q[i] * c[i];
        sum_d += q[i] * d[i];
    }
    out[0] = sum_a, out[1] = sum_b, out[2] = sum_c, out[3] = sum_d;
}

static inline void add_four(float *to, const float *values, const i64 *places, const float *weights, i64 size) {
    const float *a = values + places[0], *b = values + places[1], *c = values + places[2], *d = values + places[3];
#pragma omp simd
    for (i64 i = 0; i < size; i++)
        to[i] += weights[0] * a[i] + weights[1] * b[i] + weights[2] * c[i] + weights[3] * d[i];
}

/* A block of keys for one query head. scores[count...] up to the next multiple of four are of keys that count nothing. */
static inline void attend_block(const float *q, const float *keys, const float *values, const i64 *places, i64 count,
                                float scale, i64 size, float *acc, float *sum, float *largest) {
    float scores[BLOCK], top = *largest, added = 0;
    for (i64 t = 0; t < count; t += 4) dot_four(q, keys, places + t, scores + t, size);
#pragma omp simd reduction(max : top)
    for (i64 t = 0; t < count; t++) {
        scores[t] *= scale;
        top = scores[t] > top ? scores[t] : top;
    }
    const float shrink = *largest == -INFINITY ? 0.0f : exp_(*largest - top);
#pragma omp simd reduction(+ : added)
    for (i64 t = 0; t < count; t++) {
        scores[t] = exp_(scores[t] - top);
        added += scores[t];
    }
    for (i64 t = count; t % 4; t++) scores[t] = 0;
#pragma omp simd
    for (i64 i = 0; i < size; i++) acc[i] *= shrink;
    for (i64 t = 0; t < count; t += 4) add_four(acc, values, places + t, scores + t, size);
    *sum = *sum * shrink + added;
    *largest = top;
}

/* One sequence and some of its KV heads, each with the `group` query heads that share it: softmax over blocks of keys,
 * rescaled whenever the maximum grows (Milakov & Gimelshein 2018). All heads take a block before the next is read: a
 * token's heads lie side by side in memory. q, out [heads * group, size]; keys, values at the first head of page 0. */
static void attend_sequence(const float *q, const float *keys, const float *values, const i64 *pages, float *out, i64 length,
                            i64 heads, i64 group, i64 size, i64 page_size, i64 page, i64 slot, float scale) {
    const i64 rows = heads * group;
    float sum[rows], largest[rows], acc[rows * size];
    i64 places[BLOCK];
    memset(acc, 0, sizeof acc);
    for (i64 row = 0; row < rows; row++) sum[row] = 0, largest[row] = -INFINITY;
    for (i64 start = 0; start < length; start += BLOCK) {
        const i64 count = length - start < BLOCK ? length - start : BLOCK;
        for (i64 t = 0; t < count; t++)
            places[t] = pages[(start + t) / page_size] * page + (start + t) % page_size * slot;
        for (i64 t = count; t % 4; t++) places[t] = places[0];
        for (i64 row = 0; row < rows; row++)
            attend_block(q + row * size, keys + row / group * size, values + row / group * size, places, count, scale,
                         size, acc + row * size, sum + row, largest + row);
    }
    for (i64 row = 0; row < rows; row++)
        for (i64 i = 0; i < size; i++) out[row * size + i] = length ? acc[row * size + i] / sum[row] : 0.0f;
}

/* q, out [tokens, kv_heads * group, size]; rows, lengths [decodes]; tables [decodes, table]; pools as in store_kv.
 * kv_heads * group * size is bounded by the caller: accumulators are on the stack. */
void decode_attention(const float *q, const float *keys, const float *values, const i64 *rows, const i64 *tables,
                      const i64 *lengths, float *out, i64 decodes, i64 kv_heads, i64 group, i64 size, i64 table,
                      i64 page_size, i64 page, i64 q_token, float scale) {
    i64 work = 0;
    for (i64 i = 0; i < decodes; i++) work += lengths[i] * kv_heads * group * size;
    const i64 heads = decodes >= omp_get_max_threads() ? kv_heads : 1; /* of a task */
#pragma omp parallel for collapse(2) schedule(dynamic) if (work > WORTH_THREADS)
    for (i64 decode = 0; decode < decodes; decode++)
        for (i64 head = 0; head < kv_heads; head += heads)
            attend_sequence(q + rows[decode] * q_token + head * group * size, keys + head * size, values + head * size,
                            tables + decode * table, out + (rows[decode] * kv_heads + head) * group * size,
                            lengths[decode], heads, group, size, page_size, page, kv_heads * size, scale);
}
