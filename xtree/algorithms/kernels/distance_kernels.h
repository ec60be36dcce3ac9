/* Distance kernels: the Euclidean distance of a point to each box of a page.
 *
 * One loop, compiled once for each instruction set. Every form adds the squares in the order of the axes and none may
 * contract a product and a sum (-ffp-contract=off), so that all agree bit for bit. Squares may overflow or underflow
 * here: a distance outside [XT_SAFE_LEAST, XT_SAFE_MOST] is to be worked out again by xt_scaled_distance.
 */
#ifndef XTREE_DISTANCE_KERNELS_H
#define XTREE_DISTANCE_KERNELS_H

#include <float.h>
#include <math.h>
#include <stdint.h>

#include "window_kernels.h"

#define XT_SAFE_LEAST 1e-140
#define XT_SAFE_MOST 1e150

/* The columns of lower bounds start at `lower`, those of upper bounds at `upper`, `stride` doubles apart. */
typedef void (*xt_distances)(const double *lower, const double *upper, int64_t stride, int dims, int64_t count,
                             const double *point, double *out);

XT_INLINE double xt_gap(double lower, double upper, double p) {
    double below = lower - p, above = p - upper, gap = below > above ? below : above;
    return gap > 0.0 ? gap : 0.0;
}

XT_INLINE void xt_distances_2(const double *lower, const double *upper, int64_t stride, int64_t count,
                              const double *point, double *restrict out) {
    const double *lower_y = lower + stride, *upper_y = upper + stride;
    double x = point[0], y = point[1];
    for (int64_t i = 0; i < count; i++) {
        double dx = xt_gap(lower[i], upper[i], x), dy = xt_gap(lower_y[i], upper_y[i], y);
        out[i] = sqrt(dx * dx + dy * dy);
    }
}

XT_INLINE void xt_distances_n(const double *lower, const double *upper, int64_t stride, int dims, int64_t count,
                              const double *point, double *restrict out) {
    for (int64_t i = 0; i < count; i++) {
        double d = xt_gap(lower[i], upper[i], point[0]);
        out[i] = d * d;
    }
    for (int a = 1; a < dims; a++) {
        const double *low = lower + a * stride, *high = upper + a * stride;
        double p = point[a];
        for (int64_t i = 0; i < count; i++) {
            double d = xt_gap(low[i], high[i], p);
            out[i] += d * d;
        }
    }
    for (int64_t i = 0; i < count; i++) out[i] = sqrt(out[i]);
}

#define XT_DISTANCES(name, target)                                                                             \
    static target void name(const double *lower, const double *upper, int64_t stride, int dims, int64_t count, \
                            const double *point, double *out) {                                                \
        if (dims == 2)                                                                                         \
            xt_distances_2(lower, upper, stride, count, point, out);                                           \
        else                                                                                                   \
            xt_distances_n(lower, upper, stride, dims, count, point, out);                                     \
    }

XT_DISTANCES(xt_distances_portable, )
#if XT_X86
XT_DISTANCES(xt_distances_avx512, XT_TARGET("avx512f,prefer-vector-width=512"))
XT_DISTANCES(xt_distances_avx2, XT_TARGET("avx2"))
#else
#define xt_distances_avx512 xt_distances_portable
#define xt_distances_avx2 xt_distances_portable
#endif

/* The distance to one box without intermediate overflow or underflow: the gaps are scaled by
 * the power of two that brings the largest near 1. Infinite only when the distance exceeds the largest double. */
static double xt_scaled_distance(const double *lower, const double *upper, int64_t stride, int dims,
                                 const double *point) {
    double gaps[64], largest = 0.0, sum = 0.0, unit = 1.0;
    int exponent;
    for (int a = 0; a < dims; a++) {
        gaps[a] = xt_gap(lower[a * stride], upper[a * stride], point[a]);
        largest = gaps[a] > largest ? gaps[a] : largest;
    }
    if (largest == 0.0) return 0.0;
    if (largest > DBL_MAX) { /* a difference of finite numbers overflowed: take all of them at half size */
        unit = 0.5;
        largest = 0.0;
        for (int a = 0; a < dims; a++) {
            gaps[a] = xt_gap(unit * lower[a * stride], unit * upper[a * stride], unit * point[a]);
            largest = gaps[a] > largest ? gaps[a] : largest;
        }
    }
    frexp(largest, &exponent);
    for (int a = 0; a < dims; a++) {
        double scaled = ldexp(gaps[a], -exponent);
        sum += scaled * scaled;
    }
    return ldexp(sqrt(sum), exponent) / unit;
}

#endif
