/* The system calls of a commit. */
#ifndef XTREE_COMMIT_CALLS_H
#define XTREE_COMMIT_CALLS_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define XT_HAS_COMMIT_CALLS 0
static int xt_write_at(int fd, const void *data, size_t n, uint64_t offset, size_t *written) { return ENOSYS; }
static int xt_identity(const char *path, uint64_t *device, uint64_t *inode) { return ENOSYS; }
static int xt_sync_data(int fd) { return ENOSYS; }
#else
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#define XT_HAS_COMMIT_CALLS 1

/* Writes some of n bytes at an offset, and sets how many. Returns 0 or an errno. */
static int xt_write_at(int fd, const void *data, size_t n, uint64_t offset, size_t *written) {
    ssize_t done;
    do {
        done = pwrite(fd, data, n, (off_t)offset);
    } while (done < 0 && errno == EINTR);
    *written = done < 0 ? 0 : (size_t)done;
    return done < 0 ? errno : 0;
}

/* Returns when the data of a file, and what is needed to find it, are on the disk: 0, or an errno. */
static int xt_sync_data(int fd) {
    int failed;
    do {
#if defined(F_FULLFSYNC)
        failed = fcntl(fd, F_FULLFSYNC);
#elif defined(_POSIX_SYNCHRONIZED_IO) && _POSIX_SYNCHRONIZED_IO > 0
        failed = fdatasync(fd);
#else
        failed = fsync(fd);
#endif
    } while (failed < 0 && errno == EINTR);
    return failed < 0 ? errno : 0;
}

/* The device and the inode that a path leads to. Returns 0 or an errno. */
static int xt_identity(const char *path, uint64_t *device, uint64_t *inode) {
    struct stat found;
    if (stat(path, &found) != 0) {
        return errno;
    }
    *device = (uint64_t)found.st_dev;
    *inode = (uint64_t)found.st_ino;
    return 0;
}
#endif

#endif
