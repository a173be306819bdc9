/* Makes the disk of one folder fail: loaded into a phiward process by LD_PRELOAD, in tests only (tests/faults).
 *
 * PHIWARD_FAULT_DIR names the folder; PHIWARD_FAULT_CONTROL a file of the numbers below, which the test changes while the
 * process runs and this maps. PHIWARD_FAULT_SYNCED is a file to which this appends what has reached the disk, so that the test
 * can take the rest away as a power failure would. Calls on files outside the folder pass untouched.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <signal.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Keep in step with `disk.rs`. */
struct control {
  uint32_t loaded;         /* set here: the shim is in the process */
  uint32_t write_errno;    /* what a write fails with; 0: it does not */
  uint32_t write_left;     /* how many writes fail; all ones: every one */
  uint32_t write_takes;    /* bytes that the first of them takes before, as a disk does that is filling up */
  uint32_t sync_errno;     /* what fdatasync and fsync fail with */
  uint32_t sync_left;
  uint32_t sync_delay_ms;  /* how long they take before */
  uint32_t create_errno;   /* what making a file fails with */
  uint32_t truncate_errno; /* what cutting a file fails with */
  uint32_t short_writes;   /* this many writes take half of what they are given */
  uint32_t interrupts;     /* this many writes fail with EINTR */
  uint32_t writes_failed;  /* counted here */
  uint32_t syncs_failed;   /* counted here */
};

static struct control none;
static struct control *control = &none;
static const char *folder;
static size_t folder_length;
static int synced_log = -1;

static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);
static int (*real_fdatasync)(int);
static int (*real_fsync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_open)(const char *, int, ...);
static int (*real_openat)(int, const char *, int, ...);
static int (*real_rename)(const char *, const char *);

__attribute__((constructor)) static void load(void) {
  real_write = dlsym(RTLD_NEXT, "write");
  real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
  real_writev = dlsym(RTLD_NEXT, "writev");
  real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
  real_fsync = dlsym(RTLD_NEXT, "fsync");
  real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
  real_open = dlsym(RTLD_NEXT, "open64");
  real_openat = dlsym(RTLD_NEXT, "openat64");
  real_rename = dlsym(RTLD_NEXT, "rename");
  prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that is killed leaves nothing running */
  const char *path = getenv("PHIWARD_FAULT_CONTROL");
  folder = getenv("PHIWARD_FAULT_DIR");
  if (!path || !folder) return;
  folder_length = strlen(folder);
  const char *log = getenv("PHIWARD_FAULT_SYNCED");
  if (log) synced_log = real_open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  int fd = real_open(path, O_RDWR | O_CLOEXEC);
  void *mapped = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof none, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) {
    fprintf(stderr, "shim: the control file %s cannot be mapped\n", path);
    _exit(99);
  }
  close(fd);
  control = mapped;
  __atomic_store_n(&control->loaded, 1, __ATOMIC_SEQ_CST);
}

static uint32_t look(uint32_t *number) { return __atomic_load_n(number, __ATOMIC_SEQ_CST); }

