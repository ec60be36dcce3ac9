/* Mapping files and anonymous memory: the C half of what differs between operating systems.
 *
 * Every function returns 0 or the system's error code (errno; on Windows GetLastError).
 *
 * XT_SYNC_COVERS_UNMAPPED: whether a sync of a file covers what was written through a mapping that is gone. On Linux
 * dirty pages belong to the file, mapped or not; elsewhere they must be flushed while they are mapped.
 */
#ifndef XTREE_PLATFORM_MAP_H
#define XTREE_PLATFORM_MAP_H

#include <stddef.h>
#include <stdint.h>

#if defined(__linux__)
#define XT_SYNC_COVERS_UNMAPPED 1
#else
#define XT_SYNC_COVERS_UNMAPPED 0
#endif

#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#include <winioctl.h>
#include <io.h>

static inline size_t xt_granularity(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
}

/* A section can't reach beyond the end of its file, so the system grows a file mapped for writing to the window's
 * size; the file is made sparse, so that this takes no space. One mapped for reading is mapped as far as it goes. */
static inline int xt_map_file(int fd, uint64_t bytes, int writable, void **base) {
    HANDLE file = (HANDLE)_get_osfhandle(fd);
    HANDLE section;
    DWORD ignored;
    if (file == INVALID_HANDLE_VALUE)
        return ERROR_INVALID_HANDLE;
    if (writable)
        DeviceIoControl(file, FSCTL_SET_SPARSE, NULL, 0, NULL, 0, &ignored, NULL);
    section = CreateFileMappingW(file, NULL, writable ? PAGE_READWRITE : PAGE_READONLY,
                                 writable ? (DWORD)(bytes >> 32) : 0, writable ? (DWORD)bytes : 0, NULL);
    if (section == NULL)
        return (int)GetLastError();
    *base = MapViewOfFile(section, writable ? FILE_MAP_WRITE : FILE_MAP_READ, 0, 0, 0);
    if (*base == NULL) {
        int error = (int)GetLastError();
        CloseHandle(section);
        return error;
    }
    CloseHandle(section); /* the view keeps the section alive */
    return 0;
}

static inline int xt_map_anonymous(uint64_t bytes, void **base) {
    *base = VirtualAlloc(NULL, (SIZE_T)bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    return *base == NULL ? (int)GetLastError() : 0;
}

static inline int xt_unmap(void *base, uint64_t bytes) {
    (void)bytes; /* a view of a file or allocated memory: each call refuses what the other made */
    return UnmapViewOfFile(base) || VirtualFree(base, 0, MEM_RELEASE) ? 0 : (int)GetLastError();
}

static inline void xt_ask_for_huge_pages(void *base, uint64_t bytes) {
    (void)base; /* the system decides by itself */
    (void)bytes;
}

static inline int xt_cover(void *base, uint64_t bytes) {
    (void)base; /* nothing is inherited: there is no fork */
    (void)bytes;
    return 0;
}

static inline int xt_flush_map(void *base, uint64_t bytes) {
    return FlushViewOfFile(base, (SIZE_T)bytes) ? 0 : (int)GetLastError();
}

#else

#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>

#if !defined(MAP_ANONYMOUS)
#define MAP_ANONYMOUS MAP_ANON
#endif
#if !defined(MAP_NORESERVE)
#define MAP_NORESERVE 0
#endif
#define XT_HUGE_PAGE ((uint64_t)2 << 20)

static inline size_t xt_granularity(void) { return (size_t)sysconf(_SC_PAGESIZE); }

/* The mapping may reach beyond the end of the file; those bytes may be touched once the file has grown. */
static inline int xt_map_file(int fd, uint64_t bytes, int writable, void **base) {
    *base = mmap(NULL, (size_t)bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    return *base == MAP_FAILED ? errno : 0;
}

/* Asks for huge pages, for memory about to be touched: for the whole ones that lie in it. A hint, not needed. */
static inline void xt_ask_for_huge_pages(void *base, uint64_t bytes) {
#if defined(MADV_HUGEPAGE)
    uintptr_t start = ((uintptr_t)base + XT_HUGE_PAGE - 1) & ~(uintptr_t)(XT_HUGE_PAGE - 1);
    uintptr_t end = ((uintptr_t)base + bytes) & ~(uintptr_t)(XT_HUGE_PAGE - 1);
    if (start < end)
        (void)madvise((void *)start, end - start, MADV_HUGEPAGE);
#else
    (void)base;
    (void)bytes;
#endif
}

static inline int xt_map_anonymous(uint64_t bytes, void **base) {
    *base = mmap(NULL, (size_t)bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*base == MAP_FAILED)
        return errno;
    xt_ask_for_huge_pages(*base, bytes);
    return 0;
}

static inline int xt_unmap(void *base, uint64_t bytes) { return munmap(base, (size_t)bytes) ? errno : 0; }

/* Puts zeroed memory of the process's own in the place of a mapping; unmaps the range when there is none to be had. */
static inline int xt_cover(void *base, uint64_t bytes) {
    void *covered = mmap(base, (size_t)bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    return covered == MAP_FAILED ? munmap(base, (size_t)bytes) : 0;
}

static inline int xt_flush_map(void *base, uint64_t bytes) {
    return msync(base, (size_t)bytes, MS_SYNC) ? errno : 0;
}

#endif

#endif
