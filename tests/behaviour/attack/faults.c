/* Makes system calls fail, for tests: preloaded, armed by headgraft_arm(). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

static char below[PATH_MAX], wanted[32];
static long first, count, code, delay_ms;
static atomic_long calls, hits;

/* Call number `first`, counted from 1, and the `count - 1` that follow fail with errno `error`;
   an errno of 0 means a short read or write. Every one of them is delayed first. */
void headgraft_arm(const char *folder, const char *call, long from, long many, long error,
                   long ms) {
    strncpy(below, folder, sizeof below - 1);
    strncpy(wanted, call, sizeof wanted - 1);
    first = from; count = many; code = error; delay_ms = ms;
    calls = 0; hits = 0;
}

long headgraft_hits(void) { return hits; }

static int is_below(const char *path) {
    size_t n = strlen(below);
    return n && strncmp(path, below, n) == 0;
}

static int fd_is_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return is_below(path);
}

static int path_is_below(int folder, const char *path) {
    if (path[0] == '/') return is_below(path);
    return folder >= 0 ? fd_is_below(folder) : 0;
}

/* Whether this call is one that is to fail. */
static int fails(const char *call, int here) {
    if (!wanted[0] || strcmp(call, wanted) || !here) return 0;
    long k = ++calls;
    if (k < first || k >= first + count) return 0;
    hits++;
    if (delay_ms) {
        struct timespec t = {delay_ms / 1000, delay_ms % 1000 * 1000000};
        while (nanosleep(&t, &t) && errno == EINTR) {}
    }
    return 1;
}

#define REAL(type, name, ...)                                   \
    static type (*real)(__VA_ARGS__);                           \
    if (!real) real = dlsym(RTLD_NEXT, name)
#define FAIL(call, here)                                        \
    if (fails(call, here) && code > 0) { errno = (int)code; return -1; }

/* With an errno of 0 half is done; with a negative one only the delay counts. */
#define MOVING(name, call, data, offset_type)                              \
    ssize_t name(int fd, data buffer, size_t size, offset_type offset) {   \
        REAL(ssize_t, #name, int, data, size_t, offset_type);              \
        if (wanted[0] && !strcmp(call, wanted) && fails(call, fd_is_below(fd))) { \
            if (code > 0) { errno = (int)code; return -1; }                \
            if (code == 0 && size > 1) size /= 2;                          \
        }                                                                  \
        return real(fd, buffer, size, offset);                             \
    }
MOVING(pwrite, "pwrite", const void *, off_t)
MOVING(pwrite64, "pwrite", const void *, off64_t)
MOVING(pread, "pread", void *, off_t)
MOVING(pread64, "pread", void *, off64_t)

ssize_t read(int fd, void *buffer, size_t size) {
    REAL(ssize_t, "read", int, void *, size_t);
    if (wanted[0] && !strcmp("read", wanted) && fails("read", fd_is_below(fd))) {
        if (code > 0) { errno = (int)code; return -1; }
        if (code == 0 && size > 1) size /= 2;
    }
    return real(fd, buffer, size);
}

ssize_t write(int fd, const void *buffer, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (wanted[0] && !strcmp("write", wanted) && fails("write", fd_is_below(fd))) {
        if (code > 0) { errno = (int)code; return -1; }
        if (code == 0 && size > 1) size /= 2;
    }
    return real(fd, buffer, size);
}

#define SYNC(name)                                              \
    int name(int fd) {                                          \
        REAL(int, #name, int);                                  \
        if (wanted[0]) FAIL(#name, fd_is_below(fd));            \
        return real(fd);                                        \
    }
SYNC(fsync)
SYNC(fdatasync)

#define ALLOCATE(name, offset_type)                                     \
    int name(int fd, offset_type offset, offset_type size) {            \
        REAL(int, #name, int, offset_type, offset_type);                \
        if (wanted[0] && fails("posix_fallocate", fd_is_below(fd)) && code > 0) \
            return (int)code;                                           \
        return real(fd, offset, size);                                  \
    }
ALLOCATE(posix_fallocate, off_t)
ALLOCATE(posix_fallocate64, off64_t)

int flock(int fd, int operation) {
    REAL(int, "flock", int, int);
    if (wanted[0]) FAIL("flock", fd_is_below(fd));
    return real(fd, operation);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (wanted[0]) FAIL("rename", path_is_below(-1, to));
    return real(from, to);
}

int renameat(int there, const char *from, int here, const char *to) {
    REAL(int, "renameat", int, const char *, int, const char *);
    if (wanted[0]) FAIL("rename", path_is_below(here, to));
    return real(there, from, here, to);
}

pid_t fork(void) {
    static pid_t (*real)(void);
    if (!real) real = dlsym(RTLD_NEXT, "fork");
    if (wanted[0]) FAIL("fork", 1);
    return real();
}

#define OPEN(name)                                                      \
    int name(const char *path, int flags, ...) {                        \
        REAL(int, #name, const char *, int, ...);                       \
        va_list rest; va_start(rest, flags);                            \
        mode_t mode = va_arg(rest, mode_t);                             \
        va_end(rest);                                                   \
        if (wanted[0]) FAIL("open", path_is_below(-1, path));           \
        return real(path, flags, mode);                                 \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                    \
    int name(int folder, const char *path, int flags, ...) {            \
        REAL(int, #name, int, const char *, int, ...);                  \
        va_list rest; va_start(rest, flags);                            \
        mode_t mode = va_arg(rest, mode_t);                             \
        va_end(rest);                                                   \
        if (wanted[0]) FAIL("open", path_is_below(folder, path));       \
        return real(folder, path, flags, mode);                         \
    }
OPENAT(openat)
OPENAT(openat64)
