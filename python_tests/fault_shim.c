// Preloaded into a process, makes one call of those that change files below a folder fail, or be its last.
//
// fault_arm(folder, at, error, mode): the at-th call (from 1) sets errno to `error` and fails. With error 0 the process
// gets SIGKILL there instead: before the call (mode 0) or after it, a write being cut in half (mode 1). With mode 2
// every later call fails too, as on a full disk. fault_arm(folder, 0, 0, 0) only counts; fault_calls() tells.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char folder[4096];
static long at, calls;
static int error_number, mode, armed;

void fault_arm(const char* path, long nth, int error, int how) {
  snprintf(folder, sizeof folder, "%s", path);
  at = nth, error_number = error, mode = how, calls = 0, armed = 1;
}

long fault_calls(void) {
  armed = 0;
  return calls;
}

static int below(const char* path) { return armed && strncmp(path, folder, strlen(folder)) == 0; }

static int is_below(int fd) {
  char link[64], path[4096];
  if (!armed) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return below(path);
}

// 0: go on, 1: fail, 2: die after the call.
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

#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))
#define AFTER(what, result) \
  if ((what) == 2) kill(getpid(), SIGKILL); \
  return result

ssize_t write(int fd, const void* data, size_t size) {
  const int what = is_below(fd) ? next_call() : 0;
  if (what == 1) return -1;
  const ssize_t done = REAL("write", ssize_t(*)(int, const void*, size_t))(fd, data, what == 2 ? size / 2 : size);
  AFTER(what, done);
}

ssize_t pwrite64(int fd, const void* data, size_t size, off_t offset) {
  const int what = is_below(fd) ? next_call() : 0;
  if (what == 1) return -1;
  const ssize_t done =
      REAL("pwrite64", ssize_t(*)(int, const void*, size_t, off_t))(fd, data, what == 2 ? size / 2 : size, offset);
  AFTER(what, done);
}

ssize_t pwrite(int fd, const void* data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

#define ONE_DESCRIPTOR(name)                        \
  int name(int fd) {                                \
    const int what = is_below(fd) ? next_call() : 0; \
    if (what == 1) return -1;                       \
    const int done = REAL(#name, int (*)(int))(fd); \
    AFTER(what, done);                              \
  }
ONE_DESCRIPTOR(fsync)
ONE_DESCRIPTOR(fdatasync)

int ftruncate64(int fd, off_t size) {
  const int what = is_below(fd) ? next_call() : 0;
  if (what == 1) return -1;
  const int done = REAL("ftruncate64", int (*)(int, off_t))(fd, size);
  AFTER(what, done);
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int unlink(const char* path) {
  const int what = below(path) ? next_call() : 0;
  if (what == 1) return -1;
  const int done = REAL("unlink", int (*)(const char*))(path);
  AFTER(what, done);
}

int rename(const char* from, const char* to) {
  const int what = below(from) || below(to) ? next_call() : 0;
  if (what == 1) return -1;
  const int done = REAL("rename", int (*)(const char*, const char*))(from, to);
  AFTER(what, done);
}
