/*
 * What somebody loads into Postgres who wants out. Tries everything when it is loaded, and writes what came of each try into a
 * file: a name, and `done` or the error. Loaded with MODE other than `try` it does one destructive thing instead.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/vm_sockets.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static FILE *report;

static void told(const char *what, long result) {
    const char *name = result < 0 ? strerrorname_np(errno) : "done";
    fprintf(report, "%s %s\n", what, name ? name : "?");
    fflush(report);
}

static long dial(int family, const void *address, socklen_t length) {
    int fd = socket(family, SOCK_STREAM, 0);
    if (fd < 0) return -1;
    long result = connect(fd, address, length);
    int error = errno;
    close(fd);
    errno = error;
    return result;
}

static long dial_unix(const char *path, int abstract) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length + 2 > sizeof address.sun_path) { errno = ENAMETOOLONG; return -1; }
    memcpy(address.sun_path + abstract, path, length);
    return dial(AF_UNIX, &address, offsetof(struct sockaddr_un, sun_path) + abstract + length);
}

static long dial_tcp(uint32_t host, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(host)};
    return dial(AF_INET, &address, sizeof address);
}

static long opened(const char *path, int flags) {
    int fd = open(path, flags, 0600);
    if (fd >= 0) close(fd);
    return fd;
}

static void network(const char *prefix) {
    char name[64];
#define NAMED(what) (snprintf(name, sizeof name, "%s%s", prefix, what), name)
    long result = dial_tcp(INADDR_LOOPBACK, PORT);
    told(NAMED("tcp"), result);
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons(PORT), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    result = dial(AF_INET6, &six, sizeof six);
    told(NAMED("tcp6"), result);
    result = dial_tcp(0x08080808, 53);
    told(NAMED("tcp_far"), result);
    result = dial_unix(ABSTRACT, 1);
    told(NAMED("abstract"), result);
    struct sockaddr_vm vm = {.svm_family = AF_VSOCK, .svm_port = 22, .svm_cid = VMADDR_CID_HOST};
    result = dial(AF_VSOCK, &vm, sizeof vm);
    told(NAMED("vsock"), result);
}

static void files(const char *prefix) {
    char name[64];
    long result = opened(FOLDER, O_RDONLY);
    told(NAMED("folder"), result);
    result = opened("/proc/1/root" FOLDER, O_RDONLY);
    told(NAMED("folder_of_first"), result);
    result = dial_unix(FOLDER "/safekeeper.sock", 0);
    told(NAMED("safekeeper"), result);
    const char *places[] = {"/usr/x", "/etc/x", "/x", "/ardent/x", "/ardent/lib/x", POLICY, LIBRARY,
        "/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/vm/drop_caches", "/sys/fs/cgroup/x", "/dev/mem",
        "/dev/kmsg", "/proc/1/mem"};
    for (size_t place = 0; place < sizeof places / sizeof *places; place++) {
        char long_name[256];
        snprintf(long_name, sizeof long_name, "%swrite:%s", prefix, places[place]);
        result = opened(places[place], O_WRONLY | (places[place][1] == 'p' ? 0 : O_CREAT));
        told(long_name, result);
    }
    result = opened("/proc/1/environ", O_RDONLY);
    told(NAMED("environment_of_first"), result);
    result = mknod("/tmp/disk", S_IFBLK | 0600, 8 << 8);
    told(NAMED("mknod"), result);
    struct { struct file_handle head; char room[128]; } handle = {.head.handle_bytes = 128};
    int mount_id;
    result = name_to_handle_at(AT_FDCWD, "/usr", &handle.head, &mount_id, 0);
    if (result == 0) result = open_by_handle_at(AT_FDCWD, &handle.head, O_RDONLY);
    told(NAMED("open_by_handle"), result);
    result = mount("/usr", "/usr", NULL, MS_REMOUNT | MS_BIND, NULL);
    told(NAMED("remount_usr"), result);
    result = umount2("/proc", MNT_DETACH);
    told(NAMED("umount_proc"), result);
    result = umount2("/usr", MNT_DETACH);
    told(NAMED("umount_usr"), result);
}

/* Last of all: from then on no path leads where it did. */
static void other_root(const char *what) {
    told(what, mkdir("/tmp/inner", 0700) == 0 || errno == EEXIST ? chroot("/tmp/inner") : -1);
}

static void privileges(void) {
    other_root("chroot");
    told("setuid", setuid(0));
    told("setgid", setgid(0));
    told("setgroups", syscall(SYS_setgroups, 0, NULL));
    struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct all[2] = {{~0u, ~0u, 0}, {~0u, ~0u, 0}};
    told("capset", syscall(SYS_capset, &head, all));
    told("mount", mount("none", "/tmp", "tmpfs", 0, NULL));
    told("unshare_mount", unshare(CLONE_NEWNS));
    told("unshare_net", unshare(CLONE_NEWNET));
    int fd = open("/proc/1/ns/net", O_RDONLY);
    told("join_first_net", fd < 0 ? -1 : setns(fd, 0));
    fd = open("/proc/1/ns/mnt", O_RDONLY);
    told("join_first_mount", fd < 0 ? -1 : setns(fd, 0));
    told("reboot", syscall(SYS_reboot, 0, 0, 0, NULL));
    told("load_module", syscall(SYS_init_module, "", 0L, ""));
    told("bpf", syscall(SYS_bpf, 5, NULL, 0));
    told("kexec", syscall(SYS_kexec_load, 0L, 0L, NULL, 0L));
    told("swapon", syscall(SYS_swapon, "/tmp/x", 0));
    told("set_clock", settimeofday(&(struct timeval){.tv_sec = 1}, NULL));
    told("sethostname", sethostname("x", 1));
    told("raw_socket", socket(AF_INET, SOCK_RAW, 255));
    told("packet_socket", socket(AF_PACKET, SOCK_RAW, 0));
    /* It would make sockets of any family. Room for its parameters. */
    char ring[120] = {0};
    told("ring", syscall(SYS_io_uring_setup, 1, ring));
}

