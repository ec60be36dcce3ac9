/* Atomic 64-bit loads, stores and read-modify-writes with named memory orders.
 *
 * Every field that one thread writes while another reads without a lock goes through these, so that the
 * memory order stands at the place of use. GCC and Clang have builtins; MSVC's Interlocked functions are full
 * barriers, which is stronger than asked for and therefore right. There are no stand-alone fences: each access names
 * its order, which ThreadSanitizer understands too.
 */
#ifndef XTREE_ATOMICS_H
#define XTREE_ATOMICS_H

#include <stdint.h>

#if defined(_MSC_VER)
#include <intrin.h>
__declspec(dllimport) int __stdcall SwitchToThread(void);
#define XT_YIELD() SwitchToThread()
static inline uint64_t xt_load_relaxed(const uint64_t *p) { return *(const volatile uint64_t *)p; }
static inline uint64_t xt_load_acquire(const uint64_t *p) {
    uint64_t v = *(const volatile uint64_t *)p;
    _ReadWriteBarrier();
#if defined(_M_ARM64)
    __dmb(0xB);
#endif
    return v;
}
static inline uint64_t xt_load_seq(const uint64_t *p) {
    return (uint64_t)_InterlockedOr64((volatile __int64 *)p, 0);
}
static inline void xt_store_relaxed(uint64_t *p, uint64_t v) { *(volatile uint64_t *)p = v; }
static inline void xt_store_release(uint64_t *p, uint64_t v) { _InterlockedExchange64((volatile __int64 *)p, (__int64)v); }
static inline void xt_store_seq(uint64_t *p, uint64_t v) { _InterlockedExchange64((volatile __int64 *)p, (__int64)v); }
static inline int xt_compare_exchange(uint64_t *p, uint64_t expected, uint64_t desired) {
    return (uint64_t)_InterlockedCompareExchange64((volatile __int64 *)p, (__int64)desired, (__int64)expected) == expected;
}
static inline uint64_t xt_fetch_or(uint64_t *p, uint64_t bits) { return (uint64_t)_InterlockedOr64((volatile __int64 *)p, (__int64)bits); }
static inline uint64_t xt_fetch_add(uint64_t *p, uint64_t n) { return (uint64_t)_InterlockedExchangeAdd64((volatile __int64 *)p, (__int64)n); }
#else
#include <sched.h>
#define XT_YIELD() sched_yield()
static inline uint64_t xt_load_relaxed(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint64_t xt_load_acquire(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint64_t xt_load_seq(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void xt_store_relaxed(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void xt_store_release(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void xt_store_seq(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_SEQ_CST); }
static inline int xt_compare_exchange(uint64_t *p, uint64_t expected, uint64_t desired) {
    return __atomic_compare_exchange_n(p, &expected, desired, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline uint64_t xt_fetch_or(uint64_t *p, uint64_t bits) { return __atomic_fetch_or(p, bits, __ATOMIC_ACQ_REL); }
static inline uint64_t xt_fetch_add(uint64_t *p, uint64_t n) { return __atomic_fetch_add(p, n, __ATOMIC_ACQ_REL); }
#endif

#endif
