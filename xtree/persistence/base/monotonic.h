/* A monotonic clock in nanoseconds, cheap rather than fine: milliseconds are enough to tell a slow reader. */
#ifndef XTREE_MONOTONIC_H
#define XTREE_MONOTONIC_H

#include <stdint.h>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
static inline uint64_t xt_monotonic_ns(void) { return (uint64_t)GetTickCount64() * 1000000u; }
#else
#include <time.h>
#if defined(CLOCK_MONOTONIC_COARSE)
#define XT_CLOCK CLOCK_MONOTONIC_COARSE
#else
#define XT_CLOCK CLOCK_MONOTONIC
#endif
static inline uint64_t xt_monotonic_ns(void) {
    struct timespec now;
    clock_gettime(XT_CLOCK, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}
#endif

#endif
