/* The CPU quota of our cgroup, version 2 (cpu.max) or 1 (cpu.cfs_quota_us and cpu.cfs_period_us). */
#include "terra/topology.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NO_QUOTA = 0 };

static bool read_text(const char *dir, const char *file, char *text, size_t size) {
    char path[PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    FILE *stream = fopen(path, "re");
    if (stream == NULL)
        return false;
    size_t length = fread(text, 1, size - 1, stream);
    fclose(stream);
    text[length] = '\0';
    return length > 0;
}

static int ceil_threads(long long quota_us, long long period_us) {
    if (quota_us <= 0 || period_us <= 0)
        return NO_QUOTA;
    long long threads = (quota_us + period_us - 1) / period_us;
    return threads < INT_MAX ? (int) threads : INT_MAX;
}

// The quota of one folder.
static int quota_of(const char *dir) {
    char text[128], period[128];
    long long quota_us, period_us;
    if (read_text(dir, "cpu.max", text, sizeof text)) // "max 100000" has no number: no quota
        return sscanf(text, "%lld %lld", &quota_us, &period_us) == 2 ? ceil_threads(quota_us, period_us) : NO_QUOTA;
    if (read_text(dir, "cpu.cfs_quota_us", text, sizeof text) && read_text(dir, "cpu.cfs_period_us", period, sizeof period))
        return ceil_threads(atoll(text), atoll(period));
    return NO_QUOTA;
}

static int least(int a, int b) {
    return a == NO_QUOTA || (b != NO_QUOTA && b < a) ? b : a;
}

// `root`/`path` and all its ancestors down to `root`. In a container without its own cgroup namespace the path names
// folders that aren't mounted: then only `root` counts.
static int least_quota(const char *root, const char *path) {
    char dir[PATH_MAX];
    int found = NO_QUOTA;
    if ((size_t) snprintf(dir, sizeof dir, "%s%s", root, path) >= sizeof dir)
        return quota_of(root);
    size_t root_length = strlen(root);
    while (strlen(dir) >= root_length) {
        found = least(found, quota_of(dir));
        char *slash = strrchr(dir, '/');
        if (slash == NULL || slash == dir)
            break;
        *slash = '\0';
    }
    return found;
}

// Whether "cpu" is among "cpu,cpuacct".
static bool names_cpu(const char *controllers, size_t length) {
    while (length > 0) {
        size_t word = strcspn(controllers, ",:");
        if (word == 3 && memcmp(controllers, "cpu", 3) == 0)
            return true;
        if (word >= length)
            return false;
        controllers += word + 1;
        length -= word + 1;
    }
    return false;
}

// One line: "0::/path" (version 2) or "4:cpu,cpuacct:/path" (version 1).
static int quota_of_line(const char *line, size_t length, const char *mount) {
    const char *controllers = memchr(line, ':', length);
    if (controllers == NULL)
        return NO_QUOTA;
    controllers++;
    const char *path = memchr(controllers, ':', length - (size_t) (controllers - line));
    if (path == NULL)
        return NO_QUOTA;
    size_t names = (size_t) (path - controllers);
    path++;
    char relative[PATH_MAX], root[PATH_MAX];
    snprintf(relative, sizeof relative, "%.*s", (int) (length - (size_t) (path - line)), path);
    if (names == 0) {
        snprintf(root, sizeof root, "%s/unified", mount); // where systemd's hybrid mode mounts version 2
        return least(least_quota(mount, relative), least_quota(root, relative));
    }
    if (!names_cpu(controllers, names))
        return NO_QUOTA;
    snprintf(root, sizeof root, "%s/%.*s", mount, (int) names, controllers);
    int found = least_quota(root, relative);
    snprintf(root, sizeof root, "%s/cpu", mount);
    return least(found, least_quota(root, relative));
}

int tr__cgroup_quota(const char *proc_cgroup, const char *mount) {
    int found = NO_QUOTA;
    while (*proc_cgroup != '\0') {
        size_t length = strcspn(proc_cgroup, "\n");
        found = least(found, quota_of_line(proc_cgroup, length, mount));
        proc_cgroup += length + (proc_cgroup[length] == '\n');
    }
    return found;
}
