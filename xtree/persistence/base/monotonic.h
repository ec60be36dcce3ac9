/* Monotonic clocks in nanoseconds: a cheap one, whose ticks are milliseconds apart, and a fine one. */
#ifndef XTREE_MONOTONIC_H
#define XTREE_MONOTONIC_H

#include <stdint.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
static inline uint64_t xt_monotonic_ns(void) { return (uint64_t)GetTickCount64() * 1000000u; }
static inline uint64_t xt_fine_ns(void) {
    LARGE_INTEGER ticks, a_second;
    QueryPerformanceCounter(&ticks);
    QueryPerformanceFrequency(&a_second);
    return (uint64_t)((double)ticks.QuadPart * 1e9 / (double)a_second.QuadPart);
}
#else
#include <time.h>
#if defined(CLOCK_MONOTONIC_COARSE)
#define XT_CLOCK CLOCK_MONOTONIC_COARSE
#else
#define XT_CLOCK CLOCK_MONOTONIC
#endif
static inline uint64_t xt_read_clock(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
static inline uint64_t xt_monotonic_ns(void) { return xt_read_clock(XT_CLOCK); }
static inline uint64_t xt_fine_ns(void) { return xt_read_clock(CLOCK_MONOTONIC); }
#endif

#endif
