/* Window kernels: which entries of a page pass a test against a window, in three forms that agree exactly.
 *
 * Every predicate is one test on columns. An entry passes when, on every axis a,
 *
 *     first[a] <= most[a]  and  second[a] >= least[a]
 *
 *     predicate     first   most       second   least
 *     intersects    lower   window's   upper    window's
 *                           upper               lower
 *     inside it     upper   upper      lower    lower
 *     around it     lower   lower      upper    upper
 *
 * An entry lies inside the window when the test holds with first and second exchanged, so testing a
 * directory page for "intersects" tells in the same pass which subtrees need no more tests.
 *
 * The axis `lead` is tested first, for all entries; the others are tested only where an entry is left. Entries of a
 * packed page are in the order of one axis; with that axis as the lead, most of a page needs no other test.
 *
 * Columns of one kind stand `stride` doubles apart, and a stride is a multiple of 8, so whole vectors may be loaded
 * past `count`. Results are written compressed and in order; the vector forms write up to 8 words past the last result,
 * and the caller leaves room for them.
 */
#ifndef XTREE_WINDOW_KERNELS_H
#define XTREE_WINDOW_KERNELS_H

#include <stdint.h>

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define XT_X86 1
#include <immintrin.h>
#define XT_TARGET(features) __attribute__((target(features)))
#define XT_INLINE static inline __attribute__((always_inline))
#else
#define XT_X86 0
#define XT_INLINE static inline
#endif

#define XT_SLACK 8

typedef struct {
    const double *first;
    const double *second;
    int64_t stride;
    const double *most;
    const double *least;
    int lead;
} xt_test;

/* Writes the refs of the entries that pass; returns how many. */
typedef int64_t (*xt_select)(const xt_test *t, int dims, int64_t count, const uint64_t *refs, uint64_t *hits);

/* Writes the refs of the entries that pass to `crossing`, or to `inside` when they lie inside the window. */
typedef void (*xt_divide)(const xt_test *t, int dims, int64_t count, const uint64_t *refs, uint64_t *crossing,
                          int64_t *crossing_count, uint64_t *inside, int64_t *inside_count);

/* Sets the range of entries from the first to past the last that pass on the leading axis; it begins at a multiple
 * of 8. */
typedef void (*xt_span)(const xt_test *t, int64_t count, int64_t *from, int64_t *to);

XT_INLINE int xt_next_axis(int axis, int dims) { return axis + 1 == dims ? 0 : axis + 1; }

/* ---- portable ---- */

static void xt_span_portable(const xt_test *t, int64_t count, int64_t *from, int64_t *to) {
    const double *first = t->first + t->lead * t->stride, *second = t->second + t->lead * t->stride;
    double most = t->most[t->lead], least = t->least[t->lead];
    int64_t begin = count, end = 0;
    for (int64_t i = 0; i < count; i++) {
        if ((first[i] <= most) & (second[i] >= least)) {
            begin = begin < i ? begin : i;
            end = i + 1;
        }
    }
    *from = end ? begin & ~(int64_t)7 : 0;
    *to = end;
}

XT_INLINE int xt_passes(const double *first, const double *second, const xt_test *t, int dims, int64_t i) {
    int pass = 1;
    for (int a = 0; a < dims; a++)
        pass &= (first[a * t->stride + i] <= t->most[a]) & (second[a * t->stride + i] >= t->least[a]);
    return pass;
}

XT_INLINE int64_t xt_select_any(const xt_test *t, int dims, int64_t count, const uint64_t *refs, uint64_t *hits) {
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++) {
        hits[n] = refs[i];
        n += xt_passes(t->first, t->second, t, dims, i);
    }
    return n;
}

static int64_t xt_select_portable(const xt_test *t, int dims, int64_t count, const uint64_t *refs, uint64_t *hits) {
    return dims == 2 ? xt_select_any(t, 2, count, refs, hits) : xt_select_any(t, dims, count, refs, hits);
}

