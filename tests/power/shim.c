/* Records, in order, what a process does to the files below one directory.
 *
 * Preloaded (LD_PRELOAD), it stands before libc: each call that changes a file, or makes a change
 * durable, goes to the system first and is then written to a log, under one lock, so that the log
 * has the order in which the system saw the calls. What the calls meant is for tests/power/disk.py
 * to say. POWER_DIRECTORY is watched, POWER_LOG is written.
 *
 * Which file a descriptor belongs to is asked of the kernel at each call (its path, inode and
 * flags), so that there is no table of descriptors to be wrong after a dup or a close.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind {
    WRITE = 'w', RESIZE = 't', ALLOCATE = 'a', SYNC = 's', SYNC_DIRECTORY = 'd', SYNC_ALL = 'S',
    CREATE = 'c', LINK = 'l', RENAME = 'r', UNLINK = 'u', MARK = 'm', MAPPED = 'M',
    UNKNOWN = '?'
};

struct __attribute__((packed)) header {
    uint8_t kind;
    uint8_t synchronous; /* the descriptor was opened with O_DSYNC or O_SYNC */
    uint16_t first_bytes, second_bytes;
    uint64_t inode, offset, data_bytes;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char directory[PATH_MAX];
static size_t directory_bytes;
static int log_descriptor = -1;

static void fail(const char *what)
{
    dprintf(2, "power shim: %s: %s\n", what, strerror(errno));
    _exit(99);
}

__attribute__((constructor)) static void start(void)
{
    const char *watched = getenv("POWER_DIRECTORY"), *path = getenv("POWER_LOG");
    if (watched == NULL || path == NULL)
        return;
    snprintf(directory, sizeof directory, "%s/", watched);
    directory_bytes = strlen(directory);
    log_descriptor = syscall(SYS_openat, AT_FDCWD, path,
                             O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_descriptor < 0)
        fail("cannot open the log");
}

static void put(const void *data, size_t bytes)
{
    for (const char *at = data; bytes;) {
        ssize_t done = syscall(SYS_write, log_descriptor, at, bytes);
        if (done < 0)
            fail("cannot write the log");
        at += done, bytes -= done;
    }
}

static void record_vector(struct header header, const char *first, const char *second,
                          const struct iovec *parts, int count)
{
    int error = errno;
    uint64_t left = header.data_bytes;
    header.first_bytes = first ? strlen(first) : 0;
    header.second_bytes = second ? strlen(second) : 0;
    put(&header, sizeof header);
    put(first, header.first_bytes);
    put(second, header.second_bytes);
    for (int i = 0; i < count && left; i++) {
        size_t bytes = parts[i].iov_len < left ? parts[i].iov_len : left;
        put(parts[i].iov_base, bytes);
        left -= bytes;
    }
    errno = error;
}

static void record(struct header header, const char *first, const char *second)
{
    record_vector(header, first, second, NULL, 0);
}

/* Make the absolute name of a path; true if it lies below the directory that is watched. */
static int resolve(int at, const char *path, char *name)
{
    char base[PATH_MAX], link[64];
    if (log_descriptor < 0 || path == NULL)
        return 0;
    if (path[0] == '/') {
        snprintf(name, PATH_MAX, "%s", path);
    } else {
        if (at == AT_FDCWD)
            snprintf(link, sizeof link, "/proc/self/cwd");
        else
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
        ssize_t bytes = readlink(link, base, sizeof base - 1);
        if (bytes < 0)
            return 0;
        base[bytes] = 0;
        if (snprintf(name, PATH_MAX, "%s/%s", base, path) >= PATH_MAX)
            return 0;
    }
    return strncmp(name, directory, directory_bytes) == 0;
}

static int descriptor_name(int descriptor, char *name)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t bytes = readlink(link, name, PATH_MAX - 1);
    if (bytes < 0)
        return 0;
    name[bytes] = 0;
    return 1;
}

/* Begin the record of a call on a descriptor; true if it is one of a file that is watched. */
static int watched(int descriptor, struct header *header, enum kind kind)
{
    char name[PATH_MAX];
    struct stat status;
    int error = errno, flags, found = 0;
    if (log_descriptor >= 0 && descriptor >= 0 && descriptor_name(descriptor, name)
        && strncmp(name, directory, directory_bytes) == 0 && fstat(descriptor, &status) == 0
        && S_ISREG(status.st_mode)) {
        flags = fcntl(descriptor, F_GETFL);
        *header = (struct header){ .kind = kind, .inode = status.st_ino,
                                   .synchronous = (flags & (O_DSYNC | O_SYNC)) != 0 };
        found = 1;
    }
    errno = error;
    return found;
}

