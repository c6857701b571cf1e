/* Preloaded: write() and fsync() of files whose path has $HANG_PATH in it block as long as the
   file $HANG_WRITE or $HANG_FSYNC exists, like those of a disk that hangs. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void hang(int file, const char *variable) {
    char link[64], path[4096];
    const char *named = getenv("HANG_PATH"), *flag = getenv(variable);
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (!named || !flag || length < 0) return;
    path[length] = 0;
    while (strstr(path, named) && !access(flag, F_OK)) usleep(20000);
}
ssize_t write(int file, const void *content, size_t bytes) {
    hang(file, "HANG_WRITE");
    return syscall(SYS_write, file, content, bytes);
}
int fsync(int file) {
    hang(file, "HANG_FSYNC");
    return syscall(SYS_fsync, file);
}