static void xt_divide_portable(const xt_test *t, int dims, int64_t count, const uint64_t *refs, uint64_t *crossing,
                               int64_t *crossing_count, uint64_t *inside, int64_t *inside_count) {
    int64_t n = 0, m = 0;
    for (int64_t i = 0; i < count; i++) {
        if (!xt_passes(t->first, t->second, t, dims, i)) continue;
        if (xt_passes(t->second, t->first, t, dims, i))
            inside[m++] = refs[i];
        else
            crossing[n++] = refs[i];
    }
    *crossing_count = n;
    *inside_count = m;
}

#if XT_X86

/* A bit for each of the next 64 entries that exists, when `left` are left. */
XT_INLINE uint64_t xt_lanes(int64_t left) { return left >= 64 ? ~(uint64_t)0 : ((uint64_t)1 << left) - 1; }

/* Both vector forms look at 64 entries at a time: at all of them on the leading axis, without branches, then on the
 * other axes at the vectors that still have one. */

/* ---- AVX-512: eight entries a vector, hits packed by the compress instruction in a register (to memory it is
 * microcoded on some processors) ---- */

XT_INLINE XT_TARGET("avx512f") __mmask8 xt_test8(const double *first, const double *second, const xt_test *t, int axis,
                                                 int64_t i, __mmask8 pass) {
    pass = _mm512_mask_cmp_pd_mask(pass, _mm512_loadu_pd(first + axis * t->stride + i), _mm512_set1_pd(t->most[axis]),
                                   _CMP_LE_OQ);
    return _mm512_mask_cmp_pd_mask(pass, _mm512_loadu_pd(second + axis * t->stride + i),
                                   _mm512_set1_pd(t->least[axis]), _CMP_GE_OQ);
}

XT_INLINE XT_TARGET("avx512f") uint64_t xt_lead8(const xt_test *t, int64_t base, int64_t count) {
    uint64_t live = 0;
    for (int64_t i = base; i < count && i < base + 64; i += 8)
        live |= (uint64_t)xt_test8(t->first, t->second, t, t->lead, i, 0xFF) << (i - base);
    return live & xt_lanes(count - base);
}

static XT_TARGET("avx512f") void xt_span_avx512(const xt_test *t, int64_t count, int64_t *from, int64_t *to) {
    *from = *to = 0;
    for (int64_t base = 0; base < count; base += 64) {
        uint64_t live = xt_lead8(t, base, count);
        if (!live) continue;
        if (*to == 0) *from = base + (__builtin_ctzll(live) & ~7);
        *to = base + 64 - __builtin_clzll(live);
    }
}

XT_INLINE XT_TARGET("avx512f") int64_t xt_pack8(__mmask8 mask, const uint64_t *refs, uint64_t *out) {
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi64(mask, _mm512_loadu_si512(refs)));
    return __builtin_popcount(mask);
}

XT_INLINE XT_TARGET("avx512f") int64_t xt_select8(const xt_test *test, int dims, int64_t count, const uint64_t *refs,
                                                  uint64_t *hits) {
    const xt_test t = *test;
    int64_t n = 0;
    for (int64_t base = 0; base < count; base += 64) {
        uint64_t live = xt_lead8(&t, base, count);
        while (live) {
            int lane = __builtin_ctzll(live) & ~7;
            __mmask8 pass = (__mmask8)(live >> lane);
            live &= ~((uint64_t)0xFF << lane);
            for (int k = 1, a = t.lead; k < dims && pass; k++) {
                a = xt_next_axis(a, dims);
                pass = xt_test8(t.first, t.second, &t, a, base + lane, pass);
            }
            n += xt_pack8(pass, refs + base + lane, hits + n);
        }
    }
    return n;
}

static XT_TARGET("avx512f") int64_t xt_select_avx512(const xt_test *t, int dims, int64_t count, const uint64_t *refs,
                                                     uint64_t *hits) {
    return dims == 2 ? xt_select8(t, 2, count, refs, hits) : xt_select8(t, dims, count, refs, hits);
}

