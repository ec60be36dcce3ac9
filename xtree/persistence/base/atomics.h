/* Atomic 64-bit loads, stores and read-modify-writes with named memory orders.
 *
 * Every field that one thread writes while another reads without a lock goes through these, so that the
 * memory order stands at the place of use. GCC and Clang have builtins; MSVC's Interlocked functions are full
 * barriers, which is stronger than asked for and therefore right. There are no stand-alone fences: each access names
 * its order, which ThreadSanitizer understands too.
 *
 * A spin lock is such a word too: 0 free, 1 held. It is for a few dozen instructions that take no other lock. A thread
 * that waits for it gives up its time slice now and then, in case the holder lost its processor.
 */
#ifndef XTREE_ATOMICS_H
#define XTREE_ATOMICS_H

#include <stdint.h>

#if defined(_MSC_VER)
#include <intrin.h>
__declspec(dllimport) int __stdcall SwitchToThread(void);
#if defined(_M_ARM64)
#define XT_PAUSE() __yield()
#else
#define XT_PAUSE() _mm_pause()
#endif
#define XT_YIELD() SwitchToThread()
static inline int xt_try_lock(uint64_t *lock) { return _InterlockedExchange64((volatile __int64 *)lock, 1) == 0; }
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
#if defined(__x86_64__) || defined(__i386__)
#define XT_PAUSE() __builtin_ia32_pause()
#elif defined(__aarch64__) || defined(__arm__)
#define XT_PAUSE() __asm__ __volatile__("yield")
#else
#define XT_PAUSE() ((void)0)
#endif
#define XT_YIELD() sched_yield()
static inline int xt_try_lock(uint64_t *lock) { return __atomic_exchange_n(lock, 1, __ATOMIC_ACQUIRE) == 0; }
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

static inline void xt_spin_lock(uint64_t *lock) {
    unsigned waited = 0;
    while (!xt_try_lock(lock)) {
        while (xt_load_relaxed(lock)) {
            if (++waited % 64) XT_PAUSE();
            else XT_YIELD();
        }
    }
}
static inline void xt_spin_unlock(uint64_t *lock) { xt_store_release(lock, 0); }

#endif