static uint64_t position(int descriptor)
{
    if (fcntl(descriptor, F_GETFL) & O_APPEND) {
        struct stat status;
        return fstat(descriptor, &status) == 0 ? status.st_size : 0;
    }
    return lseek(descriptor, 0, SEEK_CUR);
}

#define NEXT(type, name, ...)                                            \
    static type (*next)(__VA_ARGS__);                                    \
    if (next == NULL)                                                    \
        next = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

/* ---- data ---- */

#define WRITES(name, offset_of, call, parts, count, ...)                 \
    {                                                                    \
        struct header header;                                            \
        NEXT(ssize_t, #name, __VA_ARGS__);                               \
        if (!watched(descriptor, &header, WRITE))                        \
            return call;                                                 \
        pthread_mutex_lock(&lock);                                       \
        header.offset = offset_of;                                       \
        ssize_t done = call;                                             \
        if (done > 0) {                                                  \
            header.data_bytes = done;                                    \
            record_vector(header, NULL, NULL, parts, count);             \
        }                                                                \
        pthread_mutex_unlock(&lock);                                     \
        return done;                                                     \
    }

#define ONE (&(struct iovec){ (void *)data, bytes })

ssize_t write(int descriptor, const void *data, size_t bytes)
    WRITES(write, position(descriptor), next(descriptor, data, bytes), ONE, 1,
           int, const void *, size_t)
ssize_t writev(int descriptor, const struct iovec *parts, int count)
    WRITES(writev, position(descriptor), next(descriptor, parts, count), parts, count,
           int, const struct iovec *, int)
ssize_t pwrite(int descriptor, const void *data, size_t bytes, off_t offset)
    WRITES(pwrite, offset, next(descriptor, data, bytes, offset), ONE, 1,
           int, const void *, size_t, off_t)
ssize_t pwrite64(int descriptor, const void *data, size_t bytes, off64_t offset)
    WRITES(pwrite64, offset, next(descriptor, data, bytes, offset), ONE, 1,
           int, const void *, size_t, off64_t)
ssize_t pwritev(int descriptor, const struct iovec *parts, int count, off_t offset)
    WRITES(pwritev, offset, next(descriptor, parts, count, offset), parts, count,
           int, const struct iovec *, int, off_t)
ssize_t pwritev64(int descriptor, const struct iovec *parts, int count, off64_t offset)
    WRITES(pwritev64, offset, next(descriptor, parts, count, offset), parts, count,
           int, const struct iovec *, int, off64_t)

#define WITH_FLAGS                                                       \
    (header.synchronous |= (flags & (RWF_DSYNC | RWF_SYNC)) != 0,        \
     offset == -1 ? position(descriptor) : (uint64_t)offset)

ssize_t pwritev2(int descriptor, const struct iovec *parts, int count, off_t offset, int flags)
    WRITES(pwritev2, WITH_FLAGS, next(descriptor, parts, count, offset, flags), parts, count,
           int, const struct iovec *, int, off_t, int)
ssize_t pwritev64v2(int descriptor, const struct iovec *parts, int count, off64_t offset, int flags)
    WRITES(pwritev64v2, WITH_FLAGS, next(descriptor, parts, count, offset, flags), parts, count,
           int, const struct iovec *, int, off64_t, int)

/* What the kernel copied by itself is read back. */
static void record_copied(struct header header, int descriptor, ssize_t done)
{
    char link[64], *data = malloc(done);
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    int reading = syscall(SYS_openat, AT_FDCWD, link, O_RDONLY | O_CLOEXEC, 0);
    if (data == NULL || reading < 0 || pread(reading, data, done, header.offset) != done)
        fail("cannot read back what was copied");
    header.data_bytes = done;
    record_vector(header, NULL, NULL, &(struct iovec){ data, done }, 1);
    syscall(SYS_close, reading);
    free(data);
}

#define COPIES(name, descriptor, offset_of, call, ...)                   \
    {                                                                    \
        struct header header;                                            \
        NEXT(ssize_t, #name, __VA_ARGS__);                               \
        if (!watched(descriptor, &header, WRITE))                        \
            return call;                                                 \
        pthread_mutex_lock(&lock);                                       \
        header.offset = offset_of;                                       \
        ssize_t done = call;                                             \
        if (done > 0)                                                    \
            record_copied(header, descriptor, done);                     \
        pthread_mutex_unlock(&lock);                                     \
        return done;                                                     \
    }

ssize_t copy_file_range(int from, off64_t *from_offset, int to, off64_t *to_offset, size_t bytes,
                        unsigned flags)
    COPIES(copy_file_range, to, to_offset ? (uint64_t)*to_offset : position(to),
           next(from, from_offset, to, to_offset, bytes, flags),
           int, off64_t *, int, off64_t *, size_t, unsigned)
ssize_t sendfile(int to, int from, off_t *offset, size_t bytes)
    COPIES(sendfile, to, position(to), next(to, from, offset, bytes), int, int, off_t *, size_t)
ssize_t sendfile64(int to, int from, off64_t *offset, size_t bytes)
    COPIES(sendfile64, to, position(to), next(to, from, offset, bytes), int, int, off64_t *, size_t)

/* ---- size ---- */

#define CALLS(name, kind, offset_of, length, call, ...)                  \
    {                                                                    \
        struct header header;                                            \
        NEXT(int, #name, __VA_ARGS__);                                   \
        if (!watched(descriptor, &header, kind))                         \
            return call;                                                 \
        pthread_mutex_lock(&lock);                                       \
        header.offset = (offset_of) + (length);                          \
        int result = call;                                               \
        if (result == 0)                                                 \
            record(header, NULL, NULL);                                  \
        pthread_mutex_unlock(&lock);                                     \
        return result;                                                   \
    }

int ftruncate(int descriptor, off_t size)
    CALLS(ftruncate, RESIZE, size, 0, next(descriptor, size), int, off_t)
int ftruncate64(int descriptor, off64_t size)
    CALLS(ftruncate64, RESIZE, size, 0, next(descriptor, size), int, off64_t)
int posix_fallocate(int descriptor, off_t offset, off_t bytes)
    CALLS(posix_fallocate, ALLOCATE, offset, bytes, next(descriptor, offset, bytes),
          int, off_t, off_t)
int posix_fallocate64(int descriptor, off64_t offset, off64_t bytes)
    CALLS(posix_fallocate64, ALLOCATE, offset, bytes, next(descriptor, offset, bytes),
          int, off64_t, off64_t)
int fallocate(int descriptor, int mode, off_t offset, off_t bytes)
    CALLS(fallocate, mode ? UNKNOWN : ALLOCATE, offset, bytes,
          next(descriptor, mode, offset, bytes), int, int, off_t, off_t)
int fallocate64(int descriptor, int mode, off64_t offset, off64_t bytes)
    CALLS(fallocate64, mode ? UNKNOWN : ALLOCATE, offset, bytes,
          next(descriptor, mode, offset, bytes), int, int, off64_t, off64_t)

static int truncate_path(const char *path, off_t size)
{
    int descriptor = open(path, O_WRONLY | O_CLOEXEC), result = -1;
    if (descriptor >= 0) {
        result = ftruncate(descriptor, size);
        close(descriptor);
    }
    return result;
}

int truncate(const char *path, off_t size) { return truncate_path(path, size); }
int truncate64(const char *path, off64_t size) { return truncate_path(path, size); }

/* ---- durability ---- */

static int synchronise(int descriptor, int (*next)(int))
{
    char name[PATH_MAX];
    struct stat status;
    struct header header;
    int file = watched(descriptor, &header, SYNC), found = file;
    if (!file && log_descriptor >= 0 && fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode)
        && descriptor_name(descriptor, name)) {
        header = (struct header){ .kind = SYNC_DIRECTORY };
        /* The directory itself has no slash at its end. */
        found = strncmp(name, directory, directory_bytes - 1) == 0;
    }
    if (!found)
        return next(descriptor);
    pthread_mutex_lock(&lock);
    int result = next(descriptor);
    if (result == 0)
        record(header, file ? NULL : name, NULL);
    pthread_mutex_unlock(&lock);
    return result;
}

int fdatasync(int descriptor)
{
    NEXT(int, "fdatasync", int);
    return synchronise(descriptor, next);
}

int fsync(int descriptor)
{
    NEXT(int, "fsync", int);
    return synchronise(descriptor, next);
}

int syncfs(int descriptor)
{
    NEXT(int, "syncfs", int);
    int result = next(descriptor);
    if (log_descriptor >= 0 && result == 0) {
        pthread_mutex_lock(&lock);
        record((struct header){ .kind = SYNC_ALL }, NULL, NULL);
        pthread_mutex_unlock(&lock);
    }
    return result;
}

/* A writable map changes files behind our back: that must be seen, if only to give up. */
#define MAPS(name, type)                                                             \
    void *name(void *address, size_t bytes, int protection, int flags, int descriptor, type offset) \
    {                                                                                \
        struct header header;                                                        \
        NEXT(void *, #name, void *, size_t, int, int, int, type);                    \
        void *map = next(address, bytes, protection, flags, descriptor, offset);     \
        if (descriptor >= 0 && (protection & PROT_WRITE) && (flags & MAP_SHARED)     \
            && watched(descriptor, &header, MAPPED)) {                               \
            pthread_mutex_lock(&lock);                                               \
            record(header, NULL, NULL);                                              \
            pthread_mutex_unlock(&lock);                                             \
        }                                                                            \
        return map;                                                                  \
    }

MAPS(mmap, off_t)
MAPS(mmap64, off64_t)

/* ---- names ---- */

static int open_at(int at, const char *path, int flags, mode_t mode, const char *function)
{
    int (*next)(int, const char *, int, ...) = dlsym(RTLD_NEXT, function);
    char name[PATH_MAX];
    struct stat status;
    int error = errno;
    if (!(flags & (O_CREAT | O_TRUNC)) || !resolve(at, path, name))
        return next(at, path, flags, mode);
    pthread_mutex_lock(&lock);
    int existed = fstatat(AT_FDCWD, name, &status, AT_SYMLINK_NOFOLLOW) == 0;
    errno = error;
    int descriptor = next(at, path, flags, mode);
    struct header header;
    if (descriptor >= 0 && watched(descriptor, &header, existed ? RESIZE : CREATE)) {
        if (!existed)
            record(header, name, NULL);
        else if (flags & O_TRUNC)
            record(header, NULL, NULL);
    }
    pthread_mutex_unlock(&lock);
    return descriptor;
}

#define MODE                                                             \
    mode_t mode = 0;                                                     \
    if (flags & (O_CREAT | O_TMPFILE)) {                               \
        va_list rest;                                                    \
        va_start(rest, flags);                                           \
        mode = va_arg(rest, mode_t);                                     \
        va_end(rest);                                                    \
    }

int open(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode, "openat"); }
int open64(const char *path, int flags, ...) { MODE return open_at(AT_FDCWD, path, flags, mode, "openat64"); }
int openat(int at, const char *path, int flags, ...) { MODE return open_at(at, path, flags, mode, "openat"); }
int openat64(int at, const char *path, int flags, ...) { MODE return open_at(at, path, flags, mode, "openat64"); }
int creat(const char *path, mode_t mode)
{
    return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode, "openat");
}

/* A change of names: the inode that gets or loses one, and the names. */
#define RENAMES(function, what, at, path, at_new, path_new, looked_at, call, ...)    \
    {                                                                                \
        char name[PATH_MAX], renamed[PATH_MAX];                                      \
        struct stat status;                                                          \
        NEXT(int, #function, __VA_ARGS__);                                           \
        int known = resolve(at, path, name) && resolve(at_new, path_new, renamed);   \
        if (!known)                                                                  \
            return call;                                                             \
        pthread_mutex_lock(&lock);                                                   \
        int error = errno, there = fstatat(AT_FDCWD, name, &status, AT_SYMLINK_NOFOLLOW) == 0; \
        errno = error;                                                               \
        int result = call;                                                           \
        if (result == 0 && there)                                                    \
            record((struct header){ .kind = what, .inode = status.st_ino }, name,    \
                   looked_at ? renamed : NULL);                                      \
        pthread_mutex_unlock(&lock);                                                 \
        return result;                                                               \
    }

int rename(const char *old, const char *new)
    RENAMES(rename, RENAME, AT_FDCWD, old, AT_FDCWD, new, 1, next(old, new),
            const char *, const char *)
int renameat(int at, const char *old, int at_new, const char *new)
    RENAMES(renameat, RENAME, at, old, at_new, new, 1, next(at, old, at_new, new),
            int, const char *, int, const char *)
int renameat2(int at, const char *old, int at_new, const char *new, unsigned flags)
    RENAMES(renameat2, (flags & ~RENAME_NOREPLACE) ? UNKNOWN : RENAME, at, old, at_new, new, 1,
            next(at, old, at_new, new, flags), int, const char *, int, const char *, unsigned)
int link(const char *old, const char *new)
    RENAMES(link, LINK, AT_FDCWD, old, AT_FDCWD, new, 1, next(old, new), const char *, const char *)
int linkat(int at, const char *old, int at_new, const char *new, int flags)
    RENAMES(linkat, LINK, at, old, at_new, new, 1, next(at, old, at_new, new, flags),
            int, const char *, int, const char *, int)
int unlink(const char *path)
    RENAMES(unlink, UNLINK, AT_FDCWD, path, AT_FDCWD, path, 0, next(path), const char *)
int unlinkat(int at, const char *path, int flags)
    RENAMES(unlinkat, UNLINK, at, path, at, path, 0, next(at, path, flags), int, const char *, int)

/* ---- marks ---- */

/* Note in the log what the workload has just been promised. */
void power_mark(const char *data, size_t bytes)
{
    pthread_mutex_lock(&lock);
    if (log_descriptor >= 0)
        record_vector((struct header){ .kind = MARK, .data_bytes = bytes }, NULL, NULL,
                      &(struct iovec){ (void *)data, bytes }, 1);
    pthread_mutex_unlock(&lock);
}