/* Takes one of `left`, of which all ones never run out. */
static int one_of(uint32_t *left) {
  uint32_t now = look(left);
  while (now != 0) {
    uint32_t next = now == UINT32_MAX ? now : now - 1;
    if (__atomic_compare_exchange_n(left, &now, next, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return 1;
  }
  return 0;
}

static int inside(const char *path) { return folder && !strncmp(path, folder, folder_length); }

static int path_of(int fd, char path[PATH_MAX]) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return inside(path);
}

static int on_folder(int fd) {
  char path[PATH_MAX];
  return path_of(fd, path);
}

/* How many bytes of a write may be written; -1 with errno when it fails. */
static ssize_t allowed(int fd, size_t count) {
  int armed = look(&control->write_errno) || look(&control->short_writes) || look(&control->interrupts);
  if (!armed || count == 0 || !on_folder(fd)) return count;
  if (one_of(&control->interrupts)) {
    errno = EINTR;
    return -1;
  }
  if (look(&control->write_errno) && look(&control->write_left)) {
    uint32_t takes = __atomic_exchange_n(&control->write_takes, 0, __ATOMIC_SEQ_CST);
    if (takes > 0 && takes < count) return takes;
    if (one_of(&control->write_left)) {
      __atomic_add_fetch(&control->writes_failed, 1, __ATOMIC_SEQ_CST);
      errno = look(&control->write_errno);
      return -1;
    }
  }
  if (count > 1 && one_of(&control->short_writes)) return count / 2;
  return count;
}

ssize_t write(int fd, const void *bytes, size_t count) {
  ssize_t length = allowed(fd, count);
  return length < 0 ? -1 : real_write(fd, bytes, length);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off_t at) {
  ssize_t length = allowed(fd, count);
  return length < 0 ? -1 : real_pwrite(fd, bytes, length, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  size_t total = 0;
  for (int i = 0; i < count; i++) total += parts[i].iov_len;
  ssize_t length = allowed(fd, total);
  if (length < 0) return -1;
  if ((size_t)length == total) return real_writev(fd, parts, count);
  return real_write(fd, parts[0].iov_base, (size_t)length < parts[0].iov_len ? (size_t)length : parts[0].iov_len);
}

static void note(const char *lines, size_t length) {
  if (synced_log >= 0 && real_write(synced_log, lines, length) < 0) abort();
}

/* What is durable once a sync that begins now has succeeded: a file's length, or the entries of a folder. */
static size_t durable(int fd, const char *path, char *lines, size_t room) {
  struct stat found;
  if (fstat(fd, &found)) return 0;
  if (!S_ISDIR(found.st_mode)) return snprintf(lines, room, "length %lld %s\n", (long long)found.st_size, path);
  size_t length = 0;
  DIR *entries = opendir(path);
  for (struct dirent *entry; entries && (entry = readdir(entries)) && length < room - PATH_MAX;)
    length += snprintf(lines + length, room - length, "entry %s/%s\n", path, entry->d_name);
  if (entries) closedir(entries);
  return length;
}

static int synced(int fd, int (*real)(int)) {
  char path[PATH_MAX], lines[16 * PATH_MAX];
  if (!path_of(fd, path)) return real(fd);
  uint32_t delay = look(&control->sync_delay_ms);
  struct timespec pause = {delay / 1000, (delay % 1000) * 1000000L};
  nanosleep(&pause, NULL);
  if (look(&control->sync_errno) && one_of(&control->sync_left)) {
    __atomic_add_fetch(&control->syncs_failed, 1, __ATOMIC_SEQ_CST);
    errno = look(&control->sync_errno);
    return -1;
  }
  size_t length = durable(fd, path, lines, sizeof lines);
  int outcome = real(fd);
  if (!outcome) note(lines, length);
  return outcome;
}

int fdatasync(int fd) { return synced(fd, real_fdatasync); }
int fsync(int fd) { return synced(fd, real_fsync); }

int ftruncate64(int fd, off_t length) {
  if (look(&control->truncate_errno) && on_folder(fd)) {
    errno = look(&control->truncate_errno);
    return -1;
  }
  return real_ftruncate(fd, length);
}

int rename(const char *from, const char *to) {
  int outcome = real_rename(from, to);
  char line[3 * PATH_MAX];
  if (!outcome && inside(from) && inside(to)) note(line, snprintf(line, sizeof line, "moved %s %s\n", from, to));
  return outcome;
}

static int may_create(const char *path, int flags) {
  if (!(flags & O_CREAT) || !look(&control->create_errno) || !inside(path) || access(path, F_OK) == 0) return 1;
  errno = look(&control->create_errno);
  return 0;
}

static mode_t mode_of(int flags, va_list rest) { return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; }

int open64(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = mode_of(flags, rest);
  va_end(rest);
  return may_create(path, flags) ? real_open(path, flags, mode) : -1;
}

int openat64(int dir, const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = mode_of(flags, rest);
  va_end(rest);
  return may_create(path, flags) ? real_openat(dir, path, flags, mode) : -1;
}
