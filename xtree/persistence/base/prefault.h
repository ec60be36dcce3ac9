/* Asks the system for all the memory of a range at once, where it can: a fault for each page costs twice as much. */
#ifndef XTREE_PREFAULT_H
#define XTREE_PREFAULT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__linux__)
#include <sys/mman.h>
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
static inline void xt_prefault(void *start, size_t bytes) {
    const uintptr_t page = 65536;   /* a multiple of every page size there is */
    uintptr_t first = ((uintptr_t)start + page - 1) & ~(page - 1), end = ((uintptr_t)start + bytes) & ~(page - 1);
    if (first < end) (void)madvise((void *)first, end - first, MADV_POPULATE_WRITE);    /* a hint: it may fail */
}
#else
static inline void xt_prefault(void *start, size_t bytes) { (void)start; (void)bytes; }
#endif

#endif
