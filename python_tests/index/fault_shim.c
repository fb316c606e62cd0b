// Preloaded into a process, makes one call that touches files below a folder fail, or be its last, or be interrupted; or
// writes down what is done to them.
//
// fault_arm(folder, at, error, mode): the at-th call (from 1) sets errno to `error` and fails. With error 0 the process
// gets SIGKILL there instead: before the call (mode 0) or after it, a write being cut in half (mode 1); or SIGINT after it
// (mode 3). With mode 2 every later call fails too, as on a full disk. fault_arm(folder, 0, 0, 0) only counts;
// fault_calls() tells.
//
// fault_record(folder, log): from here on, what changes files goes to the descriptor `log`, as records of
//     operation (1 byte), length and bytes of a path, length and bytes of a second path or of data (lengths of 4 bytes)

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#include <dirent.h>

static char folder[4096];
static long at, calls;
static int error_number, mode, armed, log_fd = -1;

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))

void fault_arm(const char* path, long nth, int error, int how) {
  snprintf(folder, sizeof folder, "%s", path);
  at = nth, error_number = error, mode = how, calls = 0, armed = 1;
}

long fault_calls(void) {
  armed = 0;
  return calls;
}

void fault_record(const char* path, int log) {
  snprintf(folder, sizeof folder, "%s", path);
  at = 0, armed = 1, log_fd = log;
}

static int below(const char* path) { return armed && strncmp(path, folder, strlen(folder)) == 0; }

