/* Shrinks RGB images by area averaging, with the arithmetic of OpenCV's INTER_AREA for scales that are not whole.
 *
 * All sums are of 32-bit floats, in OpenCV's order and without fused multiply-add (-ffp-contract=off), so that the bytes
 * are the same. What is saved: OpenCV adds value by value into memory, and filters rows twice that two output rows
 * share. Here a pixel (three channels and a fourth, ignored value) is one vector, and a filtered row is kept.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef float Four __attribute__((vector_size(16))); /* of GCC and Clang: compiled to the vectors that the CPU has */

/* The weights of `most` consecutive source positions for each destination; those beyond its own are 0. */
typedef struct {
    int most;
    int *first;
    float *weights;
} Filter;

static int make_filter(int source, int destination, Filter *filter)
{
    const double scale = 1.0 / ((double)destination / source), nothing = 1e-3;
    const int most = filter->most = (int)ceil(scale) + 2;
    filter->first = malloc(sizeof(int) * destination);
    filter->weights = calloc((size_t)destination * most, sizeof(float));
    if (!filter->first || !filter->weights)
        return 1;
    int used = 0;
    for (int to = 0; to < destination; to++) {
        const double begin = to * scale, end = begin + scale, width = fmin(scale, source - begin);
        int whole = (int)ceil(begin), last = (int)floor(end), count = 0;
        if (last > source - 1)
            last = source - 1;
        if (whole > last)
            whole = last;
        float *weights = filter->weights + (size_t)to * most;
        filter->first[to] = whole;
        if (whole - begin > nothing) { /* the part of a position that begins before this destination */
            filter->first[to] = whole - 1;
            weights[count++] = (float)((whole - begin) / width);
        }
        for (int from = whole; from < last; from++)
            weights[count++] = (float)(1.0 / width);
        if (end - last > nothing)
            weights[count++] = (float)(fmin(fmin(end - last, 1.0), width) / width);
        if (count > used)
            used = count;
    }
    for (int to = 0; to < destination; to++) /* to the least number that fits all: a loop of constant length is quick */
        memmove(filter->weights + (size_t)to * used, filter->weights + (size_t)to * most, used * sizeof(float));
    filter->most = used;
    return 0;
}

/* Filters the row `wide` to `narrow`, which has room for one value more; adding a weight of 0 changes nothing. */
static inline void filter_row(const Filter *filter, int most, int destination, const float *wide, float *narrow)
{
    const float *weight = filter->weights;
    for (int to = 0; to < destination; to++) {
        const float *from = wide + 3 * filter->first[to];
        Four sum = {0, 0, 0, 0};
        for (int k = 0; k < most; k++, from += 3) {
            Four pixel;
            memcpy(&pixel, from, sizeof pixel);
            sum += pixel * *weight++;
        }
        memcpy(narrow + 3 * to, &sum, sizeof sum);
    }
}

/* Rounds half to even: 1.5 * 2^23 leaves no bits for fractions. */
static void round_row(const float *restrict sums, uint8_t *restrict row, int length)
{
    for (int i = 0; i < length; i++) {
        union {
            float number;
            int32_t bits;
        } shifted = {.number = sums[i] + 12582912.0f};
        row[i] = (uint8_t)(shifted.bits - 0x4b400000);
    }
}

static void add_row(float *restrict sums, const float *restrict row, float weight, int length, int first)
{
    if (first)
        for (int i = 0; i < length; i++)
            sums[i] = row[i] * weight;
    else
        for (int i = 0; i < length; i++)
            sums[i] += row[i] * weight;
}

/* Shrinks `source` (height x width x 3 bytes, rows `stride` bytes apart) to `out`. Returns 0, or 1 without memory. */
int shrink_by_area(const uint8_t *source, long stride, int height, int width, uint8_t *out, int out_height,
                   int out_width)
{
    Filter across = {0}, down = {0};
    const int in = 3 * width, length = 3 * out_width;
    int failed = make_filter(width, out_width, &across) || make_filter(height, out_height, &down);
    float *wide = calloc(in + 3 * (size_t)across.most + 4, sizeof(float));
    float *narrow = calloc(length + 4, sizeof(float));
    float *sums = calloc(length + 4, sizeof(float));
    failed = failed || !wide || !narrow || !sums;
    int filtered = -1;
    for (int y = 0; !failed && y < out_height; y++) {
        for (int k = 0; k < down.most; k++) {
            const float weight = down.weights[(size_t)y * down.most + k];
            const int from = down.first[y] + k;
            if (weight == 0)
                break;
            if (from != filtered) {
                const uint8_t *restrict row = source + from * stride;
                for (int x = 0; x < in; x++)
                    wide[x] = row[x];
                switch (across.most) { /* the usual lengths, unrolled */
                case 2: filter_row(&across, 2, out_width, wide, narrow); break;
                case 3: filter_row(&across, 3, out_width, wide, narrow); break;
                case 4: filter_row(&across, 4, out_width, wide, narrow); break;
                default: filter_row(&across, across.most, out_width, wide, narrow);
                }
                filtered = from;
            }
            add_row(sums, narrow, weight, length, k == 0);
        }
        round_row(sums, out + (size_t)y * length, length);
    }
    free(across.first);
    free(across.weights);
    free(down.first);
    free(down.weights);
    free(wide);
    free(narrow);
    free(sums);
    return failed;
}