XT_INLINE XT_TARGET("avx512f") void xt_divide8(const xt_test *test, int dims, int64_t count, const uint64_t *refs,
                                               uint64_t *crossing, int64_t *crossing_count, uint64_t *inside,
                                               int64_t *inside_count) {
    const xt_test t = *test;
    int64_t n = 0, m = 0;
    for (int64_t base = 0; base < count; base += 64) {
        uint64_t live = xt_lead8(&t, base, count);
        while (live) {
            int lane = __builtin_ctzll(live) & ~7;
            __mmask8 pass = (__mmask8)(live >> lane), whole;
            live &= ~((uint64_t)0xFF << lane);
            for (int k = 1, a = t.lead; k < dims && pass; k++) {
                a = xt_next_axis(a, dims);
                pass = xt_test8(t.first, t.second, &t, a, base + lane, pass);
            }
            whole = pass;
            for (int a = 0; a < dims && whole; a++) whole = xt_test8(t.second, t.first, &t, a, base + lane, whole);
            n += xt_pack8(pass & ~whole, refs + base + lane, crossing + n);
            if (whole) m += xt_pack8(whole, refs + base + lane, inside + m);
        }
    }
    *crossing_count = n;
    *inside_count = m;
}

static XT_TARGET("avx512f") void xt_divide_avx512(const xt_test *t, int dims, int64_t count, const uint64_t *refs,
                                                  uint64_t *crossing, int64_t *crossing_count, uint64_t *inside,
                                                  int64_t *inside_count) {
    if (dims == 2)
        xt_divide8(t, 2, count, refs, crossing, crossing_count, inside, inside_count);
    else
        xt_divide8(t, dims, count, refs, crossing, crossing_count, inside, inside_count);
}

/* ---- AVX2: four entries a step, hits packed by a permutation that the mask looks up ---- */

#define XT_LANE(i) 2 * i, 2 * i + 1
static const int32_t xt_pack_table[16][8] __attribute__((aligned(32))) = {
    {0},
    {XT_LANE(0)},
    {XT_LANE(1)},
    {XT_LANE(0), XT_LANE(1)},
    {XT_LANE(2)},
    {XT_LANE(0), XT_LANE(2)},
    {XT_LANE(1), XT_LANE(2)},
    {XT_LANE(0), XT_LANE(1), XT_LANE(2)},
    {XT_LANE(3)},
    {XT_LANE(0), XT_LANE(3)},
    {XT_LANE(1), XT_LANE(3)},
    {XT_LANE(0), XT_LANE(1), XT_LANE(3)},
    {XT_LANE(2), XT_LANE(3)},
    {XT_LANE(0), XT_LANE(2), XT_LANE(3)},
    {XT_LANE(1), XT_LANE(2), XT_LANE(3)},
    {XT_LANE(0), XT_LANE(1), XT_LANE(2), XT_LANE(3)},
};

XT_INLINE XT_TARGET("avx2") unsigned xt_test4(const double *first, const double *second, const xt_test *t, int axis,
                                              int64_t i) {
    __m256d below = _mm256_cmp_pd(_mm256_loadu_pd(first + axis * t->stride + i), _mm256_set1_pd(t->most[axis]),
                                  _CMP_LE_OQ);
    __m256d above = _mm256_cmp_pd(_mm256_loadu_pd(second + axis * t->stride + i), _mm256_set1_pd(t->least[axis]),
                                  _CMP_GE_OQ);
    return (unsigned)_mm256_movemask_pd(_mm256_and_pd(below, above));
}

XT_INLINE XT_TARGET("avx2") uint64_t xt_lead4(const xt_test *t, int64_t base, int64_t count) {
    uint64_t live = 0;
    for (int64_t i = base; i < count && i < base + 64; i += 4)
        live |= (uint64_t)xt_test4(t->first, t->second, t, t->lead, i) << (i - base);
    return live & xt_lanes(count - base);
}

static XT_TARGET("avx2") void xt_span_avx2(const xt_test *t, int64_t count, int64_t *from, int64_t *to) {
    *from = *to = 0;
    for (int64_t base = 0; base < count; base += 64) {
        uint64_t live = xt_lead4(t, base, count);
        if (!live) continue;
        if (*to == 0) *from = base + (__builtin_ctzll(live) & ~7);
        *to = base + 64 - __builtin_clzll(live);
    }
}