static void processes(void) {
    told("kill", kill(OUTSIDE_PID, SIGKILL));
    told("ptrace", ptrace(PTRACE_ATTACH, OUTSIDE_PID, NULL, NULL));
    char byte;
    struct iovec here = {&byte, 1}, there = {(void *)0x400000, 1};
    told("read_memory", process_vm_readv(OUTSIDE_PID, &here, 1, &there, 1, 0));
    told("ptrace_first", ptrace(PTRACE_ATTACH, 1, NULL, NULL));
    told("kill_first", kill(1, SIGKILL));
    told("terminal", opened("/dev/tty", O_RDWR));
}

/* In a user namespace of one's own there are all privileges, over nothing that is not one's own. */
static void in_a_namespace(void) {
    pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
        long result = unshare(CLONE_NEWUSER | CLONE_NEWNS);
        told("namespace", result);
        if (result == 0) {
            files("namespace_");
            network("namespace_");
            told("namespace_kill", kill(OUTSIDE_PID, SIGKILL));
            told("namespace_raw_socket", socket(AF_INET, SOCK_RAW, 255));
            told("namespace_join_first_net", ({ int fd = open("/proc/1/ns/net", O_RDONLY); fd < 0 ? -1 : setns(fd, 0); }));
            other_root("namespace_chroot");
        }
        _exit(0);
    }
    waitpid(child, NULL, 0);
}

/* The secret's beginning, each byte another one, so that it is not found where it is searched with. */
static const unsigned char needle[] = {NEEDLE};

static int has_needle(const unsigned char *from, size_t length) {
    for (size_t at = 0; at + sizeof needle <= length; at++) {
        size_t same = 0;
        while (same < sizeof needle && (from[at + same] ^ 0x55) == needle[same]) same++;
        if (same == sizeof needle) return 1;
    }
    return 0;
}

static int in_file(const char *path) {
    static unsigned char room[1 << 20];
    int fd = open(path, O_RDONLY | O_NONBLOCK), found = 0;
    if (fd < 0) return 0;
    for (size_t kept = 0;;) {
        ssize_t count = read(fd, room + kept, sizeof room - kept);
        if (count <= 0) break;
        found |= has_needle(room, kept + count);
        kept = kept + count < sizeof needle ? kept + count : sizeof needle - 1;
        memmove(room, room + count, kept);
    }
    close(fd);
    return found;
}

static void secrets(void) {
    int found = 0, looked = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        char mode[5];
        if (sscanf(line, "%lx-%lx %4s", &start, &end, mode) != 3 || mode[0] != 'r' || strstr(line, "[v")) continue;
        /* Through the kernel: pages behind a file's end are no reason to die. */
        for (unsigned long at = start; at < end; at += 1 << 16) {
            static unsigned char copy[(1 << 16) + 64];
            size_t want = end - at < sizeof copy ? end - at : sizeof copy;
            struct iovec here = {copy, want}, there = {(void *)at, want};
            ssize_t count = process_vm_readv(getpid(), &here, 1, &there, 1, 0);
            if (count > 0) { found |= has_needle(copy, count); looked++; }
        }
    }
    fprintf(report, "secret_in_memory %s\n", !looked ? "unread" : found ? "done" : "none");
    DIR *all = opendir("/proc");
    found = 0, looked = 0;
    for (struct dirent *entry; all && (entry = readdir(all));) {
        char path[300];
        if (atoi(entry->d_name) == 0) continue;
        const char *names[] = {"environ", "cmdline", "auxv"};
        for (int name = 0; name < 3; name++) {
            snprintf(path, sizeof path, "/proc/%s/%s", entry->d_name, names[name]);
            found |= in_file(path);
            looked++;
        }
    }
    fprintf(report, "secret_of_processes %s\n", !looked ? "unread" : found ? "done" : "none");
}

/* A folder or file that somebody left open is a way out. */
static void descriptors(void) {
    for (int fd = 0; fd < 1024; fd++) {
        char link[64], path[512];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = readlink(link, path, sizeof path - 1);
        if (length <= 0) continue;
        path[length] = 0;
        struct stat about;
        if (fstat(fd, &about) == 0 && S_ISDIR(about.st_mode))
            fprintf(report, "open_folder:%s done\n", path);
        else if (path[0] == '/')
            fprintf(report, "open_file:%s seen\n", path);
    }
}

__attribute__((constructor)) static void loaded(void) {
    if (strcmp(MODE, "kill") == 0) {
        kill(-1, SIGKILL);
        return;
    }
    if (strcmp(MODE, "fill") == 0) {
        /* Nothing but being ended ends it, or all of the memory that was asked for. */
        for (long filled = 0; filled < FILL_MB; filled++) {
            char *part = malloc(1 << 20);
            if (!part) return;
            memset(part, 1, 1 << 20);
        }
        return;
    }
    if (strcmp(MODE, "fork") == 0) {
        for (int made = 0; made < 5000; made++) {
            pid_t child = fork();
            if (child == 0) { pause(); _exit(0); }
            if (child < 0) break;
        }
        return;
    }
    report = fopen("/ardent/data/escape.report", "w");
    if (!report) return;
    descriptors();
    network("");
    files("");
    privileges();
    processes();
    in_a_namespace();
    secrets();
    fprintf(report, "finished none\n");
    fclose(report);
}