// The path of a descriptor, or of a name next to one.
static int path_of(int fd, const char* name, char* path, size_t room) {
  if (!armed) return 0;
  size_t size = 0;
  if (!name || name[0] != '/') {
    char link[64];
    if (fd == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t found = readlink(link, path, room - 1);
    if (found < 0) return 0;
    size = (size_t)found;
    path[size] = 0;
    if (name && !strcmp(name, ".")) name = NULL;
    if (name) path[size++] = '/';
  }
  if (name) snprintf(path + size, room - size, "%s", name);
  return below(path);
}

static void put(const void* data, size_t size) {
  ssize_t (*real)(int, const void*, size_t) = REAL("write", ssize_t(*)(int, const void*, size_t));
  while (size > 0) {
    const ssize_t done = real(log_fd, data, size);
    if (done <= 0) _exit(99);
    data = (const char*)data + done, size -= (size_t)done;
  }
}

static void record(char operation, const char* path, const void* more, size_t size) {
  if (log_fd < 0) return;
  const unsigned length = (unsigned)strlen(path), rest = (unsigned)size;
  put(&operation, 1), put(&length, 4), put(path, length), put(&rest, 4), put(more, size);
}

// 0: go on, 1: fail, 2: die or be interrupted after the call.
static int next_call(void) {
  calls++;
  if (at == 0 || calls < at || (calls > at && mode != 2)) return 0;
  if (error_number) {
    errno = error_number;
    return 1;
  }
  if (mode == 0) kill(getpid(), SIGKILL);
  return 2;
}

static void after(int what) {
  if (what == 2) kill(getpid(), mode == 3 ? SIGINT : SIGKILL);
}

ssize_t write(int fd, const void* data, size_t size) {
  char path[8192];
  const int here = fd != log_fd && path_of(fd, NULL, path, sizeof path), what = here ? next_call() : 0;
  if (what == 1) return -1;
  const size_t part = what == 2 && mode == 1 ? size / 2 : size;
  const ssize_t done = REAL("write", ssize_t(*)(int, const void*, size_t))(fd, data, part);
  if (here && done > 0) record('w', path, data, (size_t)done);
  after(what);
  return done;
}

ssize_t read(int fd, void* data, size_t size) {
  char path[8192];
  const int what = path_of(fd, NULL, path, sizeof path) ? next_call() : 0;
  if (what == 1) return -1;
  const ssize_t done = REAL("read", ssize_t(*)(int, void*, size_t))(fd, data, size);
  after(what);
  return done;
}

#define OPEN_AT(name)                                                                                          \
  int name(int fd, const char* file, int flags, ...) {                                                         \
    char path[8192];                                                                                           \
    va_list list;                                                                                              \
    va_start(list, flags);                                                                                     \
    const mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;                              \
    va_end(list);                                                                                              \
    const int here = path_of(fd, file, path, sizeof path), what = here ? next_call() : 0;                      \
    if (what == 1) return -1;                                                                                  \
    const int done = REAL("openat64", int (*)(int, const char*, int, ...))(fd, file, flags, bits);             \
    if (here && done >= 0 && flags & O_CREAT) record(flags & O_TRUNC ? 't' : 'c', path, "", 0);                \
    after(what);                                                                                               \
    return done;                                                                                               \
  }
OPEN_AT(openat)
OPEN_AT(openat64)

#define OPEN(name)                                                                \
  int name(const char* file, int flags, ...) {                                    \
    va_list list;                                                                 \
    va_start(list, flags);                                                        \
    const mode_t bits = flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0; \
    va_end(list);                                                                 \
    return openat64(AT_FDCWD, file, flags, bits);                                 \
  }
OPEN(open)
OPEN(open64)

#define MAP(name)                                                                                                 \
  void* name(void* address, size_t size, int protection, int flags, int fd, off_t offset) {                       \
    char path[8192];                                                                                              \
    const int what = fd >= 0 && path_of(fd, NULL, path, sizeof path) ? next_call() : 0;                           \
    if (what == 1) return MAP_FAILED;                                                                             \
    void* done =                                                                                                  \
        REAL("mmap64", void* (*)(void*, size_t, int, int, int, off_t))(address, size, protection, flags, fd, offset); \
    after(what);                                                                                                  \
    return done;                                                                                                  \
  }
MAP(mmap)
MAP(mmap64)

#define ONE_DESCRIPTOR(name, type, arguments, values, letter)                          \
  int name arguments {                                                                \
    char path[8192];                                                                  \
    const int here = path_of(fd, NULL, path, sizeof path), what = here ? next_call() : 0; \
    if (what == 1) return -1;                                                         \
    const int done = REAL(#name, type) values;                                        \
    if (here && done == 0 && letter) record(letter, path, "", 0);                     \
    after(what);                                                                      \
    return done;                                                                      \
  }
ONE_DESCRIPTOR(fsync, int (*)(int), (int fd), (fd), 's')
ONE_DESCRIPTOR(fdatasync, int (*)(int), (int fd), (fd), 's')
ONE_DESCRIPTOR(flock, int (*)(int, int), (int fd, int how), (fd, how), 0)
ONE_DESCRIPTOR(fstat, int (*)(int, struct stat*), (int fd, struct stat* to), (fd, to), 0)
ONE_DESCRIPTOR(fstat64, int (*)(int, struct stat64*), (int fd, struct stat64* to), (fd, to), 0)

#define STAT_AT(name, kind)                                                                       \
  int name(int fd, const char* file, struct kind* to, int flags) {                                \
    char path[8192];                                                                              \
    const int what = path_of(fd, file, path, sizeof path) ? next_call() : 0;                      \
    if (what == 1) return -1;                                                                     \
    const int done = REAL(#name, int (*)(int, const char*, struct kind*, int))(fd, file, to, flags); \
    after(what);                                                                                  \
    return done;                                                                                  \
  }
STAT_AT(fstatat, stat)
STAT_AT(fstatat64, stat64)

DIR* fdopendir(int fd) {
  char path[8192];
  const int what = path_of(fd, NULL, path, sizeof path) ? next_call() : 0;
  if (what == 1) return NULL;
  DIR* done = REAL("fdopendir", DIR* (*)(int))(fd);
  after(what);
  return done;
}

int unlinkat(int fd, const char* file, int flags) {
  char path[8192];
  const int here = path_of(fd, file, path, sizeof path), what = here ? next_call() : 0;
  if (what == 1) return -1;
  const int done = REAL("unlinkat", int (*)(int, const char*, int))(fd, file, flags);
  if (here && done == 0) record('u', path, "", 0);
  after(what);
  return done;
}

int unlink(const char* file) { return unlinkat(AT_FDCWD, file, 0); }

int mkdirat(int fd, const char* file, mode_t bits) {
  char path[8192];
  const int here = path_of(fd, file, path, sizeof path), what = here ? next_call() : 0;
  if (what == 1) return -1;
  const int done = REAL("mkdirat", int (*)(int, const char*, mode_t))(fd, file, bits);
  if (here && done == 0) record('d', path, "", 0);
  after(what);
  return done;
}

int linkat(int from, const char* file, int to, const char* name, int flags) {
  char path[8192], other[8192];
  const int here = path_of(from, file, path, sizeof path) | path_of(to, name, other, sizeof other);
  const int what = here ? next_call() : 0;
  if (what == 1) return -1;
  const int done = REAL("linkat", int (*)(int, const char*, int, const char*, int))(from, file, to, name, flags);
  if (here && done == 0) record('l', path, other, strlen(other));
  after(what);
  return done;
}

int renameat(int from, const char* file, int to, const char* name) {
  char path[8192], other[8192];
  const int here = path_of(from, file, path, sizeof path) | path_of(to, name, other, sizeof other);
  const int what = here ? next_call() : 0;
  if (what == 1) return -1;
  const int done = REAL("renameat", int (*)(int, const char*, int, const char*))(from, file, to, name);
  if (here && done == 0) record('r', path, other, strlen(other));
  after(what);
  return done;
}

int rename(const char* file, const char* name) { return renameat(AT_FDCWD, file, AT_FDCWD, name); }