XT_INLINE XT_TARGET("avx2,popcnt") int64_t xt_pack4(unsigned mask, const uint64_t *refs, uint64_t *out) {
    __m256i order = _mm256_load_si256((const __m256i *)xt_pack_table[mask]);
    _mm256_storeu_si256((__m256i *)out,
                        _mm256_permutevar8x32_epi32(_mm256_loadu_si256((const __m256i *)refs), order));
    return __builtin_popcount(mask);
}

XT_INLINE XT_TARGET("avx2,popcnt") int64_t xt_select4(const xt_test *test, int dims, int64_t count,
                                                      const uint64_t *refs, uint64_t *hits) {
    const xt_test t = *test;
    int64_t n = 0;
    for (int64_t base = 0; base < count; base += 64) {
        uint64_t live = xt_lead4(&t, base, count);
        while (live) {
            int lane = __builtin_ctzll(live) & ~3;
            unsigned pass = (unsigned)(live >> lane) & 0xF;
            live &= ~((uint64_t)0xF << lane);
            for (int k = 1, a = t.lead; k < dims && pass; k++) {
                a = xt_next_axis(a, dims);
                pass &= xt_test4(t.first, t.second, &t, a, base + lane);
            }
            n += xt_pack4(pass, refs + base + lane, hits + n);
        }
    }
    return n;
}

static XT_TARGET("avx2,popcnt") int64_t xt_select_avx2(const xt_test *t, int dims, int64_t count, const uint64_t *refs,
                                                       uint64_t *hits) {
    return dims == 2 ? xt_select4(t, 2, count, refs, hits) : xt_select4(t, dims, count, refs, hits);
}

XT_INLINE XT_TARGET("avx2,popcnt") void xt_divide4(const xt_test *test, int dims, int64_t count, const uint64_t *refs,
                                                   uint64_t *crossing, int64_t *crossing_count, uint64_t *inside,
                                                   int64_t *inside_count) {
    const xt_test t = *test;
    int64_t n = 0, m = 0;
    for (int64_t base = 0; base < count; base += 64) {
        uint64_t live = xt_lead4(&t, base, count);
        while (live) {
            int lane = __builtin_ctzll(live) & ~3;
            unsigned pass = (unsigned)(live >> lane) & 0xF, whole;
            live &= ~((uint64_t)0xF << lane);
            for (int k = 1, a = t.lead; k < dims && pass; k++) {
                a = xt_next_axis(a, dims);
                pass &= xt_test4(t.first, t.second, &t, a, base + lane);
            }
            whole = pass;
            for (int a = 0; a < dims && whole; a++) whole &= xt_test4(t.second, t.first, &t, a, base + lane);
            n += xt_pack4(pass & ~whole, refs + base + lane, crossing + n);
            if (whole) m += xt_pack4(whole, refs + base + lane, inside + m);
        }
    }
    *crossing_count = n;
    *inside_count = m;
}

static XT_TARGET("avx2,popcnt") void xt_divide_avx2(const xt_test *t, int dims, int64_t count, const uint64_t *refs,
                                                    uint64_t *crossing, int64_t *crossing_count, uint64_t *inside,
                                                    int64_t *inside_count) {
    if (dims == 2)
        xt_divide4(t, 2, count, refs, crossing, crossing_count, inside, inside_count);
    else
        xt_divide4(t, dims, count, refs, crossing, crossing_count, inside, inside_count);
}

static int xt_has_avx512(void) { return __builtin_cpu_supports("avx512f") != 0; }
static int xt_has_avx2(void) { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt"); }

#else /* no form but the portable one */

#define xt_select_avx512 xt_select_portable
#define xt_select_avx2 xt_select_portable
#define xt_divide_avx512 xt_divide_portable
#define xt_divide_avx2 xt_divide_portable
#define xt_span_avx512 xt_span_portable
#define xt_span_avx2 xt_span_portable
static int xt_has_avx512(void) { return 0; }
static int xt_has_avx2(void) { return 0; }

#endif

#endif
